"""Monitoring: records of requests, indicators, health checks, alerts, experiments, suggestions, reports, audit log.

It imports neither torch nor the pipelines: reports of requests arrive as plain values.
"""

from acclimate.monitoring.advice import suggest
from acclimate.monitoring.database import DATABASE_VARIABLE, DEFAULT_DATABASE
from acclimate.monitoring.experiments import Arm, Experiment, ExperimentReport
from acclimate.monitoring.health import Health, check
from acclimate.monitoring.indicator import (
    MEGABYTES,
    RELATIVE_GAIN,
    SCORE,
    SECONDS,
    SHARE,
    Kpi,
    Measurement,
    Observed,
    Suggestion,
    Unit,
    kpis_table,
)
from acclimate.monitoring.intervals import Estimate, mean, proportion, relative_gain
from acclimate.monitoring.kpis import KPIS
from acclimate.monitoring.maintenance import maintain
from acclimate.monitoring.measurement import measure, measure_vision
from acclimate.monitoring.observe import language_request, vision_request
from acclimate.monitoring.records import Outcome, RequestRecord, VisionRun
from acclimate.monitoring.reports import as_html, as_text, make_report
from acclimate.monitoring.store import Store
from acclimate.monitoring.trends import SessionSummary
from acclimate.monitoring.window import Window

__all__ = [
    "DATABASE_VARIABLE",
    "DEFAULT_DATABASE",
    "KPIS",
    "MEGABYTES",
    "RELATIVE_GAIN",
    "SCORE",
    "SECONDS",
    "SHARE",
    "Arm",
    "Estimate",
    "Experiment",
    "ExperimentReport",
    "Health",
    "Kpi",
    "Measurement",
    "Observed",
    "Outcome",
    "RequestRecord",
    "SessionSummary",
    "Store",
    "Suggestion",
    "Unit",
    "VisionRun",
    "Window",
    "as_html",
    "as_text",
    "check",
    "kpis_table",
    "language_request",
    "maintain",
    "make_report",
    "mean",
    "measure",
    "measure_vision",
    "proportion",
    "relative_gain",
    "suggest",
    "vision_request",
]
