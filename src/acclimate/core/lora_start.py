"""Where low-rank weights begin: in the directions that the first gradient lies in.

After LoRA-GA (Wang, Yu and Li 2024, arXiv 2407.05000), which takes them from the singular vectors of a layer's whole
gradient. Here the gradient is never made: its product with a few random vectors spans nearly the same space (Halko,
Martinsson and Tropp 2011, arXiv 0909.4061, section 4.1), and costs no more than the gradient of low-rank weights. The
pass that shows it is also the first step.
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

#: Length of each direction: that of the random ones it stands for, uniform in +-sqrt(1 / in).
_LENGTH: Final = 1 / math.sqrt(3)


@dataclass(frozen=True, slots=True)
class Start:
    """Where a layer's low-rank weights begin.

    Attributes:
        directions: orthogonal, of ``lora_A``, ``(copies, rank, in)``, float32.
        grad: of ``lora_B``, which is zero, with these directions: ``(copies, out, rank)``.
    """

    directions: Tensor
    grad: Tensor


@contextmanager
def capture_gradients(model: nn.Module, pairs: Mapping[str, LowRank], *, seed: int = 0) -> Iterator[dict[str, Start]]:
    """Yield, by layer name, where ``pairs`` should begin, once a loss has been sent back inside the block.

    Args:
        model: that the pairs are attached to, with ``lora_B`` zero; linear layers only.
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
    # One seed, the same vectors, in whatever order gradients arrive.
    vectors = torch.randn(out, rank, generator=rng)

    def note(_layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        rows = inputs[0].detach().reshape(pair.copies, -1, inputs[0].shape[-1])
        if output.requires_grad:
            output.register_hook(lambda grad: found.__setitem__(name, start(rows, grad, vectors)))

    return note


@torch.no_grad()
def start(rows: Tensor, grad: Tensor, vectors: Tensor) -> Start:
    """Return where the low-rank weights of a linear layer begin.

    Args:
        rows: ``(copies, tokens, in)``: what went into the layer.
        grad: of what came out of it, ``(..., out)``, as many tokens.
        vectors: random, ``(out, rank)``.
    """
    sent = grad.reshape(len(rows), -1, grad.shape[-1])
    seen = torch.matmul(sent, vectors.to(sent.device, sent.dtype))
    sketch = torch.bmm(seen.transpose(1, 2), rows).float()
    directions = _orthogonal(sketch) * _LENGTH
    shown = torch.bmm(rows, directions.to(rows.dtype).transpose(1, 2))
    return Start(directions, torch.bmm(sent.transpose(1, 2), shown))


def _orthogonal(rows: Tensor) -> Tensor:
    """Return rows of length one that span what ``rows``, ``(copies, n, width)``, span; any where they are too few.

    Of more rows than ``width`` the last ones are zero: the others span everything.
    """
    directions: Tensor = torch.linalg.qr(rows.transpose(1, 2))[0].transpose(1, 2)
    return nn.functional.pad(directions, (0, 0, 0, rows.shape[1] - directions.shape[1]))
