"""Indexes for lists of a million predictions and ten thousand jobs.

Why: predictions of one model, those that violate what was expected, and the jobs of a project were sorted after all of
them had been read. Indexes only, so old and new code both run before and after. Building them takes about a second for
each million rows, in which nothing is written to the table.
"""

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None


def upgrade() -> None:
    judged = sa.text("violated is not null")
    op.create_index("ix_jobs_newest", "jobs", ["project_id", "id"])
    op.create_index("ix_predictions_of_version", "predictions", ["model_version_id", "id"])
    op.create_index(
        "ix_predictions_judged",
        "predictions",
        ["project_id", "violated", "id"],
        postgresql_where=judged,
        sqlite_where=judged,
    )
    op.drop_index("ix_predictions_model_version_id", "predictions")


def downgrade() -> None:
    op.create_index("ix_predictions_model_version_id", "predictions", ["model_version_id"])
    op.drop_index("ix_predictions_judged", "predictions")
    op.drop_index("ix_predictions_of_version", "predictions")
    op.drop_index("ix_jobs_newest", "jobs")
