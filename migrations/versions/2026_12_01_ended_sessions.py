"""Browser sessions that were signed out, so that a copied cookie ends with its session.

A table of its own, which old code does not name, so old and new code both run while this is applied. One statement
makes it, so a second run after an interruption finds nothing half done.
"""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "ended_sessions",
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("project_id", sa.Uuid(), nullable=False),
        sa.Column("until", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name="fk_ended_sessions_project_id"),
        sa.PrimaryKeyConstraint("digest", name="pk_ended_sessions"),
    )


def downgrade() -> None:
    op.drop_table("ended_sessions")
