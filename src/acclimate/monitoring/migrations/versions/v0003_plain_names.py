"""Columns get the names that the field uses: ``pipeline`` for ``door``, ``guard_rejections`` for ``guard_trips``."""

from __future__ import annotations

from alembic import op

revision = "0003"
down_revision = "0002"

_RENAMED = (("requests", "door", "pipeline"), ("vision_runs", "guard_trips", "guard_rejections"))


def upgrade() -> None:
    """Rename the columns; every row is kept."""
    for table, old, new in _RENAMED:
        op.alter_column(table, old, new_column_name=new)


def downgrade() -> None:
    """Give the columns their former names."""
    for table, old, new in _RENAMED:
        op.alter_column(table, new, new_column_name=old)
