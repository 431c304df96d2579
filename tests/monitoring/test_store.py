"""Every kind of database through the same checks: a queued record is written once, complete, and can be read back."""

from __future__ import annotations

import json
import logging
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st

from acclimate.errors import ConfigError, DataError, StoreError
from acclimate.language.decision import gate
from acclimate.monitoring import (
    Outcome,
    RequestRecord,
    SessionSummary,
    Store,
    VisionRun,
    Window,
    audit,
    schema,
    trends,
)
from acclimate.monitoring.database import database_url
from acclimate.monitoring.export import export_metrics
from acclimate.monitoring.records import DECLINED_REASONS
from tests.monitoring.databases import fill, request


def count(store: Store, table: str) -> int:
    with store.reading() as connection:
        return int(connection.execute(sa.text(f"SELECT count(*) FROM {table}")).scalar_one())


def session(store: Store, name: str) -> SessionSummary:
    with store.reading() as connection:
        return trends.session_summary(connection, name)


def performance(store: Store, *, days: float) -> dict[str, Any]:
    with store.reading() as connection:
        return trends.performance_trends(connection, Window.last(days=days))


def test_the_tables_are_those_of_the_code(store: Store) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    with store.reading() as connection:
        assert compare_metadata(MigrationContext.configure(connection), schema.metadata) == []


def test_every_request_is_a_row_and_only_attempts_are_attempts(store: Store) -> None:
    for status in ("adapted", "declined", "fallback", "plain"):
        fill(store, 2, status)
    assert count(store, "requests") == 8
    assert count(store, "ttt_metrics") == 6
    with store.reading() as connection:
        rows = connection.execute(sa.select(schema.ttt_metrics.c.success, schema.ttt_metrics.c.fallback_reason)).all()
    assert sorted(map(str, rows)) == sorted(
        map(str, [(True, None), (None, "no_held_out_gain"), (False, "timeout")] * 2)
    )


def test_a_row_has_everything_that_was_recorded(store: Store) -> None:
    record = request(
        request_id="r1", model="spark", pattern_confidence=0.7, icl_confidence=0.2, seconds=1.25,
        memory_bytes=5 * 2**32, environment="production", details={"votes": 3}, accuracy_improvement=0.1,
    )  # fmt: skip
    store.record(record)
    with store.reading() as connection:
        row = connection.execute(sa.select(schema.requests)).mappings().one()
        attempt = connection.execute(sa.select(schema.ttt_metrics)).mappings().one()
    for name in (
        "request_id",
        "model",
        "pattern_confidence",
        "icl_confidence",
        "seconds",
        "memory_bytes",
        "environment",
    ):
        assert row[name] == getattr(record, name)
    assert row["sequence"] == 1
    assert row["content"] is None
    assert attempt["accuracy_improvement"] == 0.1
    assert json.loads(attempt["metadata"]) == {"model": "spark", "votes": 3}
    assert datetime.fromisoformat(attempt["timestamp"]) == record.timestamp


def test_content_is_stored_only_where_the_operator_asks_for_it(database: str) -> None:
    secret = {"prompt": "a very private prompt"}
    with Store(database) as store:
        store.record(request(content=secret))
        with store.reading() as connection:
            assert connection.execute(sa.select(schema.requests.c.content)).scalar_one() is None
    with Store(database, keep_content=True) as store:
        store.record(request(content=secret))
        with store.reading() as connection:
            found = connection.execute(sa.select(schema.requests.c.content)).scalars().all()
            assert [json.loads(text) for text in found if text] == [secret]
            assert not any("private" in json.dumps(entry) for entry in audit.entries(connection))


def test_a_session_that_is_not_there_is_unknown_not_zero(store: Store) -> None:
    summary = session(store, "nobody")
    assert summary.total_attempts == 0
    assert summary.average_confidence is None
    assert summary.fallback_rate is None
    assert summary.performance_trend == "not enough data"


