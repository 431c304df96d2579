"""Sums by the hour, who asked, and indexes for single requests."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"

_KEYS = ("hour", "writer_id", "pipeline", "model", "actor", "status", "reason")
_MB = 2**20


def upgrade() -> None:
    """Add the table and the column, and sum the requests that are there."""
    op.add_column("requests", sa.Column("actor", sa.Text))
    for name, column in (("idx_requests_rated", "user_feedback"), ("idx_requests_labelled", "pattern_expected")):
        only = sa.text(f"{column} IS NOT NULL")
        op.create_index(name, "requests", ["timestamp"], sqlite_where=only, postgresql_where=only)
    op.create_index("idx_audit_subject", "audit_log", ["subject"])
    requests = sa.table("requests", *(sa.column(name) for name in (
        "request_id", "timestamp", "writer_id", "pipeline", "model", "status", "reason", "adaptable", "confidence",
        "icl_confidence", "seconds", "memory_bytes",
    )))  # fmt: skip
    attempts = sa.table("ttt_metrics", sa.column("request_id"), sa.column("adaptation_time"))
    measured = {
        "confidence": requests.c.confidence,
        "icl_confidence": requests.c.icl_confidence,
        "seconds": requests.c.seconds,
        "adaptation_time": sa.case((attempts.c.adaptation_time > 0, attempts.c.adaptation_time)),
        "memory_mb": requests.c.memory_bytes / sa.literal(float(_MB), sa.Float),
    }
    hours = op.create_table(
        "request_hours",
        *(sa.Column(name, sa.Text, primary_key=True) for name in _KEYS),
        sa.Column("count", sa.Integer, nullable=False),
        sa.Column("adaptable", sa.Integer, nullable=False),
        *(
            sa.Column(f"{name}_{part}", kind, nullable=False)
            for name in measured
            for part, kind in (("count", sa.Integer), ("sum", sa.Float), ("squares", sa.Float))
        ),
    )
    columns = requests.c
    nobody: sa.ColumnElement[str] = sa.literal_column("''")
    keys = [
        sa.func.substr(columns.timestamp, 1, len("2026-01-01T00")),
        sa.func.coalesce(columns.writer_id, ""),
        columns.pipeline,
        sa.func.coalesce(columns.model, ""),
        nobody,
        columns.status,
        sa.func.coalesce(columns.reason, ""),
    ]
    sums: list[sa.ColumnElement[Any]] = [
        sa.func.count(),
        sa.func.coalesce(sa.func.sum(sa.case((columns.adaptable.is_(True), 1), else_=0)), 0),
    ]
    for value in measured.values():
        sums += [
            sa.func.count(value),
            sa.func.coalesce(sa.func.sum(value), 0.0),
            sa.func.coalesce(sa.func.sum(value * value), 0.0),
        ]
    found = (
        sa.select(*keys, *sums)
        .select_from(requests.outerjoin(attempts, attempts.c.request_id == columns.request_id))
        # PostgreSQL groups by no constant.
        .group_by(*(key for key in keys if key is not nobody))
    )
    op.execute(sa.insert(hours).from_select([column.name for column in hours.columns], found))


def downgrade() -> None:
    """Remove what this version added."""
    op.drop_table("request_hours")
    op.drop_index("idx_audit_subject", "audit_log")
    op.drop_index("idx_requests_labelled", "requests")
    op.drop_index("idx_requests_rated", "requests")
    op.drop_column("requests", "actor")
