"""The metrics store: records are queued and written by one thread; reads come after what was queued before them."""

from __future__ import annotations

import atexit
import hashlib
import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Self
from uuid import uuid4

import sqlalchemy as sa
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from acclimate.errors import DataError, StoreError
from acclimate.monitoring.database import database_url, make_engine, reason_of, upgrade, writing
from acclimate.monitoring.insert import Record
from acclimate.monitoring.other_programs import convert_times
from acclimate.monitoring.records import RequestRecord, check_range
from acclimate.monitoring.schema import requests, timestamp_of, ttt_ab_tests, ttt_metrics, writers
from acclimate.monitoring.sequence import Leftover, SequenceFile, leftovers
from acclimate.monitoring.writer import Losses, Writer

_LOG = logging.getLogger(__name__)
#: The ``pattern_expected`` of a request that was labelled to have no pattern.
NO_PATTERN: Final = "none"


class Store:
    """The database of metrics; safe to share between threads.

    :meth:`put` queues a record without waiting; a writer thread of the store writes it. Reads wait until everything
    that this process queued is written. Use the store as a context manager, or call :meth:`close`; a process that ends
    without either still writes its queue.

    Args:
        database: a path (SQLite) or a URL; None takes ``ACCLIMATE_DB_URL``, or ``logs/ttt_metrics.db``.
        must_exist: refuse a SQLite file that does not exist, instead of creating it.
        keep_content: store prompts, examples and answers where records have them.
        queue_size: greatest number of queued rows.
        retry_timeout_s: for how long a write is retried while the database is locked or unreachable. A fault that
            does not pass, such as a full disk, is not retried.
        logger: for warnings and errors about lost rows.

    Attributes:
        url: of the database.
        engine: SQLAlchemy's, for the database.
        lost_before: rows that processes which died had queued and never written, found when this store was opened.

    Raises:
        ConfigError: the URL is neither SQLite nor PostgreSQL.
        StoreError: the database cannot be opened or upgraded.
    """

    def __init__(
        self,
        database: str | Path | None = None,
        *,
        must_exist: bool = False,
        keep_content: bool = False,
        queue_size: int = 10_000,
        retry_timeout_s: float = 30.0,
        logger: logging.Logger = _LOG,
    ) -> None:
        self.url = database_url(database)
        path = self.url.database if self.url.get_backend_name() == "sqlite" else None
        if must_exist and path is not None and not _exists(Path(path)):
            raise StoreError(f"there is no metrics store at {path}; it is made by the first request that is recorded")
        self.engine = make_engine(self.url)
        upgrade(self.engine)
        self._settings: dict[str, Any] = {"keep_content": keep_content, "capacity": queue_size}
        self._settings |= {"retry_timeout_s": retry_timeout_s, "logger": logger}
        self._log = logger
        self._folder = _sequence_folder(self.url)
        self._lock = threading.Lock()
        self._writer: Writer | None = None
        self._past_losses = Losses()
        self._owner = os.getpid()
        self.lost_before = self._count_rows_of_dead_processes()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def description(self) -> str:
        """The database, without its password."""
        return self.url.render_as_string() if self.url.get_backend_name() != "sqlite" else str(self.url.database)

    @property
    def losses(self) -> Losses:
        """Rows that this process queued and that will not be written."""
        return self._past_losses + (self._writer.losses if self._writer is not None else Losses())

    def put(self, record: Record) -> bool:
        """Queue a record without waiting; False where the queue is full, which is counted and logged."""
        return self._opened().put(record)

    def record(self, record: RequestRecord) -> str:
        """Queue a request without waiting and return its ``request_id``, for feedback."""
        self.put(record)
        return record.request_id

    def flush(self, timeout_s: float | None = None) -> bool:
        """Wait until everything queued is written or lost; False where that took longer than the timeout."""
        return self._writer is None or self._owner != os.getpid() or self._writer.flush(timeout_s)

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """Open a transaction that reads, after everything that this process queued is written.

        Raises:
            StoreError: the database cannot be read.
        """
        self.flush()
        try:
            convert_times(self.engine)
            with self.engine.connect() as connection:
                yield connection
        except DBAPIError as error:
            raise StoreError(f"cannot read the metrics store {self.description}: {reason_of(error)}") from error

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """Open a transaction that writes, after everything that this process queued is written.

        Raises:
            StoreError: the database cannot be written.
        """
        self.flush()
        try:
            convert_times(self.engine)
            with writing(self.engine) as connection:
                yield connection
        except DBAPIError as error:
            raise StoreError(f"cannot write to the metrics store {self.description}: {reason_of(error)}") from error

    def close(self, timeout_s: float = 10.0) -> None:
        """Write the queue and end the writer thread; a later :meth:`put` starts it again."""
        with self._lock:
            current, self._writer = self._writer, None
        if current is not None and self._owner == os.getpid():
            atexit.unregister(self.close)
            current.close(timeout_s)
            self._past_losses += current.losses
        self.engine.dispose()

    def add_feedback(self, request_id: str, rating: float) -> None:
        """Record a user's rating of a past request, and of its outcomes in experiments.

        Args:
            request_id: of the request.
            rating: 1 (useless) to 5 (just right).

        Raises:
            DataError: the rating is not between 1 and 5.
            StoreError: there is no such request.
        """
        check_range("user_feedback", rating, 1, 5)
        with self.writing() as connection:
            known = connection.execute(
                sa.update(requests).where(requests.c.request_id == request_id).values(user_feedback=rating)
            ).rowcount
            connection.execute(
                sa.update(ttt_metrics).where(ttt_metrics.c.request_id == request_id).values(user_feedback=rating)
            )
            known += connection.execute(
                sa.update(ttt_ab_tests).where(ttt_ab_tests.c.request_id == request_id).values(user_satisfaction=rating)
            ).rowcount
            self._require(known, request_id)

    def label_pattern(self, request_id: str, expected: str | None) -> None:
        """Record the true kind of pattern of a past request; None for no pattern.

        Raises:
            DataError: the label is empty.
            StoreError: there is no such request.
        """
        if expected is not None and not expected.strip():
            raise DataError("the label is empty; give a kind of pattern, or none")
        with self.writing() as connection:
            known = connection.execute(
                sa.update(requests)
                .where(requests.c.request_id == request_id)
                .values(pattern_expected=NO_PATTERN if expected is None else expected)
            ).rowcount
            self._require(known, request_id)

    def _require(self, known: int, request_id: str) -> None:
        if not known:
            raise StoreError(f"there is no request {request_id!r} in {self.description}; give the id of a report")

    def _opened(self) -> Writer:
        with self._lock:
            if self._writer is not None and self._owner == os.getpid():
                return self._writer
            if self._owner != os.getpid():
                # After a fork the parent's connections and thread must not be used.
                self.engine.dispose(close=False)
                self._owner = os.getpid()
            writer_id = uuid4().hex
            sequence = None
            if self._folder is not None:
                try:
                    sequence = SequenceFile(self._folder, writer_id)
                except OSError as error:
                    self._log.warning("rows lost in a crash cannot be counted: %s", error)
            self._writer = Writer(self.engine, writer_id=writer_id, sequence=sequence, **self._settings)
            atexit.register(self.close)
            return self._writer

    def _count_rows_of_dead_processes(self) -> int:
        """Compare the counters of processes that died with the rows in the database; log and return the difference."""
        total = 0
        try:
            for left in leftovers(self._folder) if self._folder is not None else ():
                total += self._count_rows_of(left)
        except StoreError as error:
            # The files stay, so that a later process counts them; this one may still read or write.
            self._log.warning("rows that a process lost in a crash could not be counted yet: %s", error)
        return total

    def _count_rows_of(self, left: Leftover) -> int:
        with self.writing() as connection:
            mine = writers.c.writer_id == left.writer_id
            found = connection.execute(sa.select(writers.c.written).where(mine)).scalar() or 0
            lost = max(0, left.assigned - left.dropped - found)
            connection.execute(
                sa.update(writers).where(mine).values(lost=lost, dropped=left.dropped, stopped_at=timestamp_of())
            )
        if lost:
            self._log.warning(
                "a process ended without stopping: of its rows 1 to %d, %d were never written (writer %s)",
                left.assigned,
                lost,
                left.writer_id,
            )
        return lost


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # A name that is too long or that no file can have.
        return False


def _sequence_folder(url: sa.URL) -> Path | None:
    """Return the folder for the counters of a store's processes; None for a database in memory."""
    if url.get_backend_name() == "sqlite":
        return Path(f"{url.database}.writers") if url.database and url.database != ":memory:" else None
    return Path("logs") / f"writers-{hashlib.sha256(url.render_as_string().encode()).hexdigest()[:16]}"