def test_means_are_over_attempts_and_days_are_apart(store: Store) -> None:
    # Three attempts of one day and kind, one of another: the mean of means would be 0.55.
    for confidence in (0.9, 0.9, 0.9):
        store.record(request(confidence=confidence, days_ago=2))
    store.record(request(confidence=0.2, pattern="analogical_reasoning"))
    store.record(request("declined"))
    found = performance(store, days=7)
    days = found["daily_performance"]
    assert [row["total_attempts"] for row in days] == [3, 2]
    assert days[0]["avg_confidence"] == pytest.approx(0.9)
    assert days[1]["success_rate"] == 1.0
    assert days[1]["declined"] == 1
    kinds = {row["task_type"]: row for row in found["task_type_performance"]}
    assert kinds["analogical_reasoning"]["avg_confidence"] == pytest.approx(0.2)
    assert session(store, "session").average_confidence == pytest.approx((3 * 0.9 + 0.2) / 4)
    assert len(performance(store, days=1)["daily_performance"]) == 1


@pytest.mark.parametrize(("first", "last", "trend"), [(0, 40, "improving"), (40, 0, "declining"), (20, 20, "stable")])
def test_the_trend_is_computed(sqlite_store: Store, first: int, last: int, trend: str) -> None:
    outcomes = ["adapted"] * first + ["fallback"] * (40 - first), ["adapted"] * last + ["fallback"] * (40 - last)
    for part, statuses in enumerate(outcomes):
        mixed = (
            statuses
            if trend != "stable"
            else [s for pair in zip(statuses[:20], statuses[20:], strict=True) for s in pair]
        )
        for number, status in enumerate(mixed):
            sqlite_store.record(request(status, days_ago=1 - part / 2 - number / 1000))
    assert performance(sqlite_store, days=7)["trend"] == trend


def test_feedback_reaches_the_request_its_attempt_and_its_experiments(store: Store) -> None:
    name = store.record(request())
    store.put(Outcome(test_id="t", session_id="s", method="TTT", request_id=name))
    store.add_feedback(name, 4)
    with store.reading() as connection:
        assert connection.execute(sa.select(schema.requests.c.user_feedback)).scalar_one() == 4
        assert connection.execute(sa.select(schema.ttt_metrics.c.user_feedback)).scalar_one() == 4
        assert connection.execute(sa.select(schema.ttt_ab_tests.c.user_satisfaction)).scalar_one() == 4
    with pytest.raises(StoreError, match="there is no request 'nobody'"):
        store.add_feedback("nobody", 3)
    with pytest.raises(DataError, match="between 1 and 5, got 6"):
        store.add_feedback(name, 6)


def test_vision_runs_are_kept_with_their_numbers_and_are_no_attempts_of_the_language_pipeline(store: Store) -> None:
    run = VisionRun(images=90, steps=10, kept=7, skipped=2, guard_rejections=1, resets=1, cost_ratio=2.5, gain=0.1)
    store.record(RequestRecord(pipeline="vision", status="adapted", session_id="v", vision=run))
    assert count(store, "vision_runs") == 1
    assert count(store, "ttt_metrics") == 0
    assert count(store, "audit_log") == 1


