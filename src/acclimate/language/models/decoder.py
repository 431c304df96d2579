"""A causal language model taken apart where adapting it begins.

What lies below the first adapted layer gives the same activations at every training step: it is computed once for
each row of tokens, and only the layers above are run again.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor, nn

from acclimate.core.lora import target_layers
from acclimate.errors import TTTNotSupportedError, first_line
from acclimate.language.models.attention import can_attend, disagreement, plain_products

_LOG = logging.getLogger(__name__)
_FINAL_NORMS: Final = ("norm", "ln_f", "final_layer_norm", "final_layernorm", "embedding_norm")
_TOLERANCE: Final = 1e-3


@dataclass(frozen=True, slots=True)
class Recording:
    """Rows of tokens, read as far as the first adapted layer.

    Attributes:
        tokens: ``(rows, length)``.
        hidden: ``(rows, length, width)``: what enters the first adapted layer; None where all is computed anew.
        arguments: of each layer above, beside the hidden state.
    """

    tokens: Tensor
    hidden: Tensor | None = None
    arguments: Sequence[tuple[tuple[Any, ...], dict[str, Any]]] = field(default=(), repr=False)

    @property
    def held_bytes(self) -> int:
        """Bytes that the recording keeps."""
        return 0 if self.hidden is None else self.hidden.numel() * self.hidden.element_size()


class Decoder:
    """The layers of a causal language model.

    Args:
        network: a transformers causal LM.
        share_adapted: the share of layers, counted from the last, that adapters are attached to; in (0, 1].

    Raises:
        TTTNotSupportedError: its layers or its output head are not found.
    """

    def __init__(self, network: Any, share_adapted: float = 1.0) -> None:
        self.network = network
        self.body: nn.Module = network.base_model
        self.head: nn.Module | None = network.get_output_embeddings()
        name, self.layers = _layers(self.body)
        if self.head is None or self.layers is None or self.body is network:
            raise TTTNotSupportedError(
                f"{type(network).__name__} has no list of layers and output head that adapters could be placed in"
            )
        count = len(self.layers)
        self.first_adapted = count - max(1, min(count, round(count * share_adapted)))
        body_name = next(n for n, module in network.named_modules() if module is self.body)
        self._prefix = ".".join(part for part in (body_name, name) if part)
        self.norm = next((m for n, m in self.body.named_children() if n in _FINAL_NORMS), nn.Identity())
        self._layers_give_tensors = True
        tokens = torch.arange(1, 9, device=next(network.parameters()).device)[None]
        with torch.no_grad():
            hidden: Tensor = self.body(input_ids=tokens, use_cache=False)[0]
        self._check(tokens, hidden)
        self.can_replay = self.first_adapted > 0 and self._replays(tokens)
        self._by_products = can_attend(network) and self._attends(tokens)

    @property
    def quick_attention(self) -> AbstractContextManager[None]:
        """A block in which rows are learned from with the attention that is quickest for it."""
        return plain_products(self.network) if self._by_products else nullcontext()

    @property
    def _upper(self) -> nn.ModuleList:
        """The adapted layers."""
        return (self.layers or nn.ModuleList())[self.first_adapted :]

    @property
    def targets(self) -> list[str]:
        """Names of the linear layers inside the adapted layers."""
        wanted = tuple(f"{self._prefix}.{i}." for i in range(self.first_adapted, len(self.layers or ())))
        return target_layers(self.network, lambda name: name.startswith(wanted))

    @torch.no_grad()
    def record(self, tokens: Tensor) -> Recording:
        """Read ``tokens``, ``(rows, length)``, as far as they do not change while adapting; also see :meth:`read`."""
        if not self.can_replay:
            return Recording(tokens)
        found: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

        def remember(*args: Any, **kwargs: Any) -> Any:
            found.append((args, kwargs))
            hidden = args[0] if args else kwargs["hidden_states"]
            return hidden if self._layers_give_tensors else (hidden,)

        upper = list(self._upper)
        try:
            for layer in upper:
                # What they compute is not wanted, only what they are given.
                layer.forward = remember
            self.body(input_ids=tokens, use_cache=False)
        finally:
            for layer in upper:
                layer.__dict__.pop("forward", None)
        return _recording(tokens, found)

    @torch.no_grad()
    def read(self, tokens: Tensor) -> tuple[Recording, Tensor]:
        """Return a recording and the last hidden states, ``(rows, length, width)``, of the model as it is."""
        found: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

        def remember(_layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            found.append((args, kwargs))

        upper = self._upper if self.can_replay else ()
        handles = [layer.register_forward_pre_hook(remember, with_kwargs=True) for layer in upper]
        try:
            last = self.body(input_ids=tokens, use_cache=False)[0]
        finally:
            for handle in handles:
                handle.remove()
        return _recording(tokens, found) if found else Recording(tokens), last

    def hidden(self, recording: Recording) -> Tensor:
        """Return the last hidden states, ``(rows, length, width)``, ready for the head."""
        if recording.hidden is None:
            found: Tensor = self.body(input_ids=recording.tokens, use_cache=False)[0]
            return found
        state = recording.hidden
        for layer, (args, kwargs) in zip(self._upper, recording.arguments, strict=True):
            given = layer(state, *args, **kwargs)
            state = given if isinstance(given, Tensor) else given[0]
        return self.norm(state)  # type: ignore[no-any-return]

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the next token's logits, float32, for hidden states that are ready for the head."""
        return self.scores(hidden).float()

    def scores(self, hidden: Tensor) -> Tensor:
        """Return the same in the model's number format."""
        scores: Tensor = self.head(hidden)  # type: ignore[misc]
        return scores

    @torch.no_grad()
    def _check(self, tokens: Tensor, hidden: Tensor) -> None:
        """Refuse a network whose logits are not its head on its body, or that looks ahead."""
        logits = self.network(input_ids=tokens, use_cache=False).logits.float()
        if not _agree(self.logits(hidden), logits):
            raise TTTNotSupportedError(
                f"{type(self.network).__name__} changes its logits after the head; adapting it is not supported"
            )
        other = tokens.clone()
        other[0, -1] += 1
        again = self.body(input_ids=other, use_cache=False)[0]
        if not _agree(again[:, :-1], hidden[:, :-1]):
            raise TTTNotSupportedError(f"{type(self.network).__name__} looks ahead: it is not a causal language model")

    @torch.no_grad()
    def _attends(self, tokens: Tensor) -> bool:
        """Say whether the model's layers give with plain products what they give with their own attention."""
        try:
            apart = disagreement(self.network, lambda: self.body(input_ids=tokens, use_cache=False))
        except (TTTNotSupportedError, TypeError, ValueError) as error:
            _LOG.info("%s keeps its own attention: %s", type(self.network).__name__, first_line(error))
            return False
        return apart <= (1e-4 if next(self.network.parameters()).dtype == torch.float32 else 2e-2)

    @torch.no_grad()
    def _replays(self, tokens: Tensor) -> bool:
        """Say whether the layers above, run by themselves, give what the model gives; see how they give it."""
        self.can_replay = True
        try:
            recording, last = self.read(tokens)
            args, kwargs = recording.arguments[0]
            self._layers_give_tensors = isinstance(self._upper[0](recording.hidden, *args, **kwargs), Tensor)
            replayed = self.hidden(recording)
            agrees = replayed.shape == last.shape and _agree(replayed, last)
        except (TypeError, ValueError, IndexError, KeyError, RuntimeError, AttributeError) as error:
            _LOG.info("%s cannot be read in two parts: %s", type(self.network).__name__, error)
            return False
        if not agrees:
            _LOG.info("%s cannot be read in two parts; all layers run at every step", type(self.network).__name__)
        return agrees


def _agree(found: Tensor, expected: Tensor, tolerance: float = _TOLERANCE) -> bool:
    """Say whether two tensors differ by no more than a share of the largest value expected, or of one."""
    found, expected = found.float(), expected.float()
    return float((found - expected).abs().max()) <= tolerance * max(1.0, float(expected.abs().max()))


def _recording(tokens: Tensor, calls: Sequence[tuple[tuple[Any, ...], dict[str, Any]]]) -> Recording:
    """Return what ``calls`` of the upper layers, each with its arguments, say about ``tokens``."""
    args, kwargs = calls[0]
    left_out = ("hidden_states", "past_key_values", "past_key_value")
    arguments = [(a[1:], {k: v for k, v in kw.items() if k not in left_out}) for a, kw in calls]
    return Recording(tokens, args[0] if args else kwargs["hidden_states"], arguments)


def _layers(body: nn.Module) -> tuple[str, nn.ModuleList | None]:
    """Return the longest list of modules inside ``body`` and its name."""
    lists = [(name, module) for name, module in body.named_modules() if isinstance(module, nn.ModuleList)]
    return max(lists, key=lambda pair: len(pair[1]), default=("", None))
