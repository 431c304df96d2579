"""What to change when something is wrong: symptoms of the guidelines' troubleshooting section, found in the data.

Every suggestion comes with what it was drawn from and what it should bring, in numbers of this very store.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import sqlalchemy as sa
from sqlalchemy import Connection

from acclimate.monitoring.intervals import proportion, quantile
from acclimate.monitoring.kpis import KPIS
from acclimate.monitoring.measurement import (
    LEAST_OBSERVATIONS,
    Counts,
    Measurement,
    Window,
    count_requests,
    measure,
)
from acclimate.monitoring.schema import requests, ttt_metrics
from acclimate.monitoring.store import Store

#: From the guidelines: the share of attempts without an adapted answer that is too much, and the one to reach.
TOO_MANY_FALLBACKS: Final = 0.25
WANTED_FALLBACKS: Final = 0.15
_RANKS: Final = (8, 16, 32, 64)
_LOW_CONVERGENCE: Final = 0.5
_MB: Final = 2**20
_ROUNDING: Final = 1e-8


@dataclass(frozen=True, slots=True, kw_only=True)
class Suggestion:
    """One change, with its reasons.

    Attributes:
        symptom: what is wrong.
        change: to make.
        evidence: from the data.
        expected: what the change should bring, and what it costs.
    """

    symptom: str
    change: str
    evidence: str
    expected: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """What one attempt tells.

    Attributes:
        status, reason, confidence, rank, memory_bytes: of the request.
        seconds, steps, convergence: of the adaptation.
    """

    status: str
    reason: str | None
    confidence: float | None
    rank: int | None
    memory_bytes: int | None
    seconds: float | None
    steps: int | None
    convergence: float | None


def suggest(store: Store, window: Window) -> list[Suggestion]:
    """Return what to change, from what was recorded in ``window``; nothing where nothing is wrong or known."""
    measured = measure(store, window)
    with store.reading() as connection:
        counts, attempts = count_requests(connection, window), _attempts(connection, window)
    return [
        *_low_activation(measured["ttt_activation_rate"], counts),
        *_too_many_fallbacks(attempts),
        *_slow(measured["mean_adaptation_time"], attempts),
        *_heavy(measured["memory_utilization"], attempts),
        *_unsure(measured["mean_confidence_score"], attempts),
        *_no_gain(measured["response_quality_improvement"]),
    ]


def fallback_threshold(attempts: Sequence[Attempt], wanted: float = WANTED_FALLBACKS) -> float | None:
    """Return the highest confidence threshold at which at most ``wanted`` of the attempts fall back.

    None where attempts fail for other reasons more often than that, so that no threshold would do.
    """
    others = sum(a.status == "fallback" for a in attempts)
    known = sorted(a.confidence for a in attempts if _is_judged(a) and a.confidence is not None)
    allowed = int(wanted * len(attempts) + 1e-9) - others
    if allowed < 0 or not known:
        return None
    if allowed >= len(known):
        return 1.0
    # Attempts below it fall back, those at it do not. Rounded down, so that it holds as it is printed.
    return float(np.floor(round(known[allowed] * 1000, 6)) / 1000)


def _is_judged(attempt: Attempt) -> bool:
    return attempt.status == "adapted" or attempt.reason == "low_confidence"


def _falls_back(attempt: Attempt) -> bool:
    return attempt.status == "fallback" or attempt.reason == "low_confidence"


def _attempts(connection: Connection, window: Window) -> list[Attempt]:
    columns, metrics = requests.c, ttt_metrics.c
    query = (
        sa.select(
            columns.status,
            columns.reason,
            columns.confidence,
            columns.rank,
            columns.memory_bytes,
            metrics.adaptation_time.label("seconds"),
            metrics.training_steps.label("steps"),
            metrics.convergence_score.label("convergence"),
        )
        .select_from(requests.outerjoin(ttt_metrics, metrics.request_id == columns.request_id))
        .where(window.of(columns.timestamp), columns.door == "language", columns.status != "plain")
        .order_by(columns.timestamp)
    )
    return [Attempt(**row) for row in connection.execute(query).mappings()]


def _low_activation(measured: Measurement, counts: Counts) -> Iterator[Suggestion]:
    estimate = measured.estimate
    if measured.state != "alert" or estimate is None or estimate.value >= (measured.kpi.alert_below or 0):
        return
    missed = counts.by_reason.get("fallback", {}).get("detection_failed", 0)
    few = counts.by_reason.get("declined", {}).get("insufficient_examples", 0)
    yield Suggestion(
        symptom=f"few requests have anything to adapt to: {estimate.value:.1%} (alert {measured.kpi.alert_threshold})",
        change="name the domain of the prompts (--domain), which lets its kinds of pattern count more readily; show "
        "users how to write examples, or pass examples directly",
        evidence=f"of {counts.total} requests {counts.by_status.get('plain', 0)} showed no pattern; in {missed} a "
        f"pattern was seen and could not be read, and {few} had too few examples",
        expected=f"{missed + few} of {counts.total} requests more could have been adapted to; what is missing beyond "
        "them needs other prompts, or readier detection",
    )


def _too_many_fallbacks(attempts: Sequence[Attempt]) -> Iterator[Suggestion]:
    if len(attempts) < LEAST_OBSERVATIONS:
        return
    count = sum(map(_falls_back, attempts))
    share = proportion(count, len(attempts))
    if share.low <= TOO_MANY_FALLBACKS:
        return
    symptom = f"{share.value:.1%} of attempts fall back to ICL, by failure or low confidence (alert >25%)"
    threshold = fallback_threshold(attempts)
    unsure = [a for a in attempts if a.reason == "low_confidence" and a.confidence is not None]
    if threshold is not None and unsure:
        freed = [a.confidence for a in unsure if a.confidence is not None and a.confidence >= threshold - _ROUNDING]
        left = (count - len(freed)) / len(attempts)
        yield Suggestion(
            symptom=symptom,
            change=f"lower the confidence threshold to {threshold:.3f}",
            evidence=f"{len(unsure)} of {len(attempts)} attempts were declined for low confidence; {len(freed)} of "
            f"them had at least {threshold:.3f}",
            expected=f"fallback comes to {left:.1%}; the answers let through are right with a mean probability of "
            f"{np.mean(freed) if freed else float('nan'):.0%}, as their own confidences say",
        )
    yield from _failures(symptom, attempts)
    convergence = [a.convergence for a in attempts if a.convergence is not None and _falls_back(a)]
    if len(convergence) >= LEAST_OBSERVATIONS and np.mean(convergence) < _LOW_CONVERGENCE:
        steps = [a.steps for a in attempts if a.steps]
        yield Suggestion(
            symptom=symptom,
            change=f"allow more training steps (--steps {2 * round(np.mean(steps)) if steps else 16})",
            evidence=f"where adapting was not used the loss came down by {np.mean(convergence):.0%} on average, in "
            f"{np.mean(steps) if steps else 0:.1f} steps",
            expected="a loss that comes down further; the time for training grows with the steps",
        )


_REMEDIES: Final[Mapping[str, str]] = {
    "timeout": "raise the time limit (--max-seconds), or lower the rank",
    "memory": "raise the memory limit (--max-mib), or lower the rank",
    "non_finite": "lower the learning rate (--learning-rate) by half",
    "detection_failed": "pass examples directly, or show users how to write them",
    "unsupported_model": "use a model that can be adapted: a causal language model with linear layers",
}


def _failures(symptom: str, attempts: Sequence[Attempt]) -> Iterator[Suggestion]:
    for reason, remedy in _REMEDIES.items():
        failed = [a for a in attempts if a.status == "fallback" and a.reason == reason]
        if len(failed) < max(3, 0.05 * len(attempts)):
            continue
        evidence = f"{len(failed)} of {len(attempts)} attempts failed for {reason}"
        if reason == "timeout" and (worked := [a.seconds for a in attempts if a.status == "adapted" and a.seconds]):
            evidence += f"; 95 % of those that succeeded took less than {quantile(worked, 0.95):.1f} s"
        left = (sum(map(_falls_back, attempts)) - len(failed)) / len(attempts)
        yield Suggestion(
            symptom=symptom,
            change=remedy,
            evidence=evidence,
            expected=f"without these failures fallback would be {left:.1%}",
        )


def _slow(measured: Measurement, attempts: Sequence[Attempt]) -> Iterator[Suggestion]:
    if measured.state != "alert" or measured.estimate is None:
        return
    yield from _lower_rank(
        f"adapting takes {measured.estimate.value:.2f} s on average (alert {measured.kpi.alert_threshold})",
        [(a.rank, a.seconds) for a in attempts if a.rank and a.seconds],
        "s",
    )
    steps = [(a.steps, a.seconds) for a in attempts if a.steps and a.seconds]
    if len(steps) >= LEAST_OBSERVATIONS:
        per_step = float(np.mean([seconds / count for count, seconds in steps]))
        target = next(kpi.target_high for kpi in KPIS if kpi.name == "mean_adaptation_time") or 2.0
        fewer = max(1, int(target / per_step))
        average = float(np.mean([count for count, _ in steps]))
        if fewer < average:
            yield Suggestion(
                symptom=f"adapting takes {measured.estimate.value:.2f} s on average",
                change=f"make at most {fewer} steps (--steps {fewer}), or end training earlier",
                evidence=f"{len(steps)} adaptations took {average:.1f} steps of {per_step:.2f} s, gate included",
                expected=f"about {fewer * per_step:.1f} s; compare accuracy in an experiment before keeping it",
            )


def _heavy(measured: Measurement, attempts: Sequence[Attempt]) -> Iterator[Suggestion]:
    if measured.state == "alert" and measured.estimate is not None:
        yield from _lower_rank(
            f"a request takes {measured.estimate.value:.0f} MB on average (alert {measured.kpi.alert_threshold})",
            [(a.rank, a.memory_bytes / _MB) for a in attempts if a.rank and a.memory_bytes],
            "MB",
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
        symptom=symptom,
        change=f"lower the rank from {usual} to {lower} (--rank {lower})",
        evidence="; ".join(f"rank {rank}: {value:.2f} {unit}" for rank, value in means.items()),
        expected=expected,
    )


def _unsure(measured: Measurement, attempts: Sequence[Attempt]) -> Iterator[Suggestion]:
    if measured.state != "alert" or measured.estimate is None:
        return
    adapted = sorted(a.confidence for a in attempts if a.status == "adapted" and a.confidence is not None)
    for start in range(1, len(adapted)):
        if np.mean(adapted[start:]) >= (measured.kpi.target_low or 0):
            yield Suggestion(
                symptom=f"adapted answers have a mean confidence of {measured.estimate.value:.2f} "
                f"(alert {measured.kpi.alert_threshold})",
                change=f"raise the confidence threshold to {adapted[start]:.3f}",
                evidence=f"{len(adapted)} adapted answers; {start} of them lie below it",
                expected=f"a mean confidence of {np.mean(adapted[start:]):.2f}; {start / len(adapted):.0%} of what is "
                "adapted now would be answered from the prompt alone",
            )
            return


def _no_gain(measured: Measurement) -> Iterator[Suggestion]:
    if measured.state == "alert" and measured.estimate is not None:
        estimate = measured.estimate
        yield Suggestion(
            symptom=f"TTT gains {estimate.value:+.1%} over ICL (alert {measured.kpi.alert_threshold})",
            change="fit the gate to your own tasks (acclimate calibrate), so that it adapts only where that helps",
            evidence=f"{estimate.count} requests answered both ways, {estimate.low:+.1%} to {estimate.high:+.1%}",
            expected="a gain that is never much below 0; whether it reaches the target depends on the tasks",
        )
