"""Keys of retried rows, times in UTC for rows of other programs, what was found, and an anchored audit log."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

#: Times that are in UTC already, as acclimate writes them.
_IN_UTC = "%+00:00"
_FIRST_HASH = "0" * 64


def upgrade() -> None:
    """Add the columns and the anchor; every row is kept, and rows without a time in UTC get one when they are read."""
    for table, index in (("ttt_metrics", "idx_ttt_recorded"), ("ttt_ab_tests", "idx_ab_recorded")):
        op.add_column(table, sa.Column("recorded_at", sa.Text))
        op.create_index(index, table, ["recorded_at"])
        name = sa.table(table, sa.column("recorded_at"), sa.column("timestamp"))
        in_utc = sa.func.length(name.c.timestamp) == len("2026-01-01T00:00:00.000000+00:00")
        op.execute(sa.update(name).where(name.c.timestamp.like(_IN_UTC), in_utc).values(recorded_at=name.c.timestamp))
    op.add_column("ttt_ab_tests", sa.Column("row_key", sa.Text))
    op.create_index("uq_ab_row_key", "ttt_ab_tests", ["row_key"], unique=True)
    op.add_column("requests", sa.Column("adaptable", sa.Boolean))
    op.execute(
        # Up to now a request with a pattern that it was not asked to adapt to had the same status as one without.
        "UPDATE requests SET adaptable = (status <> 'plain' OR pattern IS NOT NULL) WHERE pipeline = 'language'"
    )
    anchor = op.create_table(
        "audit_anchor",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("entries", sa.Integer, nullable=False),
        sa.Column("head", sa.Text, nullable=False),
    )
    log = sa.table("audit_log", sa.column("id"), sa.column("entry_hash"))
    head = sa.select(log.c.entry_hash).order_by(log.c.id.desc()).limit(1).scalar_subquery()
    found = sa.select(sa.literal(1), sa.func.count(), sa.func.coalesce(head, _FIRST_HASH)).select_from(log)
    op.execute(sa.insert(anchor).from_select(["id", "entries", "head"], found))


def downgrade() -> None:
    """Remove what this version added."""
    op.drop_table("audit_anchor")
    op.drop_column("requests", "adaptable")
    op.drop_index("uq_ab_row_key", "ttt_ab_tests")
    op.drop_column("ttt_ab_tests", "row_key")
    for table, index in (("ttt_metrics", "idx_ttt_recorded"), ("ttt_ab_tests", "idx_ab_recorded")):
        op.drop_index(index, table)
        op.drop_column(table, "recorded_at")
