"""Stated spacing: the pixel size that the sender of a dataset stated for all of its images.

Why: files without it, or with a wrong one, are measured in mm all the same. The column may be null, and old code does
not name it, so old and new code both run while this is applied. One transaction does it, so a second run after an
interruption finds nothing half done.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0014"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    sizes = sa.JSON(none_as_null=True).with_variant(postgresql.JSONB(none_as_null=True), "postgresql")
    op.add_column("dataset_versions", sa.Column("spacing_mm", sizes, nullable=True))


def downgrade() -> None:
    with op.batch_alter_table("dataset_versions") as versions:
        versions.drop_column("spacing_mm")
