"""Sums by the hour are those of the rows, whoever writes them; and what the page asks of a store."""

from __future__ import annotations

import math
import shutil
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from acclimate.monitoring import KPIS, RequestRecord, Store, VisionRun, Window, maintain, mean, measure
from acclimate.monitoring.hours import Filters, Sums, models_and_actors, read_hours
from acclimate.monitoring.intervals import mean_of_sums
from acclimate.monitoring.overview import (
    calibration_bins,
    latency,
    read_overview,
    recent_requests,
    request_details,
    summed,
    vision_totals,
)
from acclimate.monitoring.schema import request_hours

NOW = datetime.now(UTC).replace(minute=30, second=0, microsecond=0)
#: Indicators that are taken from the sums.
SUMMED = {
    "ttt_activation_rate", "adaptation_success_rate", "mean_confidence_score", "mean_adaptation_time", "fallback_rate",
    "memory_utilization",
}  # fmt: skip

_REASONS = {"declined": "no_held_out_gain", "fallback": "timeout"}


def record(
    status: str, hours_ago: float = 0.0, *, model: str = "spark", actor: str = "a", **more: object
) -> RequestRecord:
    values: dict[str, object] = {
        "pipeline": "language", "status": status, "session_id": "s", "model": model, "actor": actor,
        "timestamp": NOW - timedelta(hours=hours_ago), "reason": _REASONS.get(status), "seconds": 0.5,
        "memory_bytes": 2**20,
    }  # fmt: skip
    if status != "plain":
        values |= {"adaptation_time": 0.25, "examples_count": 4}
    if status == "adapted":
        values["confidence"] = 0.9
    return RequestRecord(**(values | more))  # type: ignore[arg-type]


_RECORDS = st.lists(
    st.tuples(
        st.sampled_from(["plain", "adapted", "declined", "fallback"]),
        st.integers(0, 60),
        st.sampled_from(["spark", "smollm2"]),
        st.sampled_from(["a", "b"]),
        st.floats(0, 1),
        st.floats(0, 50),
    ),
    min_size=1,
    max_size=30,
)


