"""Compare jobs: a job may belong to another one and wait for others.

Why: a comparison is a job whose trainings are jobs. It is applied before the code that needs it: old code makes no job
of this kind and none that waits, and the new columns may be null. A second run after an interruption finds nothing half
done: one transaction does it.
"""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0013"
branch_labels = None
depends_on = None

KINDS_BEFORE = ("train", "evaluate", "predict", "analyse")
STATES_BEFORE = ("queued", "running", "cancelling", "cancelled", "succeeded", "failed", "interrupted")


def _hold(kinds: tuple[str, ...], states: tuple[str, ...]) -> None:
    with op.batch_alter_table("jobs") as jobs:
        for name, held in (("kind", kinds), ("state", states)):
            jobs.drop_constraint(op.f(f"ck_jobs_{name}"), type_="check")
            jobs.create_check_constraint(op.f(f"ck_jobs_{name}"), f"{name} in {held}")


def upgrade() -> None:
    with op.batch_alter_table("jobs") as jobs:
        for name in ("parent_id", "after_id"):
            jobs.add_column(sa.Column(name, sa.Uuid(), nullable=True))
            jobs.create_foreign_key(op.f(f"fk_jobs_{name}_jobs"), "jobs", [name], ["id"], ondelete="CASCADE")
            jobs.create_index(f"ix_jobs_{name}", [name])
    _hold((*KINDS_BEFORE, "compare"), ("waiting", *STATES_BEFORE))


def downgrade() -> None:
    op.execute("DELETE FROM jobs WHERE parent_id IS NOT NULL")
    op.execute("DELETE FROM jobs WHERE kind = 'compare' OR state = 'waiting'")
    _hold(KINDS_BEFORE, STATES_BEFORE)
    with op.batch_alter_table("jobs") as jobs:
        for name in ("after_id", "parent_id"):
            jobs.drop_index(f"ix_jobs_{name}")
            jobs.drop_constraint(op.f(f"fk_jobs_{name}_jobs"), type_="foreignkey")
            jobs.drop_column(name)
