"""What a user should be told about the steps of a session."""

from __future__ import annotations

from typing import Final

from acclimate.core.report import SessionReport
from acclimate.registry import GUARDS

_FALLBACKS: Final = frozenset(
    code
    for entry in GUARDS.shipped().values()
    if entry.info and entry.info.costs_prediction
    for code in entry.info.codes
)
"""Codes with which the unadapted model predicts instead."""


def step_warnings(session: SessionReport) -> list[str]:
    """Return, in words, what the verdicts on the steps of a session mean for who reads its predictions."""
    found = []
    for verdict, words in (
        ("rolled_back", "rolled back"),
        ("reset", "reset to the source weights"),
        ("recovered", "recovered"),
    ):
        steps = [step for step in session.steps if step.verdict == verdict]
        if steps:
            found.append(
                f"{len(steps)} of {len(session.steps)} steps were {words}; first, step {steps[0].index}: "
                f"{steps[0].reason}"
            )
    fallbacks = sum(step.code in _FALLBACKS for step in session.steps)
    if fallbacks:
        found.append(
            f"{fallbacks} of {len(session.steps)} batches were predicted by the unadapted model, which was surer of "
            "them: the stream may be of one class, in small batches, or not what the model is for; blend tolerates more"
        )
    count = len(session.steps)
    if session.counts.get("recovered", 0) > count / 2:
        found.append(
            f"{session.method} recovered on most steps: for few classes or a low loss, lower its threshold (of sar, "
            "reset_below_nats)"
        )
    if count / 2 < session.counts.get("skipped", 0) < count:
        found.append(f"{session.counts['skipped']} of {count} batches were skipped: little was worth learning from")
    if session.steps and all(step.verdict == "skipped" for step in session.steps):
        found.append(
            "every batch was skipped: nothing was worth learning from and no weight moved (with BatchNorm, "
            "predictions still use the statistics of their batch)"
        )
    return found