def test_maintenance_adds_up_what_several_processes_wrote_of_an_hour(database: str) -> None:
    window = Window.last(days=30)

    def rows(store: Store) -> int:
        with store.reading() as connection:
            return connection.execute(sa.select(sa.func.count()).select_from(request_hours)).scalar_one()

    def seen(store: Store) -> list[object]:
        with store.reading() as connection:
            return [
                (bucket.start, bucket.status, bucket.reason, bucket.count, bucket.adaptable,
                 {name: (sums.count, pytest.approx(sums.total), pytest.approx(sums.squares))
                  for name, sums in bucket.measured.items()})
                for by_day in (False, True) for bucket in read_hours(connection, window, by_day=by_day)
            ]  # fmt: skip

    with Store(database) as first, Store(database) as second:
        for store in (first, second):
            for hours_ago in (0, 3, 3, 27):
                # The present hour is that of the test, and not of when the file was read.
                moment = datetime.now(UTC) - timedelta(hours=hours_ago)
                for status in ("plain", "adapted", "fallback"):
                    store.record(record(status, timestamp=moment, seconds=hours_ago + 0.25))
                    store.record(record(status, timestamp=moment, model="smollm2"))
            store.flush()
        before = seen(first)
        # Three hours, three endings, two models, two writers; of the present hour each keeps its own.
        assert rows(first) == 36
        assert maintain(first, dry_run=True).merged == 0
        assert maintain(first).merged == 12
        assert rows(first) == 24
        assert seen(first) == before
        # What is written late is counted, and added up the next time.
        second.record(record("plain", timestamp=datetime.now(UTC) - timedelta(hours=3)))
        second.flush()
        assert rows(first) == 25
        assert maintain(first).merged == 0
        assert rows(first) == 24
        with first.reading() as connection:
            late = [b for b in read_hours(connection, window) if b.status == "plain"]
        assert sum(bucket.count for bucket in late) == 17


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=_RECORDS)
def test_sums_and_indicators_are_those_of_the_rows(
    rows: list[tuple[str, int, str, str, float, float]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    with Store(tmp_path_factory.mktemp("hours") / "metrics.db") as store:
        records = []
        for status, hours, model, actor, confidence, seconds in rows:
            more: dict[str, object] = {"seconds": seconds}
            if status == "adapted":
                more["confidence"] = confidence
            if status != "plain":
                more["adaptation_time"] = seconds / 2
            records.append(record(status, hours, model=model, actor=actor, **more))
            store.record(records[-1])
        window = Window(since=NOW - timedelta(hours=100))
        with store.reading() as connection:
            for filters in (Filters(), Filters(model="spark"), Filters(actor="b"), Filters(pipeline="vision")):
                kept = [
                    r for r in records
                    if filters.model in (None, r.model) and filters.actor in (None, r.actor)
                    and filters.pipeline in (None, r.pipeline)
                ]  # fmt: skip
                for by_day in (False, True):
                    buckets = read_hours(connection, window, filters=filters, by_day=by_day)
                    assert sum(bucket.count for bucket in buckets) == len(kept)
                    assert sum(b.measured["seconds"].total for b in buckets) == pytest.approx(
                        sum(r.seconds or 0 for r in kept)
                    )
                    assert [b.start for b in buckets] == sorted(b.start for b in buckets)
            found = read_overview(connection, window).measurements
        expected = measure(store, window)
        assert set(found) == {kpi.name for kpi in KPIS}
        for name in SUMMED:
            one, other = found[name].estimate, expected[name].estimate
            assert (one is None) == (other is None)
            if one is not None and other is not None:
                assert (one.value, one.count) == (pytest.approx(other.value), other.count)
                assert (one.low, one.high) == (pytest.approx(other.low, abs=1e-6), pytest.approx(other.high, abs=1e-6))
                assert found[name].state == expected[name].state


@given(values=st.lists(st.floats(-100, 100), min_size=1, max_size=40))
def test_the_mean_of_sums_is_the_mean_of_the_values(values: list[float]) -> None:
    found = mean_of_sums(len(values), math.fsum(values), math.fsum(v * v for v in values))
    expected = mean(values)
    assert found.value == pytest.approx(expected.value, abs=1e-9)
    assert found.low == pytest.approx(expected.low, rel=1e-4, abs=1e-3)
    assert found.high == pytest.approx(expected.high, rel=1e-4, abs=1e-3)


def test_sums_of_nothing_have_no_mean() -> None:
    assert Sums().mean is None
    assert summed([], "seconds") == Sums()


def test_several_processes_and_both_databases_count_every_request_once(store: Store) -> None:
    others = [Store(store.url.render_as_string(hide_password=False)) for _ in range(3)]
    threads = [
        threading.Thread(target=lambda s=s: [s.record(record("adapted")) for _ in range(40)]) for s in (store, *others)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for other in others:
        other.close()
    with store.reading() as connection:
        found = read_overview(connection, Window(since=NOW - timedelta(hours=2)))
    assert found.by_status == {"adapted": 160}
    assert found.measurements["mean_confidence_score"].estimate is not None
    assert found.measurements["mean_confidence_score"].estimate.count == 160


def test_what_the_page_asks(store: Store) -> None:
    for number in range(30):
        store.record(record("adapted", number % 3, user_feedback=5.0 if number % 3 else 1.0, seconds=float(number)))
    store.record(record("declined", 1, actor="b"))
    run = VisionRun(images=8, steps=2, kept=1, skipped=0, guard_rejections=1, resets=0)
    store.record(RequestRecord(pipeline="vision", status="adapted", session_id="s", method="blend", vision=run))
    window = Window(since=NOW - timedelta(hours=10))
    with store.reading() as connection:
        assert models_and_actors(connection, window) == (["spark"], ["a", "b", "unknown"])
        assert latency(connection, window, filters=Filters(actor="a")).median_s == 14.5
        assert latency(connection, window, filters=Filters(actor="nobody")).median_s is None
        (only,) = calibration_bins(connection, window)
        assert (only.confidence, only.right.count) == (pytest.approx(0.9), 30)
        assert only.right.value == pytest.approx(20 / 30)
        assert vision_totals(connection, window) == {
            "runs": 1, "images": 8, "steps": 2, "kept": 1, "skipped": 0, "guard_rejections": 1, "resets": 0,
        }  # fmt: skip
        rows = recent_requests(connection, window, limit=10)
        assert len(rows) == 10
        assert [row["timestamp"] for row in rows] == sorted((row["timestamp"] for row in rows), reverse=True)
        assert "content" not in rows[0]
        assert [row["status"] for row in recent_requests(connection, window, status="declined")] == ["declined"]
        assert len(recent_requests(connection, window, filters=Filters(actor="b"))) == 1
        older = recent_requests(connection, window, before=rows[-1]["timestamp"], limit=100)
        assert all(row["timestamp"] < rows[-1]["timestamp"] for row in older)
        found = request_details(connection, rows[-1]["request_id"])
        assert found is not None
        assert found.attempt is not None
        assert found.attempt["adaptation_time"] == 0.25
        assert [entry["outcome"] for entry in found.audit] == ["adapted"]
        assert request_details(connection, "unknown") is None


def test_hours_go_when_their_requests_go(store: Store) -> None:
    for hours in (0, 24 * 40):
        store.record(record("adapted", hours))
    assert maintain(store, keep_days=30, dry_run=True).removed["request_hours"] == 1
    maintain(store, keep_days=30)
    with store.reading() as connection:
        buckets = read_hours(connection, Window(since=NOW - timedelta(days=100)))
    assert sum(bucket.count for bucket in buckets) == 1


def test_requests_of_before_the_sums_are_summed_by_the_upgrade(tmp_path: Path) -> None:
    copy = tmp_path / "metrics.db"
    shutil.copy(Path(__file__).parent.parent / "schema_dbs" / "0004.db", copy)
    with Store(copy) as store, store.reading() as connection:
        window = Window(since=datetime(2000, 1, 1, tzinfo=UTC))
        rows = recent_requests(connection, window, limit=1000)
        buckets = read_hours(connection, window)
        assert rows
        assert sum(bucket.count for bucket in buckets) == len(rows)
        timed = [row["seconds"] for row in rows if row["seconds"] is not None]
        assert sum(b.measured["seconds"].count for b in buckets) == len(timed)
        assert sum(b.measured["seconds"].total for b in buckets) == pytest.approx(sum(timed))
