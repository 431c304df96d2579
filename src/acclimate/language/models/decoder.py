"""A causal language model split where the adapted layers begin.

The layers below the first adapted one give the same activations at every training step: they are computed once for each
batch of token rows, and only the layers above run again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor, nn

from acclimate.core.lora import target_layers
from acclimate.errors import TTTNotSupportedError, first_line
from acclimate.language.models.attention import can_replace, disagreement, plain_products
from acclimate.language.models.deadlines import layers_of

_LOG = logging.getLogger(__name__)
_FINAL_NORMS: Final = ("norm", "ln_f", "final_layer_norm", "final_layernorm", "embedding_norm")
_TOLERANCE: Final = 1e-3
_MISSING: Final = object()


@dataclass(frozen=True, slots=True)
class Recording:
    """The activations of token rows below the first adapted layer.

    Attributes:
        tokens: ``(rows, length)``.
        hidden: ``(rows, length, width)``: the input of the first adapted layer; None where every layer runs each time.
        arguments: of each adapted layer, without the hidden state.
    """

    tokens: Tensor
    hidden: Tensor | None = None
    arguments: Sequence[tuple[tuple[Any, ...], dict[str, Any]]] = field(default=(), repr=False)

    @property
    def held_bytes(self) -> int:
        """Bytes of the activations."""
        return 0 if self.hidden is None else self.hidden.numel() * self.hidden.element_size()


@dataclass(frozen=True, slots=True)
class LogitScale:
    """What some architectures do to the output of their head.

    Attributes:
        factor: logits are multiplied by it (Cohere, Granite).
        cap: then they are bent into the interval from minus to plus this (Gemma 2); None leaves them.
    """

    factor: float = 1.0
    cap: float | None = None

    def __call__(self, scores: Tensor) -> Tensor:
        """Return the logits."""
        if self.factor != 1.0:
            scores = scores * self.factor
        return scores if self.cap is None else torch.tanh(scores / self.cap) * self.cap

    @classmethod
    def of(cls, config: Any) -> LogitScale:
        """Return what a configuration of transformers says."""
        text = config.get_text_config() if hasattr(config, "get_text_config") else config
        times, divided = getattr(text, "logit_scale", None), getattr(text, "logits_scaling", None)
        numbers = [
            times if isinstance(times, int | float) else 1.0,
            divided if isinstance(divided, int | float) else 1.0,
        ]
        return cls(numbers[0] / numbers[1], getattr(text, "final_logit_softcapping", None))


class Decoder:
    """The layers of a causal language model.

    Whoever makes one or calls its methods holds the network's lock; see
    :meth:`acclimate.language.models.language_model.LanguageModel.decoder`.

    Args:
        network: a transformers causal LM.
        share_adapted: the share of layers, counted from the last, that adapters are attached to; in (0, 1].

    Attributes:
        short_pass_s: seconds that a pass with a few tokens took.

    Raises:
        TTTNotSupportedError: its layers, its output head or linear layers are not found, its logits are not understood,
            or it is not causal.
    """

    def __init__(self, network: Any, share_adapted: float = 1.0) -> None:
        self.network = network
        self.body: nn.Module = network.base_model
        self.head: nn.Module | None = network.get_output_embeddings()
        name, self.layers = layers_of(self.body)
        if self.head is None or self.layers is None or self.body is network:
            raise TTTNotSupportedError(
                f"{type(network).__name__} has no list of layers and output head that adapters could be placed in"
            )
        count = len(self.layers)
        self.first_adapted = count - max(1, min(count, round(count * share_adapted)))
        body_name = next(n for n, module in network.named_modules() if module is self.body)
        self._prefix = ".".join(part for part in (body_name, name) if part)
        self.norm = next((m for n, m in self.body.named_children() if n in _FINAL_NORMS), nn.Identity())
        self._after_head = LogitScale.of(network.config)
        self._adapted_layers = list(self.layers)[self.first_adapted :]
        self._layers_return_tensors = True
        tokens = torch.arange(1, 9, device=next(network.parameters()).device)[None]
        wanted = tuple(f"{self._prefix}.{i}." for i in range(self.first_adapted, count))
        linear = target_layers(network, lambda name: name.startswith(wanted))
        with torch.no_grad(), _passed_by(network, linear) as passed_by:
            hidden: Tensor = self.body(input_ids=tokens, use_cache=False)[0]
        #: Names of the linear layers inside the adapted layers that low-rank weights can be added to.
        self.targets = [name for name in linear if name not in passed_by]
        if not self.targets:
            raise TTTNotSupportedError(
                f"{type(network).__name__} has no linear layers that low-rank weights could be added to"
            )
        self._check(tokens, hidden)
        self.can_replay = self.first_adapted > 0 and self._replays(tokens)
        self._replaces_attention = can_replace(network) and self._attention_agrees(tokens)

    @property
    def quick_attention(self) -> AbstractContextManager[None]:
        """A block in which the network uses the attention that is fastest for training."""
        return plain_products(self.network) if self._replaces_attention else nullcontext()

    @torch.no_grad()
    def record(self, tokens: Tensor) -> Recording:
        """Return the recording of ``tokens``, ``(rows, length)``; the adapted layers do not run."""
        if not self.can_replay:
            return Recording(tokens)
        calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

        def note(*args: Any, **kwargs: Any) -> Any:
            calls.append((args, kwargs))
            hidden = args[0] if args else kwargs["hidden_states"]
            return hidden if self._layers_return_tensors else (hidden,)

        with _forward_replaced(self._adapted_layers, note):
            self.body(input_ids=tokens, use_cache=False)
        return _recording(tokens, calls)

    @torch.no_grad()
    def record_and_run(self, tokens: Tensor) -> tuple[Recording, Tensor]:
        """Return the recording of ``tokens`` and the last hidden states, ``(rows, length, width)``, in one pass."""
        calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

        def note(_layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            calls.append((args, kwargs))

        layers = self._adapted_layers if self.can_replay else ()
        handles = [layer.register_forward_pre_hook(note, with_kwargs=True) for layer in layers]
        try:
            last = self.body(input_ids=tokens, use_cache=False)[0]
        finally:
            for handle in handles:
                handle.remove()
        return _recording(tokens, calls) if calls else Recording(tokens), last

    def hidden(self, recording: Recording) -> Tensor:
        """Return the last hidden states, ``(rows, length, width)``, that the head takes."""
        if recording.hidden is None:
            last: Tensor = self.body(input_ids=recording.tokens, use_cache=False)[0]
            return last
        state = recording.hidden
        for layer, (args, kwargs) in zip(self._adapted_layers, recording.arguments, strict=True):
            output = layer(state, *args, **kwargs)
            state = output if isinstance(output, Tensor) else output[0]
        return self.norm(state)  # type: ignore[no-any-return]

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the next token's logits, float32, for hidden states that the head takes."""
        return self.scores(hidden).float()

    def scores(self, hidden: Tensor) -> Tensor:
        """Return the logits in the model's number format."""
        scores: Tensor = self.head(hidden)  # type: ignore[misc]
        return self._after_head(scores)

    @torch.no_grad()
    def _check(self, tokens: Tensor, hidden: Tensor) -> None:
        """Refuse a network whose logits are not its head applied to its body, or that is not causal."""
        began = time.perf_counter()
        logits = self.network(input_ids=tokens, use_cache=False).logits.float()
        self.short_pass_s = time.perf_counter() - began
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
    def _attention_agrees(self, tokens: Tensor) -> bool:
        """Say whether plain products give the results of the model's own attention in every layer."""
        try:
            difference = disagreement(self.network, lambda: self.body(input_ids=tokens, use_cache=False))
        except (TTTNotSupportedError, TypeError, ValueError) as error:
            _LOG.info("%s keeps its own attention: %s", type(self.network).__name__, first_line(error))
            return False
        # Ten roundings of bfloat16; another function differs by more.
        return difference <= (1e-4 if next(self.network.parameters()).dtype == torch.float32 else 4e-2)

    @torch.no_grad()
    def _replays(self, tokens: Tensor) -> bool:
        """Say whether running the adapted layers alone gives the model's result; notes what a layer returns."""
        self.can_replay = True
        try:
            recording, last = self.record_and_run(tokens)
            args, kwargs = recording.arguments[0]
            output = self._adapted_layers[0](recording.hidden, *args, **kwargs)
            self._layers_return_tensors = isinstance(output, Tensor)
            replayed = self.hidden(recording)
            agrees = replayed.shape == last.shape and _agree(replayed, last)
        except (TypeError, ValueError, IndexError, KeyError, RuntimeError, AttributeError) as error:
            _LOG.info("%s cannot be run in two parts: %s", type(self.network).__name__, error)
            return False
        if not agrees:
            _LOG.info("%s cannot be run in two parts; all layers run at every step", type(self.network).__name__)
        return agrees


