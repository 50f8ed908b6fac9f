"""Images without a mask: an item of a dataset may have none.

Why: terms that need no reference learn from images that nobody labelled. Old and new code both run while this is
applied, because old code writes a mask for every item; only items that new code writes have none. A second run after an
interruption finds the column as it should be and changes nothing.
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("dataset_items") as items:
        items.alter_column("mask_sha256", existing_type=sa.String(length=64), nullable=True)


def downgrade() -> None:
    op.execute(sa.text("DELETE FROM dataset_items WHERE mask_sha256 IS NULL"))
    with op.batch_alter_table("dataset_items") as items:
        items.alter_column("mask_sha256", existing_type=sa.String(length=64), nullable=False)
