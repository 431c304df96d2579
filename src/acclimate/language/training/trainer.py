"""Training of low-rank weights on the examples of a request, or of several requests in the same passes.

The recipe follows Akyuerek et al. 2024 (arXiv 2411.07279): the examples stay in the prompt, and every answer after the
first is learned in one causal forward pass over a shuffled order of them. Here logits are computed only where an answer
is predicted, one pass serves all answers, the layers below the first adapted one run once for each order, and several
adapters train side by side in one pass.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Final

import torch
from torch import Tensor

from acclimate.core import lora, lora_start
from acclimate.core.budget import Budget, StopCode
from acclimate.core.packed_adapters import PackedAdapters
from acclimate.errors import ConfigError, DataError, TTTNotSupportedError
from acclimate.language.examples import Example
from acclimate.language.models.deadlines import Deadline, OutOfTimeError
from acclimate.language.models.language_model import LanguageModel
from acclimate.language.prompts import Layout
from acclimate.language.training.adapter import Adapter, StopReason
from acclimate.language.training.cross_entropy import CrossEntropy
from acclimate.language.training.memory import Activations, OverLimitError, RequestMemory, training_bytes
from acclimate.language.training.recipes import Recipe
from acclimate.language.training.step_schedule import StepSchedule, Targets

_BUDGET_STOPS: Final[Mapping[StopCode, StopReason]] = {
    "max_steps": StopReason.STEP_BUDGET,
    "max_seconds": StopReason.TIME_BUDGET,
    "max_bytes": StopReason.MEMORY_BUDGET,
}
Cancelled = Callable[[], bool]
OnStep = Callable[[int, int, float], None]
#: What training holds between steps, as it is entered in the request's memory.
_WEIGHTS: Final = "low-rank weights in training"
_LOWER_LAYERS: Final = "activations below the adapted layers"


def cosine(step: int, steps: int, *, warm_up: float = 0.1) -> float:
    """Return the factor on the learning rate at ``step``: a linear rise, then half a cosine down to zero."""
    return min(1.0, (step + 1) / max(1.0, steps * warm_up)) * 0.5 * (1 + math.cos(math.pi * step / steps))


def clip_copies(grads: Tensor, max_norm: float) -> None:
    """Scale each row of ``grads``, ``(copies, n)``, down to ``max_norm``; with one row this is the usual clipping."""
    grads.mul_((max_norm / (grads.norm(dim=1, keepdim=True) + 1e-6)).clamp(max=1.0))


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingJob:
    """What one request wants trained.

    Attributes:
        sets: of examples, none empty; each gets a copy of the low-rank weights of its own.
        budget: seconds, steps and bytes that may be spent; seconds and steps are checked before every step, bytes also
            inside the first forward pass, before its activations exceed them.
        cancelled: called before every step; training ends when it returns true.
        start: an adapter of the same shape to go on from.
        memory: what the request holds; ``budget.max_bytes`` limits all of it.
        on_step: called after every step, with the number of steps made, how many there will be at most, and the loss.
        layout: that the examples are written in; None for the model's format.
    """

    sets: Sequence[Sequence[Example]]
    budget: Budget = field(default_factory=Budget)
    cancelled: Cancelled | None = None
    start: Adapter | None = None
    memory: RequestMemory = field(default_factory=RequestMemory)
    on_step: OnStep | None = None
    layout: Layout | None = None

    def fits(self, other: TrainingJob) -> bool:
        """Whether ``other`` may be trained in the same passes: not where one starts from an adapter, and one anew.

        Nor where one has a memory limit, to which the activations of a shared pass cannot be held.
        """
        limited = any(job.budget.max_bytes is not None for job in (self, other))
        return not limited and (self.start is None) == (other.start is None)


@dataclass(slots=True)
class _Progress:
    """How far one job is.

    Attributes:
        copies: of the low-rank weights, which are the job's.
        losses: one for each step.
        seconds, cpu_seconds, tokens: its share of those of the passes.
        stop: why it ended; None while it trains.
        weights: at its end.
        told: whether the caller knows that it ended.
    """

    copies: range
    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    tokens: float = 0.0
    stop: StopReason | None = None
    weights: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    told: bool = False


class Training:
    """Jobs with one recipe, trained side by side: every step is one forward and one backward pass for all of them.

    No job changes another's result, but for the rounding of products of other sizes: rows do not see each other, each
    copy of the weights has its own loss, clipping and optimizer state, and a job that has ended is not stepped further.
    The caller holds the model's lock here and in the methods.

    Args:
        model: is not changed.
        jobs: one or more; several only where each ``fits`` the others.
        recipe: of all of them, with ``rank`` and ``steps`` decided.

    Raises:
        DataError: a set is empty, its examples are longer than the model can read, or ``start`` has another shape.
        ConfigError: the recipe asks for learned initial weights, and the model has none.
        TTTNotSupportedError: the model has no layers that low-rank weights could be added to.
    """

    def __init__(self, model: LanguageModel, jobs: Sequence[TrainingJob], recipe: Recipe) -> None:
        if not all(examples for job in jobs for examples in job.sets):
            raise DataError("there are no examples to train on: give 1 or more")
        self._model, self._jobs, self._recipe = model, jobs, recipe
        self._steps_made = 0
        self._rank = recipe.rank_or_default
        self._steps = recipe.steps_or_most
        first = 0
        self._progress: list[_Progress] = []
        for job in jobs:
            self._progress.append(_Progress(range(first, first + len(job.sets))))
            first += len(job.sets)
        self._copies = first
        with self._charged():
            self._decoder = model.decoder(recipe.share_adapted)
            if not self._decoder.targets:
                raise TTTNotSupportedError(
                    f"{model.name!r} has no linear layers that low-rank weights could be added to"
                )
            self._pairs = lora.created(
                model.network,
                self._decoder.targets,
                rank=self._rank,
                alpha=recipe.alpha,
                seed=recipe.seed,
                copies=self._copies,
            )
            self._schedule = StepSchedule(
                model,
                self._decoder,
                [one for job in jobs for one in job.sets],
                recipe,
                [job.layout for job in jobs for _ in job.sets],
            )
            self._starts_anew = all(job.start is None for job in jobs)
            if self._starts_anew and recipe.initial_weights == "learned":
                _begin_with_learned(model, self._pairs)
            for job, progress in zip(jobs, self._progress, strict=True):
                if job.start is not None:
                    _copy_weights(job.start, self._pairs, progress.copies, of=self._copies)
            self._block = PackedAdapters(self._pairs, model.dtype)
            self._optimizer = torch.optim.AdamW(
                [self._block.learned],
                lr=recipe.learning_rate,
                betas=recipe.betas,
                weight_decay=recipe.weight_decay,
                fused=True,
            )
        # Of one pass; with several jobs each is charged its share afterwards.
        self._memory = jobs[0].memory if len(jobs) == 1 else RequestMemory()
        limit = jobs[0].budget.max_bytes if len(jobs) == 1 else None
        self._activations = Activations(self._memory, limit)
        self._hold(_WEIGHTS, training_bytes(self._block.learned.numel(), model.dtype))

    @property
    def finished(self) -> bool:
        """Whether every job has ended."""
        return all(progress.stop is not None for progress in self._progress)

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Let the model compute with the weights in training inside the block, in which :meth:`step` is called."""
        with lora.in_use(self._model.network, self._pairs), self._decoder.quick_attention, torch.enable_grad():
            yield

    def step(self) -> None:
        """Make one step for all jobs that have not ended."""
        step = self._steps_made
        for job, progress in self._going():
            if job.cancelled is not None and job.cancelled():
                self._end(progress, StopReason.CANCELLED)
        if self.finished:
            return
        with self._charged():
            try:
                with self._deadline(step).inside(self._model.network):
                    recording, targets = self._schedule.at(step)
            except OutOfTimeError:
                self._end(self._progress[0], StopReason.TIME_BUDGET)
                return
            self._hold(_LOWER_LAYERS, self._schedule.held_bytes)
        for job, progress in self._going():
            over = job.budget.exhausted(seconds=progress.seconds, steps=step, held_bytes=job.memory.held_bytes)
            if over is not None:
                self._end(progress, _BUDGET_STOPS[over.code])
        if self.finished:
            return
        with self._charged():
            ends = self._deadline(step)
            self._optimizer.param_groups[0]["lr"] = self._recipe.learning_rate * self._factor(step)
            first = step == 0 and self._starts_anew and self._recipe.initial_weights == "first_gradient"
            with (
                lora_start.capture_gradients(self._model.network, self._pairs, seed=self._recipe.seed)
                if first
                else nullcontext() as starts
            ):
                try:
                    shape = (*recording.tokens.shape, len(targets.wanted))
                    with ends.inside(self._model.network), self._activations.measured(self._model.network, shape):
                        losses = self._losses(self._decoder.hidden(recording), targets)
                    self._note(losses.tolist(), targets)
                    if not self.finished:
                        losses.sum().backward()
                except OverLimitError:
                    self._end(self._progress[0], StopReason.MEMORY_BUDGET)
                    return
                except OutOfTimeError:
                    self._end(self._progress[0], StopReason.TIME_BUDGET)
                    return
            if self.finished:
                return
            if starts is not None:
                self._block.begin(starts)
            grads = self._block.collect()
            if self._recipe.gradient_clip_norm is not None:
                clip_copies(grads, self._recipe.gradient_clip_norm)
            self._optimizer.step()
            self._block.publish()
        self._steps_made += 1
        if len(self._jobs) > 1:
            self._share_memory(Activations.PART, self._memory.part_bytes(Activations.PART))
        for job, progress in self._going():
            if job.on_step is not None:
                job.on_step(self._steps_made, self._steps, progress.losses[-1])
            if self._steps_made == self._steps:
                self._end(progress, StopReason.FINISHED)

    def _note(self, values: Sequence[float], targets: Targets) -> None:
        """Note the loss of each copy; end jobs whose loss is low enough, without a step, or not finite."""
        for job, progress in self._going():
            mine = [values[copy] for copy in progress.copies]
            progress.losses.append(sum(mine) / len(mine))
            progress.tokens += targets.tokens.numel() * len(mine) / self._copies
            if not math.isfinite(progress.losses[-1]):
                self._end(progress, StopReason.NON_FINITE)
            elif progress.losses[-1] < self._recipe.early_stop_loss:
                self._end(progress, StopReason.EARLY_STOP)
                if job.on_step is not None:
                    job.on_step(self._steps_made + 1, self._steps, progress.losses[-1])

    def ended(self) -> list[tuple[TrainingJob, Adapter]]:
        """Return the jobs that ended since this was last asked, each with what was trained."""
        found = []
        for job, progress in zip(self._jobs, self._progress, strict=True):
            if progress.stop is not None and not progress.told:
                progress.told = True
                found.append((job, self._adapter(job, progress)))
        return found

    def _adapter(self, job: TrainingJob, progress: _Progress) -> Adapter:
        stop = progress.stop or StopReason.FINISHED
        # One transfer from a GPU for all layers.
        finite = [up.isfinite().all() for _, up in progress.weights.values()]
        if finite and not bool(torch.stack(finite).all()):
            stop = StopReason.NON_FINITE
        return Adapter(
            weights=progress.weights,
            rank=self._rank,
            alpha=self._recipe.alpha if self._recipe.alpha is not None else self._rank,
            copies=len(job.sets),
            fingerprint=self._model.fingerprint,
            losses=tuple(progress.losses),
            stop=stop,
            seconds=progress.seconds,
            cpu_seconds=progress.cpu_seconds,
            peak_bytes=job.memory.peak_bytes,
            trained_tokens=round(progress.tokens),
            fan_in_fan_out=any(pair.fan_in_fan_out for pair in self._pairs.values()),
        )

    def let_go(self) -> None:
        """Enter in the memory of the requests that nothing is held any more."""
        for part in (_WEIGHTS, _LOWER_LAYERS, Activations.PART):
            self._hold(part, 0)

    def _factor(self, step: int) -> float:
        """Return the factor on the learning rate at ``step``."""
        return cosine(step, self._steps) if self._recipe.schedule == "cosine" else 1.0

    def _deadline(self, step: int) -> Deadline:
        """Return when the step has to end: none where several jobs share it, which look at theirs between steps."""
        limit = self._jobs[0].budget.max_seconds
        if len(self._jobs) > 1 or limit is None or step < 0:
            return Deadline()
        return Deadline(limit - self._progress[0].seconds)

    def _going(self) -> list[tuple[TrainingJob, _Progress]]:
        pairs = zip(self._jobs, self._progress, strict=True)
        return [(job, progress) for job, progress in pairs if progress.stop is None]

    def _losses(self, hidden: Tensor, targets: Targets) -> Tensor:
        """Return each copy's mean cross-entropy, ``(copies,)``, in nats per answer token."""
        scores = self._decoder.scores(hidden[targets.row, targets.column])
        counts = torch.bincount(targets.owner, minlength=self._copies).clamp(min=1)
        parts: Tensor = CrossEntropy.apply(scores, targets.wanted, 1 / counts[targets.owner])  # type: ignore[no-untyped-call]
        return torch.zeros(self._copies, device=parts.device).index_add(0, targets.owner, parts)

    def _end(self, progress: _Progress, stop: StopReason) -> None:
        """Note why a job ends, and its weights; those of other jobs go on changing."""
        progress.stop = stop
        at = slice(progress.copies.start, progress.copies.stop)
        for name, pair in self._block.weights().items():
            if self._copies == len(progress.copies):
                progress.weights[name] = pair
            elif len(progress.copies) == 1:
                progress.weights[name] = (pair[0][at.start].clone(), pair[1][at.start].clone())
            else:
                progress.weights[name] = (pair[0][at].clone(), pair[1][at].clone())

    @contextmanager
    def _charged(self) -> Iterator[None]:
        """Charge every job that has not ended its share of the time that the block takes."""
        began, cpu_began = time.perf_counter(), time.thread_time()
        charged = [progress for progress in self._progress if progress.stop is None]
        try:
            yield
        finally:
            copies = sum(len(progress.copies) for progress in charged)
            for progress in charged:
                share = len(progress.copies) / copies
                progress.seconds += share * (time.perf_counter() - began)
                progress.cpu_seconds += share * (time.thread_time() - cpu_began)

    def _hold(self, part: str, held_bytes: int) -> None:
        """Enter what the passes hold, in the memory of the one job or shared between several."""
        self._memory.set(part, held_bytes)
        if len(self._jobs) > 1:
            self._share_memory(part, held_bytes)

    def _share_memory(self, part: str, held_bytes: int) -> None:
        for job in self._jobs:
            job.memory.set(part, held_bytes * len(job.sets) // self._copies)


def train(
    model: LanguageModel,
    sets: Sequence[Sequence[Example]],
    recipe: Recipe,
    *,
    budget: Budget | None = None,
    cancelled: Cancelled | None = None,
    start: Adapter | None = None,
    memory: RequestMemory | None = None,
    layout: Layout | None = None,
) -> Adapter:
    """Return low-rank weights trained on ``sets``, one copy for each set, all in the same forward passes.

    Waiting for the model's lock costs no budget. The arguments after ``recipe`` are those of :class:`TrainingJob`.

    Raises:
        DataError: a set is empty, its examples are longer than the model can read, or ``start`` has another shape.
        TTTNotSupportedError: the model has no layers that low-rank weights could be added to.
    """
    job = TrainingJob(
        sets=sets,
        budget=budget or Budget(),
        cancelled=cancelled,
        start=start,
        memory=memory or RequestMemory(),
        layout=layout,
    )
    return trained(model, job, recipe)


def trained(model: LanguageModel, job: TrainingJob, recipe: Recipe) -> Adapter:
    """Return the adapter of ``job``, trained by itself; see :func:`train`."""
    with model.lock:
        training = Training(model, [job], recipe)
        try:
            with training.attached():
                while not training.finished:
                    training.step()
            ((_, adapter),) = training.ended()
            return adapter
        finally:
            training.let_go()


@torch.no_grad()
def _begin_with_learned(model: LanguageModel, pairs: Mapping[str, lora.LowRank]) -> None:
    """Set ``pairs`` to the initial weights that were learned for ``model``.

    Raises:
        ConfigError: there are none.
    """
    if model.learned_start is None:
        raise ConfigError(
            f"{model.name!r} has no learned initial weights; train with initial_weights='random' or 'first_gradient'"
        )
    for name, pair in pairs.items():
        found = model.learned_start.of_rank(name, pair.lora_A.shape[-2])
        if found is not None:
            down, up = found
            # A higher rank leaves the further directions random, with which nothing is added yet.
            pair.lora_A[..., : len(down), :] = down.to(pair.lora_A.device)
            pair.lora_B[..., : up.shape[1]] = up.to(pair.lora_B.device) / pair.scale


def _copy_weights(start: Adapter, pairs: Mapping[str, lora.LowRank], copies: range, *, of: int) -> None:
    """Begin ``copies`` of the ``of`` copies of the low-rank weights with those of ``start``."""
    if set(start.weights) != set(pairs):
        raise DataError("the adapter to start from belongs to other layers; train without it")
    with torch.no_grad():
        for name, given in start.weights.items():
            for own, wanted in zip((pairs[name].lora_A, pairs[name].lora_B), given, strict=True):
                mine = own if of == 1 else own[copies.start : copies.stop]
                if wanted.shape != mine.shape and (start.copies != 1 or wanted.shape != mine.shape[1:]):
                    raise DataError(f"the adapter to start from has rank {start.rank}; train with the same rank")
                mine.copy_(wanted)
