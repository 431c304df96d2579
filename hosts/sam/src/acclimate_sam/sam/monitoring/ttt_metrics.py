"""The metrics of the guidelines, over acclimate's store. The level of this module's logger takes effect."""

from __future__ import annotations

import functools
import logging
from pathlib import Path

from acclimate.monitoring import TTTMetricsCollector as _Collector
from acclimate.monitoring import TTTPerformanceMetric, TTTSessionSummary
from acclimate.monitoring.database import database_url

logger = logging.getLogger(__name__)

__all__ = ["TTTMetricsCollector", "TTTPerformanceMetric", "TTTSessionSummary", "get_ttt_metrics_collector"]


class TTTMetricsCollector(_Collector):
    """The collector, logging under the guidelines' name.

    Args:
        db_path: a path or URL; None takes ``ACCLIMATE_DB_URL``, or ``logs/ttt_metrics.db``.
    """

    def __init__(self, db_path: str | Path | None = None) -> None:
        super().__init__(db_path, logger=logger)


def get_ttt_metrics_collector(db_path: str | Path | None = None) -> TTTMetricsCollector:
    """Return the collector of a database: the same one for the same database."""
    return _collector(database_url(db_path).render_as_string(hide_password=False))


@functools.lru_cache(maxsize=8)
def _collector(url: str) -> TTTMetricsCollector:
    return TTTMetricsCollector(url)
