"""The session: adapts a model to a stream, predicts, undoes steps, saves its state and reports."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn

from acclimate.core import guards as guarding
from acclimate.core import layout, norm
from acclimate.core.budget import Budget
from acclimate.core.determinism import device_of
from acclimate.core.guarded_step import Stepper
from acclimate.core.history import history_of, restore_history
from acclimate.core.method import Installable, Method, PredictsWithOtherWeights, Selection, Step, settings_of
from acclimate.core.outputs import all_finite, sample_count
from acclimate.core.pacing import Pacing
from acclimate.core.precision import AnyOptimizer
from acclimate.core.programs import unwrapped
from acclimate.core.report import SessionReport, StepReport, verdict_counts
from acclimate.core.source_model import SourceComparison
from acclimate.core.state import SavedState, read_fitting
from acclimate.core.task import Classification, Task
from acclimate.errors import SessionError

logger = logging.getLogger(__name__)


class Session:
    """Adapts one model with one method: makes guarded steps, predicts and reports.

    Use it as a context manager. Inside the block the method's trainable parameters are selected. On exit, flags, modes
    and low-rank layers are as before; the weights are those of the last kept step, or the source's with
    ``restore=True``.

    Args:
        model: any module; of a ``DataParallel`` or ``DistributedDataParallel`` the module inside is adapted.
        method: adapts the model to a batch.
        task: interprets the model's outputs; None means :class:`Classification`.
        guards: called on every step; the first that fires decides. Empty means no guards, None the default ones.
        budget: limits on the time, steps and memory of adaptation; None means no limits.
        seed: of all random numbers in the session.
        probe: a batch on which entropy and agreement are measured after every step; its time is reported separately.
        pacing: decides on which batches to adapt; None adapts on every batch.
        restore: whether to restore the source weights on exit.
        on_report: called with the report on exit.
    """

    def __init__(
        self,
        model: nn.Module,
        method: Method,
        *,
        task: Task | None = None,
        guards: Sequence[guarding.Guard] | None = None,
        budget: Budget | None = None,
        seed: int = 0,
        probe: Any | None = None,
        pacing: Pacing | None = None,
        restore: bool = False,
        on_report: Callable[[SessionReport], None] | None = None,
    ) -> None:
        self.model = unwrapped(model)
        self._method = method
        self.task: Task = Classification() if task is None else task
        self.guards = guarding.default_guards() if guards is None else tuple(guards)
        self.budget = Budget() if budget is None else budget
        self.seed = seed
        self.probe = probe
        self.pacing = pacing
        self.restore = restore
        self.on_report = on_report
        self._stack: ExitStack | None = None
        self._stepper: Stepper | None = None

    def __enter__(self) -> Self:
        if self._stack is not None:
            raise SessionError("this session is already open; use one 'with' block at a time")
        with ExitStack() as stack:
            selection = stack.enter_context(self._method.select(self.model))
            stepper = Stepper(
                self.model,
                self._method,
                task=self.task,
                guards=self.guards,
                selection=selection,
                seed=self.seed,
                pacing=self.pacing,
            )
            stepper.probe.begin(self.probe, stepper.state)
            self._steps: list[StepReport] = []
            self._steps_before = 0
            self._adapt_seconds = self._predict_seconds = 0.0
            self._stop_reason: str | None = None
            self._stack, self._stepper = stack.pop_all(), stepper
        return self

    def __exit__(self, *exc_info: object) -> None:
        stepper = self._open()
        report = self.report()
        if self.restore:
            stepper.source.restore()
        stack, self._stack, self._stepper = self._stack, None, None
        if stack is not None:
            stack.close()
        if self.on_report is not None:
            self.on_report(report)

    @property
    def method(self) -> Method:
        """The method that adapts the model."""
        return self._method

    @method.setter
    def method(self, method: Method) -> None:
        self._method = method
        if self._stepper is not None:
            self._stepper.method = method

    @property
    def selection(self) -> Selection:
        """The trainable parameters, and the buffers."""
        return self._open().selection

    @property
    def state(self) -> Any:
        """The method's state; immutable."""
        return self._open().state

    @property
    def optimizer(self) -> AnyOptimizer | None:
        """The method's optimizer, if it has one; that of a model in half precision updates float32 copies."""
        return self._open().optimizer

    @property
    def source_comparison(self) -> SourceComparison:
        """The comparison of the adapted model with the unadapted one."""
        return self._open().comparison

    @property
    def changed_param_count(self) -> int:
        """How many trainable elements differ from the source now."""
        return self._open().source.changed_count()

    def adapt(self, batch: Any, *, steps: int = 1) -> StepReport:
        """Make ``steps`` adaptation steps on ``batch``; return the report of the last one."""
        stepper = self._open()
        try:
            paused = stepper.is_paused(batch)
            return [self._step(batch, paused=paused)[0] for _ in range(steps)][-1]
        finally:
            stepper.comparison.release()

    def adapt_and_predict(self, batch: Any, *, steps: int = 1) -> tuple[Any, StepReport]:
        """Adapt on ``batch`` and return the outputs of the same forward pass, the online protocol of the papers.

        The outputs are from before the last update (CoTTA's: the teacher's). Where a guard fired, or no step was
        made, they are those of :meth:`predict`.
        """
        stepper = self._open()
        try:
            paused = stepper.is_paused(batch)
            report, step = [self._step(batch, paused=paused) for _ in range(steps)][-1]
            if step is None or report.verdict in ("rolled_back", "reset"):
                return self.predict(batch), report
        finally:
            stepper.comparison.release()
        return step.outputs, report

    @torch.no_grad()
    def predict(self, inputs: Any) -> Any:
        """Return the method's outputs on ``inputs``; weights and state are not changed.

        While falling back, and where the method's outputs are not finite, the unadapted model predicts.
        """
        stepper = self._open()
        if stepper.comparison.falling_back:
            return stepper.comparison.outputs(inputs)
        started = time.perf_counter()
        with stepper.draws.isolated():
            outputs = self.method.predict(self.model, layout.for_prediction(inputs), stepper.state, task=self.task)
        self._predict_seconds += time.perf_counter() - started
        if self.guards and not all_finite(outputs):
            # One image with NaN makes the batch statistics NaN; with the source's, the other images can be predicted.
            return stepper.comparison.outputs(inputs)
        return outputs

    def predict_as_source(self, inputs: Any) -> Any:
        """Return the unadapted model's outputs on ``inputs``; weights and state are not changed."""
        return self._open().comparison.outputs(inputs)

    def reset(self) -> None:
        """Restore the source model: weights, buffers, optimizer moments, the method's state and random numbers."""
        self._open().reset()

    def rollback(self) -> None:
        """Undo the last step: weights, buffers, optimizer moments and the method's state. No effect after a reset."""
        stepper = self._open()
        stepper.rollback()
        stepper.probe.measure_again(stepper.state)

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Inside the block, calling the model directly predicts as :meth:`predict` does.

        It serves code that calls the model itself; see :class:`acclimate.core.method.Installable`.
        """
        stepper = self._open()
        weights = self.prediction_weights()
        saved = {name: stepper.selection.parameters[name].detach().clone() for name in weights}
        around: AbstractContextManager[None] = nullcontext()
        if stepper.comparison.falling_back:
            around = norm.source_statistics()
        elif isinstance(self.method, Installable):
            around = self.method.installed(self.model, stepper.state, task=self.task)
        try:
            stepper.selection.write(weights)
            with around:
                yield
        finally:
            stepper.selection.write(saved)

    def prediction_weights(self) -> Mapping[str, torch.Tensor]:
        """Return the weights used for prediction where they differ from the model's: a teacher's, or the source's."""
        stepper = self._open()
        if stepper.comparison.falling_back:
            return stepper.source_weights
        if isinstance(self.method, PredictsWithOtherWeights):
            return self.method.prediction_weights(stepper.state)
        return {}

    def set_probe(self, probe: Any) -> None:
        """Use ``probe`` as the probe batch from now on; agreement is measured with the present decisions."""
        stepper = self._open()
        self.probe = probe
        stepper.probe.begin(probe, stepper.state)

    def save_state(self, path: Path, *, with_history: bool = False) -> None:
        """Write weights, state, optimizer moments, random numbers and report to a safetensors file.

        Args:
            path: of the file.
            with_history: also write what the guards have seen of the stream. A session that loads the file then goes on
                as this one would, to the bit; otherwise it begins its comparisons with the unadapted model anew.

        Raises:
            CheckpointError: the file cannot be written.
        """
        stepper = self._open()
        SavedState.of(
            self.method,
            self.report(),
            source=stepper.comparison.source_tensors(),
            weights=stepper.selection.parameters,
            method_state=stepper.state,
            optimizer=stepper.optimizer,
            rng=stepper.rng,
            stream=(stepper.comparison.state_dict(), None if stepper.pace is None else stepper.pace.state_dict()),
            history=history_of(stepper) if with_history else None,
        ).write(path)

    def load_state(self, path: Path) -> None:
        """Continue from a saved state, as if this session had made its steps; the session keeps its own settings.

        Raises:
            CheckpointError: the file is no state, or that of another model, method or selection.
        """
        stepper = self._open()
        source = stepper.comparison.source_tensors()
        saved = read_fitting(path, self.method, stepper.optimizer, stepper.selection, source=source)
        saved = saved.on(device_of(self.model))
        stepper.selection.write(saved.weights)
        stepper.state = saved.method_state
        saved.restore(stepper.optimizer, stepper.rng)
        compared, paced = saved.stream
        stepper.comparison.load_state_dict(compared)
        if stepper.pace is not None and paced is not None:
            stepper.pace.load_state_dict(paced)
        if saved.history is not None:
            restore_history(stepper, saved.history)
        stepper.accept()
        self._steps_before = saved.report.steps_before + len(saved.report.steps)
        stepper.probe.measure_again(stepper.state)

    def report(self) -> SessionReport:
        """Return the report of the session until now."""
        stepper = self._open()
        steps = tuple(self._steps)
        return SessionReport(
            method=self.method.info.name,
            settings=settings_of(self.method),
            seed=self.seed,
            steps=steps,
            steps_before=self._steps_before,
            updated_param_count=sum(p.numel() for p in stepper.selection.parameters.values()),
            changed_param_count=stepper.source.changed_count(),
            relative_drift=stepper.relative(stepper.source.distance()),
            held_bytes=stepper.held_bytes,
            stopped_early=self._stop_reason is not None,
            stop_reason=self._stop_reason,
            notes=(*stepper.selection.notes, *self.method.notes(self.model, self.task), *stepper.output_remarks),
            adapt_seconds=self._adapt_seconds,
            predict_seconds=self._predict_seconds,
            probe_seconds=stepper.probe.seconds,
            source_seconds=stepper.comparison.seconds,
            counts=verdict_counts(steps),
        )

    def _step(self, batch: Any, *, paused: bool) -> tuple[StepReport, Step | None]:
        stepper = self._open()
        index = self._steps_before + len(self._steps)
        held_bytes = stepper.held_bytes if self.budget.max_bytes is not None else 0
        refused = self.budget.exhausted(seconds=self._adapt_seconds, steps=len(self._steps), held_bytes=held_bytes)
        if refused is not None:
            # Not appended to the report: no step was made, and a long stream would add one entry for every batch.
            self._stop_reason = refused.reason
            report = StepReport(
                index=index,
                verdict="refused",
                code=refused.code,
                reason=refused.reason,
                samples=sample_count(batch),
            )
            return report, None
        report, step = stepper.step(batch, index=index, paused=paused)
        self._adapt_seconds += report.seconds
        self._steps.append(report)
        if report.verdict in ("rolled_back", "reset"):
            # While falling back, only the first batch is worth a warning.
            level = logging.DEBUG if stepper.comparison.consecutive_failures > 1 else logging.WARNING
            logger.log(level, "step %d %s: %s", index, report.verdict.replace("_", " "), report.reason)
        return report, step

    def _open(self) -> Stepper:
        if self._stepper is None:
            raise SessionError("this session is not open: use it inside 'with Session(...) as session:'")
        return self._stepper
