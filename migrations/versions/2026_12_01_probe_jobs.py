"""Probe jobs: the table of jobs holds jobs that measure how hard terms of a loss pull.

Why: the constraint of known kinds would refuse them. It is applied before the code that needs it; old code makes none.
A second run after an interruption finds nothing half done: one transaction does it.
"""

from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None

BEFORE = ("train", "evaluate", "predict", "analyse", "compare", "dicomweb")


def _hold(kinds: tuple[str, ...]) -> None:
    with op.batch_alter_table("jobs") as jobs:
        jobs.drop_constraint(op.f("ck_jobs_kind"), type_="check")
        jobs.create_check_constraint(op.f("ck_jobs_kind"), f"kind in {kinds}")


def upgrade() -> None:
    _hold((*BEFORE, "probe"))


def downgrade() -> None:
    op.execute("DELETE FROM jobs WHERE kind = 'probe'")
    _hold(BEFORE)
