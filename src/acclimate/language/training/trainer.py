"""Training of low-rank weights on the examples of a request.

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
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from acclimate.core import lora, lora_start
from acclimate.core.budget import Budget, StopCode
from acclimate.core.packed_adapters import PackedAdapters
from acclimate.errors import CheckpointError, DataError, TTTNotSupportedError
from acclimate.language.examples import Example
from acclimate.language.models.decoder import Decoder, Recording
from acclimate.language.models.language_model import LanguageModel
from acclimate.language.models.locks import lock_of
from acclimate.language.training.memory import Activations, OverLimitError, RequestMemory, training_bytes
from acclimate.language.training.recipes import Recipe
from acclimate.language.training.step_schedule import StepSchedule, Targets
from acclimate.output_files import write_output


class StopReason(StrEnum):
    """Why training ended."""

    FINISHED = "finished"
    EARLY_STOP = "early_stop"
    STEP_BUDGET = "step_budget"
    TIME_BUDGET = "time_budget"
    MEMORY_BUDGET = "memory_budget"
    NON_FINITE = "non_finite"
    CANCELLED = "cancelled"


_BUDGET_STOPS: Final[Mapping[StopCode, StopReason]] = {
    "max_steps": StopReason.STEP_BUDGET,
    "max_seconds": StopReason.TIME_BUDGET,
    "max_bytes": StopReason.MEMORY_BUDGET,
}
Cancelled = Callable[[], bool]
FINGERPRINT_FILE: Final = "model_fingerprint.txt"
#: What training holds between steps, as it is entered in the request's memory.
_PARTS: Final = ("low-rank weights in training", "activations below the adapted layers")


@dataclass(frozen=True, slots=True)
class Adapter:
    """Trained low-rank weights, apart from any model.

    Attributes:
        weights: by layer name, ``lora_A`` and ``lora_B`` as :class:`acclimate.core.lora.LowRank` has them.
        rank, alpha, copies: their shape and scale.
        fingerprint: of the model they belong to.
        losses: per step, the mean loss per answer token in nats, averaged over copies.
        stop: why training ended.
        seconds: wall-clock time, without waiting for the model.
        cpu_seconds: of the thread that trained; those of torch's own worker threads are not in it.
        peak_bytes: the most that the request held until then; see
            :class:`acclimate.language.training.memory.RequestMemory`.
        fan_in_fan_out: whether the layers keep their weights as ``(in, out)``, as GPT-2's do; PEFT's format records it.
    """

    weights: Mapping[str, tuple[Tensor, Tensor]]
    rank: int
    alpha: float
    copies: int
    fingerprint: str
    losses: tuple[float, ...]
    stop: StopReason
    seconds: float
    cpu_seconds: float
    peak_bytes: int
    fan_in_fan_out: bool = False

    @property
    def held_bytes(self) -> int:
        """Bytes of the weights."""
        return sum(t.numel() * t.element_size() for pair in self.weights.values() for t in pair)

    @property
    def convergence(self) -> float:
        """How far the loss came down, from 0 (not at all) to 1 (to nothing)."""
        if len(self.losses) < 2 or not self.losses[0] > 0 or not math.isfinite(self.losses[-1]):
            return 0.0
        return min(1.0, max(0.0, 1 - self.losses[-1] / self.losses[0]))

    @contextmanager
    def installed(self, network: nn.Module) -> Iterator[None]:
        """Add the weights to ``network`` inside the block; its own tensors are not changed.

        The block holds the network's lock: another thread that needs the network waits for its end.
        """
        with (
            lock_of(network),
            lora.attached(network, list(self.weights), rank=self.rank, alpha=self.alpha, copies=self.copies) as pairs,
        ):
            with torch.no_grad():
                for name, (down, up) in self.weights.items():
                    pairs[name].lora_A.copy_(down)
                    pairs[name].lora_B.copy_(up)
            yield

    @classmethod
    def load(cls, folder: Path, model: LanguageModel) -> Adapter:
        """Read an adapter that :meth:`save` or peft wrote; waits until no request runs the model.

        Raises:
            CheckpointError: files are missing, or it belongs to another model.
        """
        owner = folder / FINGERPRINT_FILE
        if owner.exists() and owner.read_text().strip() != model.fingerprint:
            raise CheckpointError(f"{folder} was trained for another model than {model.name!r}; train it again")
        with model.lock, lora.loaded(model.network, folder) as pairs:
            weights = {n: (p.lora_A.detach().clone(), p.lora_B.detach().clone()) for n, p in pairs.items()}
            first = next(iter(pairs.values()))
        rank = first.lora_A.shape[0]
        return cls(
            weights=weights,
            rank=rank,
            alpha=first.scale * rank,
            copies=1,
            fingerprint=model.fingerprint,
            losses=(),
            stop=StopReason.FINISHED,
            seconds=0.0,
            cpu_seconds=0.0,
            peak_bytes=0,
            fan_in_fan_out=first.fan_in_fan_out,
        )

    def save(self, folder: Path, *, base_model: str | None = None) -> None:
        """Write the adapter in PEFT's format."""
        if self.copies != 1:
            raise DataError(f"{self.copies} adapters that were trained side by side cannot be saved as one")
        lora.write(
            folder,
            self.weights,
            rank=self.rank,
            alpha=self.alpha,
            fan_in_fan_out=self.fan_in_fan_out,
            base_model=base_model,
        )
        write_output(folder / FINGERPRINT_FILE, self.fingerprint + "\n")


