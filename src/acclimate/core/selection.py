"""Selecting the trainable parameters of a model inside a block; on exit every flag and mode is restored."""

from __future__ import annotations

import fnmatch
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import Tensor, nn

from acclimate.core import lora, norm
from acclimate.core.method import Selection
from acclimate.core.programs import refuse_inference_parameters, refuse_programs
from acclimate.errors import ConfigError, EmptySelectionError
from acclimate.registry import FILTER_KINDS, FilterKind

LAST_BLOCKS: Final = ("layer4", "blocks.9", "blocks.10", "blocks.11", "norm.*")
"""Patterns for the last blocks of ResNet-50 and ViT, which the official code of SAR and DeYO freezes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorFilter:
    """Chooses the trainable parameters of a model.

    Attributes:
        kind: ``all`` parameters; ``norm_only``: the affine parameters of normalisation layers; ``adapter_only``:
            the parameters of adapters, low-rank or other, by name; ``lora_only``: low-rank tensors;
            ``lora_norm_only``: low-rank tensors and normalisation.
        include: name patterns; where given, only parameters that match one of them are trainable.
        exclude: name patterns; parameters that match one of them are not trainable.
        lora_rank: attach low-rank weights of this rank while the selection is open; None attaches none.
        lora_alpha: their scale times the rank; None means the rank (a scale of 1).
        lora_seed: of the initial values of the low-rank weights.
        lora_targets: patterns of the layers that they are attached to; empty means every linear layer and convolution.

    A pattern with ``*``, ``?`` or ``[`` is a glob for the whole name; any other pattern matches one or more consecutive
    parts of the dotted name (``layer4`` matches ``layer4.0.bn1.weight`` and ``backbone.layer4.0.conv1.weight``). A
    parameter that is registered under several names is one parameter, and a pattern matches it by any of them.

    Raises:
        ConfigError: the kind is unknown or the rank is below 1.
    """

    kind: FilterKind = "norm_only"
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    lora_rank: int | None = None
    lora_alpha: float | None = None
    lora_targets: tuple[str, ...] = ()
    lora_seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in FILTER_KINDS:
            raise ConfigError(f"unknown update filter {self.kind!r}; choose one of {', '.join(FILTER_KINDS)}")
        if self.lora_rank is not None and self.lora_rank < 1:
            raise ConfigError(f"lora_rank must be at least 1, got {self.lora_rank}")

    def without(self, patterns: tuple[str, ...]) -> TensorFilter:
        """Return this filter with ``patterns`` excluded too."""
        return replace(self, exclude=(*self.exclude, *patterns))


def matches(name: str, pattern: str) -> bool:
    """Return whether a parameter or module ``name`` matches ``pattern`` (see :class:`TensorFilter`)."""
    if any(character in pattern for character in "*?["):
        return fnmatch.fnmatchcase(name, pattern)
    return f".{pattern}." in f".{name}."


@contextmanager
def selecting(
    model: nn.Module, update: TensorFilter, *, batch_statistics: bool, batch_weight: float = 1.0
) -> Iterator[Selection]:
    """Make the parameters trainable that ``update`` chooses; on exit flags, modes and layers are as before.

    Inside, the model is in eval mode (no dropout) and only the selected parameters require a gradient. If
    ``batch_statistics`` is true, BatchNorm uses the statistics of the batch, mixed with the source's where
    ``batch_weight`` is below 1, and does not change its buffers.

    Raises:
        EmptySelectionError: no parameter matches; the message lists the layers of the model.
        TTTNotSupportedError: the weights of the model cannot be trained, as those of TorchScript.
    """
    refuse_programs(model, changes_layers=True)
    refuse_inference_parameters(model)
    with ExitStack() as stack:
        modes = [(module, module.training) for module in model.modules()]
        stack.callback(_restore_modes, modes)
        model.eval()
        notes = []
        frozen = stack.enter_context(norm.thawed(model))
        if update.lora_rank is not None:
            patterns = update.lora_targets
            layers = _layer_names(model)
            targets = lora.target_layers(model, lambda name: not patterns or _any_matches(layers[name], patterns))
            if not targets:
                raise EmptySelectionError(f"no layer to attach low-rank weights to matches {list(update.lora_targets)}")
            stack.enter_context(
                lora.attached(model, targets, rank=update.lora_rank, alpha=update.lora_alpha, seed=update.lora_seed)
            )
            notes.append(f"low-rank weights of rank {update.lora_rank} attached to {len(targets)} layers")
        names = selected_names(model, update)
        if not names:
            raise EmptySelectionError(_nothing_selected(model, update))
        if frozen:
            notes.append(f"{len(frozen)} frozen BatchNorm layers were thawed")
        stack.callback(_restore_flags, _take_flags(model))
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in names)
        if batch_statistics:
            stack.enter_context(norm.statistics(model, batch_weight=batch_weight if norm.batch_norms(model) else None))
        parameters = {name: parameter for name, parameter in model.named_parameters() if name in names}
        low_rank = any(lora.is_low_rank(name) for name in parameters)
        stack.enter_context(_channels_first(model))
        yield Selection(
            parameters,
            dict(model.named_buffers()),
            tuple(notes),
            reference_norm=_norm_of(model) if low_rank else None,
        )


@contextmanager
def statistics_only(model: nn.Module, *, source_strength: float | None) -> Iterator[Selection]:
    """Select no parameter, and mix BatchNorm's statistics with ``source_strength`` (see :func:`norm.statistics`).

    On exit every flag, mode and layer is as before.

    Raises:
        EmptySelectionError: the model has no BatchNorm.
        TTTNotSupportedError: the model is a program, whose layers cannot be changed.
    """
    refuse_programs(model, changes_layers=True)
    layers = norm.batch_norms(model)
    if not layers:
        raise EmptySelectionError(
            "bn adapts BatchNorm statistics, and this model has no BatchNorm layer; "
            f"it has {describe(model)}; use tent, eata, sar, cotta or mim"
        )
    with nothing_selected(model) as selection, norm.statistics(model, source_strength=source_strength):
        yield selection


@contextmanager
def nothing_selected(model: nn.Module) -> Iterator[Selection]:
    """Select no parameter: inside, the model is in eval mode and nothing requires a gradient; undone on exit.

    Raises:
        TTTNotSupportedError: the model is a program that takes no hooks.
    """
    refuse_programs(model, changes_layers=False)
    with ExitStack() as stack:
        stack.callback(_restore_modes, [(module, module.training) for module in model.modules()])
        stack.callback(_restore_flags, _take_flags(model))
        model.eval()
        model.requires_grad_(False)
        yield Selection({}, dict(model.named_buffers()))


def selected_names(model: nn.Module, update: TensorFilter) -> set[str]:
    """Return the names of the parameters that ``update`` selects, which may be an empty set.

    A parameter that is registered under several names has the first of them, as in ``model.named_parameters()``.
    """
    aliases = parameter_names(model)
    names = {name for name, parameter in model.named_parameters() if parameter.is_floating_point()}
    if update.kind != "all":
        chosen: set[str] = set()
        if update.kind in ("norm_only", "lora_norm_only"):
            chosen |= norm_affine_names(model)
        if update.kind in ("lora_only", "lora_norm_only"):
            low_rank = {name for name in names if any(lora.is_low_rank(alias) for alias in aliases[name])}
            # Without low-rank tensors select nothing: lora_norm_only would silently mean norm_only.
            chosen = (chosen | low_rank) if low_rank else set()
        if update.kind == "adapter_only":
            chosen |= {name for name in names if any(lora.is_adapter(alias) for alias in aliases[name])}
        names &= chosen
    if update.include:
        names = {name for name in names if _any_matches(aliases[name], update.include)}
    return {name for name in names if not _any_matches(aliases[name], update.exclude)}


def parameter_names(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """Return all names of each parameter, by the one that it has in ``model.named_parameters()``, which is the first.

    A parameter has several names where it is tied to another layer's, or where its module is registered twice.
    """
    found: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        found.setdefault(id(parameter), []).append(name)
    return {names[0]: tuple(names) for names in found.values()}


def norm_affine_names(model: nn.Module) -> set[str]:
    """Return the names of the affine parameters of normalisation layers, as in ``model.named_parameters()``."""
    affine = {
        id(parameter)
        for module in model.modules()
        if norm.is_norm(module) or norm.is_frozen_batch_norm(module) or _is_thawed(module)
        for parameter in module.parameters(recurse=False)
    }
    return {name for name, parameter in model.named_parameters() if id(parameter) in affine}


def _layer_names(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """Return all names of each module, by the one that it has in ``model.named_modules()``."""
    found: dict[int, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        found.setdefault(id(module), []).append(name)
    return {names[0]: tuple(names) for names in found.values()}


def _any_matches(names: Sequence[str], patterns: Sequence[str]) -> bool:
    return any(matches(name, pattern) for name in names for pattern in patterns)


def _is_thawed(module: nn.Module) -> bool:
    own = {name for name, _ in module.named_parameters(recurse=False)}
    return own == {"weight", "bias"} and "running_var" in module._buffers


def describe(model: nn.Module) -> str:
    """Return a short text on a model for error messages: its layers by type, and its number of parameters."""
    counts = Counter(
        type(module).__name__ for module in model.modules() if next(module.parameters(recurse=False), None) is not None
    )
    layers = ", ".join(f"{count} {name}" for name, count in counts.most_common(6)) or "no layer with parameters"
    return f"{layers} ({sum(p.numel() for p in model.parameters())} parameters)"


def _nothing_selected(model: nn.Module, update: TensorFilter) -> str:
    wanted = f"filter {update.kind!r}"
    if update.include:
        wanted += f", include {list(update.include)}"
    if update.exclude:
        wanted += f", exclude {list(update.exclude)}"
    remedies = {
        "adapter_only": "attach low-rank weights with --lora-rank, or use a model with adapters",
        "lora_only": "attach low-rank weights with --lora-rank",
        "lora_norm_only": "attach low-rank weights with --lora-rank",
        "norm_only": "use the filter 'all'",
        "all": "check the patterns",
    }
    return (
        f"nothing to adapt: no parameter matches {wanted}; the model has {describe(model)}; {remedies[update.kind]}"
        + ("" if update.kind == "all" or not update.include else ", or check the patterns")
    )


def _norm_of(model: nn.Module) -> float:
    with torch.no_grad():
        return float(torch.stack([parameter.double().norm() for parameter in model.parameters()]).norm())


@contextmanager
def _channels_first(model: nn.Module) -> Iterator[None]:
    # A channels-last weight leads to channels-last activations, whose gradients are not safe (see core.layout).
    moved = [p for p in model.parameters() if p.dim() == 4 and p.device.type == "cpu" and not p.is_contiguous()]
    for parameter in moved:
        parameter.data = parameter.data.contiguous()
    try:
        yield
    finally:
        for parameter in moved:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)


def _restore_modes(modes: Sequence[tuple[nn.Module, bool]]) -> None:
    for module, training in modes:
        module.training = training


def _take_flags(model: nn.Module) -> list[tuple[nn.Parameter, bool, Tensor | None]]:
    flags = [(parameter, parameter.requires_grad, parameter.grad) for parameter in model.parameters()]
    # Gradients left by the caller would be added to those of the first step.
    for parameter, _, _ in flags:
        parameter.grad = None
    return flags


def _restore_flags(flags: Sequence[tuple[nn.Parameter, bool, Tensor | None]]) -> None:
    for parameter, requires_grad, gradient in flags:
        parameter.requires_grad_(requires_grad)
        parameter.grad = gradient
