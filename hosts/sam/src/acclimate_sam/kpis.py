"""The indicators as the deployment guidelines type them; :data:`acclimate.monitoring.KPIS` measures them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

PRIMARY_KPIS: Final[Mapping[str, Mapping[str, str]]] = {
    "ttt_activation_rate": {
        "target": "15-25%",
        "alert_threshold": "<10% or >40%",
        "description": "Percentage of queries triggering TTT",
    },
    "adaptation_success_rate": {
        "target": ">85%",
        "alert_threshold": "<80%",
        "description": "Successful adaptations vs attempts",
    },
    "mean_confidence_score": {
        "target": ">0.80",
        "alert_threshold": "<0.75",
        "description": "Average adaptation confidence",
    },
    "response_quality_improvement": {
        "target": "+20-30%",
        "alert_threshold": "<+15%",
        "description": "TTT vs ICL performance gain",
    },
}
SECONDARY_KPIS: Final[Mapping[str, Mapping[str, str]]] = {
    "mean_adaptation_time": {"target": "<2.0s", "alert_threshold": ">3.0s"},
    "fallback_rate": {"target": "<15%", "alert_threshold": ">25%"},
    "memory_utilization": {"target": "<50MB", "alert_threshold": ">75MB"},
    "pattern_detection_accuracy": {"target": ">90%", "alert_threshold": "<85%"},
}
