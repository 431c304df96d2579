"""The operator's half: what happened to every request, how it is going, and what to do about it."""

from acclimate.monitoring.advice import Suggestion, suggest
from acclimate.monitoring.collector import TTTMetricsCollector, get_ttt_metrics_collector
from acclimate.monitoring.database import DATABASE_VARIABLE, DEFAULT_DATABASE
from acclimate.monitoring.experiments import Arm, Experiment, ExperimentReport
from acclimate.monitoring.health import Health, check, run_health_check
from acclimate.monitoring.kpis import KPIS, PRIMARY_KPIS, SECONDARY_KPIS, Kpi
from acclimate.monitoring.maintenance import maintain
from acclimate.monitoring.measurement import Measurement, Window, measure, measure_vision
from acclimate.monitoring.observe import language_request, vision_request
from acclimate.monitoring.records import Outcome, RequestRecord, TTTPerformanceMetric, VisionRun
from acclimate.monitoring.reports import as_html, as_text, make_report
from acclimate.monitoring.store import Store
from acclimate.monitoring.trends import TTTSessionSummary

__all__ = [
    "DATABASE_VARIABLE",
    "DEFAULT_DATABASE",
    "KPIS",
    "PRIMARY_KPIS",
    "SECONDARY_KPIS",
    "Arm",
    "Experiment",
    "ExperimentReport",
    "Health",
    "Kpi",
    "Measurement",
    "Outcome",
    "RequestRecord",
    "Store",
    "Suggestion",
    "TTTMetricsCollector",
    "TTTPerformanceMetric",
    "TTTSessionSummary",
    "VisionRun",
    "Window",
    "as_html",
    "as_text",
    "check",
    "get_ttt_metrics_collector",
    "language_request",
    "maintain",
    "make_report",
    "measure",
    "measure_vision",
    "run_health_check",
    "suggest",
    "vision_request",
]
