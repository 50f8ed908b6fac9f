"""Edits by hand: each change that somebody made to the mask of a stored prediction.

Why: a mask that was repaired by hand must say what was changed, and be undone; the mask of the network stays as it was.
Only a table comes, which old code does not know, so old and new code both run while this is applied. The whole step is
one transaction: an interrupted run leaves nothing, and a second one starts over.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

JSON = sa.JSON(none_as_null=True).with_variant(postgresql.JSONB(none_as_null=True), "postgresql")


def upgrade() -> None:
    op.create_table(
        "prediction_edits",
        sa.Column("prediction_id", sa.Uuid(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("class_name", sa.String(length=64), nullable=False),
        sa.Column("at", JSON, nullable=False),
        sa.Column("to", JSON, nullable=True),
        sa.Column("runs", JSON, nullable=False),
        sa.Column("pixels", sa.BigInteger(), nullable=False),
        sa.Column("box", JSON, nullable=False),
        sa.Column("cost", sa.Float(precision=53), nullable=False),
        sa.Column("before", JSON, nullable=False),
        sa.Column("after", JSON, nullable=False),
        sa.Column("project_id", sa.Uuid(), nullable=False),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["prediction_id"],
            ["predictions.id"],
            name=op.f("fk_prediction_edits_prediction_id"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["project_id"], ["projects.id"], name=op.f("fk_prediction_edits_project_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_prediction_edits")),
        sa.UniqueConstraint("prediction_id", "number", name=op.f("uq_prediction_edits_prediction_id_number")),
    )
    with op.batch_alter_table("prediction_edits") as edits:
        edits.create_index(op.f("ix_prediction_edits_project_id"), ["project_id"], unique=False)


def downgrade() -> None:
    op.drop_table("prediction_edits")
