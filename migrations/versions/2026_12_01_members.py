"""Members: people of an OpenID provider and the roles they have in projects.

A table of its own, which old code does not name, so old and new code both run while this is applied. One transaction
makes it, so a second run after an interruption finds nothing half done.
"""

import sqlalchemy as sa
from alembic import op

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "members",
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("value", sa.String(length=255), nullable=False),
        sa.Column("role", sa.String(length=16), nullable=False),
        sa.Column("project_id", sa.Uuid(), nullable=False),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("kind in ('subject', 'email', 'group')", name=op.f("ck_members_kind")),
        sa.ForeignKeyConstraint(
            ["project_id"], ["projects.id"], name=op.f("fk_members_project_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_members")),
        sa.UniqueConstraint("project_id", "kind", "value", name=op.f("uq_members_project_id_kind_value")),
    )
    op.create_index(op.f("ix_members_project_id"), "members", ["project_id"])
    op.create_index("ix_members_kind_value", "members", ["kind", "value"])


def downgrade() -> None:
    op.drop_table("members")
