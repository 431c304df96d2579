"""Low-rank weights of many layers, packed into one contiguous tensor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from acclimate.core.lora import LowRank
from acclimate.core.lora_start import Start


class PackedAdapters:
    """Low-rank weights of many layers packed into one tensor, which is clipped, updated and converted at once.

    An optimizer would need as much time for hundreds of small tensors as the layers need for their arithmetic. The
    optimizer updates float32 weights; the layers compute with copies in their own number format.

    Args:
        pairs: the low-rank weights of one model, all with the same number of copies, as :func:`attached` yields them;
            their tensors become views of the packed one.
        dtype: the number format in which the layers compute.

    Attributes:
        learned: ``(copies, n)``, float32, the parameter to optimise.
    """

    def __init__(self, pairs: Mapping[str, LowRank], dtype: torch.dtype) -> None:
        self._pairs = pairs
        self._copies = next(iter(pairs.values())).copies
        with torch.no_grad():
            self.learned = nn.Parameter(torch.cat([p.reshape(self._copies, -1) for p in self._parts()], 1))
        # With float32 layers no conversion is needed: the two tensors share their memory.
        self._used = self.learned.detach().to(dtype)
        self._grads = torch.empty_like(self._used)
        self._learned_grad = self._grads.to(torch.float32)
        views = self._views(self._used)
        for pair in pairs.values():
            pair.lora_A, pair.lora_B = nn.Parameter(next(views)), nn.Parameter(next(views))

    def _parts(self) -> Iterator[nn.Parameter]:
        for pair in self._pairs.values():
            yield pair.lora_A
            yield pair.lora_B

    def _views(self, block: Tensor) -> Iterator[Tensor]:
        start = 0
        for part in list(self._parts()):
            size = part.numel() // self._copies
            yield block[:, start : start + size].view(part.shape)
            start += size

    @torch.no_grad()
    def collect(self) -> Tensor:
        """Move the layers' gradients to ``learned.grad`` and return it; it is zero where a layer has no gradient."""
        parts = list(self._parts())
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parts]
        torch.cat([g.reshape(self._copies, -1) for g in grads], 1, out=self._grads)
        for part in parts:
            part.grad = None
        if self._learned_grad is not self._grads:
            self._learned_grad.copy_(self._grads)
        self.learned.grad = self._learned_grad
        return self._learned_grad

    @torch.no_grad()
    def begin(self, starts: Mapping[str, Start]) -> None:
        """Set newly attached weights to the initial values in ``starts``, with their first gradients."""
        learned = self.weights()
        for name, start in starts.items():
            pair, (down, _) = self._pairs[name], learned[name]
            down.copy_(start.directions.view(down.shape))
            pair.lora_A.grad, pair.lora_B.grad = None, start.grad.view(pair.lora_B.shape).to(pair.lora_B.dtype)
        self.publish()

    @torch.no_grad()
    def publish(self) -> None:
        """Copy the learned weights to the layers."""
        if self._used.dtype != torch.float32:
            self._used.copy_(self.learned)

    def weights(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Return the learned weights by layer name: ``lora_A`` and ``lora_B``, float32."""
        views = self._views(self.learned.detach())
        return {name: (next(views), next(views)) for name in self._pairs}
