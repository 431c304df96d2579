"""A row for every request, vision runs, experiments, an append-only audit log, and who wrote what."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add tables, columns, and the triggers that keep the audit log append-only."""
    op.add_column("ttt_metrics", sa.Column("request_id", sa.Text))
    op.create_index("uq_ttt_metrics_request", "ttt_metrics", ["request_id"], unique=True)
    op.add_column("ttt_ab_tests", sa.Column("request_id", sa.Text))
    op.add_column("ttt_ab_tests", sa.Column("unit", sa.Text))
    op.create_index("idx_ab_request", "ttt_ab_tests", ["request_id"])
    op.create_table(
        "requests",
        sa.Column("request_id", sa.Text, primary_key=True),
        sa.Column("session_id", sa.Text, nullable=False),
        sa.Column("timestamp", sa.Text, nullable=False),
        sa.Column("door", sa.Text, nullable=False),
        sa.Column("model", sa.Text),
        sa.Column("method", sa.Text),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("reason", sa.Text),
        sa.Column("pattern", sa.Text),
        sa.Column("pattern_confidence", sa.Float),
        sa.Column("pattern_expected", sa.Text),
        sa.Column("confidence", sa.Float),
        sa.Column("icl_confidence", sa.Float),
        sa.Column("seconds", sa.Float),
        sa.Column("memory_bytes", sa.BigInteger().with_variant(sa.Integer, "sqlite")),
        sa.Column("rank", sa.Integer),
        sa.Column("environment", sa.Text),
        sa.Column("user_feedback", sa.Float),
        sa.Column("writer_id", sa.Text),
        sa.Column("sequence", sa.BigInteger().with_variant(sa.Integer, "sqlite")),
        sa.Column("content", sa.Text),
    )
    op.create_index("idx_requests_timestamp", "requests", ["timestamp"])
    op.create_index("idx_requests_session", "requests", ["session_id"])
    op.create_table(
        "vision_runs",
        sa.Column("request_id", sa.Text, sa.ForeignKey("requests.request_id", ondelete="CASCADE"), primary_key=True),
        sa.Column("images", sa.Integer, nullable=False),
        sa.Column("steps", sa.Integer, nullable=False),
        sa.Column("kept", sa.Integer, nullable=False),
        sa.Column("skipped", sa.Integer, nullable=False),
        sa.Column("guard_trips", sa.Integer, nullable=False),
        sa.Column("resets", sa.Integer, nullable=False),
        sa.Column("cost_ratio", sa.Float),
        sa.Column("gain", sa.Float),
        sa.Column("gain_low", sa.Float),
        sa.Column("gain_high", sa.Float),
        sa.Column("metric", sa.Text),
    )
    op.create_table(
        "experiments",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("created_at", sa.Text, nullable=False),
        sa.Column("stopped_at", sa.Text),
        sa.Column("design", sa.Text, nullable=False),
    )
    op.create_table(
        "audit_log",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("timestamp", sa.Text, nullable=False),
        sa.Column("actor", sa.Text, nullable=False),
        sa.Column("action", sa.Text, nullable=False),
        sa.Column("subject", sa.Text),
        sa.Column("settings", sa.Text, nullable=False),
        sa.Column("outcome", sa.Text, nullable=False),
        sa.Column("previous_hash", sa.Text, nullable=False),
        sa.Column("entry_hash", sa.Text, nullable=False, unique=True),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "writers",
        sa.Column("writer_id", sa.Text, primary_key=True),
        sa.Column("started_at", sa.Text, nullable=False),
        sa.Column("stopped_at", sa.Text),
        sa.Column("written", sa.Integer, nullable=False),
        sa.Column("dropped", sa.Integer, nullable=False),
        sa.Column("lost", sa.Integer, nullable=False),
    )
    # Retention puts a row here inside its own transaction, and takes it away again.
    op.create_table("audit_retention", sa.Column("allowed", sa.Integer, nullable=False))
    for statement in _triggers(op.get_bind().dialect.name):
        op.execute(statement)


def downgrade() -> None:
    """Remove what this version added; the guidelines' two tables stay as they were."""
    for table in ("vision_runs", "requests", "experiments", "audit_log", "audit_retention", "writers"):
        op.drop_table(table)
    op.drop_index("uq_ttt_metrics_request", "ttt_metrics")
    op.drop_index("idx_ab_request", "ttt_ab_tests")
    op.drop_column("ttt_metrics", "request_id")
    op.drop_column("ttt_ab_tests", "request_id")
    op.drop_column("ttt_ab_tests", "unit")


def _triggers(dialect: str) -> list[str]:
    if dialect == "sqlite":
        return [
            "CREATE TRIGGER audit_no_update BEFORE UPDATE ON audit_log "
            "BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END",
            # INSERT OR REPLACE deletes without asking the trigger below.
            "CREATE TRIGGER audit_no_replace BEFORE INSERT ON audit_log "
            "WHEN EXISTS (SELECT 1 FROM audit_log WHERE id = NEW.id OR entry_hash = NEW.entry_hash) "
            "BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END",
            "CREATE TRIGGER audit_no_delete BEFORE DELETE ON audit_log "
            "WHEN NOT EXISTS (SELECT 1 FROM audit_retention) "
            "BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END",
        ]
    return [
        "CREATE FUNCTION audit_append_only() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        "IF TG_OP = 'DELETE' AND EXISTS (SELECT 1 FROM audit_retention) THEN RETURN OLD; END IF; "
        "RAISE EXCEPTION 'the audit log is append-only'; END $$",
        "CREATE TRIGGER audit_append_only BEFORE UPDATE OR DELETE ON audit_log "
        "FOR EACH ROW EXECUTE FUNCTION audit_append_only()",
        "CREATE TRIGGER audit_no_truncate BEFORE TRUNCATE ON audit_log "
        "FOR EACH STATEMENT EXECUTE FUNCTION audit_append_only()",
    ]