def cosine(step: int, steps: int, *, warm_up: float = 0.1) -> float:
    """Return the factor on the learning rate at ``step``: a linear rise, then half a cosine down to zero."""
    return min(1.0, (step + 1) / max(1.0, steps * warm_up)) * 0.5 * (1 + math.cos(math.pi * step / steps))


def clip_copies(grads: Tensor, max_norm: float) -> None:
    """Scale each row of ``grads``, ``(copies, n)``, down to ``max_norm``; with one row this is the usual clipping."""
    grads.mul_((max_norm / (grads.norm(dim=1, keepdim=True) + 1e-6)).clamp(max=1.0))


def train(
    model: LanguageModel,
    sets: Sequence[Sequence[Example]],
    recipe: Recipe,
    *,
    budget: Budget | None = None,
    cancelled: Cancelled | None = None,
    start: Adapter | None = None,
    memory: RequestMemory | None = None,
) -> Adapter:
    """Return low-rank weights trained on ``sets``, one copy for each set, all in the same forward passes.

    Waiting for the model's lock costs no budget.

    Args:
        model: is not changed.
        sets: of examples, none empty.
        recipe: with ``rank`` and ``steps`` decided.
        budget: seconds, steps and bytes that may be spent; seconds and steps are checked before every step, bytes also
            inside the first forward pass, before its activations exceed them.
        cancelled: called before every step; training ends when it returns true.
        start: an adapter of the same shape to go on from.
        memory: what the request holds, if this is a part of it; ``budget.max_bytes`` limits all of it.

    Raises:
        DataError: a set is empty, its examples are longer than the model can read, or ``start`` has another shape.
        TTTNotSupportedError: the model has no layers that low-rank weights could be added to.
    """
    if not all(sets):
        raise DataError("there are no examples to train on: give 1 or more")
    budget, memory = budget or Budget(), memory or RequestMemory()
    with model.lock:
        try:
            return _train(model, sets, recipe, budget, cancelled, start, memory)
        finally:
            for part in (*_PARTS, Activations.PART):
                memory.set(part, 0)


