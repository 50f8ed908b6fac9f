"""Rules between classes: how many places of an image break them, and where.

Why: evaluations count what no metric of one class sees, and gates hold models to it. Both columns may be null, and old
code does not name them, so old and new code both run while this is applied. One transaction does it.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    results = sa.JSON(none_as_null=True).with_variant(postgresql.JSONB(none_as_null=True), "postgresql")
    op.add_column("measurements", sa.Column("rule_violations", sa.Integer(), nullable=True))
    op.add_column("measurements", sa.Column("broken_rules", results, nullable=True))


def downgrade() -> None:
    with op.batch_alter_table("measurements") as measurements:
        measurements.drop_column("broken_rules")
        measurements.drop_column("rule_violations")
