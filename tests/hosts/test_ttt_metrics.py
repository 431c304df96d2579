"""The metrics collector of the deployment guidelines: their names over the store, and their constants."""

from __future__ import annotations

import ast
import re
import shutil
import sqlite3
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st

from acclimate.errors import DataError
from acclimate.language import CONFIDENCE_THRESHOLDS, DOMAIN_SENSITIVITY, RANK_RECOMMENDATIONS
from acclimate.monitoring import KPIS, Store, schema
from tests.monitoring.databases import fill, request

pytest.importorskip("acclimate_sam", reason="the bridge is not installed: pip install ./hosts/sam")

from sam.monitoring import ttt_metrics
from sam.monitoring.ttt_metrics import (
    PRIMARY_KPIS,
    SECONDARY_KPIS,
    TTTMetricsCollector,
    TTTPerformanceMetric,
    TTTSessionSummary,
    run_health_check,
)

TESTS = Path(__file__).parent.parent
GUIDELINES = TESTS / "data" / "ttt_guidelines.md"


def guideline_constant(name: str) -> Any:
    text = GUIDELINES.read_text(encoding="utf-8")
    found = re.search(rf"^{name} = (\{{.*?^\}})", text, flags=re.MULTILINE | re.DOTALL)
    assert found is not None
    return ast.literal_eval(found.group(1))


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("PRIMARY_KPIS", PRIMARY_KPIS),
        ("SECONDARY_KPIS", SECONDARY_KPIS),
        ("RANK_RECOMMENDATIONS", RANK_RECOMMENDATIONS),
        ("CONFIDENCE_THRESHOLDS", CONFIDENCE_THRESHOLDS),
        ("DOMAIN_SENSITIVITY", DOMAIN_SENSITIVITY),
    ],
)
def test_the_constants_are_the_guidelines(name: str, ours: Any) -> None:
    assert ours == guideline_constant(name)


def test_the_indicators_have_the_guidelines_names_targets_and_alert_bounds() -> None:
    typed = {**PRIMARY_KPIS, **SECONDARY_KPIS}
    assert [kpi.name for kpi in KPIS] == list(typed)
    for kpi in KPIS:
        assert (kpi.target, kpi.alert_threshold) == (typed[kpi.name]["target"], typed[kpi.name]["alert_threshold"])


def test_every_name_of_the_module_is_there() -> None:
    assert all(getattr(ttt_metrics, name) is not None for name in ttt_metrics.__all__)


def metric(**values: object) -> TTTPerformanceMetric:
    given: dict[str, object] = {
        "session_id": "s", "timestamp": datetime.now(UTC), "task_type": "io_pairs", "examples_count": 5,
        "training_steps": 8, "adaptation_time": 1.5, "confidence_score": 0.8, "convergence_score": 0.9, "success": True,
    }  # fmt: skip
    return TTTPerformanceMetric(**{**given, **values})


def test_an_attempt_by_itself_is_a_request_too(store: Store) -> None:
    collector = TTTMetricsCollector(store=store)
    collector.record_ttt_attempt(metric(), {"host": "h"})
    collector.record_ttt_attempt(metric(success=False, fallback_reason="low_confidence"))
    collector.record_ttt_attempt(metric(success=False, fallback_reason="the disk was full"))
    with store.reading() as connection:
        statuses = connection.execute(sa.select(schema.requests.c.status)).scalars().all()
        details = connection.execute(sa.select(schema.ttt_metrics.c.metadata)).scalars().all()
    assert sorted(statuses) == ["adapted", "declined", "fallback"]
    assert sum('"host": "h"' in text for text in details) == 1
    summary = collector.get_session_summary("s")
    assert isinstance(summary, TTTSessionSummary)
    assert (summary.total_attempts, summary.successful_adaptations) == (3, 1)
    assert summary.fallback_rate == pytest.approx(1 / 3)
    assert summary.declined_rate == pytest.approx(1 / 3)
    assert summary.average_confidence == pytest.approx(0.8)
    assert summary.top_task_types == [("io_pairs", 3)]