@contextmanager
def _passed_by(network: nn.Module, names: Sequence[str]) -> Iterator[set[str]]:
    """Yield the layers that were not called though the module around them was; complete after the block.

    Such a module reads their weights itself, as Mamba's does with one of them, so that hooks on them have no effect. An
    expert that no token was sent to is none of them: nothing around its layers runs.
    """
    called: set[str] = set()
    around = {name: name.rpartition(".")[0] for name in names}
    handles = [
        network.get_submodule(name).register_forward_pre_hook(lambda *_, name=name: called.add(name))
        for name in {*around, *around.values()}
    ]
    found: set[str] = set()
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
    found |= {name for name, outer in around.items() if outer in called and name not in called}


@contextmanager
def _forward_replaced(layers: Sequence[nn.Module], forward: Callable[..., Any]) -> Iterator[None]:
    """Let ``layers`` call ``forward`` inside the block; an override that a layer had before comes back."""
    before = [(layer, vars(layer).get("forward", _MISSING)) for layer in layers]
    try:
        for layer, _ in before:
            layer.forward = forward
        yield
    finally:
        for layer, own in before:
            if own is _MISSING:
                vars(layer).pop("forward", None)
            else:
                layer.forward = own


def _agree(found: Tensor, expected: Tensor, tolerance: float = _TOLERANCE) -> bool:
    """Say whether two tensors differ by no more than a share of the largest value expected, or of one."""
    found, expected = found.float(), expected.float()
    return float((found - expected).abs().max()) <= tolerance * max(1.0, float(expected.abs().max()))


def _recording(tokens: Tensor, calls: Sequence[tuple[tuple[Any, ...], dict[str, Any]]]) -> Recording:
    """Return the recording of ``tokens`` from the calls of the adapted layers, each with its arguments."""
    args, kwargs = calls[0]
    dropped = ("hidden_states", "past_key_values", "past_key_value")
    arguments = [(a[1:], {k: v for k, v in kw.items() if k not in dropped}) for a, kw in calls]
    return Recording(tokens, args[0] if args else kwargs["hidden_states"], arguments)
