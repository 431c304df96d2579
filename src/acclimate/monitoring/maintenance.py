"""Retention: rows older than a number of days are deleted, and the database file is compacted."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy import ColumnElement
from sqlalchemy.exc import DBAPIError

from acclimate.errors import ConfigError, StoreError, first_line
from acclimate.monitoring import audit
from acclimate.monitoring.hours import HOUR_CHARACTERS, hours_of_writers, merge_writers
from acclimate.monitoring.other_programs import older_than
from acclimate.monitoring.schema import (
    audit_log,
    experiments,
    request_hours,
    requests,
    timestamp_of,
    ttt_ab_tests,
    ttt_metrics,
    vision_runs,
    writers,
)
from acclimate.monitoring.store import Store
from acclimate.monitoring.window import LONGEST_DAYS

#: Rows that one transaction deletes: a writer of SQLite waits for as long as that takes.
_BATCH: Final = 2_000
#: The column by which rows of a table are deleted in order, where an index has it first.
_ORDERS: Final = {
    "ttt_metrics": "recorded_at",
    "ttt_ab_tests": "recorded_at",
    "vision_runs": "request_id",
    "requests": "timestamp",
    "request_hours": "hour",
    "writers": "writer_id",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Maintained:
    """What maintenance deleted, or would delete.

    Attributes:
        cutoff: rows older than this are deleted.
        removed: deleted rows, by table.
        merged: rows by which the sums of past hours became fewer, because those of all writers were added up.
        bytes_before, bytes_after: size of the SQLite file with its write-ahead log; None for another database.
        dry_run: whether nothing was changed.
    """

    cutoff: str
    removed: Mapping[str, int]
    merged: int
    bytes_before: int | None
    bytes_after: int | None
    dry_run: bool


def maintain(
    store: Store,
    *,
    keep_days: float = 30,
    keep_audit_days: float = 365,
    dry_run: bool = False,
    actor: str = "maintenance",
) -> Maintained:
    """Delete rows older than ``keep_days``, compact the database, and return what was deleted.

    Sums by the hour have a row for each process that wrote requests. Those of hours that are over are added up, so that
    trends are read from fewer rows.

    Rows are deleted in many short transactions, so that no writer waits for long; where one fails, those before it
    stay. In PostgreSQL the space becomes free for new rows, and writers do not wait for that either. SQLite copies its
    file, for which writers wait.

    Args:
        store: to maintain.
        keep_days: for requests, attempts, outcomes of stopped experiments, and vision runs. Rows of another program
            whose times have no zone are kept 26 hours longer: their zone may be any.
        keep_audit_days: for the audit log.
        dry_run: only count the rows.
        actor: who did it, for the audit log.

    Raises:
        ConfigError: a number of days is not above 0.
        StoreError: the database cannot be written.
    """
    for name, days in (("keep_days", keep_days), ("keep_audit_days", keep_audit_days)):
        if not 0 < days <= LONGEST_DAYS:
            raise ConfigError(f"{name} must be above 0 and at most {LONGEST_DAYS}, got {days:g}")
    oldest_kept = datetime.now(UTC) - timedelta(days=keep_days)
    cutoff = timestamp_of(oldest_kept)
    audit_cutoff = timestamp_of(datetime.now(UTC) - timedelta(days=keep_audit_days))
    old_requests = sa.select(requests.c.request_id).where(requests.c.timestamp < cutoff)
    # The result of a running experiment must not change because outcomes are deleted.
    running = sa.select(experiments.c.name).where(experiments.c.stopped_at.is_(None))
    conditions = {
        ttt_metrics: older_than(ttt_metrics, oldest_kept),
        ttt_ab_tests: older_than(ttt_ab_tests, oldest_kept) & ttt_ab_tests.c.test_id.not_in(running),
        vision_runs: vision_runs.c.request_id.in_(old_requests),
        requests: requests.c.timestamp < cutoff,
        # An hour is dropped when all of it is over.
        request_hours: request_hours.c.hour < cutoff[:HOUR_CHARACTERS],
        # A process that still runs keeps its row, however long ago it started.
        writers: (writers.c.started_at < cutoff) & writers.c.stopped_at.is_not(None),
    }
    before = _bytes(store)
    removed: dict[str, int] = {}
    if dry_run:
        with store.reading() as connection:
            for table, condition in conditions.items():
                count = sa.select(sa.func.count()).select_from(table).where(condition)
                removed[table.name] = connection.execute(count).scalar_one()
            old = sa.select(sa.func.count()).select_from(audit_log).where(audit_log.c.timestamp < audit_cutoff)
            removed[audit_log.name] = connection.execute(old).scalar_one()
        return Maintained(
            cutoff=cutoff, removed=removed, merged=0, bytes_before=before, bytes_after=before, dry_run=True
        )
    for table, condition in conditions.items():
        removed[table.name] = _removed(store, table, condition)
    merged = _merged(store)
    with store.writing() as connection:
        removed[audit_log.name] = audit.remove_before(connection, audit_cutoff, actor=actor)
    _compact(store)
    return Maintained(
        cutoff=cutoff, removed=removed, merged=merged, bytes_before=before, bytes_after=_bytes(store), dry_run=False
    )


def _removed(store: Store, table: sa.Table, condition: ColumnElement[bool]) -> int:
    """Delete the rows of a table in batches, the oldest first, and return how many there were."""
    keys: Sequence[ColumnElement[Any]] = list(table.primary_key.columns)
    key = sa.tuple_(*keys) if len(keys) > 1 else keys[0]
    order = table.c[_ORDERS[table.name]]
    count, oldest = 0, ""
    while True:
        with store.writing() as connection:
            # From where the batch before ended: PostgreSQL's indexes still have the rows that were deleted.
            wanted = sa.select(*keys).where(condition, order >= oldest).order_by(order).limit(_BATCH)
            delete = sa.delete(table).where(key.in_(wanted)).returning(order)
            found = connection.execute(delete).scalars().all()
        if not found:
            return count
        count, oldest = count + len(found), max(found)


def _merged(store: Store) -> int:
    """Add up the sums of hours that are over, each in a transaction of its own; return how many rows are fewer."""
    with store.reading() as connection:
        hours = hours_of_writers(connection, timestamp_of(datetime.now(UTC))[:HOUR_CHARACTERS])
    count = 0
    for hour in hours:
        with store.writing() as connection:
            count += merge_writers(connection, hour)
    return count


def _compact(store: Store) -> None:
    try:
        if _is_sqlite(store):
            with contextlib.closing(store.engine.raw_connection()) as connection:
                # Deleted pages stay readable in the write-ahead log until it is checkpointed and truncated.
                for statement in ("VACUUM", "PRAGMA wal_checkpoint(TRUNCATE)"):
                    connection.cursor().execute(statement)
        else:
            with store.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connected:
                connected.exec_driver_sql("VACUUM")
    except (DBAPIError, sqlite3.Error) as error:
        raise StoreError(f"rows were deleted, but the database could not be compacted: {first_line(error)}") from error


def _is_sqlite(store: Store) -> bool:
    return store.url.get_backend_name() == "sqlite"


def _bytes(store: Store) -> int | None:
    if not _is_sqlite(store) or not store.url.database:
        return None
    files = (Path(store.url.database), Path(f"{store.url.database}-wal"))
    return sum(file.stat().st_size for file in files if file.exists())
