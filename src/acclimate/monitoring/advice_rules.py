"""What to change when a standard indicator is beyond its bound, computed from the recorded attempts.

The symptoms are those of the troubleshooting section of the deployment guidelines. Every suggestion states the recorded
numbers it was computed from, and the effect to expect.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from acclimate.monitoring.attempts import Attempt, Recorded
from acclimate.monitoring.indicator import LEAST_OBSERVATIONS, Measurement, Suggestion
from acclimate.monitoring.intervals import proportion, quantile

_RANKS: Final = (8, 16, 32, 64)
_LOW_CONVERGENCE: Final = 0.5
_MB: Final = 2**20
_ROUNDING: Final = 1e-8
#: A kind of failure is worth a suggestion from this share of the attempts on, and from this many.
_NOTABLE_SHARE: Final = 0.05
_NOTABLE_COUNT: Final = 3


def fallback_threshold(attempts: Sequence[Attempt], wanted: float) -> float | None:
    """Return the highest confidence threshold at which at most ``wanted`` of the attempts fall back.

    None where attempts fail for other reasons more often than that, so that no threshold reaches it.
    """
    others = sum(a.status == "fallback" for a in attempts)
    known = sorted(a.confidence for a in attempts if _compared_with_threshold(a) and a.confidence is not None)
    allowed = int(wanted * len(attempts) + 1e-9) - others
    if allowed < 0 or not known:
        return None
    if allowed >= len(known):
        return 1.0
    # Attempts below the threshold fall back, those at it do not. Rounded down, so that it is true as printed.
    return float(np.floor(round(known[allowed] * 1000, 6)) / 1000)


def low_activation(measured: Measurement, recorded: Recorded) -> Iterator[Suggestion]:
    """Few requests have something to adapt to."""
    estimate, counts = measured.estimate, recorded.counts
    if measured.state != "alert" or estimate is None or estimate.value >= (measured.kpi.alert_below or 0):
        return
    missed = counts.by_reason.get("fallback", {}).get("detection_failed", 0)
    few = counts.by_reason.get("declined", {}).get("insufficient_examples", 0)
    yield Suggestion(
        code="more_readily_detected_patterns",
        symptom=f"few requests have anything to adapt to: {estimate.value:.1%} (alert {measured.kpi.alert_threshold})",
        change="name the domain of the prompts (--domain), which lets its kinds of pattern count more readily; show "
        "users how to write examples, or pass examples directly",
        evidence=f"of {counts.total} requests {counts.by_status.get('plain', 0)} showed no pattern; in {missed} a "
        f"pattern was seen and could not be read, and {few} had too few examples",
        expected=f"{missed + few} of {counts.total} requests more could have been adapted to; the others need "
        "other prompts, or more sensitive detection",
    )


def many_fallbacks(measured: Measurement, recorded: Recorded) -> Iterator[Suggestion]:
    """Many attempts end without an adapted answer: they failed, or were declined for low confidence."""
    attempts, kpi = recorded.attempts, measured.kpi
    if len(attempts) < LEAST_OBSERVATIONS or kpi.alert_above is None or kpi.target_high is None:
        return
    count = sum(map(_falls_back, attempts))
    share = proportion(count, len(attempts))
    if share.low <= kpi.alert_above:
        return
    symptom = (
        f"{share.value:.1%} of attempts fall back to ICL, by failure or low confidence (alert {kpi.alert_threshold})"
    )
    threshold = fallback_threshold(attempts, kpi.target_high)
    unsure = [a for a in attempts if a.reason == "low_confidence" and a.confidence is not None]
    if threshold is not None and unsure:
        freed = [a.confidence for a in unsure if a.confidence is not None and a.confidence >= threshold - _ROUNDING]
        left = (count - len(freed)) / len(attempts)
        yield Suggestion(
            code="lower_confidence_threshold",
            symptom=symptom,
            change=f"lower the confidence threshold to {threshold:.3f}",
            evidence=f"{len(unsure)} of {len(attempts)} attempts were declined for low confidence; {len(freed)} of "
            f"them had at least {threshold:.3f}",
            expected=f"fallback comes to {left:.1%}; by their own confidences, the answers that are then given are "
            f"right with a mean probability of {np.mean(freed) if freed else float('nan'):.0%}",
        )
    yield from _failures(symptom, attempts)
    convergence = [a.convergence for a in attempts if a.convergence is not None and _falls_back(a)]
    if len(convergence) >= LEAST_OBSERVATIONS and np.mean(convergence) < _LOW_CONVERGENCE:
        steps = [a.steps for a in attempts if a.steps]
        yield Suggestion(
            code="more_steps",
            symptom=symptom,
            change=f"allow more training steps (--steps {2 * round(np.mean(steps)) if steps else 16})",
            evidence=f"where adapting was not used the loss came down by {np.mean(convergence):.0%} on average, in "
            f"{np.mean(steps) if steps else 0:.1f} steps",
            expected="a loss that comes down further; the time for training grows with the steps",
        )


def slow_adaptation(measured: Measurement, recorded: Recorded) -> Iterator[Suggestion]:
    """Gate and training take long."""
    if measured.state != "alert" or measured.estimate is None:
        return
    attempts = recorded.attempts
    yield from _lower_rank(
        f"adapting takes {measured.estimate.value:.2f} s on average (alert {measured.kpi.alert_threshold})",
        [(a.rank, a.seconds) for a in attempts if a.rank and a.seconds],
        "s",
    )
    steps = [(a.steps, a.seconds) for a in attempts if a.steps and a.seconds]
    if len(steps) >= LEAST_OBSERVATIONS and measured.kpi.target_high is not None:
        per_step = float(np.mean([seconds / count for count, seconds in steps]))
        fewer = max(1, int(measured.kpi.target_high / per_step))
        average = float(np.mean([count for count, _ in steps]))
        if fewer < average:
            yield Suggestion(
                code="fewer_steps",
                symptom=f"adapting takes {measured.estimate.value:.2f} s on average",
                change=f"make at most {fewer} steps (--steps {fewer}), or end training earlier",
                evidence=f"{len(steps)} adaptations took {average:.1f} steps of {per_step:.2f} s, gate included",
                expected=f"about {fewer * per_step:.1f} s; compare accuracy in an experiment before keeping it",
            )


def high_memory(measured: Measurement, recorded: Recorded) -> Iterator[Suggestion]:
    """A request takes much memory beyond the loaded model."""
    if measured.state == "alert" and measured.estimate is not None:
        yield from _lower_rank(
            f"a request takes {measured.estimate.value:.0f} MB on average (alert {measured.kpi.alert_threshold})",
            [(a.rank, a.memory_bytes / _MB) for a in recorded.attempts if a.rank and a.memory_bytes],
            "MB",
        )


def low_confidence(measured: Measurement, recorded: Recorded) -> Iterator[Suggestion]:
    """Adapted answers have a low mean confidence."""
    if measured.state != "alert" or measured.estimate is None:
        return
    adapted = sorted(a.confidence for a in recorded.attempts if a.status == "adapted" and a.confidence is not None)
    for start in range(1, len(adapted)):
        if np.mean(adapted[start:]) >= (measured.kpi.target_low or 0):
            yield Suggestion(
                code="raise_confidence_threshold",
                symptom=f"adapted answers have a mean confidence of {measured.estimate.value:.2f} "
                f"(alert {measured.kpi.alert_threshold})",
                change=f"raise the confidence threshold to {adapted[start]:.3f}",
                evidence=f"{len(adapted)} adapted answers; {start} of them lie below it",
                expected=f"a mean confidence of {np.mean(adapted[start:]):.2f}; {start / len(adapted):.0%} of what is "
                "adapted now would be answered from the prompt alone",
            )
            return


def low_gain(measured: Measurement, _recorded: Recorded) -> Iterator[Suggestion]:
    """Answers with test-time training are hardly better than those without."""
    if measured.state == "alert" and measured.estimate is not None:
        estimate = measured.estimate
        yield Suggestion(
            code="calibrate_gate",
            symptom=f"TTT gains {estimate.value:+.1%} over ICL (alert {measured.kpi.alert_threshold})",
            change="fit the gate to your own tasks (acclimate calibrate), so that it adapts only where that helps",
            evidence=f"{estimate.count} requests answered by both, {estimate.low:+.1%} to {estimate.high:+.1%}",
            expected="a gain that is never much below 0; whether it reaches the target depends on the tasks",
        )


@dataclass(frozen=True, slots=True)
class _Remedy:
    code: str
    change: str
    #: Whether the 95th percentile of the seconds of adapted requests is evidence.
    shows_seconds: bool = False


#: By the reason code of a failure.
_REMEDIES: Final[Mapping[str, _Remedy]] = {
    "timeout": _Remedy("raise_time_limit", "raise the time limit (--max-seconds), or lower the rank", True),
    "memory": _Remedy("raise_memory_limit", "raise the memory limit (--max-mib), or lower the rank"),
    "non_finite": _Remedy("lower_learning_rate", "lower the learning rate (--learning-rate) by half"),
    "detection_failed": _Remedy("pass_examples", "pass examples directly, or show users how to write them"),
    "unsupported_model": _Remedy(
        "other_model", "use a model that can be adapted: a causal language model with linear layers"
    ),
}


def _failures(symptom: str, attempts: Sequence[Attempt]) -> Iterator[Suggestion]:
    for reason, remedy in _REMEDIES.items():
        failed = [a for a in attempts if a.status == "fallback" and a.reason == reason]
        if len(failed) < max(_NOTABLE_COUNT, _NOTABLE_SHARE * len(attempts)):
            continue
        evidence = f"{len(failed)} of {len(attempts)} attempts failed for {reason}"
        worked = [a.seconds for a in attempts if a.status == "adapted" and a.seconds]
        if remedy.shows_seconds and worked:
            evidence += f"; 95 % of those that succeeded took less than {quantile(worked, 0.95):.1f} s"
        left = (sum(map(_falls_back, attempts)) - len(failed)) / len(attempts)
        yield Suggestion(
            code=remedy.code,
            symptom=symptom,
            change=remedy.change,
            evidence=evidence,
            expected=f"without these failures fallback would be {left:.1%}",
        )


def _lower_rank(symptom: str, seen: Sequence[tuple[int, float]], unit: str) -> Iterator[Suggestion]:
    if len(seen) < LEAST_OBSERVATIONS:
        return
    ranks, counts = np.unique([rank for rank, _ in seen], return_counts=True)
    usual = int(ranks[counts.argmax()])
    lower = max((rank for rank in _RANKS if rank < usual), default=None)
    if lower is None:
        return
    means = {int(rank): float(np.mean([value for r, value in seen if r == rank])) for rank in ranks}
    if lower in means:
        expected = f"{means[lower]:.2f} {unit} instead of {means[usual]:.2f}, as measured at both ranks"
    else:
        expected = f"less than {means[usual]:.2f} {unit}; nothing was recorded at rank {lower} yet to say how much less"
    yield Suggestion(
        code="lower_rank",
        symptom=symptom,
        change=f"lower the rank from {usual} to {lower} (--rank {lower})",
        evidence="; ".join(f"rank {rank}: {value:.2f} {unit}" for rank, value in means.items()),
        expected=expected,
    )


def _compared_with_threshold(attempt: Attempt) -> bool:
    return attempt.status == "adapted" or attempt.reason == "low_confidence"


def _falls_back(attempt: Attempt) -> bool:
    return attempt.status == "fallback" or attempt.reason == "low_confidence"
