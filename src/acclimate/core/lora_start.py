"""Initialisation of low-rank weights in the directions that the first gradient lies in.

It follows LoRA-GA (Wang, Yu and Li 2024, arXiv 2407.05000), which takes the directions from the singular vectors of a
layer's full gradient. Here the full gradient is never computed: its product with a few random vectors spans nearly the
same space (Halko, Martinsson and Tropp 2011, arXiv 0909.4061, section 4.1), and costs no more than the gradient of
low-rank weights. The same backward pass also provides the gradient of the first training step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn

from acclimate.core.lora import LowRank

#: Length of each direction: that of the random initialisation it replaces, uniform in +-sqrt(1 / in).
_LENGTH: Final = 1 / math.sqrt(3)


@dataclass(frozen=True, slots=True)
class Start:
    """The initial values of one layer's low-rank weights, and their first gradient.

    Attributes:
        directions: orthogonal rows for ``lora_A``, ``(copies, rank, in)``, float32.
        grad: the gradient of ``lora_B``, which is zero, given these directions: ``(copies, out, rank)``.
    """

    directions: Tensor
    grad: Tensor


@contextmanager
def capture_gradients(model: nn.Module, pairs: Mapping[str, LowRank], *, seed: int = 0) -> Iterator[dict[str, Start]]:
    """Yield a dictionary that a backward pass inside the block fills with initial values by layer name.

    Args:
        model: the model that the pairs are attached to, with ``lora_B`` zero; linear layers only.
        pairs: as :func:`acclimate.core.lora.attached` yields them.
        seed: of the random vectors.
    """
    rng = torch.Generator().manual_seed(seed)
    found: dict[str, Start] = {}
    handles = [
        model.get_submodule(name).register_forward_hook(_capture_hook(found, name, pair, rng))
        for name, pair in pairs.items()
    ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _capture_hook(
    found: dict[str, Start], name: str, pair: LowRank, rng: torch.Generator
) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
    out, rank = pair.lora_B.shape[-2:]
    # Drawn here, and not when gradients arrive, so that the vectors do not depend on the order of the gradients.
    vectors = torch.randn(out, rank, generator=rng)

    def capture(_layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        rows = inputs[0].detach().reshape(pair.copies, -1, inputs[0].shape[-1])
        if output.requires_grad:
            output.register_hook(lambda grad: found.__setitem__(name, start(rows, grad, vectors)))

    return capture


@torch.no_grad()
def start(rows: Tensor, grad: Tensor, vectors: Tensor) -> Start:
    """Return the initial values of the low-rank weights of a linear layer.

    Args:
        rows: the layer's inputs, ``(copies, tokens, in)``.
        grad: the gradient of the layer's outputs, ``(..., out)``, for as many tokens.
        vectors: random vectors, ``(out, rank)``.
    """
    output_grad = grad.reshape(len(rows), -1, grad.shape[-1])
    projected_grad = torch.matmul(output_grad, vectors.to(output_grad.device, output_grad.dtype))
    sketch = torch.bmm(projected_grad.transpose(1, 2), rows).float()
    directions = _orthogonal(sketch) * _LENGTH
    projected_rows = torch.bmm(rows, directions.to(rows.dtype).transpose(1, 2))
    return Start(directions, torch.bmm(output_grad.transpose(1, 2), projected_rows))


def _orthogonal(rows: Tensor) -> Tensor:
    """Return orthonormal rows that span the same space as ``rows``, ``(copies, n, width)``.

    Where ``rows`` are linearly dependent, the remaining directions are arbitrary. If ``n`` is larger than ``width``,
    the last rows are zero, because the first ``width`` already span the whole space.
    """
    directions: Tensor = torch.linalg.qr(rows.transpose(1, 2))[0].transpose(1, 2)
    return nn.functional.pad(directions, (0, 0, 0, rows.shape[1] - directions.shape[1]))
