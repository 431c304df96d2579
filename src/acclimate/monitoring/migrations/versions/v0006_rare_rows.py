"""Indexes for the newest requests of a key, a model and a status, and for what calibration reads."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"

_NEWEST = ("actor", "model", "status")
_RATED = ("timestamp", "status", "user_feedback", "confidence", "pipeline", "model", "actor")


def upgrade() -> None:
    """Add the indexes."""
    for column in _NEWEST:
        op.create_index(f"idx_requests_{column}", "requests", [column, "timestamp"])
    _replace_rated(_RATED)


def downgrade() -> None:
    """Remove what this version added."""
    _replace_rated(("timestamp",))
    for column in _NEWEST:
        op.drop_index(f"idx_requests_{column}", "requests")


def _replace_rated(columns: tuple[str, ...]) -> None:
    only = sa.text("user_feedback IS NOT NULL")
    op.drop_index("idx_requests_rated", "requests")
    op.create_index("idx_requests_rated", "requests", list(columns), sqlite_where=only, postgresql_where=only)
