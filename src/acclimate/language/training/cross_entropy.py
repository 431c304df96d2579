"""The loss of answer tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class CrossEntropy(torch.autograd.Function):
    """Weighted cross-entropies, in nats; the forward pass computes their gradient in the softmax's memory.

    Vocabularies are large: every operation on ``(answer tokens, vocabulary)`` that is saved shows in a step's time.
    """

    @staticmethod
    def forward(ctx: Any, scores: Tensor, wanted: Tensor, weights: Tensor) -> Tensor:
        """Return those of ``scores``, ``(n, vocabulary)``, for ``wanted`` and ``weights``, all ``(n,)``."""
        softmax = scores.to(torch.float32, copy=True)
        highest = softmax.max(1, keepdim=True).values
        at_wanted = softmax.gather(1, wanted[:, None])
        total = softmax.sub_(highest).exp_().sum(1, keepdim=True)
        losses = (total.log() + highest - at_wanted)[:, 0] * weights
        softmax.mul_(weights[:, None] / total)
        softmax[torch.arange(len(wanted), device=wanted.device), wanted] -= weights
        ctx.save_for_backward(softmax.to(scores.dtype))
        return losses

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradient with respect to ``scores``."""
        (softmax,) = ctx.saved_tensors
        return softmax * grads[0][:, None].to(softmax.dtype), None, None
