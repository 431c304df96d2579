"""Changing the embeddings of a classifier, the inputs of its last linear layer, without changing the network."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch.nn.functional as F
from torch import Tensor, nn

from acclimate.core.outputs import at_least_float32
from acclimate.core.task import correcting_logits
from acclimate.errors import TTTNotSupportedError


@contextmanager
def last_linear(model: nn.Module) -> Iterator[list[tuple[nn.Linear, Tensor]]]:
    """Yield a list that holds the linear layer that ``model`` called last, with its inputs; at first it is empty."""
    last: list[tuple[nn.Linear, Tensor]] = []

    def capture(layer: nn.Linear, inputs: tuple[Tensor, ...]) -> None:
        # Overwrites those of the layers called before.
        last[:] = [(layer, inputs[0].detach())]

    hooks = [m.register_forward_pre_hook(capture) for m in model.modules() if isinstance(m, nn.Linear)]
    try:
        yield last
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def shifted(model: nn.Module, shift: Callable[[Tensor], Tensor], *, method: str) -> Iterator[None]:
    """Inside the block, ``model`` returns the logits of shifted embeddings.

    Args:
        model: a classifier whose logits are the outputs of the linear layer that it calls last.
        shift: takes the embeddings of a batch ``(B, D)`` and returns what is added to each, ``(D,)`` or ``(B, D)``.
        method: named in errors.

    Raises:
        TTTNotSupportedError: while the model is called: there is no such layer.
    """
    with last_linear(model) as last:

        def correct(logits: Tensor) -> Tensor:
            if not last or last[0][1].dim() != 2 or last[0][0].out_features != logits.shape[-1]:
                raise TTTNotSupportedError(
                    f"{method} shifts the inputs of a last linear layer whose outputs are the logits, and this network "
                    "has none; use another method"
                )
            layer, embeddings = last[0]
            moved = F.linear(shift(at_least_float32(embeddings)), at_least_float32(layer.weight.detach()))
            return logits + moved

        with correcting_logits(model, correct):
            yield
