"""Known job kinds: the table of jobs holds a job of a known kind only.

Why: a row of a kind that no worker knows would wait for ever. Old and new code both run while this is applied, because
every kind of the old code is among those listed. A later kind replaces the constraint in a migration of its own, before
the code that needs it. A second run after an interruption finds nothing half done: one transaction does it.
"""

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

KINDS = ("train", "evaluate", "predict", "analyse")


def upgrade() -> None:
    with op.batch_alter_table("jobs") as jobs:
        jobs.create_check_constraint(op.f("ck_jobs_kind"), f"kind in {KINDS}")


def downgrade() -> None:
    with op.batch_alter_table("jobs") as jobs:
        jobs.drop_constraint(op.f("ck_jobs_kind"), type_="check")
