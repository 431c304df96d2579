"""Rows that another program for the guidelines' schema wrote: they count, and their local times are read as such."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from click.testing import CliRunner

from acclimate.cli.main import main
from acclimate.errors import StoreError
from acclimate.monitoring import Store, Window, as_text, check, maintain, make_report, measure, schema, suggest, trends
from acclimate.monitoring.experiments import find_report
from acclimate.monitoring.export import export_metrics
from acclimate.monitoring.other_programs import in_utc
from tests.monitoring.databases import fill

DAY = Window.last(days=1)


@pytest.fixture(params=["America/New_York", "Asia/Tokyo", "UTC"])
def zone(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The local time zone of this process."""
    monkeypatch.setenv("TZ", request.param)
    time.tzset()
    yield request.param
    monkeypatch.undo()
    time.tzset()


def theirs(store: Store, count: int, *, hours_ago: float = 0.0, time_written: str | None = None, **values: Any) -> None:
    """Write rows as another program does: local times without a zone, and no request."""
    written = time_written or (datetime.now() - timedelta(hours=hours_ago)).isoformat()
    row = {"session_id": "theirs", "timestamp": written, "task_type": "io_pairs", "success": True} | values
    columns = [column for column in row if column != "recorded_at"]
    with store.engine.connect().execution_options(writes=True) as connection, connection.begin():
        for _ in range(count):
            statement = f"INSERT INTO ttt_metrics ({', '.join(columns)}) VALUES ({', '.join(':' + c for c in columns)})"
            connection.execute(sa.text(statement), row)


def their_test(store: Store, name: str, method: str, qualities: list[float]) -> None:
    with store.engine.connect().execution_options(writes=True) as connection, connection.begin():
        for number, quality in enumerate(qualities):
            connection.execute(
                sa.text(
                    "INSERT INTO ttt_ab_tests (test_id, session_id, timestamp, method, response_quality)"
                    " VALUES (:t, :s, :at, :m, :q)"
                ),
                {"t": name, "s": f"s{number}", "at": datetime.now().isoformat(), "m": method, "q": quality},
            )


def test_their_failures_alert(store: Store, zone: str) -> None:
    theirs(store, 20, confidence_score=0.9, adaptation_time=1.0)
    theirs(store, 40, success=False, fallback_reason="timeout")
    health = check(store, DAY)
    assert health.verdict == "alerts"
    assert set(health.alerting) == {"adaptation_success_rate", "fallback_rate"}
    values = {name: m.estimate and (m.estimate.value, m.estimate.count) for name, m in health.measurements.items()}
    assert values["adaptation_success_rate"] == (pytest.approx(20 / 60), 60)
    assert values["mean_confidence_score"] == (pytest.approx(0.9), 20)
    assert values["mean_adaptation_time"] == (pytest.approx(1.0), 20)
    assert values["ttt_activation_rate"] is None, "how many requests they had is not known"
    assert health.counts.by_status == {"adapted": 20, "fallback": 40}
    assert (health.other_rows.attempts, health.other_rows.converted) == (60, 60)
    assert any("read as local time" in note for note in health.notes)
    assert [suggestion.code for suggestion in suggest(store, DAY)] == ["raise_time_limit"]
    assert "fallback: 40 (timeout 40)" in as_text(make_report(store, "daily"))


def test_the_command_says_so_and_exits_with_one(tmp_path: Path) -> None:
    with Store(tmp_path / "m.db") as store:
        theirs(store, 20)
        theirs(store, 40, success=False, fallback_reason="timeout")
    done = CliRunner().invoke(main, ["health", "--db", str(tmp_path / "m.db")])
    assert done.exit_code == 1
    assert "note: 60 attempts were recorded by another program" in done.stdout
    assert "read as local time" in done.stdout


def test_they_are_counted_with_ours(store: Store) -> None:
    fill(store, 70, "plain")
    fill(store, 30)
    theirs(store, 10, success=False, fallback_reason="low_confidence")
    found = measure(store, DAY)
    assert found["ttt_activation_rate"].estimate.value == pytest.approx(0.3)  # type: ignore[union-attr]
    assert found["fallback_rate"].estimate.count == 40  # type: ignore[union-attr]
    assert found["fallback_rate"].extra["declined_rate"] == pytest.approx(10 / 40), "low confidence is no failure"
    with store.reading() as connection:
        assert trends.session_summary(connection, "theirs").declined_rate == 1.0


def test_a_window_takes_their_local_times_for_what_they_are(store: Store, zone: str) -> None:
    theirs(store, 5, hours_ago=3)
    theirs(store, 7, hours_ago=5)
    assert check(store, Window.last(hours=4)).counts.total == 5
    assert check(store, Window.last(hours=6)).counts.total == 12
    later = Window(since=datetime.now(UTC) + timedelta(minutes=1))
    assert check(store, later).counts.total == 0


