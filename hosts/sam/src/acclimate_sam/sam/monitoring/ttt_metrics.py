"""The metrics of the deployment guidelines, over acclimate's store. The logger has the name of this module."""

from __future__ import annotations

from acclimate_sam.collector import (
    TTTMetricsCollector,
    TTTPerformanceMetric,
    TTTSessionSummary,
    get_ttt_metrics_collector,
    run_health_check,
)
from acclimate_sam.kpis import PRIMARY_KPIS, SECONDARY_KPIS

__all__ = [
    "PRIMARY_KPIS",
    "SECONDARY_KPIS",
    "TTTMetricsCollector",
    "TTTPerformanceMetric",
    "TTTSessionSummary",
    "get_ttt_metrics_collector",
    "run_health_check",
]
