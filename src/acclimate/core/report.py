"""Reports of steps and sessions as plain values, and their conversion to and from JSON."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Literal

from acclimate.json_values import from_json, to_jsonable

Verdict = Literal["kept", "skipped", "rolled_back", "reset", "recovered", "refused", "paused"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepReport:
    """The result of one adaptation step.

    Attributes:
        index: counted from 0 over the session.
        verdict: ``kept``; ``skipped``: the method used no decision of the batch; ``rolled_back``: undone because a
            guard fired; ``reset``: a guard restored the source model; ``recovered``: the method requested a reset to
            the source model; ``refused``: not made, because the budget is used up; ``paused``: not made, because the
            image statistics of the stream have not changed.
        code: the cause for programs: the code of the guard that fired (:class:`acclimate.core.guards.Rejection`),
            ``nothing_to_learn``, ``method_asked`` or ``stream_unchanged``; None where the step was kept or refused.
        reason: the cause in words; None where the step was kept.
        loss: the loss on the batch before the update; None where the method computed none.
        used: number of decisions that contributed to the loss.
        samples: number of images in the batch.
        update_norm: L2 norm of the update, also where the update was undone afterwards.
        relative_update: ``update_norm`` over the norm of the source weights.
        probe_loss_before, probe_loss_after: mean entropy in nats on the probe batch, where there is one.
        signals: statistics of the outputs by name (see :class:`acclimate.core.signals.Signals`); None where no guard
            used them.
        seconds: wall-clock seconds of the step without the probe and the unadapted model; ``method_seconds``: those of
            the method alone.
    """

    index: int
    verdict: Verdict
    code: str | None = None
    reason: str | None = None
    loss: float | None = None
    used: int = 0
    samples: int = 0
    update_norm: float = 0.0
    relative_update: float = 0.0
    probe_loss_before: float | None = None
    probe_loss_after: float | None = None
    signals: dict[str, float] | None = None
    seconds: float = 0.0
    method_seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionReport:
    """The results of a session from its start until now.

    Attributes:
        method: the method's name; ``settings``: its hyper-parameters.
        seed: of the session's generator.
        steps: one entry for each step; ``steps_before``: number of steps of the sessions whose state this one loaded.
        updated_param_count: number of trainable elements; ``changed_param_count``: those that differ from the source.
        relative_drift: distance of the weights from the source over the norm of the source weights.
        held_bytes: bytes held in addition to the model.
        stopped_early, stop_reason: whether a budget ended the adaptation, and which.
        notes: remarks of the method and of the selection.
        adapt_seconds, predict_seconds, probe_seconds, source_seconds: wall-clock seconds of adaptation, of prediction,
            of the probe, and of running the unadapted model.
        counts: number of steps by verdict.
    """

    method: str
    settings: dict[str, Any]
    seed: int
    steps: tuple[StepReport, ...] = ()
    steps_before: int = 0
    updated_param_count: int = 0
    changed_param_count: int = 0
    relative_drift: float = 0.0
    held_bytes: int = 0
    stopped_early: bool = False
    stop_reason: str | None = None
    notes: tuple[str, ...] = ()
    adapt_seconds: float = 0.0
    predict_seconds: float = 0.0
    probe_seconds: float = 0.0
    source_seconds: float = 0.0
    counts: dict[str, int] = field(default_factory=dict)

    @property
    def losses(self) -> list[float | None]:
        """The loss of every step that was made."""
        return [step.loss for step in self.steps if step.verdict != "refused"]

    def to_json(self, *, indent: int | None = 2) -> str:
        """Return the report as JSON; NaN and infinity become null."""
        return json.dumps(to_jsonable(self), indent=indent)

    @classmethod
    def from_json(cls, text: str) -> SessionReport:
        """Return the report that :meth:`to_json` wrote."""
        values = from_json(text)
        # Reports written before version 0.2 call a paused step "rested".
        steps = [{**s, "verdict": "paused" if s["verdict"] == "rested" else s["verdict"]} for s in values["steps"]]
        values["steps"] = tuple(StepReport(**step) for step in steps)
        values["notes"] = tuple(values["notes"])
        return cls(**values)

    def without_times(self) -> SessionReport:
        """Return the report with its time fields set to zero, so that runs with one seed can be compared."""
        steps = tuple(dataclasses.replace(step, seconds=0.0, method_seconds=0.0) for step in self.steps)
        return dataclasses.replace(
            self, steps=steps, adapt_seconds=0.0, predict_seconds=0.0, probe_seconds=0.0, source_seconds=0.0
        )


def verdict_counts(steps: tuple[StepReport, ...]) -> dict[str, int]:
    """Return how many steps had each verdict, sorted by verdict."""
    return dict(sorted(Counter(step.verdict for step in steps).items()))
