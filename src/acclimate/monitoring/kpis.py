"""The standard indicators, with the targets and alert bounds of the deployment guidelines."""

from __future__ import annotations

from typing import Final

from acclimate.monitoring import advice_rules, queries
from acclimate.monitoring.indicator import MEGABYTES, RELATIVE_GAIN, SCORE, SECONDS, SHARE, Kpi

KPIS: Final[tuple[Kpi, ...]] = (
    Kpi(
        name="ttt_activation_rate",
        title="Activation rate",
        unit=SHARE,
        direction="within",
        measures="language requests in which there was something to adapt to, whether or not adapting was asked for, "
        "over all language requests; other programs record no requests and do not count",
        query=queries.activation_rate,
        target_low=0.15,
        target_high=0.25,
        alert_below=0.10,
        alert_above=0.40,
        advise=advice_rules.low_activation,
    ),
    Kpi(
        name="adaptation_success_rate",
        title="Success rate",
        unit=SHARE,
        direction="higher",
        measures="adapted requests over adapted and fallback ones; a request that was declined did not fail",
        query=queries.success_rate,
        target_low=0.85,
        alert_below=0.80,
    ),
    Kpi(
        name="mean_confidence_score",
        title="Mean confidence",
        unit=SCORE,
        direction="higher",
        measures="mean confidence of adapted requests",
        query=queries.confidence,
        target_low=0.80,
        alert_below=0.75,
        advise=advice_rules.low_confidence,
        histogram="Confidence of adapted answers",
    ),
    Kpi(
        name="response_quality_improvement",
        title="Quality improvement",
        unit=RELATIVE_GAIN,
        direction="higher",
        measures="mean quality with TTT over mean quality with ICL, less one, over requests that both arms of an "
        "experiment answered",
        query=queries.quality_improvement,
        target_low=0.20,
        target_high=0.30,
        alert_below=0.15,
        advise=advice_rules.low_gain,
        required=False,
    ),
    Kpi(
        name="mean_adaptation_time",
        title="Mean adaptation time",
        unit=SECONDS,
        direction="lower",
        measures="mean seconds for gate and training, over requests for which either ran",
        query=queries.adaptation_time,
        target_high=2.0,
        alert_above=3.0,
        advise=advice_rules.slow_adaptation,
        histogram="Seconds for gate and training",
    ),
    Kpi(
        name="fallback_rate",
        title="Fallback rate",
        unit=SHARE,
        direction="lower",
        measures="fallback requests over adapted, declined and fallback ones",
        query=queries.fallback_rate,
        target_high=0.15,
        alert_above=0.25,
        advise=advice_rules.many_fallbacks,
    ),
    Kpi(
        name="memory_utilization",
        title="Mean memory",
        unit=MEGABYTES,
        direction="lower",
        measures="mean memory of a request beyond the loaded model, over requests with something to adapt to",
        query=queries.memory,
        target_high=50.0,
        alert_above=75.0,
        advise=advice_rules.high_memory,
    ),
    Kpi(
        name="pattern_detection_accuracy",
        title="Detection accuracy",
        unit=SHARE,
        direction="higher",
        measures="requests whose detected pattern is their label (`acclimate metrics label`), over labelled ones",
        query=queries.detection_accuracy,
        target_low=0.90,
        alert_below=0.85,
        required=False,
    ),
)