def test_times_are_converted_once_and_what_they_wrote_stays(
    store: Store, monkeypatch: pytest.MonkeyPatch, zone: str
) -> None:
    written = (datetime.now() - timedelta(hours=2)).isoformat()
    theirs(store, 1, time_written=written)
    columns = schema.ttt_metrics.c
    with store.reading() as connection:
        before = connection.execute(sa.select(columns.timestamp, columns.recorded_at)).one()
    assert before.timestamp == written
    assert datetime.fromisoformat(before.recorded_at) == datetime.fromisoformat(written).astimezone(UTC)
    monkeypatch.setenv("TZ", "Pacific/Auckland")
    time.tzset()
    with store.reading() as connection:
        assert connection.execute(sa.select(columns.timestamp, columns.recorded_at)).one() == before


def test_the_daylight_saving_hour_that_comes_twice_is_the_later_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "America/New_York")
    time.tzset()
    try:
        assert in_utc("2026-11-01T01:30:00") == "2026-11-01T06:30:00.000000+00:00"
        assert in_utc("2026-07-01 12:00:00") == "2026-07-01T16:00:00.000000+00:00"
        assert (
            in_utc("2026-07-01T12:00:00+02:00")
            == in_utc("2026-07-01T10:00:00Z")
            == ("2026-07-01T10:00:00.000000+00:00")
        )
        for nonsense in ("yesterday", "", "0001-01-01T00:00:00", None, 5):
            assert in_utc(nonsense) in ("", "0001-01-01T04:56:02.000000+00:00")
    finally:
        monkeypatch.undo()
        time.tzset()


def test_nothing_of_theirs_is_deleted_too_early(store: Store, zone: str) -> None:
    theirs(store, 3)
    theirs(store, 3, hours_ago=5)
    theirs(store, 3, time_written="some time ago")
    theirs(store, 2, hours_ago=40 * 24)
    fill(store, 4, days_ago=0.25)
    planned = maintain(store, keep_days=0.2, dry_run=True)
    done = maintain(store, keep_days=0.2)
    assert planned.removed == done.removed
    # Their five-hour-old rows may be of any zone, so they stay; ours, whose times are exact, go.
    assert done.removed["ttt_metrics"] == 2 + 4
    with store.reading() as connection:
        assert connection.execute(sa.select(sa.func.count()).select_from(schema.ttt_metrics)).scalar_one() == 9
    assert "3 rows of another program have times that cannot be read" in check(store, DAY).notes[-1]


def test_a_test_of_theirs_is_reported_although_no_design_is_stored(store: Store) -> None:
    their_test(store, "their test", "TTT", [0.9, 0.7, 0.8, 1.0])
    their_test(store, "their test", "ICL", [0.5, 0.6, 0.4, 0.5])
    found = find_report(store, "their test")
    assert [(arm.name, arm.judged) for arm in found.arms] == [("ICL", 4), ("TTT", 4)]
    assert found.paired
    assert found.effect is not None
    assert found.effect.effect == pytest.approx(0.35)
    assert found.effect.low is not None
    assert -1 <= found.effect.low < 0.35
    their_test(store, "three", "A", [0.1])
    assert find_report(store, "three").effect is None
    with pytest.raises(StoreError, match="there is no experiment 'nothing'"):
        find_report(store, "nothing")


def test_the_commands_find_a_test_of_theirs(tmp_path: Path) -> None:
    with Store(tmp_path / "m.db") as store:
        their_test(store, "theirs", "TTT", [0.9, 0.7])
        their_test(store, "theirs", "ICL", [0.5, 0.6])
    path = str(tmp_path / "m.db")
    done = CliRunner().invoke(main, ["experiment", "report", "theirs", "--db", path])
    assert done.exit_code == 0, done.output
    assert "TTT: 2 requests, 2 judged, quality 0.800" in done.stdout
    assert "no design is stored" in done.stdout
    found = json.loads(CliRunner().invoke(main, ["experiment", "report", "theirs", "--json", "--db", path]).stdout)
    assert found["effect"]["effect"] == pytest.approx(0.25)
    assert "theirs: no design is stored" in CliRunner().invoke(main, ["experiment", "status", "--db", path]).stdout


def test_they_are_exported(store: Store, tmp_path: Path) -> None:
    theirs(store, 2, success=False, fallback_reason="timeout")
    fill(store, 1, "plain")
    assert export_metrics(store, tmp_path / "all.json", DAY, days=1) == 3
    content = json.loads((tmp_path / "all.json").read_text())
    assert len(content["metrics"]) == 2
    assert export_metrics(store, tmp_path / "all.csv", DAY, days=1) == 3
    assert "fallback" in (tmp_path / "all.csv").read_text()


def test_a_program_that_writes_while_the_store_is_open_is_seen(tmp_path: Path) -> None:
    with Store(tmp_path / "m.db") as store:
        assert check(store, DAY).counts.total == 0
        with sqlite3.connect(tmp_path / "m.db") as connection:
            connection.execute(
                "INSERT INTO ttt_metrics (session_id, timestamp, success) VALUES ('s', ?, 1)",
                (datetime.now().isoformat(),),
            )
        assert check(store, DAY).counts.by_status == {"adapted": 1}
