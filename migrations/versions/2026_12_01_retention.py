"""Retention: how many days a project keeps its predictions, images and jobs.

Why: a hospital must be able to say that what it uploads is erased after a time. The column may be null, and old code
does not name it, so old and new code both run while this is applied. One transaction does it, so a second run after an
interruption finds nothing half done.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    days = sa.JSON(none_as_null=True).with_variant(postgresql.JSONB(none_as_null=True), "postgresql")
    op.add_column("projects", sa.Column("retention", days, nullable=True))


def downgrade() -> None:
    with op.batch_alter_table("projects") as projects:
        projects.drop_column("retention")
