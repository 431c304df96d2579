"""One step of a method: made, checked by the guards, and kept or undone."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import nn

from acclimate.core import layout
from acclimate.core.determinism import ModelDraws, device_of, generator
from acclimate.core.guards import REMEMBERED_DECISIONS, Evidence, Guard
from acclimate.core.method import Method, Selection, Step
from acclimate.core.outputs import nbytes, sample_count
from acclimate.core.pacing import Pace, Pacing
from acclimate.core.probe import Probe
from acclimate.core.report import StepReport, Verdict
from acclimate.core.snapshot import Snapshot
from acclimate.core.source_model import SourceComparison
from acclimate.core.task import Task

# One step back is enough for a bad batch; weights that are still worse on the batches after it are not worth keeping.
_FAILURES_BEFORE_RESET: Final = 3


@dataclass(frozen=True, slots=True)
class _Judgement:
    verdict: Verdict
    code: str | None = None
    reason: str | None = None


class Stepper:
    """Everything that a step may change, and the way back: weights, buffers, moments, the method's state.

    Args:
        model: with ``selection`` open on it.
        method: what to do with a batch.
        task: what the model's outputs mean.
        guards: called on every step; the first that fires decides.
        selection: the trainable parameters, and the buffers.
        seed: of the method's random numbers.
        pacing: when to learn; None learns from every batch.

    Attributes:
        state: the method's state.
        source: the snapshot of the source; ``source_weights``: its trainable parameters, by name.
        comparison: of the adapted model with the unadapted one.
        draws: what calls of the model draw from torch's global generators.
        pace: None learns from every batch.
    """

    def __init__(
        self,
        model: nn.Module,
        method: Method,
        *,
        task: Task,
        guards: Sequence[Guard],
        selection: Selection,
        seed: int,
        pacing: Pacing | None,
    ) -> None:
        self.model, self.method, self.task, self.guards = model, method, task, tuple(guards)
        self.selection, self.seed, self.pacing = selection, seed, pacing
        self.optimizer = method.optimizer(list(selection.parameters.values()))
        self.source = Snapshot(selection, self.optimizer)
        self._before = Snapshot(selection, self.optimizer)
        reference = selection.reference_norm
        self._source_norm = self.source.parameter_norm() if reference is None else reference
        self.source_weights = dict(zip(selection.parameters, self.source.parameters, strict=True))
        self.comparison = SourceComparison(model, self.source_weights, task=task)
        self.probe = Probe(model, method, task)
        self._recent_classes: deque[int] = deque(maxlen=REMEMBERED_DECISIONS)
        self.draws = ModelDraws(model, seed)
        self._restart()
        self.state = self._state_before = self._started()

    def _restart(self) -> None:
        self.draws.reset()
        self.rng = generator(self.seed, device_of(self.model))
        self.pace = None if self.pacing is None else Pace(self.pacing, self.task)

    def _started(self) -> Any:
        with self.draws.isolated():
            return self.method.start(self.model, self.selection)

    def is_paused(self, batch: Any) -> bool:
        """Take ``batch`` into what pacing knows of the stream, and say whether not to learn from it."""
        # While the unadapted model predicts, adapting goes on: otherwise nothing would ever be compared again.
        return self.pace is not None and not self.pace.is_due(batch) and not self.comparison.falling_back

    def step(self, batch: Any, *, index: int, paused: bool) -> tuple[StepReport, Step]:
        """Make a step, or only predict where it is paused; keep it or undo it, and return what became of it."""
        started = time.perf_counter()
        self._before.capture()
        self._state_before = self.state
        method_started = time.perf_counter()
        try:
            with self.draws.isolated():
                step = self._predicted(batch) if paused else self._adapted(batch)
            self.selection.drop_gradients()
            method_seconds = time.perf_counter() - method_started
            update_norm = self._before.distance()
            apart_before = self.probe.seconds + self.comparison.seconds
            evidence = self._evidence(step, batch, update_norm)
            judged = self._judge(step, evidence)
        except BaseException:
            # Of the method, of a guard, of the unadapted model that a guard ran: no step is made by half.
            self.rollback()
            self.selection.drop_gradients()
            raise
        if paused and judged.verdict == "kept":
            judged = _Judgement("paused", "stream_unchanged", "the stream is as before")
        report = evidence.report(
            index=index,
            verdict=judged.verdict,
            code=judged.code,
            reason=judged.reason,
            update_norm=update_norm,
            seconds=time.perf_counter() - started - (self.probe.seconds + self.comparison.seconds - apart_before),
            method_seconds=method_seconds,
        )
        return report, step

    def rollback(self) -> None:
        """Go back to before the last step."""
        self._before.restore()
        self.state = self._state_before

    def reset(self) -> None:
        """Go back to the source, with the random numbers and all that is known of the stream."""
        self._to_source()
        self.accept()
        self._restart()
        self.comparison.reset()
        self._recent_classes.clear()

    def accept(self) -> None:
        """Let the weights and the state be as they are now before the next step."""
        self._before.capture()
        self._state_before = self.state

    def relative(self, distance: float) -> float:
        """Return a distance of weights over the norm of the source's."""
        return distance / self._source_norm if self._source_norm > 0 else distance

    @property
    def held_bytes(self) -> int:
        """Bytes held beyond the model: snapshots, moments and the method's state."""
        moments = [] if self.optimizer is None else list(self.optimizer.state.values())
        return self.source.nbytes + self._before.nbytes + nbytes(moments) + nbytes(self.state)

    def _adapted(self, batch: Any) -> Step:
        with torch.enable_grad(), nullcontext() if self.pace is None else self.pace.scaled(self.optimizer):
            return self.method.step(
                self.model,
                layout.for_learning(batch),
                self.state,
                task=self.task,
                selection=self.selection,
                optimizer=self.optimizer,
                rng=self.rng,
            )

    @torch.no_grad()
    def _predicted(self, batch: Any) -> Step:
        outputs = self.method.predict(self.model, layout.for_prediction(batch), self.state, task=self.task)
        return Step(self.state, outputs, None, sample_count(batch))

    def _judge(self, step: Step, evidence: Evidence) -> _Judgement:
        rejection = next((found for guard in self.guards if (found := guard(evidence)) is not None), None)
        if evidence.signals_asked is not None:
            to_source = rejection is not None and rejection.remedy == "source"
            self.comparison.record(evidence.signals_asked, falling_back=to_source)
        if rejection is not None:
            if rejection.remedy == "reset" or self.comparison.consecutive_failures > _FAILURES_BEFORE_RESET:
                self._to_source()
                self._recent_classes.clear()
                self.comparison.clear_history()
                return _Judgement("reset", rejection.code, rejection.reason)
            self._before.restore()
            return _Judgement("rolled_back", rejection.code, rejection.reason)
        if step.used == 0:
            # Even a skipped batch went through the network: put back whatever its forward pass touched.
            self._before.restore()
            return _Judgement("skipped", "nothing_to_learn", "nothing in this batch was worth learning from")
        if step.reset:
            self._to_source()
            reason = f"{self.method.info.name} asked to start again from the source weights"
            return _Judgement("recovered", "method_asked", reason)
        self.state = step.state
        if evidence.probe_loss_after is not None:
            self.probe.loss = evidence.probe_loss_after
        self._recent_classes.extend(evidence.classes)
        return _Judgement("kept")

    def _evidence(self, step: Step, batch: Any, update_norm: float) -> Evidence:
        probe_after, agreement = self.probe.after(step.state)
        return Evidence(
            step=step,
            task=self.task,
            relative_update=self.relative(update_norm),
            relative_drift=self.relative(self.source.distance()),
            probe_loss_before=self.probe.loss,
            probe_loss_after=probe_after,
            probe_agreement=agreement,
            recent_classes=tuple(self._recent_classes),
            samples=sample_count(batch),
            batch=batch,
            source=self.comparison,
            certainty_allowance=self.method.info.certainty_allowance,
        )

    def _to_source(self) -> None:
        self.source.restore()
        self.state = self._started()
        self.probe.again(self.state)
