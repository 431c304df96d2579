"""The tables of the metrics store.

``ttt_metrics`` and ``ttt_ab_tests`` have the names and columns that the deployment guidelines give, so that other
programs for that schema can read and write them; ``request_id``, ``unit``, ``row_key`` and ``recorded_at`` are added.
The other tables are this package's own: ``requests`` has one row for every request, adapted or not, so that rates have
a denominator.

Times are ISO 8601 in UTC with microseconds: they sort as text, and SQLite and PostgreSQL read them alike. Another
program may write other times into ``timestamp``; ``recorded_at`` holds them in UTC (see
:mod:`acclimate.monitoring.other_programs`), and everything that compares times reads that column.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    text,
)

#: The newest migration.
HEAD: Final = "0006"

metadata: Final = MetaData()
_BIG: Final = BigInteger().with_variant(Integer, "sqlite")

ttt_metrics: Final = Table(
    "ttt_metrics",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("session_id", Text, nullable=False),
    Column("timestamp", Text, nullable=False),
    Column("task_type", Text),
    Column("examples_count", Integer),
    Column("training_steps", Integer),
    Column("adaptation_time", Float),
    Column("confidence_score", Float),
    Column("convergence_score", Float),
    # True: the adapted model answered. False: adapting failed. Null: it was decided not to adapt.
    Column("success", Boolean),
    Column("fallback_reason", Text),
    Column("user_feedback", Float),
    Column("accuracy_improvement", Float),
    Column("metadata", Text),
    Column("request_id", Text),
    # ``timestamp`` in UTC; null until a row of another program is first seen, empty where its time cannot be read.
    Column("recorded_at", Text),
    Index("uq_ttt_metrics_request", "request_id", unique=True),
    Index("idx_ttt_timestamp", "timestamp"),
    Index("idx_ttt_session", "session_id"),
    Index("idx_ttt_recorded", "recorded_at"),
    sqlite_autoincrement=True,
)

ttt_ab_tests: Final = Table(
    "ttt_ab_tests",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("test_id", Text, nullable=False),
    Column("session_id", Text, nullable=False),
    Column("timestamp", Text, nullable=False),
    Column("method", Text, nullable=False),
    Column("task_type", Text),
    Column("examples_count", Integer),
    Column("response_quality", Float),
    Column("response_time", Float),
    Column("user_satisfaction", Float),
    Column("metadata", Text),
    Column("request_id", Text),
    Column("unit", Text),
    # As in ``ttt_metrics``.
    Column("recorded_at", Text),
    # Writer and sequence number of the row, so that a row that is retried is inserted once; null for other programs.
    Column("row_key", Text),
    Index("idx_ab_test", "test_id", "method"),
    Index("idx_ab_request", "request_id"),
    Index("idx_ab_recorded", "recorded_at"),
    Index("uq_ab_row_key", "row_key", unique=True),
    sqlite_autoincrement=True,
)

requests: Final = Table(
    "requests",
    metadata,
    Column("request_id", Text, primary_key=True),
    Column("session_id", Text, nullable=False),
    Column("timestamp", Text, nullable=False),
    Column("pipeline", Text, nullable=False),
    Column("model", Text),
    Column("method", Text),
    # What was done: adapted, declined (it was decided not to adapt), fallback (adapting failed), plain (adapting was
    # not asked for, or there was nothing to adapt to).
    Column("status", Text, nullable=False),
    Column("reason", Text),
    Column("pattern", Text),
    Column("pattern_confidence", Float),
    Column("pattern_expected", Text),
    Column("confidence", Float),
    Column("icl_confidence", Float),
    Column("seconds", Float),
    Column("memory_bytes", _BIG),
    Column("rank", Integer),
    Column("environment", Text),
    Column("user_feedback", Float),
    Column("writer_id", Text),
    Column("sequence", _BIG),
    # Prompt, examples and answer; only where the store keeps content.
    Column("content", Text),
    # What was found: whether there was something to adapt to, whatever was done; null for vision runs.
    Column("adaptable", Boolean),
    # Who asked: the id of an API key or what the audit log names; null for rows of before this column.
    Column("actor", Text),
    Index("idx_requests_timestamp", "timestamp"),
    Index("idx_requests_session", "session_id"),
    # The newest of a key, of a model and of a status: without these, those that are rare are searched among all.
    Index("idx_requests_actor", "actor", "timestamp"),
    Index("idx_requests_model", "model", "timestamp"),
    Index("idx_requests_status", "status", "timestamp"),
    # Few requests are rated or labelled, and they are read together. What calibration reads of those that are rated
    # is in the index: they lie far from each other in the table.
    Index(
        "idx_requests_rated",
        *("timestamp", "status", "user_feedback", "confidence", "pipeline", "model", "actor"),
        sqlite_where=text("user_feedback IS NOT NULL"),
        postgresql_where=text("user_feedback IS NOT NULL"),
    ),
    Index(
        "idx_requests_labelled",
        "timestamp",
        sqlite_where=text("pattern_expected IS NOT NULL"),
        postgresql_where=text("pattern_expected IS NOT NULL"),
    ),
)

#: The numbers of a request whose means are read by the hour.
MEASURED: Final = ("confidence", "icl_confidence", "seconds", "adaptation_time", "memory_mb")

# Sums over the requests of each hour (UTC, the first 13 characters of its ISO time): trends over months are read
# from thousands of rows. Every process adds to rows of its own: none waits for another.
request_hours: Final = Table(
    "request_hours",
    metadata,
    *(
        Column(name, Text, primary_key=True)
        for name in ("hour", "writer_id", "pipeline", "model", "actor", "status", "reason")
    ),
    Column("count", Integer, nullable=False),
    Column("adaptable", Integer, nullable=False),
    *(
        Column(f"{name}_{part}", kind, nullable=False)
        for name in MEASURED
        for part, kind in (("count", Integer), ("sum", Float), ("squares", Float))
    ),
)

vision_runs: Final = Table(
    "vision_runs",
    metadata,
    Column("request_id", Text, ForeignKey("requests.request_id", ondelete="CASCADE"), primary_key=True),
    Column("images", Integer, nullable=False),
    Column("steps", Integer, nullable=False),
    Column("kept", Integer, nullable=False),
    Column("skipped", Integer, nullable=False),
    Column("guard_rejections", Integer, nullable=False),
    Column("resets", Integer, nullable=False),
    Column("cost_ratio", Float),
    Column("gain", Float),
    Column("gain_low", Float),
    Column("gain_high", Float),
    Column("metric", Text),
)

experiments: Final = Table(
    "experiments",
    metadata,
    Column("name", Text, primary_key=True),
    Column("created_at", Text, nullable=False),
    Column("stopped_at", Text),
    # JSON: arms, assignment, design and horizon, fixed before the first request.
    Column("design", Text, nullable=False),
)

audit_log: Final = Table(
    "audit_log",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("timestamp", Text, nullable=False),
    Column("actor", Text, nullable=False),
    Column("action", Text, nullable=False),
    Column("subject", Text),
    Column("settings", Text, nullable=False),
    Column("outcome", Text, nullable=False),
    Column("previous_hash", Text, nullable=False),
    Column("entry_hash", Text, nullable=False, unique=True),
    Index("idx_audit_subject", "subject"),
    sqlite_autoincrement=True,
)

# One row: how many entries the audit log has, and the hash of the newest. A log that was cut off or emptied differs.
audit_anchor: Final = Table(
    "audit_anchor",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("entries", Integer, nullable=False),
    Column("head", Text, nullable=False),
)

# Has a row only inside the transaction in which retention removes the oldest entries.
audit_retention: Final = Table("audit_retention", metadata, Column("allowed", Integer, nullable=False))

writers: Final = Table(
    "writers",
    metadata,
    Column("writer_id", Text, primary_key=True),
    Column("started_at", Text, nullable=False),
    Column("stopped_at", Text),
    Column("written", Integer, nullable=False, default=0),
    Column("dropped", Integer, nullable=False, default=0),
    # Queued and never written, counted by the next process to open the store after this one died.
    Column("lost", Integer, nullable=False, default=0),
)


def timestamp_of(moment: datetime | None = None) -> str:
    """Return a time (now by default) as the store writes it; a time without a zone is taken as local time."""
    moment = moment or datetime.now(UTC)
    return moment.astimezone(UTC).isoformat(timespec="microseconds")
