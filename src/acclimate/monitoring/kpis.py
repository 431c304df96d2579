"""The key performance indicators of the deployment guidelines: targets, alerts, and what exactly is measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

#: As the guidelines give them.
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

Unit = Literal["share", "score", "relative gain", "s", "MB"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kpi:
    """One indicator.

    Attributes:
        name: a key of :data:`PRIMARY_KPIS` or :data:`SECONDARY_KPIS`.
        unit: of the value; shares and gains are fractions, so 0.15 is 15 %.
        target: in the guidelines' words.
        alert_threshold: in the guidelines' words.
        alert_below, alert_above: the same as numbers; None where that side does not alert.
        target_low, target_high: the target as numbers.
        measures: what is counted over what.
    """

    name: str
    unit: Unit
    target: str
    alert_threshold: str
    measures: str
    alert_below: float | None = None
    alert_above: float | None = None
    target_low: float | None = None
    target_high: float | None = None

    def shown(self, value: float) -> str:
        """Return a value in the units of the target."""
        if self.unit == "share":
            return f"{100 * value:.1f}%"
        if self.unit == "relative gain":
            return f"{100 * value:+.1f}%"
        return {"score": f"{value:.2f}", "s": f"{value:.2f}s", "MB": f"{value:.1f}MB"}[self.unit]


def _kpi(name: str, unit: Unit, measures: str, **bounds: float) -> Kpi:
    words = PRIMARY_KPIS.get(name) or SECONDARY_KPIS[name]
    return Kpi(
        name=name,
        unit=unit,
        target=words["target"],
        alert_threshold=words["alert_threshold"],
        measures=measures,
        **bounds,
    )


KPIS: Final[tuple[Kpi, ...]] = (
    _kpi(
        "ttt_activation_rate",
        "share",
        "language requests in which there was something to adapt to (adapted, declined or fallback), over all language "
        "requests",
        alert_below=0.10,
        alert_above=0.40,
        target_low=0.15,
        target_high=0.25,
    ),
    _kpi(
        "adaptation_success_rate",
        "share",
        "adapted requests over adapted and fallback ones; a request that was declined did not fail",
        alert_below=0.80,
        target_low=0.85,
    ),
    _kpi(
        "mean_confidence_score",
        "score",
        "mean confidence of adapted requests",
        alert_below=0.75,
        target_low=0.80,
    ),
    _kpi(
        "response_quality_improvement",
        "relative gain",
        "mean quality with TTT over mean quality with ICL, less one, over requests answered both ways in an experiment",
        alert_below=0.15,
        target_low=0.20,
        target_high=0.30,
    ),
    _kpi(
        "mean_adaptation_time",
        "s",
        "mean seconds for gate and training, over requests for which either ran",
        alert_above=3.0,
        target_high=2.0,
    ),
    _kpi(
        "fallback_rate",
        "share",
        "fallback requests over adapted, declined and fallback ones",
        alert_above=0.25,
        target_high=0.15,
    ),
    _kpi(
        "memory_utilization",
        "MB",
        "mean memory of a request beyond the loaded model, over requests with something to adapt to",
        alert_above=75.0,
        target_high=50.0,
    ),
    _kpi(
        "pattern_detection_accuracy",
        "share",
        "requests whose detected kind of pattern is the one that somebody said it has, over those somebody looked at",
        alert_below=0.85,
        target_low=0.90,
    ),
)
