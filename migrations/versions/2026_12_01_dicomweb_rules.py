"""Rules that make jobs of new series of a PACS, and the series that they have found.

Two tables of their own, which old code does not name, so old and new code both run while this is applied. One
transaction makes them, so a second run after an interruption finds nothing half done.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0019"
down_revision = "0018"
branch_labels = None
depends_on = None


def _json() -> sa.types.TypeEngine[object]:
    return sa.JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")


def _owned(table: str) -> list[sa.schema.SchemaItem]:
    return [
        sa.Column("project_id", sa.Uuid(), nullable=False),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["project_id"], ["projects.id"], name=op.f(f"fk_{table}_project_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f(f"pk_{table}")),
    ]


def upgrade() -> None:
    op.create_table(
        "dicomweb_rules",
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("pacs", sa.String(length=64), nullable=False),
        sa.Column("model", sa.String(length=160), nullable=False),
        sa.Column("match", _json(), nullable=False),
        sa.Column("options", _json(), nullable=False),
        sa.Column("poll_s", sa.Integer(), nullable=False),
        sa.Column("enabled", sa.Boolean(), nullable=False),
        sa.Column("polls", sa.Integer(), nullable=False),
        sa.Column("next_poll_at", sa.Float(53), nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("last_polled_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("last_listed_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("last_error", _json(), nullable=True),
        *_owned("dicomweb_rules"),
        sa.UniqueConstraint("project_id", "name", name=op.f("uq_dicomweb_rules_project_id_name")),
    )
    op.create_index(op.f("ix_dicomweb_rules_project_id"), "dicomweb_rules", ["project_id"])
    op.create_index("ix_dicomweb_rules_due", "dicomweb_rules", ["enabled", "next_poll_at"])
    op.create_table(
        "dicomweb_series",
        sa.Column("rule_id", sa.Uuid(), nullable=False),
        sa.Column("study", sa.String(length=64), nullable=False),
        sa.Column("series", sa.String(length=64), nullable=False),
        sa.Column("instances", sa.Integer(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("listed_from", sa.String(length=8), nullable=False),
        sa.Column("job_id", sa.Uuid(), nullable=True),
        sa.Column("resumed", sa.Integer(), nullable=False),
        *_owned("dicomweb_series"),
        sa.CheckConstraint(
            "state in ('growing', 'ready', 'submitted', 'left_out')", name=op.f("ck_dicomweb_series_state")
        ),
        sa.ForeignKeyConstraint(
            ["rule_id"], ["dicomweb_rules.id"], name=op.f("fk_dicomweb_series_rule_id"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_dicomweb_series_job_id"), ondelete="SET NULL"),
        sa.UniqueConstraint("rule_id", "series", name=op.f("uq_dicomweb_series_rule_id_series")),
    )
    op.create_index(op.f("ix_dicomweb_series_project_id"), "dicomweb_series", ["project_id"])
    op.create_index(op.f("ix_dicomweb_series_job_id"), "dicomweb_series", ["job_id"])
    op.create_index("ix_dicomweb_series_state", "dicomweb_series", ["rule_id", "state", "id"])


def downgrade() -> None:
    op.drop_table("dicomweb_series")
    op.drop_table("dicomweb_rules")
