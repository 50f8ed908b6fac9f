"""Labels of images that were drawn in a viewer, and images that a viewer sent for a while.

Why: MONAI Label clients hand in masks image by image, before anybody makes a dataset of them, and send images that are
to be forgotten. Only tables come, which old code does not know, so old and new code both run while this is applied. The
whole step is one transaction: an interrupted run leaves nothing, and a second one starts over.
"""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "image_labels",
        sa.Column("image_id", sa.Uuid(), nullable=False),
        sa.Column("tag", sa.String(length=64), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("format", sa.String(length=16), nullable=False),
        sa.Column("label_map", sa.JSON(none_as_null=True), nullable=False),
        sa.Column("drawn_by", sa.String(length=64), nullable=True),
        *_owned("image_labels"),
        sa.ForeignKeyConstraint(["image_id"], ["images.id"], name=op.f("fk_image_labels_image_id"), ondelete="CASCADE"),
        sa.UniqueConstraint("image_id", "tag", name=op.f("uq_image_labels_image_id_tag")),
    )
    op.create_table(
        "image_sessions",
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("format", sa.String(length=16), nullable=False),
        sa.Column("expiry_s", sa.Integer(), nullable=False),
        sa.Column("used_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        *_owned("image_sessions"),
    )
    for table, column in (
        ("image_labels", "project_id"),
        ("image_sessions", "project_id"),
        ("image_sessions", "expires_at"),
    ):
        op.create_index(op.f(f"ix_{table}_{column}"), table, [column], unique=False)


def _owned(table: str) -> list[sa.schema.SchemaItem]:
    """The columns that every row of a project has."""
    return [
        sa.Column("project_id", sa.Uuid(), nullable=False),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["project_id"], ["projects.id"], name=op.f(f"fk_{table}_project_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f(f"pk_{table}")),
    ]


def downgrade() -> None:
    op.drop_table("image_sessions")
    op.drop_table("image_labels")