def test_many_threads_lose_nothing(store: Store) -> None:
    threads = [threading.Thread(target=fill, args=(store, 50)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert count(store, "requests") == 400
    with store.reading() as connection:
        numbers = connection.execute(sa.select(schema.requests.c.sequence)).scalars().all()
        assert sorted(numbers) == list(range(1, 401))
        assert list(audit.verify(connection)) == []


def test_two_processes_share_a_store(database: str) -> None:
    with Store(database) as one, Store(database) as other:
        fill(one, 30)
        fill(other, 30)
        one.flush()
        other.flush()
        assert count(one, "requests") == 60
        with one.reading() as connection:
            assert list(audit.verify(connection)) == []


def test_a_store_that_was_closed_records_again(store: Store) -> None:
    fill(store, 1)
    store.close()
    fill(store, 1)
    assert count(store, "requests") == 2


def test_one_refused_row_does_not_take_the_others_with_it(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    fill(store, 3)
    store.record(request(request_id="twice"))
    store.record(request(request_id="twice"))
    fill(store, 3)
    with caplog.at_level(logging.ERROR):
        assert count(store, "requests") == 7
    assert store.losses.refused == 1
    assert "1 rows of metrics were lost" in caplog.text


@pytest.mark.parametrize("suffix", ["json", "csv", "parquet"])
def test_metrics_are_exported(store: Store, tmp_path: Path, suffix: str) -> None:
    fill(store, 3, content={"prompt": "private"})
    fill(store, 1, days_ago=40)
    path = tmp_path / "out" / f"metrics.{suffix}"
    assert export_metrics(store, path, Window.last(days=30), days=30) == 3
    if suffix == "json":
        content = json.loads(path.read_text())
        assert content["total_records"] == len(content["metrics"]) == len(content["requests"]) == 3
        assert "content" not in content["requests"][0]
        rows = content["metrics"]
    elif suffix == "csv":
        import csv

        rows = list(csv.DictReader(path.open()))
    else:
        from pyarrow import parquet

        rows = parquet.read_table(path).to_pylist()
    assert len(rows) == 3
    assert float(rows[0]["confidence_score"]) == 0.9
    assert rows[0]["status"] == "adapted" if suffix != "json" else True


def test_an_export_to_another_ending_is_refused(sqlite_store: Store, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"must end in .json, .csv, .parquet, got '.xls'"):
        export_metrics(sqlite_store, tmp_path / "a.xls", Window.last(days=30), days=30)


def test_the_reasons_of_decisions_are_those_of_the_language_pipeline() -> None:
    assert DECLINED_REASONS == gate.DECLINED


@given(st.floats(allow_nan=True, allow_infinity=True))
def test_scores_outside_their_range_are_refused(value: float) -> None:
    for name in ("confidence", "convergence_score"):
        if 0 <= value <= 1:
            assert getattr(request(**{name: value}), name) == value
        else:
            with pytest.raises(DataError, match=f"{name} must be between 0 and 1"):
                request(**{name: value})


@pytest.mark.parametrize("name", ["examples_count", "training_steps", "adaptation_time"])
def test_counts_and_times_below_zero_are_refused(name: str) -> None:
    with pytest.raises(DataError, match=f"{name} must be at least 0, got -1"):
        request(**{name: -1})


def test_local_times_are_stored_in_utc(sqlite_store: Store) -> None:
    moment = datetime.now()
    sqlite_store.record(request(timestamp=moment))
    with sqlite_store.reading() as connection:
        stored = datetime.fromisoformat(connection.execute(sa.select(schema.ttt_metrics.c.timestamp)).scalar_one())
    assert stored.utcoffset() == timedelta(0)
    assert stored == moment.astimezone(UTC)


def test_databases_that_are_not_supported_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'mysql' is not supported"):
        database_url("mysql://host/name")
    with pytest.raises(ConfigError, match="is not a database URL"):
        database_url("://nothing")
    with pytest.raises(StoreError, match="there is no metrics store at"):
        Store(tmp_path / "nothing.db", must_exist=True)
    (tmp_path / "text.db").write_text("this is no database at all, but long enough to look at" * 30)
    with pytest.raises(StoreError, match=r"cannot open the metrics store .*not a database"):
        Store(tmp_path / "text.db")
    monkeypatch.delenv("ACCLIMATE_DB_URL")
    assert database_url().database == "logs/ttt_metrics.db"
    monkeypatch.setenv("ACCLIMATE_DB_URL", "postgresql://user@host/name")
    assert database_url().drivername == "postgresql+psycopg"