def _train(
    model: LanguageModel,
    sets: Sequence[Sequence[Example]],
    recipe: Recipe,
    budget: Budget,
    cancelled: Cancelled | None,
    start: Adapter | None,
    memory: RequestMemory,
) -> Adapter:
    began, cpu_began = time.perf_counter(), time.thread_time()
    decoder = model.decoder(recipe.share_adapted)
    rank, steps = recipe.rank_or_default, recipe.steps_cap if recipe.steps is None else recipe.steps
    copies = len(sets)
    losses: list[float] = []
    stop = StopReason.FINISHED
    if not decoder.targets:
        raise TTTNotSupportedError(f"{model.name!r} has no linear layers that low-rank weights could be added to")
    with (
        lora.attached(
            model.network, decoder.targets, rank=rank, alpha=recipe.alpha, seed=recipe.seed, copies=copies
        ) as pairs,
        decoder.quick_attention,
        torch.enable_grad(),
    ):
        schedule = StepSchedule(model, decoder, sets, recipe)
        if start is not None:
            _copy_weights(start, pairs)
        block = PackedAdapters(pairs, model.dtype)
        optimizer = torch.optim.AdamW(
            [block.learned], lr=recipe.learning_rate, betas=recipe.betas, weight_decay=recipe.weight_decay, fused=True
        )
        activations = Activations(memory, budget.max_bytes)
        memory.set(_PARTS[0], training_bytes(block.learned.numel(), model.dtype))
        for step in range(steps):
            if cancelled is not None and cancelled():
                stop = StopReason.CANCELLED
                break
            recording, targets = schedule.at(step)
            memory.set(_PARTS[1], schedule.held_bytes)
            spent = time.perf_counter() - began
            over = budget.exhausted(seconds=spent, steps=step, held_bytes=memory.held_bytes)
            if over is not None:
                stop = _BUDGET_STOPS[over.code]
                break
            optimizer.param_groups[0]["lr"] = recipe.learning_rate * cosine(step, steps)
            first = step == 0 and start is None and recipe.gradient_start
            with (
                lora_start.capture_gradients(model.network, pairs, seed=recipe.seed)
                if first
                else nullcontext() as starts
            ):
                try:
                    with activations.measured(model.network, (*recording.tokens.shape, len(targets.wanted))):
                        loss = _loss(decoder, recording, targets, copies)
                except OverLimitError:
                    stop = StopReason.MEMORY_BUDGET
                    break
                (loss * copies).backward()
            if starts is not None:
                block.begin(starts)
            grads = block.collect()
            losses.append(float(loss.detach()))
            if not math.isfinite(losses[-1]):
                stop = StopReason.NON_FINITE
                break
            if recipe.gradient_clip_norm is not None:
                clip_copies(grads, recipe.gradient_clip_norm)
            optimizer.step()
            block.publish()
            if losses[-1] < recipe.early_stop_loss:
                stop = StopReason.EARLY_STOP
                break
        weights = block.weights()
    if stop is not StopReason.NON_FINITE and not all(bool(up.isfinite().all()) for _, up in weights.values()):
        stop = StopReason.NON_FINITE
    return Adapter(
        weights=weights,
        rank=rank,
        alpha=recipe.alpha if recipe.alpha is not None else rank,
        copies=copies,
        fingerprint=model.fingerprint,
        losses=tuple(losses),
        stop=stop,
        seconds=time.perf_counter() - began,
        cpu_seconds=time.thread_time() - cpu_began,
        peak_bytes=memory.peak_bytes,
        fan_in_fan_out=any(pair.fan_in_fan_out for pair in pairs.values()),
    )


def _loss(decoder: Decoder, recording: Recording, targets: Targets, copies: int) -> Tensor:
    """Return the mean over copies of each one's mean cross-entropy, in nats per answer token."""
    scores = decoder.scores(decoder.hidden(recording)[targets.row, targets.column])
    counts = torch.bincount(targets.owner, minlength=copies).clamp(min=1)
    loss: Tensor = CrossEntropy.apply(scores, targets.wanted, 1 / (copies * counts[targets.owner]))  # type: ignore[no-untyped-call]
    return loss


class CrossEntropy(torch.autograd.Function):
    """The weighted sum of cross-entropies, in nats; the forward pass computes the gradient in the softmax's memory.

    Vocabularies are large: every operation on ``(answer tokens, vocabulary)`` that is saved shows in a step's time.
    """

    @staticmethod
    def forward(ctx: Any, scores: Tensor, wanted: Tensor, weights: Tensor) -> Tensor:
        """Return the sum for ``scores``, ``(n, vocabulary)``, and ``wanted`` and ``weights``, ``(n,)``."""
        softmax = scores.to(torch.float32, copy=True)
        highest = softmax.max(1, keepdim=True).values
        at_wanted = softmax.gather(1, wanted[:, None])
        total = softmax.sub_(highest).exp_().sum(1, keepdim=True)
        loss = ((total.log() + highest - at_wanted)[:, 0] * weights).sum()
        softmax.mul_(weights[:, None] / total)
        softmax[torch.arange(len(wanted), device=wanted.device), wanted] -= weights
        ctx.save_for_backward(softmax.to(scores.dtype))
        return loss

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradient with respect to ``scores``."""
        (softmax,) = ctx.saved_tensors
        return softmax * grads[0], None, None


def _copy_weights(start: Adapter, pairs: Mapping[str, lora.LowRank]) -> None:
    if set(start.weights) != set(pairs):
        raise DataError("the adapter to start from belongs to other layers; train without it")
    with torch.no_grad():
        for name, (down, up) in start.weights.items():
            if down.shape != pairs[name].lora_A.shape:
                raise DataError(f"the adapter to start from has rank {start.rank}; train with the same rank")
            pairs[name].lora_A.copy_(down)
            pairs[name].lora_B.copy_(up)
