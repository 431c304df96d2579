"""A commit that succeeds although its answer is lost: every row is stored once, and none is reported as lost."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import OperationalError

from acclimate.monitoring import Experiment, Outcome, RequestRecord, Store, VisionRun, audit, schema
from acclimate.monitoring.experiments import create, get
from tests.monitoring.databases import request


def busy() -> Exception:
    """SQLite's error while another process holds the lock."""
    error = sqlite3.OperationalError("database is locked")
    error.sqlite_errorcode = sqlite3.SQLITE_BUSY
    return error


def gone() -> Exception:
    """psycopg's error when the server closes a connection."""
    import psycopg

    return psycopg.OperationalError("server closed the connection unexpectedly")


@contextmanager
def commits_without_an_answer(store: Store, count: int, *, cause: Exception | None = None) -> Iterator[list[int]]:
    """The next ``count`` commits take place, and are then reported as failed."""
    failed: list[int] = []
    answer = cause or (busy() if store.url.get_backend_name() == "sqlite" else gone())

    def lose(connection: sa.Connection) -> None:
        if len(failed) >= count:
            return
        failed.append(len(failed))
        driver: Any = connection.connection.driver_connection
        if isinstance(driver, sqlite3.Connection):
            driver.execute("COMMIT")
        else:
            driver.commit()
        raise OperationalError("COMMIT", {}, answer)

    sa.event.listen(store.engine, "commit", lose)
    try:
        yield failed
    finally:
        sa.event.remove(store.engine, "commit", lose)


def counts(store: Store) -> dict[str, int]:
    tables = (schema.requests, schema.ttt_metrics, schema.ttt_ab_tests, schema.vision_runs, schema.audit_log)
    with store.reading() as connection:
        return {t.name: connection.execute(sa.select(sa.func.count()).select_from(t)).scalar_one() for t in tables}


def queue_ten(store: Store) -> None:
    run = VisionRun(images=1, steps=1, kept=1, skipped=0, guard_rejections=0, resets=0)
    for number in range(10):
        name = store.record(request(request_id=f"r{number}"))
        for method in ("ICL", "TTT"):
            store.put(Outcome(test_id="t", session_id="s", method=method, request_id=name))
        store.record(RequestRecord(pipeline="vision", status="adapted", session_id="v", vision=run))


@pytest.mark.parametrize("count", [1, 3])
def test_every_row_is_stored_once_whatever_is_retried(store: Store, count: int) -> None:
    with commits_without_an_answer(store, count) as failed:
        queue_ten(store)
        store.flush()
    assert failed
    assert counts(store) == {
        "requests": 20, "ttt_metrics": 10, "ttt_ab_tests": 20, "vision_runs": 10, "audit_log": 20,
    }  # fmt: skip
    assert store.losses.total == 0
    with store.reading() as connection:
        assert list(audit.verify(connection)) == []
        assert connection.execute(sa.select(schema.writers.c.written)).scalar_one() == 40
    store.close()
    with Store(store.url.render_as_string(hide_password=False)) as again:
        assert again.lost_before == 0


def test_rows_that_were_stored_are_not_reported_as_lost_where_the_time_for_retries_is_over(database: str) -> None:
    with Store(database, retry_timeout_s=0.0) as store:
        with commits_without_an_answer(store, 10**6):
            queue_ten(store)
            store.flush()
        assert counts(store)["ttt_ab_tests"] == 20
        assert store.losses.total == 0


@pytest.mark.parametrize("cause", [RuntimeError("any other error"), sqlite3.OperationalError("disk I/O error")])
def test_other_errors_after_a_commit_lose_nothing_either(sqlite_store: Store, cause: Exception) -> None:
    with commits_without_an_answer(sqlite_store, 1, cause=cause):
        queue_ten(sqlite_store)
        sqlite_store.flush()
    assert counts(sqlite_store)["ttt_ab_tests"] == 20
    assert sqlite_store.losses.total == 0


def test_rows_of_two_processes_with_the_same_numbers_are_different_rows(database: str) -> None:
    with Store(database) as one, Store(database) as other:
        for store in (one, other):
            store.put(Outcome(test_id="t", session_id="s", method="TTT"))
            store.flush()
        assert counts(one)["ttt_ab_tests"] == 2


def test_an_experiment_whose_creation_was_stored_can_be_created_again(store: Store) -> None:
    experiment = Experiment(name="e")
    with commits_without_an_answer(store, 1), pytest.raises(Exception, match=r"locked|closed the connection"):
        create(store, experiment)
    create(store, experiment)
    assert get(store, "e") == experiment
