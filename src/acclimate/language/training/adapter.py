"""Trained low-rank weights as a value, apart from any model."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Final
from uuid import uuid4

import torch
from torch import Tensor, nn

from acclimate.core import lora
from acclimate.errors import CheckpointError, DataError
from acclimate.language.models.language_model import LanguageModel
from acclimate.language.models.locks import lock_of
from acclimate.output_files import write_output

FINGERPRINT_FILE: Final = "model_fingerprint.txt"


class StopReason(StrEnum):
    """Why training ended."""

    FINISHED = "finished"
    EARLY_STOP = "early_stop"
    STEP_BUDGET = "step_budget"
    TIME_BUDGET = "time_budget"
    MEMORY_BUDGET = "memory_budget"
    NON_FINITE = "non_finite"
    CANCELLED = "cancelled"


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
        trained_tokens: that went through the network, in all steps together.
        identity: unlike that of any other adapter, whatever that was trained on; results that were computed with one
            adapter are kept under it.
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
    trained_tokens: int = 0
    identity: str = field(default_factory=lambda: uuid4().hex, compare=False)
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
        return cls.of_weights(
            weights,
            rank=rank,
            alpha=first.scale * rank,
            fingerprint=model.fingerprint,
            fan_in_fan_out=first.fan_in_fan_out,
        )

    @classmethod
    def of_weights(
        cls,
        weights: Mapping[str, tuple[Tensor, Tensor]],
        *,
        rank: int,
        fingerprint: str,
        alpha: float | None = None,
        fan_in_fan_out: bool = False,
    ) -> Adapter:
        """Return an adapter with these weights, which were not trained here; see the class for the arguments."""
        return cls(
            weights=weights,
            rank=rank,
            alpha=rank if alpha is None else alpha,
            copies=1,
            fingerprint=fingerprint,
            losses=(),
            stop=StopReason.FINISHED,
            seconds=0.0,
            cpu_seconds=0.0,
            peak_bytes=0,
            fan_in_fan_out=fan_in_fan_out,
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
