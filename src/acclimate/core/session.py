"""The loop, once: snapshot, step, guards, then keep, skip, roll back or reset, and report."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Final, Self

import torch
from torch import nn

from acclimate.core import guards as guarding
from acclimate.core import layout, norm
from acclimate.core.budget import Budget
from acclimate.core.determinism import device_of, generator, seeded
from acclimate.core.method import Method, Selection, Step, settings_of
from acclimate.core.outputs import all_finite, nbytes, sample_count
from acclimate.core.pacing import Pace, Pacing
from acclimate.core.probe import Probe
from acclimate.core.report import SessionReport, StepReport, Verdict, verdict_counts
from acclimate.core.snapshot import Snapshot
from acclimate.core.source_model import SourceComparison
from acclimate.core.state import SavedState, read_fitting
from acclimate.core.task import Classification, Task
from acclimate.errors import SessionError

logger = logging.getLogger(__name__)

# One step back is enough for a bad batch; weights that are still worse on the batches after it are not worth keeping.
_FAILURES_BEFORE_RESET: Final = 3


class Session:
    """One model and one method: adapt, guard, keep or go back, predict, report.

    Inside its ``with`` block the model is selected; on exit its flags, modes and low-rank layers are as before, its
    weights as the last kept step left them, or the source's with ``restore=True``.

    Args:
        model: any module.
        method: what to do with a batch.
        task: what the model's outputs mean.
        guards: called on every step; the first that fires decides. Empty means none.
        budget: what may be spent on adapting.
        seed: of everything random in the session.
        probe: a batch on which entropy and agreement are measured around every step; its cost is counted apart.
        pacing: when to learn; None learns from every batch.
        restore: put the source weights back on exit.
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
        self.model = model
        self.method = method
        self.task: Task = Classification() if task is None else task
        self.guards = guarding.default_guards() if guards is None else tuple(guards)
        self.budget = Budget() if budget is None else budget
        self.seed = seed
        self.probe = probe
        self.pacing = pacing
        self.restore = restore
        self.on_report = on_report
        self._stack: ExitStack | None = None

    def __enter__(self) -> Self:
        if self._stack is not None:
            raise SessionError("this session is already open")
        with ExitStack() as stack:
            self._selection = stack.enter_context(self.method.select(self.model))
            parameters = list(self._selection.parameters.values())
            self._optimizer = self.method.optimizer(parameters)
            self._source = Snapshot(self._selection, self._optimizer)
            self._before = Snapshot(self._selection, self._optimizer)
            reference = self._selection.reference_norm
            self._source_norm = self._source.parameter_norm() if reference is None else reference
            self._source_weights = dict(zip(self._selection.parameters, self._source.parameters, strict=True))
            self._comparison = SourceComparison(self.model, self._source_weights, task=self.task)
            self._rng = generator(self.seed, device_of(self.model))
            stack.enter_context(seeded(self.seed))
            self._state = self._state_before = self.method.start(self.model, self._selection)
            self._steps: list[StepReport] = []
            self._steps_before = 0
            self._recent_classes: deque[int] = deque(maxlen=guarding.REMEMBERED_DECISIONS)
            self._adapt_seconds = self._predict_seconds = 0.0
            self._stop_reason: str | None = None
            self._pace = None if self.pacing is None else Pace(self.pacing, self.task)
            self._probe = Probe(self.model, self.method, self.task)
            self._probe.begin(self.probe, self._state)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc_info: object) -> None:
        stack = self._open()
        report = self.report()
        if self.restore:
            self._source.restore()
        self._stack = None
        stack.close()
        if self.on_report is not None:
            self.on_report(report)

    @property
    def selection(self) -> Selection:
        """What may move."""
        self._open()
        return self._selection

    @property
    def state(self) -> Any:
        """The method's state; immutable."""
        self._open()
        return self._state

    @property
    def optimizer(self) -> torch.optim.Optimizer | None:
        """The method's optimizer, if it has one."""
        self._open()
        return self._optimizer

    @property
    def source_comparison(self) -> SourceComparison:
        """How the adapted model stands against the unadapted one."""
        self._open()
        return self._comparison

    @property
    def changed_param_count(self) -> int:
        """How many selected elements differ from the source now."""
        self._open()
        return self._source.changed_count()

    def adapt(self, batch: Any, *, steps: int = 1) -> StepReport:
        """Learn from ``batch``, ``steps`` times; return what became of the last step."""
        self._open()
        try:
            paused = self._is_paused(batch)
            return [self._step(batch, paused=paused)[0] for _ in range(steps)][-1]
        finally:
            self._comparison.release()

    def adapt_and_predict(self, batch: Any, *, steps: int = 1) -> tuple[Any, StepReport]:
        """Learn from ``batch`` and return the outputs of the same pass: the authors' online convention.

        The outputs are from before the last update (CoTTA's: the teacher's). Where a guard fired, or no step was
        made, they are computed with the weights that stand, or are the unadapted model's.
        """
        self._open()
        try:
            paused = self._is_paused(batch)
            report, step = [self._step(batch, paused=paused) for _ in range(steps)][-1]
            if step is None or report.verdict in ("rolled_back", "reset"):
                return self.predict(batch), report
        finally:
            self._comparison.release()
        return step.outputs, report

    @torch.no_grad()
    def predict(self, inputs: Any) -> Any:
        """Return the outputs on ``inputs`` as the method predicts; nothing moves.

        They are the unadapted model's where a guard went back to it, or where the method's are not finite.
        """
        self._open()
        if self._comparison.falling_back:
            return self._comparison.outputs(inputs)
        started = time.perf_counter()
        outputs = self.method.predict(self.model, layout.for_prediction(inputs), self._state, task=self.task)
        self._predict_seconds += time.perf_counter() - started
        if self.guards and not all_finite(outputs):
            # One poisoned image spoils the statistics of its batch: without them the others can still be predicted.
            return self._comparison.outputs(inputs)
        return outputs

    def predict_as_source(self, inputs: Any) -> Any:
        """Return what the unadapted model says about ``inputs``; nothing moves."""
        self._open()
        return self._comparison.outputs(inputs)

    def reset(self) -> None:
        """Go back to the source: weights, buffers, moments, state and random numbers."""
        self._open()
        self._to_source()
        self._before.capture()
        self._state_before = self._state
        self._rng = generator(self.seed, device_of(self.model))
        self._comparison.reset()
        self._recent_classes.clear()
        self._pace = None if self.pacing is None else Pace(self.pacing, self.task)

    def rollback(self) -> None:
        """Go back to before the last step: weights, buffers, moments and state. After a reset, stay there."""
        self._open()
        self._before.restore()
        self._state = self._state_before
        self._probe.again(self._state)

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Inside the block, calling the model itself predicts as :meth:`predict` does.

        For code that insists on calling the model. A method that changes what the model is given, or returns, offers a
        context manager ``installed(model, state, task=...)``.
        """
        weights = self.prediction_weights()
        saved = {name: self._selection.parameters[name].detach().clone() for name in weights}
        around = norm.source_statistics() if self._comparison.falling_back else nullcontext()
        installing = getattr(self.method, "installed", None)
        if installing is not None and not self._comparison.falling_back:
            around = installing(self.model, self._state, task=self.task)
        try:
            self._selection.write(weights)
            with around:
                yield
        finally:
            self._selection.write(saved)

    def set_probe(self, probe: Any) -> None:
        """Measure entropy, and agreement with the present weights, on ``probe`` from here on."""
        self._open()
        self.probe = probe
        self._probe.begin(probe, self._state)

    def save_state(self, path: Path) -> None:
        """Write weights, state, moments, random numbers and report to a safetensors file, or raise CheckpointError."""
        SavedState.of(
            self.method,
            self.report(),
            source=self._comparison.source_tensors(),
            weights=self._selection.parameters,
            method_state=self._state,
            optimizer=self._optimizer,
            rng=self._rng,
            memory=(self._comparison.state_dict(), None if self._pace is None else self._pace.state_dict()),
        ).write(path)

    def load_state(self, path: Path) -> None:
        """Go on from a saved state, as if this session had made its steps; settings are this session's own.

        Raises:
            CheckpointError: the file is no state, or of another model, method or selection.
        """
        self._open()
        saved = read_fitting(
            path, self.method, self._optimizer, self._selection, source=self._comparison.source_tensors()
        )
        saved = saved.on(device_of(self.model))
        self._selection.write(saved.weights)
        self._state = saved.method_state
        saved.put_back(self._optimizer, self._rng)
        watched, paced = saved.memory
        self._comparison.load_state_dict(watched)
        if self._pace is not None and paced is not None:
            self._pace.load_state_dict(paced)
        self._before.capture()
        self._state_before = self._state
        self._steps_before = saved.report.steps_before + len(saved.report.steps)
        self._probe.again(self._state)

    def report(self) -> SessionReport:
        """Return what was done so far."""
        self._open()
        steps = tuple(self._steps)
        return SessionReport(
            method=self.method.name,
            settings=settings_of(self.method),
            seed=self.seed,
            steps=steps,
            steps_before=self._steps_before,
            updated_param_count=sum(p.numel() for p in self._selection.parameters.values()),
            changed_param_count=self._source.changed_count(),
            relative_drift=self._relative(self._source.distance()),
            held_bytes=self._held_bytes(),
            stopped_early=self._stop_reason is not None,
            stop_reason=self._stop_reason,
            notes=(*self._selection.notes, *self.method.notes(self.model, self.task)),
            adapt_seconds=self._adapt_seconds,
            predict_seconds=self._predict_seconds,
            probe_seconds=self._probe.seconds,
            source_seconds=self._comparison.seconds,
            counts=verdict_counts(steps),
        )

    def _is_paused(self, batch: Any) -> bool:
        # While the unadapted model predicts, adapting goes on: otherwise nothing would ever be compared again.
        return self._pace is not None and not self._pace.is_due(batch) and not self._comparison.falling_back

    def _step(self, batch: Any, *, paused: bool) -> tuple[StepReport, Step | None]:
        started = time.perf_counter()
        index = self._steps_before + len(self._steps)
        held_bytes = self._held_bytes() if self.budget.max_bytes is not None else 0
        refused = self.budget.exhausted(seconds=self._adapt_seconds, steps=len(self._steps), held_bytes=held_bytes)
        if refused is not None:
            # Not appended: a step that was refused is no step, and a stopped session may be asked many times.
            self._stop_reason = refused.reason
            report = StepReport(
                index=index,
                verdict="refused",
                code=refused.code,
                reason=refused.reason,
                samples=sample_count(batch),
            )
            return report, None
        self._before.capture()
        self._state_before = self._state
        method_started = time.perf_counter()
        try:
            step = self._predicted(batch) if paused else self._adapted(batch)
            self._selection.drop_gradients()
            method_seconds = time.perf_counter() - method_started
            update_norm = self._before.distance()
            apart_before = self._probe.seconds + self._comparison.seconds
            evidence = self._evidence(step, batch, update_norm)
            verdict, code, reason = self._judge(step, evidence)
        except BaseException:
            # Of the method, of a guard, of the unadapted model that a guard asked: no step is made by half.
            self._before.restore()
            self._state = self._state_before
            self._selection.drop_gradients()
            raise
        if paused and verdict == "kept":
            verdict, code, reason = "paused", "stream_unchanged", "the stream is as before"
        seconds = time.perf_counter() - started - (self._probe.seconds + self._comparison.seconds - apart_before)
        self._adapt_seconds += seconds
        report = evidence.report(
            index=index,
            verdict=verdict,
            code=code,
            reason=reason,
            update_norm=update_norm,
            seconds=seconds,
            method_seconds=method_seconds,
        )
        self._steps.append(report)
        if verdict in ("rolled_back", "reset"):
            # A stream on which the unadapted model predicts is one piece of news, not one for each of its batches.
            level = logging.DEBUG if self._comparison.consecutive_failures > 1 else logging.WARNING
            logger.log(level, "step %d %s: %s", index, verdict.replace("_", " "), reason)
        return report, step

    def _adapted(self, batch: Any) -> Step:
        with torch.enable_grad(), nullcontext() if self._pace is None else self._pace.scaled(self._optimizer):
            return self.method.step(
                self.model,
                layout.for_learning(batch),
                self._state,
                task=self.task,
                selection=self._selection,
                optimizer=self._optimizer,
                rng=self._rng,
            )

    @torch.no_grad()
    def _predicted(self, batch: Any) -> Step:
        outputs = self.method.predict(self.model, layout.for_prediction(batch), self._state, task=self.task)
        return Step(self._state, outputs, None, sample_count(batch))

    def _judge(self, step: Step, evidence: guarding.Evidence) -> tuple[Verdict, str | None, str | None]:
        rejection = next((found for guard in self.guards if (found := guard(evidence)) is not None), None)
        if evidence.signals_asked is not None:
            to_source = rejection is not None and rejection.remedy == "source"
            self._comparison.record(evidence.signals_asked, falling_back=to_source)
        if rejection is not None:
            if rejection.remedy == "reset" or self._comparison.consecutive_failures > _FAILURES_BEFORE_RESET:
                self._to_source()
                self._recent_classes.clear()
                self._comparison.clear_history()
                return "reset", rejection.code, rejection.reason
            self._before.restore()
            return "rolled_back", rejection.code, rejection.reason
        if step.used == 0:
            # Even a skipped batch went through the network: put back whatever its forward pass touched.
            self._before.restore()
            return "skipped", "nothing_to_learn", "nothing in this batch was worth learning from"
        if step.reset:
            self._to_source()
            return "recovered", "method_asked", f"{self.method.name} asked to start again from the source weights"
        self._state = step.state
        if evidence.probe_loss_after is not None:
            self._probe.loss = evidence.probe_loss_after
        self._recent_classes.extend(evidence.classes)
        return "kept", None, None

    def _evidence(self, step: Step, batch: Any, update_norm: float) -> guarding.Evidence:
        probe_after, agreement = self._probe.after(step.state)
        return guarding.Evidence(
            step=step,
            task=self.task,
            relative_update=self._relative(update_norm),
            relative_drift=self._relative(self._source.distance()),
            probe_loss_before=self._probe.loss,
            probe_loss_after=probe_after,
            probe_agreement=agreement,
            recent_classes=tuple(self._recent_classes),
            samples=sample_count(batch),
            batch=batch,
            source=self._comparison,
            certainty_allowance=getattr(self.method, "certainty_allowance", 1.0),
        )

    def _to_source(self) -> None:
        self._source.restore()
        self._state = self.method.start(self.model, self._selection)
        self._probe.again(self._state)

    def prediction_weights(self) -> Mapping[str, torch.Tensor]:
        """Return the weights that predict where they are others than the model's: a teacher's, or the source's."""
        self._open()
        if self._comparison.falling_back:
            return self._source_weights
        weights_of = getattr(self.method, "prediction_weights", None)
        return {} if weights_of is None else weights_of(self._state)

    def _relative(self, distance: float) -> float:
        return distance / self._source_norm if self._source_norm > 0 else distance

    def _held_bytes(self) -> int:
        moments = [] if self._optimizer is None else list(self._optimizer.state.values())
        return self._source.nbytes + self._before.nbytes + nbytes(moments) + nbytes(self._state)

    def _open(self) -> ExitStack:
        if self._stack is None:
            raise SessionError("this session is not open: use it inside 'with Session(...) as session:'")
        return self._stack
