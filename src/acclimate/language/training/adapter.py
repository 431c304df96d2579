"""Trained low-rank weights as a value, apart from any model."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
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
#: The highest rank that vLLM takes unless it is told otherwise (max_lora_rank).
USUAL_MAX_RANK: Final = 16
#: Largest change of a layer's product, as a share of it, that float32 makes anyway.
_ROUNDING: Final = 1e-5


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
            lora.attached(
                network, list(self.weights), rank=self.rank, alpha=self.alpha, copies=self.copies, seed=None
            ) as pairs,
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
        """Write the adapter in PEFT's format.

        A rank above :data:`USUAL_MAX_RANK` is lowered to it where that changes no layer by more than rounding does.

        Args:
            folder: created if it does not exist.
            base_model: name on the hub or folder of the model, from which PEFT loads it.
        """
        if self.copies != 1:
            raise DataError(f"{self.copies} adapters that were trained side by side cannot be saved as one")
        smaller = self.of_lower_rank(USUAL_MAX_RANK) if self.rank > USUAL_MAX_RANK else None
        saved = smaller or self
        lora.write(
            folder,
            saved.weights,
            rank=saved.rank,
            alpha=saved.alpha,
            fan_in_fan_out=self.fan_in_fan_out,
            base_model=base_model,
            task_type="CAUSAL_LM",
        )
        write_output(folder / FINGERPRINT_FILE, self.fingerprint + "\n")

    def of_lower_rank(self, rank: int) -> Adapter | None:
        """Return the same adapter with a lower rank, or None where that would change more than rounding does.

        The products are cut off after their largest ``rank`` singular values, which is the nearest product of that rank
        (Eckart and Young 1936).

        Args:
            rank: at least 1.
        """
        found: dict[str, tuple[Tensor, Tensor]] = {}
        for name, (down, up) in self.weights.items():
            pair, values = lora.nearest_of_rank(rank, down.double(), up.double())
            if float(values[rank:].norm()) > _ROUNDING * float(values.norm()):
                return None
            found[name] = pair[0].to(down.dtype), pair[1].to(up.dtype)
        return replace(self, weights=found, rank=rank, alpha=self.alpha * rank / self.rank, identity=uuid4().hex)

    def repeated(self, copies: int) -> Adapter:
        """Return ``copies`` of the adapter to be trained side by side, each on examples of its own."""
        if self.copies != 1 or copies == 1:
            return self
        pairs = {
            name: (down.expand(copies, *down.shape).contiguous(), up.expand(copies, *up.shape).contiguous())
            for name, (down, up) in self.weights.items()
        }
        return replace(self, weights=pairs, copies=copies, identity=uuid4().hex)

    @classmethod
    def side_by_side(cls, adapters: Sequence[Adapter | None]) -> Adapter:
        """Return one adapter with a copy of each, so that one pass answers with all of them, each its block of rows.

        Args:
            adapters: of one model, not necessarily of the same rank, or for the same layers; at least one. None adds
                nothing: the base model.
        """
        given = [adapter for adapter in adapters if adapter is not None]
        rank, copies = max(adapter.rank for adapter in given), len(adapters)
        found: dict[str, tuple[Tensor, Tensor]] = {}
        for number, adapter in enumerate(adapters):
            if adapter is None:
                continue
            for name, (down, up) in adapter.weights.items():
                if name not in found:
                    found[name] = down.new_zeros(copies, rank, down.shape[1]), up.new_zeros(copies, len(up), rank)
                found[name][0][number, : len(down)] = down
                found[name][1][number, :, : up.shape[1]] = up * (adapter.alpha / adapter.rank)
        one = cls.of_weights(
            found,
            rank=rank,
            fingerprint=given[0].fingerprint,
            fan_in_fan_out=any(adapter.fan_in_fan_out for adapter in given),
        )
        return replace(one, copies=copies)

    @torch.no_grad()
    def mean(self) -> Adapter:
        """Return one adapter of the same rank, near the mean of the adapters that were trained side by side.

        The mean of what they add to each layer has a higher rank; it is replaced by the nearest product of theirs
        (Eckart and Young 1936). What they learned alike is kept, and what each learned from its own examples is halved.
        """
        if self.copies == 1:
            return self
        found = {}
        for name, (down, up) in self.weights.items():
            stacked = down.flatten(0, 1), up.transpose(0, 1).flatten(1) / self.copies
            found[name], _ = lora.nearest_of_rank(self.rank, *stacked)
        return replace(self, weights=found, copies=1, identity=uuid4().hex)

    def mean_of_factors(self) -> Adapter:
        """Return one adapter whose two factors are the means of those of the adapters that were trained side by side.

        Only adapters that began with the same weights, and made few steps from there, have factors that can be
        averaged; their products then differ from those of :meth:`mean` by what is quadratic in the steps.
        """
        if self.copies == 1:
            return self
        found = {name: (down.mean(0), up.mean(0)) for name, (down, up) in self.weights.items()}
        return replace(self, weights=found, copies=1, identity=uuid4().hex)

    @classmethod
    def combined(cls, adapters: Sequence[Adapter], weights: Sequence[float] | None = None) -> Adapter:
        """Return one adapter that adds to each layer what all of them add, each times its weight.

        The low-rank products are added exactly: the ranks add up.

        Args:
            adapters: of one model; not necessarily of the same rank, or for the same layers.
            weights: one for each; None weighs each with 1.

        Raises:
            DataError: there are none, a weight is missing or not finite, or they belong to different models.
        """
        factors = [1.0] * len(adapters) if weights is None else list(weights)
        if not adapters or len(factors) != len(adapters):
            raise DataError(f"{len(adapters)} adapters and {len(factors)} weights were given; give one weight for each")
        if bad := [factor for factor in factors if not math.isfinite(factor)]:
            raise DataError(f"the weight of an adapter must be a finite number, got {bad[0]}")
        if len({adapter.fingerprint for adapter in adapters}) > 1:
            raise DataError("the adapters were trained for different models; give adapters of one model")
        if any(adapter.copies != 1 for adapter in adapters):
            raise DataError("adapters that were trained side by side cannot be combined")
        rank = sum(adapter.rank for adapter in adapters)
        found: dict[str, tuple[Tensor, Tensor]] = {}
        for name in dict.fromkeys(name for adapter in adapters for name in adapter.weights):
            downs, ups = [], []
            for adapter, factor in zip(adapters, factors, strict=True):
                if (pair := adapter.weights.get(name)) is not None:
                    downs.append(pair[0])
                    ups.append(pair[1] * (factor * adapter.alpha / adapter.rank))
            missing = rank - sum(len(down) for down in downs)
            downs.append(downs[0].new_zeros(missing, downs[0].shape[1]))
            ups.append(ups[0].new_zeros(ups[0].shape[0], missing))
            found[name] = torch.cat(downs), torch.cat(ups, 1)
        first = adapters[0]
        return cls.of_weights(
            found, rank=rank, fingerprint=first.fingerprint, fan_in_fan_out=any(a.fan_in_fan_out for a in adapters)
        )
