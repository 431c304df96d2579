"""Attention for the short rows that adapters learn from on a processor.

torch's fused attention is made for long rows. On a processor it takes four times as long over the tokens of ten short
examples, there and back, as the plain products that it stands for (117 tokens, nine heads: 2.8 ms against 0.6),
which was a quarter of a training step. Long rows keep it: its memory does not grow with the square of their length.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Final

import torch
from torch import Tensor, nn

from acclimate.errors import TTTNotSupportedError

NAME: Final = "acclimate_plain_products"
#: Longest row, times what it looks at, for which weights are kept: 512 tokens, or 4.5 MiB a layer of nine heads.
_LARGEST: Final = 512 * 512
#: What some architectures add to attention, and this does not know.
_UNKNOWN: Final = ("softcap", "s_aux", "position_bias")


def plain_products(network: Any) -> AbstractContextManager[None]:
    """Let ``network``, a transformers model, attend by plain products inside the block; see :func:`can_attend`."""
    return _attending(network, attend)


def disagreement(network: Any, read: Callable[[], object]) -> float:
    """Return how far plain products are from the model's own attention while ``read`` runs ``network``.

    The largest difference in any layer, as a share of the largest value there. Each layer is compared on what the
    model's own attention leads to: over many layers the rounding of bfloat16 grows to anything.

    Args:
        network: for which :func:`can_attend` says yes.
        read: runs it.

    Raises:
        TTTNotSupportedError: a layer wants something that is not known here.
    """
    from transformers import AttentionInterface

    own, found = AttentionInterface()["sdpa"], [0.0]

    def both(module: nn.Module, *given: Any, **others: Any) -> Any:
        expected = own(module, *given, **others)
        difference, largest = (expected[0] - attend(module, *given, **others)[0]).abs().max(), expected[0].abs().max()
        found.append(float(difference) / max(1.0, float(largest)))
        return expected

    with _attending(network, both):
        read()
    return max(found)


@contextmanager
def _attending(network: Any, function: Callable[..., Any]) -> Iterator[None]:
    """Let ``network`` attend with ``function`` inside the block."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    before = network.config._attn_implementation
    AttentionInterface.register(NAME, function)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    network.set_attn_implementation(NAME)
    try:
        yield
    finally:
        network.set_attn_implementation(before)


def can_attend(network: Any) -> bool:
    """Say whether plain products are worth while: on a processor, in place of torch's fused attention."""
    on_processor = next(network.parameters()).device.type == "cpu"
    return bool(on_processor and getattr(network.config, "_attn_implementation", None) == "sdpa")


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
    """Return the attended values, ``(rows, tokens, heads, width)``, as transformers' attention functions do.

    Args:
        module: the attention layer; its ``is_causal`` counts where there is no mask.
        query: ``(rows, heads, tokens, width)``.
        key: ``(rows, key heads, seen, width)``; each key head serves ``heads / key heads`` heads.
        value: of the shape of ``key``.
        attention_mask: ``(rows or 1, heads or 1, tokens, seen)``, True where something is seen, or added to the
            scores; None lets every token see those before it.
        scaling: of the scores; None means one over the root of ``width``.
        dropout: must be zero.
        others: what else the layer passes.

    Raises:
        TTTNotSupportedError: the layer wants something that is not known here.
    """
    if dropout or any(others.get(name) is not None for name in _UNKNOWN):
        raise TTTNotSupportedError(f"{type(module).__name__} asks for more of attention than plain products give")
    rows, heads, tokens, width = query.shape
    key_heads, seen = key.shape[1], key.shape[2]
    scaling = width**-0.5 if scaling is None else scaling
    causal = attention_mask is None and tokens > 1 and getattr(module, "is_causal", True)
    if tokens * seen > _LARGEST:
        attended = nn.functional.scaled_dot_product_attention(
            query, key, value, attention_mask, is_causal=causal, scale=scaling, enable_gqa=heads != key_heads
        )
        return attended.transpose(1, 2).contiguous(), None
    bias = attention_mask
    if causal:
        bias = torch.ones(tokens, seen, dtype=torch.bool, device=query.device).tril(seen - tokens)
    if bias is not None and bias.dtype == torch.bool:
        bias = torch.zeros(bias.shape, dtype=query.dtype, device=query.device).masked_fill_(~bias, float("-inf"))
    # Heads that share a key stand one below the other, so that no key is repeated for them.
    grouped = (query * scaling).reshape(rows * key_heads, -1, width)
    scores = torch.bmm(grouped, key.reshape(rows * key_heads, seen, width).transpose(1, 2))
    scores = scores.view(rows, heads, tokens, seen)
    weights = (scores if bias is None else scores + bias).softmax(-1)
    attended = torch.bmm(weights.view(rows * key_heads, -1, seen), value.reshape(rows * key_heads, seen, width)).view(
        rows, heads, tokens, width
    )
    return attended.transpose(1, 2).contiguous(), None
