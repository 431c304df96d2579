"""What a session did, as plain values: to JSON and back."""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Literal

Verdict = Literal["kept", "skipped", "rolled_back", "reset", "recovered", "refused", "paused"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepReport:
    """What became of one adaptation step.

    Attributes:
        index: counted from 0 over the session.
        verdict: ``kept``; ``skipped`` (nothing worth learning from); ``rolled_back`` one step or ``reset`` to the
            source by a guard; ``recovered``: set back to the source because the method asked; ``refused``: not
            made, the budget is spent; ``paused``: not made, the stream is as before.
        code: names why it was not kept, for programs: that of the guard that fired (:class:`acclimate.core.Rejection`),
            ``nothing_to_learn``, ``method_asked``, ``stream_unchanged``, or that of the budget; None where it was kept.
        reason: the same in words.
        loss: of the batch, before the update; None where there was none.
        used: decisions that contributed to the loss.
        samples: in the batch.
        update_norm: L2 norm of the change that was applied (before any way back).
        relative_update: the same over the norm of the source weights.
        probe_loss_before, probe_loss_after: mean entropy in nats on the probe batch, where there is one.
        signals: what the outputs look like as a whole, by name (see :class:`acclimate.core.signals.Signals`); None
            where no guard asked.
        seconds: wall-clock seconds of the whole step, probe and unadapted model apart; ``method_seconds``: of the
            method's own part.
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
    """What a session did from entry to now.

    Attributes:
        method: the method's name; ``settings``: its hyper-parameters.
        seed: of the session's generator.
        steps: one entry for each step; ``steps_before``: made by sessions whose state this one went on from.
        updated_param_count: elements that were selected; ``changed_param_count``: those that differ from the source.
        relative_drift: distance of the weights from the source over the norm of the source weights.
        held_bytes: bytes held beyond the model.
        stopped_early, stop_reason: whether a budget ended the adaptation.
        notes: what the method and the selection want said.
        adapt_seconds, predict_seconds, probe_seconds, source_seconds: wall-clock seconds by what they were spent on;
            ``source_seconds``: on asking the unadapted model.
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
        """Return the report as JSON; values that JSON has no number for are null."""
        return json.dumps(to_jsonable(self), indent=indent)

    @classmethod
    def from_json(cls, text: str) -> SessionReport:
        """Return the report that :meth:`to_json` wrote."""
        values = json.loads(text)
        # Written before 0.2 a step without learning was called rested.
        steps = [{**s, "verdict": "paused" if s["verdict"] == "rested" else s["verdict"]} for s in values["steps"]]
        values["steps"] = tuple(StepReport(**step) for step in steps)
        values["notes"] = tuple(values["notes"])
        return cls(**values)

    def without_times(self) -> SessionReport:
        """Return the report with its time fields set to zero: what one seed determines."""
        steps = tuple(dataclasses.replace(step, seconds=0.0, method_seconds=0.0) for step in self.steps)
        return dataclasses.replace(
            self, steps=steps, adapt_seconds=0.0, predict_seconds=0.0, probe_seconds=0.0, source_seconds=0.0
        )


def verdict_counts(steps: tuple[StepReport, ...]) -> dict[str, int]:
    """Return how many steps had each verdict, sorted by verdict."""
    return dict(sorted(Counter(step.verdict for step in steps).items()))


def to_jsonable(value: Any) -> Any:
    """Return ``value`` made of JSON's types only: dataclasses to dicts, tuples to lists, non-finite numbers to null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_jsonable(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): to_jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [to_jsonable(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return str(value)
