"""Lost rows are counted and logged: full queues, locked files, full disks, and processes that are killed."""

from __future__ import annotations

import logging
import os
import signal
import sqlite3
import subprocess
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa

from acclimate.monitoring import Store, schema
from tests import preloaded
from tests.monitoring.databases import fill, request

WORKER = """
import os, signal, sys, time
sys.path.insert(0, {root!r})
from acclimate.monitoring import Store
from tests.monitoring.databases import fill
store = Store({database!r})
fill(store, 50)
store.flush()
print("fifty written", flush=True)
{then}
"""


def worker(database: Path | str, then: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    root = str(Path(__file__).parents[2])
    code = WORKER.format(root=root, database=str(database), then=then)
    return preloaded.run(code=code, cwd=cwd, timeout_s=1200)


def rows(store: Store) -> int:
    with store.reading() as connection:
        return int(connection.execute(sa.select(sa.func.count()).select_from(schema.requests)).scalar_one())


def committed(path: Path) -> int:
    """The requests in the database, read by a connection of its own, which does not wait for the writer."""
    with closing(sqlite3.connect(path)) as connection:
        return int(connection.execute("SELECT count(*) FROM requests").fetchone()[0])


@contextmanager
def threads_of_connections(store: Store) -> Iterator[set[int]]:
    """The threads that take a connection to the database."""
    threads: set[int] = set()

    def taken(*_: object) -> None:
        threads.add(threading.get_ident())

    sa.event.listen(store.engine, "checkout", taken)
    try:
        yield threads
    finally:
        sa.event.remove(store.engine, "checkout", taken)


def test_a_process_that_ends_without_closing_loses_nothing(database: str, tmp_path: Path) -> None:
    done = worker(database, "fill(store, 25)", tmp_path)
    assert done.returncode == 0, done.stderr
    with Store(database) as store:
        assert rows(store) == 75
        assert store.lost_before == 0


def test_kill_9_loses_no_committed_row_and_the_next_start_reports_the_others(
    database: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # The writer's lock is taken before the rows are queued, so that none of them can be written.
    then = """
with store.writing() as connection:
    connection.exec_driver_sql("UPDATE writers SET dropped = dropped")
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql("LOCK TABLE requests IN ACCESS EXCLUSIVE MODE")
    fill(store, 25)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    done = worker(database, then, tmp_path)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert "fifty written" in done.stdout
    with caplog.at_level(logging.WARNING), Store(database) as store:
        assert rows(store) == 50
        assert store.lost_before == 25
        with store.reading() as connection:
            assert sum(connection.execute(sa.select(schema.writers.c.lost)).scalars()) == 25
    assert "of its rows 1 to 75, 25 were never written" in caplog.text
    with Store(database) as store:
        assert store.lost_before == 0, "a loss is reported once"


def test_a_process_that_is_alive_is_not_taken_for_dead(database: str) -> None:
    with Store(database) as one:
        fill(one, 5)
        with Store(database) as other:
            assert other.lost_before == 0
        fill(one, 5)
        assert rows(one) == 10


def test_rows_that_do_not_fit_the_queue_are_counted_and_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Store(tmp_path / "m.db", queue_size=10) as store:
        fill(store, 1)
        store.flush()
        blocker = sqlite3.connect(tmp_path / "m.db", isolation_level=None)
        blocker.execute("BEGIN IMMEDIATE")
        with caplog.at_level(logging.ERROR), threads_of_connections(store) as threads:
            taken = [store.put(request()) for _ in range(200)]
            assert committed(tmp_path / "m.db") == 1, "every put came back while the database was locked"
        blocker.execute("ROLLBACK")
        blocker.close()
        assert store.losses.queue_full == taken.count(False) > 0
        assert "the queue of 10 rows is full" in caplog.text
        assert threading.get_ident() not in threads, "a request does not use the database"
        assert rows(store) == 1 + taken.count(True)


def test_a_write_to_a_locked_file_is_retried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("acclimate.monitoring.database.BUSY_TIMEOUT_S", 0.05)
    with Store(tmp_path / "m.db", retry_timeout_s=600) as store:
        fill(store, 1)
        store.flush()
        blocker = sqlite3.connect(tmp_path / "m.db", isolation_level=None, check_same_thread=False)
        blocker.execute("BEGIN IMMEDIATE")
        failed = threading.Event()
        sa.event.listen(store.engine, "handle_error", lambda _: failed.set())
        fill(store, 20)
        assert failed.wait(240), "the writer met the lock"
        blocker.execute("ROLLBACK")
        blocker.close()
        assert rows(store) == 21
        assert store.losses.total == 0


def test_a_file_that_stays_locked_costs_rows_that_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("acclimate.monitoring.database.BUSY_TIMEOUT_S", 0.1)
    with Store(tmp_path / "m.db", retry_timeout_s=0.3) as store:
        fill(store, 1)
        store.flush()
        blocker = sqlite3.connect(tmp_path / "m.db", isolation_level=None)
        blocker.execute("BEGIN IMMEDIATE")
        with caplog.at_level(logging.ERROR):
            fill(store, 20)
            store.flush()
        blocker.execute("ROLLBACK")
        blocker.close()
        assert store.losses.write_failed == 20
        assert "database is locked" in caplog.text
        fill(store, 5)
        assert rows(store) == 6, "recording goes on"
    with Store(tmp_path / "m.db") as again:
        assert again.lost_before == 0, "what was reported is not reported as a crash"
        with again.reading() as connection:
            assert sum(connection.execute(sa.select(schema.writers.c.dropped)).scalars()) == 20


def test_a_row_that_cannot_be_written_at_all_costs_only_itself(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Store(tmp_path / "m.db") as store:
        fill(store, 50)
        store.record(request(request_id="twice"))
        store.record(request(request_id="twice"))
        store.record(request(memory_bytes=2**70))
        fill(store, 50)
        with caplog.at_level(logging.ERROR):
            assert rows(store) == 101
        assert store.losses.refused == 2
        fill(store, 1)
        assert rows(store) == 102, "the thread goes on"
    assert store.losses.refused == 2, "what was lost is known after closing too"


def test_the_first_request_does_not_wait_for_a_locked_database(tmp_path: Path) -> None:
    with Store(tmp_path / "m.db") as store:
        blocker = sqlite3.connect(tmp_path / "m.db", isolation_level=None)
        blocker.execute("BEGIN IMMEDIATE")
        with threads_of_connections(store) as threads:
            fill(store, 3)
            assert committed(tmp_path / "m.db") == 0, "all three came back while the database was locked"
            assert threading.get_ident() not in threads, "a request does not use the database"
            blocker.execute("ROLLBACK")
            blocker.close()
            store.flush()
        assert len(threads) == 1, "the writer thread used it"
        assert rows(store) == 3


def test_closing_under_a_lock_counts_every_row(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("acclimate.monitoring.database.BUSY_TIMEOUT_S", 0.2)
    store = Store(tmp_path / "m.db", retry_timeout_s=0.5)
    fill(store, 1)
    store.flush()
    blocker = sqlite3.connect(tmp_path / "m.db", isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    fill(store, 3000)
    with caplog.at_level(logging.ERROR):
        store.close(timeout_s=0.5)
    blocker.execute("ROLLBACK")
    blocker.close()
    assert store.losses.write_failed == 3000
    with Store(tmp_path / "m.db") as again:
        assert again.lost_before == 0
        assert rows(again) == 1


def test_a_full_disk_costs_rows_that_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with Store(tmp_path / "m.db", retry_timeout_s=0.2) as store:
        fill(store, 1)
        store.flush()
        # SQLite's own limit gives the error of a full disk.
        with store.reading() as connection:
            pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()

        @sa.event.listens_for(store.engine, "checkout")
        def limit(connection: sqlite3.Connection, *_: object) -> None:
            connection.execute(f"PRAGMA max_page_count={pages}")

        with caplog.at_level(logging.ERROR):
            for _ in range(40):
                fill(store, 20)
            store.flush()
        assert store.losses.write_failed > 0
        assert "disk is full" in caplog.text
        assert rows(store) + store.losses.write_failed == 801


def test_a_forked_process_writes_by_itself(tmp_path: Path) -> None:
    code = f"""
import os, sys
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from acclimate.monitoring import Store
from tests.monitoring.databases import fill
store = Store({str(tmp_path / "m.db")!r})
fill(store, 3); store.flush()
child = os.fork()
if child == 0:
    fill(store, 4); store.close(); os._exit(0)
os.waitpid(child, 0)
fill(store, 5)
"""
    done = preloaded.run(code=code, timeout_s=1200)
    assert done.returncode == 0, done.stderr
    with Store(tmp_path / "m.db") as store:
        assert rows(store) == 12


def test_a_store_whose_counters_have_no_place_still_records(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "m.db.writers").write_text("not a folder")
    with caplog.at_level(logging.WARNING), Store(tmp_path / "m.db") as store:
        fill(store, 2)
        assert rows(store) == 2
    assert "rows lost in a crash cannot be counted" in caplog.text


@pytest.mark.skipif(os.geteuid() == 0 and not Path("/proc").exists(), reason="needs a read-only place")
def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    from acclimate.errors import StoreError

    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot make the folder"):
        Store(tmp_path / "file" / "m.db")
