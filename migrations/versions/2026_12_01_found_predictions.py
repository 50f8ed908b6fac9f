"""Lists that are narrowed: whether a prediction violates what was expected, and indexes for errors, states and age.

Why: an expectation stands in a report of any size, and no index reads that; the errors of a prediction were found only
by the job that measured them. The column may be null, and old code does not name it, so old and new code both run while
this is applied. One transaction does it; predictions that exist are read once, a thousand at a time.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0012"
down_revision = "0006"
branch_labels = None
depends_on = None

AT_ONCE = 1000


def upgrade() -> None:
    op.add_column("predictions", sa.Column("violated", sa.Boolean(), nullable=True))
    op.create_index(op.f("ix_measurements_prediction_id"), "measurements", ["prediction_id"])
    op.create_index("ix_jobs_listed", "jobs", ["project_id", "state", "id"])
    for table in ("images", "predictions"):
        op.create_index(f"ix_{table}_listed", table, ["project_id", "id"])
    report = sa.JSON(none_as_null=True).with_variant(postgresql.JSONB(none_as_null=True), "postgresql")
    predictions = sa.table(
        "predictions", sa.column("id", sa.Uuid()), sa.column("report", report), sa.column("violated", sa.Boolean())
    )
    connection, last = op.get_bind(), None
    while True:
        query = sa.select(predictions.c.id, predictions.c.report).order_by(predictions.c.id).limit(AT_ONCE)
        rows = connection.execute(query if last is None else query.where(predictions.c.id > last)).all()
        for row_id, facts in rows:
            expected = [each for each in (facts or {}).values() if "expected" in each]
            if expected:
                violated = any(each.get("violations") for each in expected)
                connection.execute(sa.update(predictions).where(predictions.c.id == row_id).values(violated=violated))
        if len(rows) < AT_ONCE:
            return
        last = rows[-1][0]


def downgrade() -> None:
    for table in ("images", "jobs", "predictions"):
        op.drop_index(f"ix_{table}_listed", table)
    op.drop_index(op.f("ix_measurements_prediction_id"), "measurements")
    with op.batch_alter_table("predictions") as predictions:
        predictions.drop_column("violated")
