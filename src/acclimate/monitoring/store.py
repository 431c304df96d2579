"""The metrics store: opened once, written by one thread, read after everything handed over has arrived."""

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
from acclimate.monitoring.insert import Event
from acclimate.monitoring.records import RequestRecord, check_range
from acclimate.monitoring.schema import requests, timestamp_of, ttt_ab_tests, ttt_metrics, writers
from acclimate.monitoring.sequence import SequenceFile, leftovers
from acclimate.monitoring.writer import Losses, Writer

_LOG = logging.getLogger(__name__)
#: What ``pattern_expected`` says where there was no pattern.
NO_PATTERN: Final = "none"


class Store:
    """Where metrics are kept; safe to share between threads.

    Rows are handed over without waiting and written by a thread of the store's own. Reads wait until all that this
    process handed over has arrived. Use it as a context manager, or call :meth:`close`; a process that ends without
    either still writes what waits.

    Args:
        database: a path (SQLite) or a URL; None takes ``ACCLIMATE_DB_URL``, or ``logs/ttt_metrics.db``.
        must_exist: refuse a SQLite file that is not there, instead of making it.
        keep_content: store prompts, examples and answers where records carry them.
        queue_size: rows that may wait to be written.
        patience_s: seconds that a write is tried again while the database is locked or full.
        logger: hears of what is lost.

    Raises:
        ConfigError: the URL is not one that is supported.
        StoreError: the database cannot be opened or brought up to date.
    """

    def __init__(
        self,
        database: str | Path | None = None,
        *,
        must_exist: bool = False,
        keep_content: bool = False,
        queue_size: int = 10_000,
        patience_s: float = 30.0,
        logger: logging.Logger = _LOG,
    ) -> None:
        self.url = database_url(database)
        path = self.url.database if self.url.get_backend_name() == "sqlite" else None
        if must_exist and path is not None and not Path(path).exists():
            raise StoreError(f"there is no metrics store at {path}; it is made by the first request that is recorded")
        self.engine = make_engine(self.url)
        upgrade(self.engine)
        self._settings: dict[str, Any] = {"keep_content": keep_content, "capacity": queue_size}
        self._settings |= {"patience_s": patience_s, "logger": logger}
        self._log = logger
        self._folder = _sequence_folder(self.url)
        self._lock = threading.Lock()
        self._writer: Writer | None = None
        self._past_losses = Losses()
        self._owner = os.getpid()
        self.lost_before = self._account_for_the_dead()

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
        """Rows that this process handed over and that will not be written."""
        return self._past_losses + (self._writer.losses if self._writer is not None else Losses())

    def put(self, event: Event) -> bool:
        """Hand a record over without waiting; False where the queue is full, which is counted and logged."""
        return self._opened().put(event)

    def record(self, record: RequestRecord) -> str:
        """Hand a request over and return its name, for feedback."""
        self.put(record)
        return record.request_id

    def flush(self, timeout_s: float | None = None) -> bool:
        """Wait until all that was handed over is written or lost; False where that took longer than the limit."""
        return self._writer is None or self._owner != os.getpid() or self._writer.flush(timeout_s)

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """Open a transaction that reads, after all that this process handed over has arrived.

        Raises:
            StoreError: the database cannot be read.
        """
        self.flush()
        try:
            with self.engine.connect() as connection:
                yield connection
        except DBAPIError as error:
            raise StoreError(f"cannot read the metrics store {self.description}: {reason_of(error)}") from error

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """Open a transaction that writes at once, after all that was handed over.

        Raises:
            StoreError: the database cannot be written.
        """
        self.flush()
        try:
            with writing(self.engine) as connection:
                yield connection
        except DBAPIError as error:
            raise StoreError(f"cannot write to the metrics store {self.description}: {reason_of(error)}") from error

    def close(self, timeout_s: float = 10.0) -> None:
        """Write what waits, and end the thread; recording again opens it again."""
        with self._lock:
            current, self._writer = self._writer, None
        if current is not None and self._owner == os.getpid():
            atexit.unregister(self.close)
            current.close(timeout_s)
            self._past_losses += current.losses
        self.engine.dispose()

    def add_feedback(self, request_id: str, rating: float) -> None:
        """Record what a user thought of a past request; it enters the experiments that the request is part of.

        Args:
            request_id: as the report of the request gave it.
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
        """Record which kind of pattern a past request really had; None for no pattern.

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
                # Connections and threads of the process that was forked from are not ours to use.
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

    def _account_for_the_dead(self) -> int:
        """Compare what processes that died had counted with what arrived; report and return the difference."""
        total = 0
        for left in leftovers(self._folder) if self._folder is not None else ():
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
            total += lost
        return total


def _sequence_folder(url: sa.URL) -> Path | None:
    """Return where the counters of a store's processes lie; None for a database in memory."""
    if url.get_backend_name() == "sqlite":
        return Path(f"{url.database}.writers") if url.database and url.database != ":memory:" else None
    return Path("logs") / f"writers-{hashlib.sha256(url.render_as_string().encode()).hexdigest()[:16]}"
