"""Attention for the short sequences that adapters are trained on, on a processor.

torch's fused attention is made for long sequences. On a processor its forward and backward pass over the tokens of ten
short examples takes four times as long as the plain matrix products that it replaces (117 tokens, nine heads: 2.8 ms
against 0.6), which was a quarter of a training step. Long sequences keep it: its memory does not grow with the square
of their length.

Nothing changes for the process. transformers looks an attention function up by the name in a layer's configuration.
One name is registered, once, for a function without state, which calls what the layer's configuration carries. Inside a
block the attention layers of one network hold a view of their configuration that carries another function; every other
network, and the configuration itself, which two networks may share, stay as they are.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Final

import torch
from torch import Tensor, nn

from acclimate.errors import TTTNotSupportedError

#: The name in the configuration of layers whose attention is replaced.
NAME: Final = "acclimate_per_layer"
#: Most scores (tokens times keys) of a head that are kept for the backward pass: those of 512 tokens, or 4.5 MiB in a
#: layer of nine heads.
_MAX_SCORES: Final = 512 * 512
#: Arguments of some architectures' attention that :func:`attend` does not implement.
_UNSUPPORTED_ARGUMENTS: Final = ("softcap", "s_aux", "position_bias")


def plain_products(network: Any) -> AbstractContextManager[None]:
    """Let ``network``, a transformers model, compute attention by :func:`attend` inside the block.

    The caller holds the network's lock; see :func:`can_replace` for the networks that this is for.
    """
    return _replaced(network, attend)


def disagreement(network: Any, run: Callable[[], object]) -> float:
    """Return how far :func:`attend` is from the model's own attention while ``run`` runs ``network``.

    The largest difference in any layer, as a share of the largest value there; infinite where a value is not finite.
    Both get the same inputs in each layer, and the model goes on with its own result: over many layers the rounding of
    bfloat16 grows without bound.

    Args:
        network: for which :func:`can_replace` is true.
        run: runs it.

    Raises:
        TTTNotSupportedError: a layer uses something that :func:`attend` does not implement, or no layer looks its
            attention up where it can be replaced.
    """
    from transformers import AttentionInterface

    own = AttentionInterface()["sdpa"]
    found: list[float] = []

    def both(module: nn.Module, *given: Any, **others: Any) -> Any:
        expected = own(module, *given, **others)
        difference, largest = (expected[0] - attend(module, *given, **others)[0]).abs().max(), expected[0].abs().max()
        share = float(difference) / max(1.0, float(largest))
        found.append(share if math.isfinite(share) else math.inf)
        return expected

    with _replaced(network, both):
        run()
    if not found:
        raise TTTNotSupportedError(f"no layer of {type(network).__name__} looks its attention up in its configuration")
    return max(found)


def can_replace(network: Any) -> bool:
    """Say whether plain products can pay off: on a processor, in place of torch's fused attention."""
    on_processor = next(network.parameters()).device.type == "cpu"
    return bool(on_processor and getattr(network.config, "_attn_implementation", None) == "sdpa")


class _LayerConfig:
    """A layer's view of its configuration, with another attention function; the rest is read from the original."""

    _attn_implementation = NAME

    def __init__(self, config: Any, attention: Callable[..., Any]) -> None:
        self._config = config
        self.acclimate_attention = attention

    def __getattr__(self, name: str) -> Any:
        if name == "_config":
            raise AttributeError(name)
        return getattr(self._config, name)


def _call_carried(module: nn.Module, *given: Any, **others: Any) -> Any:
    """Call the attention function that the layer's configuration carries."""
    return module.config.acclimate_attention(module, *given, **others)  # type: ignore[union-attr, operator]


@functools.cache
def _register() -> None:
    """Tell transformers the one name; the function behind it never changes."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, _call_carried)


@contextmanager
def _replaced(network: Any, attention: Callable[..., Any]) -> Iterator[None]:
    """Let the layers of ``network`` call ``attention`` inside the block."""
    from transformers import PreTrainedModel

    _register()
    # Models inside the model make the masks, from the same configuration: those are the ones of fused attention.
    layers = [
        (module, module.config)
        for module in network.modules()
        if "config" in vars(module)
        and not isinstance(module, PreTrainedModel)
        and getattr(module.config, "_attn_implementation", None) == "sdpa"
    ]
    try:
        for layer, config in layers:
            layer.config = _LayerConfig(config, attention)
        yield
    finally:
        for layer, config in layers:
            layer.config = config


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    **others: Any,
) -> tuple[Tensor, None]:
    """Return the attention output, ``(rows, tokens, heads, width)``, as transformers' attention functions do.

    Args:
        module: the attention layer; its ``is_causal`` counts where there is no mask.
        query: ``(rows, heads, tokens, width)``.
        key: ``(rows, key heads, keys, width)``; each key head serves ``heads / key heads`` heads.
        value: of the shape of ``key``.
        attention_mask: ``(rows or 1, heads or 1, tokens, keys)``: boolean, true where a key is visible, or added to the
            scores; None means a causal mask.
        scaling: of the scores; None means one over the root of ``width``.
        dropout: must be zero.
        others: further arguments of the layer.

    Raises:
        TTTNotSupportedError: the layer uses dropout, capped scores, attention sinks or a position bias.
    """
    if dropout or any(others.get(name) is not None for name in _UNSUPPORTED_ARGUMENTS):
        raise TTTNotSupportedError(f"{type(module).__name__} asks for more of attention than plain products give")
    rows, heads, tokens, width = query.shape
    key_heads, keys = key.shape[1], key.shape[2]
    scaling = width**-0.5 if scaling is None else scaling
    causal = attention_mask is None and tokens > 1 and getattr(module, "is_causal", True)
    if tokens * keys > _MAX_SCORES:
        attended = nn.functional.scaled_dot_product_attention(
            query, key, value, attention_mask, is_causal=causal, scale=scaling, enable_gqa=heads != key_heads
        )
        return attended.transpose(1, 2).contiguous(), None
    bias = attention_mask
    if causal:
        bias = torch.ones(tokens, keys, dtype=torch.bool, device=query.device).tril(keys - tokens)
    if bias is not None and bias.dtype == torch.bool:
        bias = torch.zeros(bias.shape, dtype=query.dtype, device=query.device).masked_fill_(~bias, float("-inf"))
    # Heads that share a key are stacked along the tokens, so that no key is repeated for them.
    grouped = (query * scaling).reshape(rows * key_heads, -1, width)
    scores = torch.bmm(grouped, key.reshape(rows * key_heads, keys, width).transpose(1, 2))
    scores = scores.view(rows, heads, tokens, keys)
    weights = (scores if bias is None else scores + bias).softmax(-1)
    attended = torch.bmm(weights.view(rows * key_heads, -1, keys), value.reshape(rows * key_heads, keys, width)).view(
        rows, heads, tokens, width
    )
    return attended.transpose(1, 2).contiguous(), None