def test_two_methods_are_compared_as_the_guidelines_do(store: Store) -> None:
    collector = TTTMetricsCollector(store=store)
    for method, quality, seconds in (("TTT", 0.9, 2.0), ("TTT", 0.7, 3.0), ("ICL", 0.5, 1.0)):
        collector.record_ab_test_result("t", "s", method, "io_pairs", 5, quality, seconds, metadata={"a": 1})
    found = collector.get_ab_test_results("t")
    assert found["TTT"]["count"] == 2
    assert found["TTT"]["avg_quality"] == pytest.approx(0.8)
    assert found["ICL"]["avg_satisfaction"] is None
    assert found["comparison"]["quality_improvement_percent"] == pytest.approx(60.0)
    assert found["comparison"]["time_overhead"] == pytest.approx(1.5)
    assert found["comparison"]["satisfaction_delta"] is None
    assert collector.get_ab_test_results("nothing") == {}


def test_the_collector_reads_and_exports_what_the_store_holds(store: Store, tmp_path: Path) -> None:
    collector = TTTMetricsCollector(store=store)
    for confidence in (0.9, 0.9, 0.9):
        store.record(request(confidence=confidence, days_ago=2))
    store.record(request(confidence=0.2))
    assert len(collector.get_performance_trends(days=7)["daily_performance"]) == 2
    assert len(collector.get_performance_trends(days=1)["daily_performance"]) == 1
    assert collector.get_session_summary("session").average_confidence == pytest.approx((3 * 0.9 + 0.2) / 4)
    assert collector.export_metrics(tmp_path / "metrics.json", days=1) == 1
    assert collector.export_metrics(tmp_path / "metrics.csv") == 4


def test_the_health_check_is_true_where_no_indicator_alerts(sqlite_store: Store) -> None:
    collector = TTTMetricsCollector(store=sqlite_store)
    assert run_health_check(collector)
    fill(sqlite_store, 60, "fallback")
    assert not run_health_check(collector)


@given(st.floats(allow_nan=True, allow_infinity=True))
def test_scores_outside_their_range_are_refused(value: float) -> None:
    if 0 <= value <= 1:
        assert metric(confidence_score=value).confidence_score == value
    else:
        with pytest.raises(DataError, match="confidence_score must be between 0 and 1"):
            metric(confidence_score=value)


def test_local_times_are_stored_in_utc(sqlite_store: Store) -> None:
    moment = datetime.now()
    TTTMetricsCollector(store=sqlite_store).record_ttt_attempt(metric(timestamp=moment))
    with sqlite_store.reading() as connection:
        stored = datetime.fromisoformat(connection.execute(sa.select(schema.ttt_metrics.c.timestamp)).scalar_one())
    assert stored.utcoffset() == timedelta(0)
    assert stored == moment.astimezone(UTC)


@pytest.mark.parametrize("path", sorted((TESTS / "schema_dbs").glob("*.db")), ids=lambda path: path.stem)
def test_a_database_of_any_version_is_read(path: Path, tmp_path: Path) -> None:
    copy = tmp_path / "metrics.db"
    shutil.copy(path, copy)
    collector = TTTMetricsCollector(copy)
    assert collector.get_session_summary("old").total_attempts == 2
    assert collector.get_ab_test_results("t")["comparison"]["quality_improvement_percent"] == pytest.approx(50)
    fill(collector.store, 1)
    assert collector.get_session_summary("session").total_attempts >= 1
    collector.close()


def test_a_row_of_another_program_for_the_guidelines_schema_is_read(sqlite_store: Store) -> None:
    with sqlite3.connect(str(sqlite_store.url.database)) as connection:
        connection.execute(
            "INSERT INTO ttt_metrics (session_id, timestamp, task_type, confidence_score, success, metadata)"
            " VALUES ('theirs', '2026-11-01T10:00:00', 'io_pairs', 0.9, 1, '{}')"
        )
    assert TTTMetricsCollector(store=sqlite_store).get_session_summary("theirs").successful_adaptations == 1
