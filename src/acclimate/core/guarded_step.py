"""One adaptation step: the method updates the model, the guards check the result, and it is kept or undone."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import torch
from torch import nn

from acclimate.core import layout
from acclimate.core.determinism import ModelDraws, device_of, generator
from acclimate.core.guards import REMEMBERED_DECISIONS, Evidence, Guard
from acclimate.core.method import MayLearnWithoutOutputs, Method, Selection, Step
from acclimate.core.outputs import all_finite, map_tensors, nbytes, sample_count, tensors
from acclimate.core.pacing import Pace, Pacing
from acclimate.core.precision import MasterCopies, optimizer_for
from acclimate.core.probe import Probe
from acclimate.core.programs import Program, no_gradient
from acclimate.core.report import StepReport, Verdict
from acclimate.core.segmentation import Segmentation
from acclimate.core.snapshot import Snapshot
from acclimate.core.source_model import SourceComparison, partly_adapted_outputs, source_outputs
from acclimate.core.task import ChecksOutputs, Task, second_view
from acclimate.errors import TTTNotSupportedError

# Undoing one step is enough where a single batch did the harm. If the batches after it fail too, the restored weights
# are themselves worse than the source.
_FAILURES_BEFORE_RESET: Final = 3
_FEW_IMAGES: Final = 8
"""Outputs on so many images show whether they are logits."""


@dataclass(frozen=True, slots=True)
class _Outcome:
    verdict: Verdict
    code: str | None = None
    reason: str | None = None


class Stepper:
    """Makes adaptation steps and can undo them: weights, buffers, optimizer moments and the method's state.

    Args:
        model: the model, inside the block in which ``selection`` was made.
        method: adapts the model to a batch.
        task: interprets the model's outputs.
        guards: called on every step; the first that fires decides.
        selection: the trainable parameters, and the buffers.
        seed: of the method's random numbers.
        pacing: decides on which batches to adapt; None adapts on every batch.

    Attributes:
        state: the method's state.
        source: the snapshot of the source model; ``source_weights``: its trainable parameters, by name.
        comparison: compares the adapted model with the unadapted one.
        draws: isolates what calls of the model draw from torch's global generators.
        pace: applies ``pacing`` to the stream; None adapts on every batch.
        recent_classes: the decided classes of the last kept batches, oldest first.
        examined: whether the model's outputs were looked at, which is done once.
        output_remarks: why the model's outputs are probably not what the task takes them for.
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
        self.optimizer = optimizer_for(list(selection.parameters.values()), method.optimizer)
        self.source = Snapshot(selection, self.optimizer)
        self._before = Snapshot(selection, self.optimizer)
        reference = selection.reference_norm
        self._source_norm = self.source.parameter_norm() if reference is None else reference
        self.source_weights = dict(zip(selection.parameters, self.source.parameters, strict=True))
        self.comparison = SourceComparison(model, self.source_weights, task=task)
        self.probe = Probe(model, method, task)
        self.recent_classes: deque[int] = deque(maxlen=REMEMBERED_DECISIONS)
        self.draws = ModelDraws(model, seed)
        self.output_remarks: tuple[str, ...] = ()
        self.examined = False
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
        """Update the pacing with ``batch``, and return whether to predict it without adapting."""
        # While falling back, adaptation continues: without new steps the models would never be compared again.
        return self.pace is not None and not self.pace.is_due(batch) and not self.comparison.falling_back

    def step(self, batch: Any, *, index: int, paused: bool) -> tuple[StepReport, Step]:
        """Adapt on ``batch``, or only predict it if ``paused``; keep or undo the step, and return its report."""
        self._before.capture()
        self._state_before = self.state
        started = method_started = time.perf_counter()
        try:
            if not self.examined:
                self._examine(batch)
                started = method_started = time.perf_counter()
            with self.draws.isolated():
                step = self._predict(batch) if paused else self._adapt(batch)
            self.selection.drop_gradients()
            method_seconds = time.perf_counter() - method_started
            # What is remembered of views and classes is a classifier's.
            if step.new_stream and self.task.exclusive:
                self.comparison.begin_stream()
            if step.unadapted is not None:
                self.comparison.offer(batch, step.unadapted)
            update_norm = self._before.distance()
            excluded_before = self.probe.seconds + self.comparison.seconds
            evidence = self._evidence(step, batch, update_norm)
            outcome = self._decide(step, evidence)
        except BaseException:
            # The error may come from the method, a guard or the unadapted model: never leave a step half made.
            self.rollback()
            self.selection.drop_gradients()
            raise
        self.comparison.record_beginning(new_stream=step.new_stream, kept=outcome.verdict == "kept")
        if paused and outcome.verdict == "kept":
            outcome = _Outcome("paused", "stream_unchanged", "the image statistics of the stream have not changed")
        report = evidence.report(
            index=index,
            verdict=outcome.verdict,
            code=outcome.code,
            reason=outcome.reason,
            update_norm=update_norm,
            seconds=time.perf_counter() - started - (self.probe.seconds + self.comparison.seconds - excluded_before),
            method_seconds=method_seconds,
        )
        return report, step

    def rollback(self) -> None:
        """Undo the last step."""
        self._before.restore()
        self.state = self._state_before

    def reset(self) -> None:
        """Restore the source model, restart the random numbers, and clear all statistics of the stream."""
        self._restore_source()
        self.accept()
        self._restart()
        self.comparison.reset()
        self.recent_classes.clear()

    def accept(self) -> None:
        """Take the present weights and state as those that :meth:`rollback` restores."""
        self._before.capture()
        self._state_before = self.state

    def relative(self, distance: float) -> float:
        """Return a distance between weights, divided by the norm of the source weights."""
        return distance / self._source_norm if self._source_norm > 0 else distance

    @property
    def held_bytes(self) -> int:
        """Bytes held in addition to the model: snapshots, optimizer moments and the method's state."""
        moments = [] if self.optimizer is None else list(self.optimizer.state.values())
        copies = self.optimizer.copies if isinstance(self.optimizer, MasterCopies) else []
        return self.source.nbytes + self._before.nbytes + nbytes([moments, copies]) + nbytes(self.state)

    def _examine(self, batch: Any) -> None:
        """Run the model once, before the first step, and look at its outputs.

        Raises:
            TTTNotSupportedError: they have no gradient and the method needs one, or the task cannot interpret them.
        """
        method = self.method
        learns = method.info.needs_gradient and bool(self.selection.parameters)
        few = 1 if isinstance(self.task, Segmentation) else _FEW_IMAGES if self.task.exclusive else None
        if few is not None and not isinstance(self.model, Program):
            # So many have enough decisions. A program may have a fixed batch size.
            batch = map_tensors(lambda tensor: tensor[:few], batch)
        with torch.set_grad_enabled(learns), ModelDraws(self.model, self.seed).isolated():
            outputs = self.task.forward(self.model, layout.for_learning(batch) if learns else batch)
        # A forward pass may change buffers.
        self._before.restore()
        from_outputs = not isinstance(method, MayLearnWithoutOutputs) or method.learns_from_outputs(self.model)
        if learns and from_outputs and not any(tensor.requires_grad for tensor in tensors(outputs)):
            raise TTTNotSupportedError(no_gradient(self.model, method.info.name))
        if not all_finite(outputs) or sample_count(batch) == 0:
            # They say nothing about the model: look at the next batch too.
            return
        if isinstance(self.task, ChecksOutputs):
            self.output_remarks = self.task.check_outputs(outputs)
        self.examined = True

    def _adapt(self, batch: Any) -> Step:
        with torch.enable_grad(), nullcontext() if self.pace is None else self.pace.scaled(self.optimizer):
            step = self.method.step(
                self.model,
                layout.for_learning(batch),
                self.state,
                task=self.task,
                selection=self.selection,
                optimizer=self.optimizer,
                rng=self.rng,
            )
        # Inside torch.autocast, converted weights are cached, and these are the ones from before the step.
        torch.clear_autocast_cache()
        return step

    @torch.no_grad()
    def _predict(self, batch: Any) -> Step:
        outputs = self.method.predict(self.model, layout.for_prediction(batch), self.state, task=self.task)
        return Step(self.state, outputs, None, sample_count(batch))

    def _decide(self, step: Step, evidence: Evidence) -> _Outcome:
        rejection = next((found for guard in self.guards if (found := guard(evidence)) is not None), None)
        if evidence.computed_signals is not None:
            to_source = rejection is not None and rejection.remedy == "source"
            self.comparison.record(evidence.computed_signals, falling_back=to_source)
        if rejection is not None:
            if rejection.remedy == "reset" or self.comparison.consecutive_failures > _FAILURES_BEFORE_RESET:
                self._restore_source()
                self.recent_classes.clear()
                self.comparison.clear_history()
                return _Outcome("reset", rejection.code, rejection.reason)
            self._before.restore()
            return _Outcome("rolled_back", rejection.code, rejection.reason)
        if step.used == 0:
            # A skipped batch went through the network too, and its forward pass may have changed buffers.
            self._before.restore()
            return _Outcome("skipped", "nothing_to_learn", f"{self.method.info.name} used no decision of this batch")
        if step.reset:
            self._restore_source()
            reason = f"{self.method.info.name} requested a reset to the source weights"
            return _Outcome("recovered", "method_asked", reason)
        self.state = step.state
        if evidence.probe_loss_after is not None:
            self.probe.loss = evidence.probe_loss_after
        self.recent_classes.extend(evidence.classes)
        return _Outcome("kept")

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
            recent_classes=tuple(self.recent_classes),
            samples=sample_count(batch),
            batch=batch,
            source=self.comparison,
            certainty_allowance=self.method.info.certainty_allowance,
            compares_itself=self.method.info.compares_itself,
            mirrored_outputs=partial(self._mirrored_outputs, batch, step.state),
            partly_adapted_outputs=partial(self._partly_adapted_outputs, batch),
        )

    @torch.no_grad()
    def _mirrored_outputs(self, batch: Any, state: Any) -> tuple[Any, Any] | None:
        """Return both models' outputs on mirror images, adapted and unadapted; None where they say nothing.

        Where mirroring changes what images show, they are moved a little instead.
        """
        task = self.task
        if not (task.aligned and task.exclusive) or self.method.info.averages_views:
            return None
        view = second_view(task, batch)
        started = time.perf_counter()
        mirrored = layout.for_prediction(view.batch)
        with self.draws.isolated():
            adapted = view.undo(self.method.predict(self.model, mirrored, state, task=task))
        unadapted = view.undo(source_outputs(self.model, mirrored, self.source_weights, task=task))
        self.comparison.seconds += time.perf_counter() - started
        return adapted, unadapted

    def _partly_adapted_outputs(self, batch: Any, share: float) -> Any | None:
        """Return the unadapted model's outputs with the batch's statistics in its first layers; None without these."""
        if not self.task.exclusive:
            return None
        started = time.perf_counter()
        outputs = partly_adapted_outputs(self.model, batch, self.source_weights, share=share, task=self.task)
        self.comparison.seconds += time.perf_counter() - started
        return outputs

    def _restore_source(self) -> None:
        self.source.restore()
        self.state = self._started()
        self.probe.measure_again(self.state)
