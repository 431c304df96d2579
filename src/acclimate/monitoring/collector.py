"""The collector of the deployment guidelines: the same names over the store."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from acclimate.monitoring import trends
from acclimate.monitoring.database import database_url
from acclimate.monitoring.experiments import two_methods
from acclimate.monitoring.export import export_metrics
from acclimate.monitoring.measurement import Window
from acclimate.monitoring.records import Outcome, TTTPerformanceMetric
from acclimate.monitoring.store import Store
from acclimate.monitoring.trends import TTTSessionSummary

_LOG = logging.getLogger(__name__)


class TTTMetricsCollector:
    """Collects what attempts to adapt came to, and says how they are going.

    Args:
        db_path: a path (SQLite) or a URL; None takes ``ACCLIMATE_DB_URL``, or ``logs/ttt_metrics.db``.
        store: that is open already, instead.
        logger: hears of every record, and of what is lost.

    Raises:
        StoreError: the database cannot be opened.
    """

    def __init__(
        self,
        db_path: str | Path | None = None,
        *,
        store: Store | None = None,
        logger: logging.Logger = _LOG,
    ) -> None:
        self.store = store or Store(db_path, logger=logger)
        self._log = logger
        logger.info("TTT metrics are kept in %s", self.store.description)

    def record_ttt_attempt(self, metric: TTTPerformanceMetric, metadata: Mapping[str, Any] | None = None) -> bool:
        """Hand an attempt over; False where the queue is full, which is counted and logged.

        Args:
            metric: the attempt.
            metadata: further plain values.
        """
        taken = self.store.put((metric, dict(metadata or {})))
        self._log.debug("attempt of session %s: %s", metric.session_id, metric.status)
        return taken

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
        """Hand over how one method did on one request of an experiment; see :class:`Outcome` for the arguments.

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
        self._log.debug("experiment %s: a result of %s", test_id, method)
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
        """Return counts and means by method, and under ``comparison`` TTT against ICL, where both are there."""
        with self.store.reading() as connection:
            return two_methods(connection, test_id)

    def export_metrics(self, output_path: str | Path, days: float = 30) -> int:
        """Write attempts and requests of the last days as JSON, CSV or Parquet, by the ending; return the attempts."""
        return export_metrics(self.store, Path(output_path), Window.last(days=days), days=days)

    def flush(self) -> None:
        """Wait until all that was handed over has arrived."""
        self.store.flush()

    def close(self) -> None:
        """Write what waits, and end the thread that writes."""
        self.store.close()


def get_ttt_metrics_collector(db_path: str | Path | None = None) -> TTTMetricsCollector:
    """Return the collector of a database: the same one for the same database."""
    return _collector(database_url(db_path).render_as_string(hide_password=False))


@functools.lru_cache(maxsize=8)
def _collector(url: str) -> TTTMetricsCollector:
    return TTTMetricsCollector(url)
