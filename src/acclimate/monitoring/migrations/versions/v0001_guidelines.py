"""The two tables of the deployment guidelines. A database that has them already is taken over as it is."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Create the tables and indices that are not there."""
    op.create_table(
        "ttt_metrics",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("session_id", sa.Text, nullable=False),
        sa.Column("timestamp", sa.Text, nullable=False),
        sa.Column("task_type", sa.Text),
        sa.Column("examples_count", sa.Integer),
        sa.Column("training_steps", sa.Integer),
        sa.Column("adaptation_time", sa.Float),
        sa.Column("confidence_score", sa.Float),
        sa.Column("convergence_score", sa.Float),
        sa.Column("success", sa.Boolean),
        sa.Column("fallback_reason", sa.Text),
        sa.Column("user_feedback", sa.Float),
        sa.Column("accuracy_improvement", sa.Float),
        sa.Column("metadata", sa.Text),
        sqlite_autoincrement=True,
        if_not_exists=True,
    )
    op.create_table(
        "ttt_ab_tests",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("test_id", sa.Text, nullable=False),
        sa.Column("session_id", sa.Text, nullable=False),
        sa.Column("timestamp", sa.Text, nullable=False),
        sa.Column("method", sa.Text, nullable=False),
        sa.Column("task_type", sa.Text),
        sa.Column("examples_count", sa.Integer),
        sa.Column("response_quality", sa.Float),
        sa.Column("response_time", sa.Float),
        sa.Column("user_satisfaction", sa.Float),
        sa.Column("metadata", sa.Text),
        sqlite_autoincrement=True,
        if_not_exists=True,
    )
    op.create_index("idx_ttt_timestamp", "ttt_metrics", ["timestamp"], if_not_exists=True)
    op.create_index("idx_ttt_session", "ttt_metrics", ["session_id"], if_not_exists=True)
    op.create_index("idx_ab_test", "ttt_ab_tests", ["test_id", "method"], if_not_exists=True)


def downgrade() -> None:
    """Refuse: it would delete what was recorded."""
    raise NotImplementedError("the first version of the store cannot be undone; delete the database instead")
