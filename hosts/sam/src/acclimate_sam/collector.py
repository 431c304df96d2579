"""The metrics collector of the deployment guidelines, over acclimate's store."""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from acclimate.monitoring import Outcome, RequestRecord, SessionSummary, Store, Window, check, trends
from acclimate.monitoring.database import database_url
from acclimate.monitoring.experiments import means_by_method
from acclimate.monitoring.export import export_metrics
from acclimate.monitoring.records import DECLINED_REASONS, Status, check_range

# The guidelines set the level of the logger of the module that they import.
LOGGER: Final = logging.getLogger("sam.monitoring.ttt_metrics")

TTTSessionSummary = SessionSummary


@dataclass(frozen=True, slots=True)
class TTTPerformanceMetric:
    """One attempt to adapt, with the names of the deployment guidelines.

    Attributes:
        session_id: groups attempts.
        timestamp: of the attempt; without a zone it is local time.
        task_type: the kind of pattern, or any other name.
        examples_count, training_steps: of the adaptation.
        adaptation_time: seconds for gate and training.
        confidence_score: 0 to 1; None where there is none.
        convergence_score: 0 to 1.
        success: whether the adapted model answered.
        fallback_reason: the code of the reason why it did not.
        user_feedback: 1 to 5.
        accuracy_improvement: over in-context learning, as a share.

    Raises:
        DataError: a score is not between 0 and 1, feedback not between 1 and 5, or a count or a time negative.
    """

    session_id: str
    timestamp: datetime
    task_type: str | None
    examples_count: int | None
    training_steps: int | None
    adaptation_time: float | None
    confidence_score: float | None
    convergence_score: float | None
    success: bool
    fallback_reason: str | None = None
    user_feedback: float | None = None
    accuracy_improvement: float | None = None

    def __post_init__(self) -> None:
        check_range("confidence_score", self.confidence_score, 0, 1)
        check_range("convergence_score", self.convergence_score, 0, 1)
        check_range("user_feedback", self.user_feedback, 1, 5)
        for name in ("examples_count", "training_steps", "adaptation_time"):
            check_range(name, getattr(self, name), 0, math.inf)

    @property
    def status(self) -> Status:
        """``adapted``, or by the code of the reason ``declined`` or ``fallback``."""
        if self.success:
            return "adapted"
        return "declined" if self.fallback_reason in DECLINED_REASONS else "fallback"

    def to_request(self, metadata: Mapping[str, Any]) -> RequestRecord:
        """Return the record of the attempt's request: rates need a row for every one.

        Args:
            metadata: further plain values.
        """
        return RequestRecord(
            pipeline="language",
            status=self.status,
            session_id=self.session_id,
            timestamp=self.timestamp,
            method="ttt" if self.success else "icl",
            reason=self.fallback_reason,
            pattern=self.task_type,
            confidence=self.confidence_score,
            examples_count=self.examples_count,
            training_steps=self.training_steps,
            adaptation_time=self.adaptation_time,
            convergence_score=self.convergence_score,
            accuracy_improvement=self.accuracy_improvement,
            user_feedback=self.user_feedback,
            details=metadata,
        )


class TTTMetricsCollector:
    """Records attempts and outcomes, and summarizes them, with the method names of the deployment guidelines.

    Args:
        db_path: a path (SQLite) or a URL; None takes ``ACCLIMATE_DB_URL``, or ``logs/ttt_metrics.db``.
        store: an open one, instead.

    Raises:
        StoreError: the database cannot be opened.
    """

    def __init__(self, db_path: str | Path | None = None, *, store: Store | None = None) -> None:
        self.store = store or Store(db_path, logger=LOGGER)
        LOGGER.info("TTT metrics are kept in %s", self.store.description)

    def record_ttt_attempt(self, metric: TTTPerformanceMetric, metadata: Mapping[str, Any] | None = None) -> bool:
        """Queue an attempt; False where the queue is full, which is counted and logged.

        Args:
            metric: the attempt.
            metadata: further plain values.
        """
        LOGGER.debug("attempt of session %s: %s", metric.session_id, metric.status)
        return self.store.put(metric.to_request(metadata or {}))

    def record_ab_test_result(
        self,
        test_id: str,
        session_id: str,
        method: str,
        task_type: str | None = None,
        examples_count: int | None = None,
        response_quality: float | None = None,
        response_time: float | None = None,
        user_satisfaction: float | None = None,
        metadata: Mapping[str, Any] | None = None,
        *,
        request_id: str | None = None,
        unit: str | None = None,
    ) -> bool:
        """Queue the outcome of one method on one request of an experiment; see :class:`Outcome` for the arguments.

        Raises:
            DataError: a number is out of range.
        """
        outcome = Outcome(
            test_id=test_id,
            session_id=session_id,
            method=method,
            task_type=task_type,
            examples_count=examples_count,
            response_quality=response_quality,
            response_time=response_time,
            user_satisfaction=user_satisfaction,
            metadata=metadata or {},
            request_id=request_id,
            unit=unit,
        )
        LOGGER.debug("experiment %s: a result of %s", test_id, method)
        return self.store.put(outcome)

    def get_session_summary(self, session_id: str) -> TTTSessionSummary:
        """Return how the attempts of a session went."""
        with self.store.reading() as connection:
            return trends.session_summary(connection, session_id)

    def get_performance_trends(self, days: float = 7) -> dict[str, Any]:
        """Return ``daily_performance``, ``task_type_performance`` and the ``trend`` of the last days."""
        with self.store.reading() as connection:
            return trends.performance_trends(connection, Window.last(days=days))

    def get_ab_test_results(self, test_id: str) -> dict[str, Any]:
        """Return counts and means by method; under ``comparison`` TTT against ICL, where both have outcomes.

        What is not known is None.
        """
        with self.store.reading() as connection:
            found: dict[str, Any] = dict(means_by_method(connection, test_id))
        if {"TTT", "ICL"} <= found.keys():
            ttt, icl = found["TTT"], found["ICL"]
            quality = _difference(ttt["avg_quality"], icl["avg_quality"])
            percent = None if quality is None or not icl["avg_quality"] else 100 * quality / icl["avg_quality"]
            found["comparison"] = {
                "quality_improvement_percent": percent,
                "time_overhead": _difference(ttt["avg_response_time"], icl["avg_response_time"]),
                "satisfaction_delta": _difference(ttt["avg_satisfaction"], icl["avg_satisfaction"]),
            }
        return found

    def export_metrics(self, output_path: str | Path, days: float = 30) -> int:
        """Write the last days as JSON, CSV or Parquet, by the file's ending; return the number of requests."""
        return export_metrics(self.store, Path(output_path), Window.last(days=days), days=days)

    def flush(self) -> None:
        """Wait until everything queued is written."""
        self.store.flush()

    def close(self) -> None:
        """Write the queue, and end the writer thread."""
        self.store.close()


def get_ttt_metrics_collector(db_path: str | Path | None = None) -> TTTMetricsCollector:
    """Return the collector of a database: the same one for the same database."""
    return _collector(database_url(db_path).render_as_string(hide_password=False))


def run_health_check(collector: TTTMetricsCollector | None = None, *, days: float = 1) -> bool:
    """Return whether no indicator alerts over the last days, which is so too where there are too few observations.

    The script ``ttt_health_check.py`` tells the two apart by its exit code.
    """
    return not check((collector or get_ttt_metrics_collector()).store, Window.last(days=days)).alerting


@functools.lru_cache(maxsize=8)
def _collector(url: str) -> TTTMetricsCollector:
    return TTTMetricsCollector(url)


def _difference(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one - other
