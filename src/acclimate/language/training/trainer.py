"""Low-rank weights trained on worked examples while somebody waits.

The recipe follows Akyuerek et al. 2024 (arXiv 2411.07279): the examples stay in the prompt, and every answer after the
first is learned in one causal pass over a shuffled order of them. What makes it quick is ours: logits only where an
answer is predicted, one pass for all answers, layers below the first adapted one computed once, and several adapters
side by side in one pass where several are wanted.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from acclimate.core import lora, lora_start
from acclimate.core.budget import Budget
from acclimate.core.packed_adapters import PackedAdapters
from acclimate.errors import CheckpointError, DataError, TTTNotSupportedError
from acclimate.language.examples import Example
from acclimate.language.models.decoder import Decoder, Recording
from acclimate.language.models.language_model import LanguageModel
from acclimate.language.training.memory import PeakMemory
from acclimate.language.training.recipes import Recipe
from acclimate.language.training.step_schedule import StepSchedule, Targets

StopReason = Literal["finished", "early_stop", "time budget", "memory budget", "step budget", "non_finite", "cancelled"]
Cancelled = Callable[[], bool]
FINGERPRINT_FILE = "model_fingerprint.txt"


@dataclass(frozen=True, slots=True)
class Adapter:
    """Trained low-rank weights, apart from any model.

    Attributes:
        weights: by layer name, ``lora_A`` and ``lora_B`` as :class:`acclimate.core.lora.LowRank` has them.
        rank, alpha, copies: their shape and scale.
        fingerprint: of the model they belong to.
        losses: per step, the mean loss per answer token in nats; over copies, their mean.
        stop: why training ended.
        seconds, cpu_seconds, peak_bytes: what it took; bytes are those beyond the loaded model.
        fan_in_fan_out: whether the layers keep their weights as ``(in, out)``, as GPT-2's do; PEFT wants to know.
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
        """Add the weights to ``network`` inside the block; its own tensors are never touched."""
        with lora.attached(network, list(self.weights), rank=self.rank, alpha=self.alpha, copies=self.copies) as pairs:
            with torch.no_grad():
                for name, (down, up) in self.weights.items():
                    pairs[name].lora_A.copy_(down)
                    pairs[name].lora_B.copy_(up)
            yield

    @classmethod
    def load(cls, folder: Path, model: LanguageModel) -> Adapter:
        """Read an adapter that :meth:`save` or peft wrote.

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
        found = first.fan_in_fan_out
        return cls(
            weights, rank, first.scale * rank, 1, model.fingerprint, (), "finished", 0.0, 0.0, 0, fan_in_fan_out=found
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
        (folder / FINGERPRINT_FILE).write_text(self.fingerprint + "\n")


def cosine(step: int, steps: int, *, warm_up: float = 0.1) -> float:
    """Return the factor on the learning rate at ``step``: a linear rise, then half a cosine down to zero."""
    return min(1.0, (step + 1) / max(1.0, steps * warm_up)) * 0.5 * (1 + math.cos(math.pi * step / steps))


def clip_each(grads: Tensor, max_norm: float) -> None:
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
) -> Adapter:
    """Return low-rank weights trained on ``sets``, one copy for each set, all in the same passes.

    Args:
        model: is not changed.
        sets: of examples, none empty.
        recipe: with ``rank`` and ``steps`` decided.
        budget: seconds, steps and bytes that may be spent; looked at after every step.
        cancelled: asked before every step; training ends when it says so.
        start: an adapter of the same shape to go on from.

    Raises:
        DataError: a set is empty, or its examples are longer than the model can read.
    """
    if not all(sets):
        raise DataError("there are no examples to train on: give 1 or more")
    budget = budget or Budget()
    began, cpu_began, memory = time.perf_counter(), time.process_time(), PeakMemory(model.device)
    decoder = model.decoder(recipe.share_adapted)
    rank, steps = recipe.rank_or_default, recipe.steps_cap if recipe.steps is None else recipe.steps
    copies = len(sets)
    losses: list[float] = []
    stop: StopReason = "finished"
    if not decoder.targets:
        raise TTTNotSupportedError(f"{model.name!r} has no linear layers that low-rank weights could be added to")
    with (
        model.lock,
        lora.attached(
            model.network, decoder.targets, rank=rank, alpha=recipe.alpha, seed=recipe.seed, copies=copies
        ) as pairs,
        decoder.quick_attention,
        torch.enable_grad(),
    ):
        passes = StepSchedule(model, decoder, sets, recipe)
        if start is not None:
            _copy_weights(start, pairs)
        block = PackedAdapters(pairs, model.dtype)
        optimizer = torch.optim.AdamW(
            [block.learned], lr=recipe.learning_rate, betas=recipe.betas, weight_decay=recipe.weight_decay, fused=True
        )
        held = 5 * block.learned.numel() * block.learned.element_size()
        for step in range(steps):
            if cancelled is not None and cancelled():
                stop = "cancelled"
                break
            recording, targets = passes.at(step)
            spent = time.perf_counter() - began
            used = max(held + passes.held_bytes, memory.now())
            if (over := budget.exhausted(seconds=spent, steps=step, held_bytes=used)) is not None:
                stop = over.split(":", 1)[0]  # type: ignore[assignment]
                break
            optimizer.param_groups[0]["lr"] = recipe.learning_rate * cosine(step, steps)
            first = step == 0 and start is None and recipe.gradient_start
            with (
                lora_start.capture_gradients(model.network, pairs, seed=recipe.seed)
                if first
                else nullcontext() as starts
            ):
                loss = _loss(decoder, recording, targets, copies)
                (loss * copies).backward()
            if starts is not None:
                block.begin(starts)
            grads = block.collect()
            losses.append(float(loss.detach()))
            if not math.isfinite(losses[-1]):
                stop = "non_finite"
                break
            if recipe.gradient_clip_norm is not None:
                clip_each(grads, recipe.gradient_clip_norm)
            optimizer.step()
            block.publish()
            memory.now()
            if losses[-1] < recipe.early_stop_loss:
                stop = "early_stop"
                break
        weights = block.weights()
    if stop != "non_finite" and not all(bool(up.isfinite().all()) for _, up in weights.values()):
        stop = "non_finite"
    return Adapter(
        weights=weights,
        rank=rank,
        alpha=recipe.alpha if recipe.alpha is not None else rank,
        copies=copies,
        fingerprint=model.fingerprint,
        losses=tuple(losses),
        stop=stop,
        seconds=time.perf_counter() - began,
        cpu_seconds=time.process_time() - cpu_began,
        peak_bytes=memory.peak,
        fan_in_fan_out=any(pair.fan_in_fan_out for pair in pairs.values()),
    )


def _loss(decoder: Decoder, recording: Recording, targets: Targets, copies: int) -> Tensor:
    """Return the mean over copies of each one's mean cross-entropy, in nats per answer token."""
    scores = decoder.scores(decoder.hidden(recording)[targets.row, targets.column])
    counts = torch.bincount(targets.owner, minlength=copies).clamp(min=1)
    loss: Tensor = CrossEntropy.apply(scores, targets.wanted, 1 / (copies * counts[targets.owner]))  # type: ignore[no-untyped-call]
    return loss


class CrossEntropy(torch.autograd.Function):
    """The weighted sum of cross-entropies, in nats, whose gradient is made on the way, in the memory of the softmax.

    Vocabularies are large: every pass over ``(answer tokens, vocabulary)`` that is saved shows in a step.
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
