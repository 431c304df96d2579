"""The queue of records and the thread that writes them, so that no request waits for the database."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import sqlalchemy as sa
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import OperationalError, SQLAlchemyError

from acclimate.errors import first_line
from acclimate.monitoring.database import BUSY_TIMEOUT_S, is_transient, reason_of, writing
from acclimate.monitoring.insert import Record, insert, insert_once, is_stored
from acclimate.monitoring.schema import timestamp_of, writers
from acclimate.monitoring.sequence import SequenceFile

_BATCH: Final = 256
_FIRST_PAUSE_S: Final = 0.05
_LONGEST_PAUSE_S: Final = 2.0
#: Least time between two log entries about lost rows: a full queue would otherwise log as fast as requests arrive.
_LOG_AGAIN_S: Final = 10.0
_SLICE_S: Final = 0.5


@dataclass(frozen=True, slots=True)
class Losses:
    """Numbers of rows that will not be written, by cause.

    Attributes:
        queue_full: the queue was full.
        write_failed: the database was locked or unreachable for longer than the retry timeout, or cannot be written at
            all, such as on a full disk.
        refused: the database refused the row, such as one with a number that does not fit its column.
    """

    queue_full: int = 0
    write_failed: int = 0
    refused: int = 0

    def __add__(self, other: Losses) -> Losses:
        return Losses(
            self.queue_full + other.queue_full, self.write_failed + other.write_failed, self.refused + other.refused
        )

    @property
    def total(self) -> int:
        """All of them."""
        return self.queue_full + self.write_failed + self.refused


class Writer:
    """A bounded queue of records and the thread that writes them.

    Args:
        engine: of a database with tables of the newest version.
        writer_id: names this process in the database.
        sequence: counts queued rows in a file that survives a crash; None where there is no place for the file.
        logger: for errors about lost rows.
        capacity: greatest number of queued rows.
        retry_timeout_s: for how long a batch is retried while the database is locked or unreachable.
        keep_content: store texts where records have them.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        writer_id: str,
        sequence: SequenceFile | None,
        logger: logging.Logger,
        capacity: int = 10_000,
        retry_timeout_s: float = 30.0,
        keep_content: bool = False,
    ) -> None:
        self._engine, self._writer_id, self._sequence, self._log = engine, writer_id, sequence, logger
        self._retry_timeout_s, self._keep_content = retry_timeout_s, keep_content
        self._queue: queue.Queue[tuple[int, Record] | threading.Event | None] = queue.Queue(capacity)
        self._lock = threading.Lock()
        self._queued = 0
        self._losses = {"queue_full": 0, "write_failed": 0, "refused": 0}
        self._unlogged, self._logged_at = 0, -_LOG_AGAIN_S
        self._closing, self._give_up_at, self._registered = False, float("inf"), False
        self._may_be_stored = False
        self._thread = threading.Thread(target=self._run, name="acclimate-metrics", daemon=True)
        self._thread.start()

    @property
    def losses(self) -> Losses:
        """Rows lost so far."""
        return Losses(**self._losses)

    def put(self, record: Record) -> bool:
        """Queue a record without waiting; False where the queue is full, which is counted and logged."""
        with self._lock:
            if self._closing:
                raise RuntimeError("the metrics store was closed; open it again to record")
            number = self._sequence.next() if self._sequence is not None else self._queued + 1
            self._queued = number
            try:
                self._queue.put_nowait((number, record))
            except queue.Full:
                self._lose("queue_full", 1, f"the queue of {self._queue.maxsize} rows is full")
                return False
        return True

    def flush(self, timeout_s: float | None = None) -> bool:
        """Wait until everything queued is written or lost; False where that took longer than the timeout."""
        done, deadline = threading.Event(), None if timeout_s is None else time.monotonic() + timeout_s
        try:
            self._queue.put(done, timeout=timeout_s)
        except queue.Full:
            return False
        while not done.wait(_SLICE_S if deadline is None else max(0.0, min(_SLICE_S, deadline - time.monotonic()))):
            if not self._thread.is_alive() or (deadline is not None and time.monotonic() >= deadline):
                return False
        return True

    def close(self, timeout_s: float = 10.0) -> None:
        """Write the queue and end the thread; what cannot be written in time is counted and logged."""
        with self._lock:
            if self._closing:
                return
            self._closing, self._give_up_at = True, time.monotonic() + timeout_s
        self._queue.put(None)
        # The thread gives up its queue at the timeout, or when a database lock that it then waits for times out.
        self._thread.join(timeout_s + 3 * BUSY_TIMEOUT_S)
        self._log_losses(f"{self._unlogged} rows of metrics were lost")
        try:
            with writing(self._engine) as connection:
                connection.execute(
                    sa.update(writers)
                    .where(writers.c.writer_id == self._writer_id)
                    .values(stopped_at=timestamp_of(), dropped=self.losses.total)
                )
        except SQLAlchemyError as error:
            self._log.warning("the end of this run could not be written to the metrics store: %s", reason_of(error))
        if self._sequence is not None and not self._thread.is_alive():
            # If the thread hangs, the file stays, and the next process counts what was not written.
            self._sequence.close()

    def _run(self) -> None:
        while True:
            item: tuple[int, Record] | threading.Event | None = self._queue.get()
            batch: list[tuple[int, Record]] = []
            waiting: list[threading.Event] = []
            while item is not None:
                if isinstance(item, threading.Event):
                    waiting.append(item)
                else:
                    batch.append(item)
                if len(batch) >= _BATCH:
                    break
                try:
                    item = self._queue.get_nowait()
                except queue.Empty:
                    break
            if batch:
                self._write_with_retries(batch)
            for event in waiting:
                event.set()
            if item is None:
                return

    def _write_with_retries(self, batch: Sequence[tuple[int, Record]]) -> None:
        deadline, pause = time.monotonic() + self._retry_timeout_s, _FIRST_PAUSE_S
        while True:
            if time.monotonic() >= self._give_up_at:
                self._give_up(batch, "write_failed", "the store was closed before the database could be written")
                return
            try:
                self._in_one_transaction(batch)
                return
            except Exception as error:  # noqa: BLE001  logged and counted; no exception may end the thread
                why = reason_of(error) if isinstance(error, SQLAlchemyError) else first_line(error)
                if is_transient(error):
                    if time.monotonic() >= min(deadline, self._give_up_at):
                        self._give_up(batch, "write_failed", f"the database cannot be written: {why}")
                        return
                    self._log.debug("the metrics store is busy: %s", why)
                elif isinstance(error, OperationalError):
                    # Trying again cannot help: the disk is full, the file is read-only, the user has no right to write.
                    self._give_up(batch, "write_failed", f"the database cannot be written: {why}")
                    return
                elif len(batch) == 1:
                    self._give_up(batch, "refused", f"the database refused a row: {why}")
                    return
                else:
                    # One by one, so that only refused rows are lost.
                    for pair in batch:
                        self._write_with_retries([pair])
                    return
            time.sleep(pause)
            pause = min(_LONGEST_PAUSE_S, 2 * pause)

    def _in_one_transaction(self, batch: Sequence[tuple[int, Record]]) -> None:
        with writing(self._engine) as connection:
            if not self._registered:
                register(connection, self._writer_id)
            new = sum(
                insert(connection, record, writer_id=self._writer_id, sequence=number, keep_content=self._keep_content)
                for number, record in batch
            )
            connection.execute(
                sa.update(writers)
                .where(writers.c.writer_id == self._writer_id)
                .values(written=writers.c.written + new, dropped=self.losses.total)
            )
            # From here on the rows may be stored although an error is reported: the commit's answer can get lost.
            self._may_be_stored = True
        self._registered, self._may_be_stored = True, False

    def _give_up(self, batch: Sequence[tuple[int, Record]], kind: str, why: str) -> None:
        """Count the rows of a batch as lost, but for those that a commit has stored whose answer got lost."""
        lost = list(batch)
        if self._may_be_stored:
            self._may_be_stored = False
            try:
                with self._engine.connect() as connection:
                    lost = [
                        (number, record)
                        for number, record in batch
                        if not is_stored(connection, record, writer_id=self._writer_id, sequence=number)
                    ]
            except SQLAlchemyError as error:
                self._log.debug("it cannot be found out which rows were stored: %s", reason_of(error))
        if lost:
            self._lose_locked(kind, len(lost), why)

    def _lose_locked(self, kind: str, rows: int, why: str) -> None:
        with self._lock:
            self._lose(kind, rows, why)

    def _lose(self, kind: str, rows: int, why: str) -> None:
        self._losses[kind] += rows
        if self._sequence is not None:
            self._sequence.give_up(rows)
        self._unlogged += rows
        self._log_losses(f"{self._unlogged} rows of metrics were lost: {why}")

    def _log_losses(self, text: str) -> None:
        now = time.monotonic()
        if self._unlogged and (self._closing or now - self._logged_at >= _LOG_AGAIN_S):
            self._log.error("%s", text)
            self._unlogged, self._logged_at = 0, now


def register(connection: Connection, writer_id: str) -> None:
    """Insert the row of a process that writes, once."""
    values = {"writer_id": writer_id, "started_at": timestamp_of(), "written": 0, "dropped": 0, "lost": 0}
    insert_once(connection, writers, values)
