"""Normalisation layers: finding them, and choosing which statistics BatchNorm uses inside a block."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from acclimate.core.outputs import at_least_float32
from acclimate.errors import EmptySelectionError

Moments = tuple[Tensor, Tensor]
"""Mean and variance of each channel."""

_AFFINE: Final = ("weight", "bias")
_SOURCE_STATISTICS: Final[ContextVar[bool]] = ContextVar("source_statistics", default=False)
_SOURCE_LAYERS: Final[ContextVar[frozenset[int]]] = ContextVar("source_layers", default=frozenset())


@contextmanager
def source_statistics() -> Iterator[None]:
    """Inside the block, BatchNorm uses the source's statistics, even inside :func:`statistics`."""
    token = _SOURCE_STATISTICS.set(True)
    try:
        yield
    finally:
        _SOURCE_STATISTICS.reset(token)


def _uses_source(layer: nn.Module) -> bool:
    return _SOURCE_STATISTICS.get() or id(layer) in _SOURCE_LAYERS.get()


@contextmanager
def early_batch_statistics(model: nn.Module, *, share: float) -> Iterator[int]:
    """Inside the block, the first BatchNorm layers use the batch's statistics and the others the source's.

    This also holds inside :func:`statistics`. Damage to images shows in the statistics of the first layers, where the
    mix of classes hardly matters.

    Args:
        model: any module; the order of its layers is that in which they were defined.
        share: of the BatchNorm layers that are the first ones.

    Yields:
        The number of layers that use the batch's statistics.
    """
    layers = list(batch_norms(model).values())
    first = layers[: round(share * len(layers))]
    token = _SOURCE_LAYERS.set(frozenset(id(layer) for layer in layers[len(first) :]))
    try:
        with ExitStack() as stack:
            for layer in first:
                stack.enter_context(
                    _batch_mode(layer) if isinstance(layer, _BatchNorm) else _substituted(layer, _of_batch)
                )
            yield len(first)
    finally:
        _SOURCE_LAYERS.reset(token)


def _of_batch(inputs: Tensor, mean: Tensor, var: Tensor) -> Moments:
    return (mean, var) if _values_per_channel(inputs) <= 1 else moments(inputs)


def is_frozen_batch_norm(module: nn.Module) -> bool:
    """Return whether ``module`` is a BatchNorm whose affine parameters are buffers too (DETR family)."""
    if isinstance(module, torch.jit.ScriptModule):
        # Its buffers cannot be exchanged.
        return False
    names = {name for name, buffer in module._buffers.items() if buffer is not None}
    return not isinstance(module, _BatchNorm) and {"weight", "bias", "running_mean", "running_var"} <= names


def batch_norms(model: nn.Module) -> dict[str, nn.Module]:
    """Return the BatchNorm layers of ``model`` by name, frozen ones included."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) or is_frozen_batch_norm(module)
    }


def is_norm(module: nn.Module) -> bool:
    """Return whether ``module`` normalises activations: BatchNorm, LayerNorm, GroupNorm, RMSNorm and similar ones."""
    if isinstance(module, _BatchNorm | nn.LayerNorm | nn.GroupNorm | nn.modules.instancenorm._InstanceNorm):
        return True
    # Models define their own (LlamaRMSNorm, LayerNorm2d, ...): recognise them by name and by having vectors only.
    own = list(module.parameters(recurse=False))
    return "norm" in type(module).__name__.lower() and bool(own) and all(p.dim() <= 1 for p in own)


@contextmanager
def thawed(model: nn.Module) -> Iterator[tuple[str, ...]]:
    """Turn the affine buffers of frozen BatchNorm layers into parameters inside the block; yield the layers' names.

    A buffer that several layers share becomes one parameter. On exit the same buffer objects are registered again, in
    their old order, with the values that the parameters have then.
    """
    layers = {name: module for name, module in model.named_modules() if is_frozen_batch_norm(module)}
    buffers = [(module, dict(module._buffers)) for module in layers.values()]
    parameters: dict[int, nn.Parameter] = {}
    for module in layers.values():
        for name in _AFFINE:
            buffer = module._buffers.pop(name)
            if buffer is not None and id(buffer) not in parameters:
                parameters[id(buffer)] = nn.Parameter(buffer, requires_grad=False)
            module.register_parameter(name, parameters.get(id(buffer)))
    try:
        yield tuple(layers)
    finally:
        for module, before in buffers:
            for name in _AFFINE:
                value, buffer = module._parameters.pop(name), before[name]
                # They share their memory, unless the parameter was given other contents inside the block.
                if value is not None and buffer is not None and value.data_ptr() != buffer.data_ptr():
                    with torch.no_grad():
                        buffer.copy_(value)
            others = {name: buffer for name, buffer in module._buffers.items() if name not in before}
            present = {name: module._buffers.get(name, buffer) for name, buffer in before.items()}
            module._buffers.clear()
            module._buffers.update(present | others)


@contextmanager
def statistics(
    model: nn.Module,
    *,
    source_strength: float | None = 0.0,
    batch_weight: float | None = None,
    early_weight: float = 0.0,
) -> Iterator[int]:
    """Inside the block, BatchNorm uses the statistics of the batch, mixed with the source's.

    The running buffers are not changed, and on exit every layer is as before. Yields the number of BatchNorm layers.

    Args:
        model: any module.
        source_strength: N of Schneider et al. 2020 (eq. 1), the number of samples that the source statistics
            count for: mean = N / (N + n) source + n / (N + n) batch, for n samples in the batch; likewise the
            variance. 0 uses the batch alone, through the fused training kernel; None takes N = n, half and half.
        batch_weight: replaces ``source_strength``: the weight of the batch's statistics, whatever its size.
        early_weight: so much more is the weight in the first layer, and less in the last, linear in between; the order
            of the layers is that in which they were defined. Used with a ``batch_weight`` below 1.

    Raises:
        EmptySelectionError: statistics are to be mixed and the model has no BatchNorm.
    """
    layers = batch_norms(model)
    if batch_weight is not None:
        source_strength = 0.0 if batch_weight >= 1 else None
    if source_strength != 0 and not layers:
        raise EmptySelectionError(
            "mixing statistics needs BatchNorm layers and this model has none; use tent, eata, sar, cotta or mim"
        )

    def blended(weight: float | None, inputs: Tensor, mean: Tensor, var: Tensor) -> Moments:
        if _values_per_channel(inputs) <= 1:
            return mean, var
        return mixed(inputs, mean, var, source_strength=source_strength, batch_weight=weight)

    with ExitStack() as stack:
        for number, module in enumerate(layers.values()):
            if source_strength == 0 and isinstance(module, _BatchNorm):
                stack.enter_context(_batch_mode(module))
                continue
            weight = batch_weight
            if weight is not None and early_weight != 0:
                place = 1 - 2 * number / max(1, len(layers) - 1)
                weight = min(1.0, max(0.0, weight + early_weight * place))
            stack.enter_context(_substituted(module, partial(blended, weight)))
        yield len(layers)


@contextmanager
def _batch_mode(module: _BatchNorm) -> Iterator[None]:
    # In training mode without tracking, the fused kernel uses the batch's statistics and does not update the buffers.
    before = module.training, module.track_running_stats
    module.track_running_stats = False

    def only_where_defined(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        # One value per channel has no variance, and torch raises in training mode: use the source's statistics.
        batch = _values_per_channel(inputs[0]) > 1 and not _uses_source(layer)
        layer.training = batch or layer.running_mean is None

    handle = module.register_forward_pre_hook(only_where_defined)
    try:
        yield
    finally:
        handle.remove()
        module.training, module.track_running_stats = before


@contextmanager
def _substituted(module: nn.Module, replacement: Callable[[Tensor, Tensor, Tensor], Moments]) -> Iterator[None]:
    # The layer's own eval-mode kernel is called with other statistics in its buffers. This also works for frozen
    # layers, which have no training mode and whose own arithmetic propagates gradients through the statistics.
    saved: list[Moments] = []
    mode = module.training

    def substitute(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        source_mean, source_var = layer._buffers["running_mean"], layer._buffers["running_var"]
        if source_mean is None or source_var is None or _uses_source(layer):
            return
        saved.append((source_mean, source_var))
        mean, var = replacement(inputs[0], source_mean, source_var)
        # Statistics of half precision are computed in float32.
        mean, var = mean.to(source_mean.dtype), var.to(source_var.dtype)
        if isinstance(layer, _BatchNorm):
            # Its eval-mode kernel has no gradient for the statistics.
            mean, var = mean.detach(), var.detach()
        layer._buffers["running_mean"], layer._buffers["running_var"] = mean, var

    def restore(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if saved:
            layer._buffers["running_mean"], layer._buffers["running_var"] = saved.pop()

    module.eval()
    hooks = (
        module.register_forward_pre_hook(substitute),
        # always_call: after a forward pass that raises, the layer's own statistics must be restored too.
        module.register_forward_hook(restore, always_call=True),
    )
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        module.training = mode


@contextmanager
def running_statistics(
    model: nn.Module,
    memory: Mapping[str, Moments],
    *,
    memory_weight: float,
    rate: float,
    between: bool = True,
    sampled: bool = False,
    full_shift: float = 0.0,
    outputs_of: Mapping[str, Moments] | None = None,
    used: dict[str, Moments] | None = None,
    weights: dict[str, Tensor] | None = None,
) -> Iterator[dict[str, Moments]]:
    """Inside the block, BatchNorm uses running statistics of the stream, mixed with the source's.

    The layers' own buffers (``running_mean``, ``running_var``) are not changed.

    Args:
        model: any module; layers other than BatchNorm and those of ``outputs_of`` are not affected.
        memory: running mean and variance by layer name; layers that are not in it start from the source's.
        memory_weight: weight of the running statistics in the mixture; that of the source's is one minus it.
        rate: rate of the exponential moving average, which is updated with each batch before it is used; 0 never
            updates it.
        between: whether the running variance includes the variance between the means of old and new statistics, as
            that of a mixture does; otherwise it is the average of the two variances.
        sampled: whether the statistics of large batches come from a third of the rows (:func:`sampled_moments`).
        full_shift: where the mean :func:`shift` of a BatchNorm layer and of those before it is smaller than this, the
            weight of the running statistics is smaller in proportion; 0 always uses ``memory_weight``.
        outputs_of: the source's moments of the outputs of layers, by name, from :func:`output_moments`. The outputs of
            these layers are scaled and shifted by channel as a BatchNorm with these moments would do: from the mixed
            statistics to the source's.
        used: gets the mixed statistics of each layer, for :func:`fixed_statistics`.
        weights: of the running statistics by layer name, used where they are known, and kept where they are computed:
            another view of the same images is as far from the source.

    Yields:
        The running statistics by layer name, updated as batches pass.
    """
    updated = dict(memory)
    moments_of = sampled_moments if sampled else moments
    shifts: dict[str, Tensor] = {}
    outputs = outputs_of or {}

    def weight_of(name: str, found: Moments, source: Moments) -> Tensor | float:
        if full_shift == 0 or name in outputs:
            # Outputs were normalised for each image, which leaves little of a shift, and that little counts.
            return memory_weight
        if weights is not None and name in weights:
            return weights[name]
        if name in shifts:
            # The model is called once more.
            shifts.clear()
        before = next(reversed(shifts.values()), None)
        here = shift(found, source)
        shifts[name] = total = here if before is None else before + here
        weight = (total * (memory_weight / (full_shift * len(shifts)))).clamp_(max=memory_weight)
        if weights is not None:
            weights[name] = weight
        return weight

    def mixed_with_source(name: str, inputs: Tensor, source_mean: Tensor, source_var: Tensor) -> Moments:
        source_mean, source_var = at_least_float32(source_mean), at_least_float32(source_var)
        mean, var = updated.get(name, (source_mean, source_var))
        if rate > 0 and _values_per_channel(inputs) > 1:
            batch_mean, batch_var = moments_of(inputs.detach())
            var = torch.lerp(var, batch_var, rate)
            if between:
                step = batch_mean - mean
                var.addcmul_(step, step, value=rate * (1 - rate))
            mean = torch.lerp(mean, batch_mean, rate)
            updated[name] = (mean, var)
        weight = weight_of(name, (mean, var), (source_mean, source_var))
        found = torch.lerp(source_mean, mean, weight), torch.lerp(source_var, var, weight)
        if used is not None:
            used[name] = found
        return found

    with ExitStack() as stack:
        for name, layer in batch_norms(model).items():
            stack.enter_context(_substituted(layer, partial(mixed_with_source, name)))
        for name, source in outputs.items():
            stack.enter_context(_realigned(model.get_submodule(name), partial(mixed_with_source, name), source))
        yield updated


@contextmanager
def fixed_statistics(
    model: nn.Module, known: Mapping[str, Moments], *, outputs_of: Mapping[str, Moments] | None = None
) -> Iterator[None]:
    """Inside the block, layers use statistics that :func:`running_statistics` mixed before; nothing is computed.

    Args:
        model: any module.
        known: mean and variance by layer name; other layers keep their own.
        outputs_of: that of :func:`running_statistics`.
    """
    before: list[tuple[nn.Module, dict[str, Tensor | None], bool]] = []
    with ExitStack() as stack:
        for name, source in (outputs_of or {}).items():
            if name in known:
                stack.enter_context(_realigned(model.get_submodule(name), partial(_known, known[name]), source))
        try:
            for name, layer in batch_norms(model).items():
                own = {key: layer._buffers[key] for key in ("running_mean", "running_var")}
                if name not in known or own["running_mean"] is None:
                    continue
                before.append((layer, own, layer.training))
                for key, value, present in zip(own, known[name], own.values(), strict=True):
                    layer._buffers[key] = value if present is None else value.to(present.dtype)
                layer.training = False
            yield
        finally:
            for layer, own, mode in before:
                layer._buffers.update(own)
                layer.training = mode


def _known(found: Moments, inputs: Tensor, mean: Tensor, var: Tensor) -> Moments:
    return found


_SMALLEST_VARIANCE: Final = 1e-5


@contextmanager
def _realigned(
    module: nn.Module, mixture: Callable[[Tensor, Tensor, Tensor], Moments], source: Moments
) -> Iterator[None]:
    def realign(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        if _uses_source(layer):
            return None
        wide = _channels_second(layer, output)
        mean, var = mixture(wide, *source)
        factor = ((source[1] + _SMALLEST_VARIANCE) / (var + _SMALLEST_VARIANCE)).sqrt()
        shape = (1, -1, *(1,) * (wide.dim() - 2))
        moved = wide * factor.view(shape).to(wide) + (source[0] - factor * mean).view(shape).to(wide)
        return moved if wide is output else moved.movedim(1, -1)

    handle = module.register_forward_hook(realign)
    try:
        yield
    finally:
        handle.remove()


def _channels_second(layer: nn.Module, output: Tensor) -> Tensor:
    """Return the output of a normalisation layer as ``(B, C, ...)``: LayerNorm has channels last."""
    if isinstance(layer, nn.GroupNorm | nn.modules.instancenorm._InstanceNorm):
        return output
    channels = next(layer.parameters(recurse=False)).numel()
    if output.dim() == 4 and output.shape[1] == channels != output.shape[-1]:
        return output
    return output.movedim(-1, 1)


@torch.no_grad()
def output_moments(model: nn.Module, run: Callable[[], None]) -> dict[str, Moments]:
    """Return mean and variance by channel of the outputs of normalisation layers other than BatchNorm, by layer name.

    Layers without weights by channel are left out.

    Args:
        model: any module.
        run: calls the model, as often as wanted.
    """
    sums: dict[str, tuple[Tensor, Tensor, int]] = {}

    def add(name: str, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        wide = at_least_float32(_channels_second(layer, output))
        dims, count = [0, *range(2, wide.dim())], _values_per_channel(wide)
        found = (wide.sum(dims), wide.square().sum(dims), count)
        before = sums.get(name)
        sums[name] = found if before is None else (before[0] + found[0], before[1] + found[1], before[2] + count)

    with ExitStack() as stack:
        for name, module in model.named_modules():
            own = list(module.parameters(recurse=False))
            # A LayerNorm over several dimensions has no channels.
            if is_norm(module) and not isinstance(module, _BatchNorm) and own and own[0].dim() == 1:
                stack.callback(module.register_forward_hook(partial(add, name)).remove)
        run()
    return {
        name: (total / count, (squares / count - (total / count).square()).clamp(min=0))
        for name, (total, squares, count) in sums.items()
    }


def moments(inputs: Tensor) -> Moments:
    """Return mean and variance ``(C,)`` of each channel of ``(B, C, ...)``, differentiable where ``inputs`` are.

    Those of inputs in half precision are float32.
    """
    inputs = at_least_float32(inputs)
    if inputs.requires_grad and torch.is_grad_enabled():
        var, mean = torch.var_mean(inputs, dim=[0, *range(2, inputs.dim())], correction=0)
        return mean, var
    # BatchNorm's own reduction: on the CPU four times as fast as var_mean over these dimensions.
    mean, var = torch.batch_norm_update_stats(inputs, None, None, 0.0)
    return mean, var


_ROW_STEP: Final = 3
_ENOUGH_VALUES: Final = 2**14
"""So many values of a channel give its mean to a hundredth of its deviation."""


def sampled_moments(inputs: Tensor) -> Moments:
    """Return what :func:`moments` does, of large inputs ``(B, C, H, W)`` from every third row.

    On the CPU this takes a quarter to two thirds of the time.
    """
    if inputs.dim() == 4 and _values_per_channel(inputs) >= _ROW_STEP * _ENOUGH_VALUES and inputs.shape[2] > _ROW_STEP:
        # Strided rows as they are would be read many times more slowly than copied ones.
        inputs = inputs[:, :, ::_ROW_STEP].contiguous(memory_format=torch.channels_last)
    return moments(inputs)


_DEAD_VARIANCE: Final = 1e-6
"""Channels with less than this share of the layer's largest variance are the same for every image."""
_LEAST_VARIANCE: Final = 1e-3


def shift(found: Moments, source: Moments) -> Tensor:
    """Return how far the statistics of a layer are from the source's, as the median channel's divergence.

    It is the second-order approximation of the Kullback-Leibler divergence between normal distributions: half the
    squared difference of the means, in standard deviations of the source, plus a quarter of the squared logarithm of
    the ratio of the variances; the median of each.
    """
    (mean, var), (source_mean, source_var) = found, source
    least = _LEAST_VARIANCE * source_var
    means = (mean - source_mean).square_().div_(source_var)
    ratios = (var + least).div_(source_var + least).log_().square_()
    both = torch.stack((means, ratios))
    both.masked_fill_(source_var <= _DEAD_VARIANCE * source_var.max(), math.nan)
    medians = both.nanmedian(1).values
    # A layer without any variance has no median, and nothing to say.
    return (medians[0] / 2 + medians[1] / 4).nan_to_num_(0.0)


@contextmanager
def measured_shifts(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Inside the block, the :func:`shift` of each BatchNorm layer's inputs from its own statistics is measured.

    Yields:
        The shifts by layer name, those of the newest pass.
    """
    found: dict[str, Tensor] = {}

    def measure(name: str, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        mean, var = layer._buffers.get("running_mean"), layer._buffers.get("running_var")
        if mean is not None and var is not None and _values_per_channel(inputs[0]) > 1:
            source = at_least_float32(mean), at_least_float32(var)
            found[name] = shift(moments(inputs[0].detach()), source)

    with ExitStack() as stack:
        for name, layer in batch_norms(model).items():
            stack.callback(layer.register_forward_pre_hook(partial(measure, name)).remove)
        yield found


def mean_shift(shifts: Mapping[str, Tensor]) -> float:
    """Return the mean over layers of what :func:`measured_shifts` found, at least one."""
    return float(torch.stack(list(shifts.values())).mean())


def mixed(
    inputs: Tensor,
    source_mean: Tensor,
    source_var: Tensor,
    *,
    source_strength: float | None,
    batch_weight: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the mixture of the source's and the batch's mean and variance, each ``(C,)``; inputs ``(B, C, ...)``.

    ``source_strength`` and ``batch_weight`` are those of :func:`statistics`.
    """
    mean, var = moments(inputs)
    if source_strength == 0:
        return mean, var
    source_mean, source_var = source_mean.to(mean.dtype), source_var.to(var.dtype)
    weight = 0.5 if source_strength is None else len(inputs) / (len(inputs) + source_strength)
    if batch_weight is not None:
        weight = batch_weight
    return torch.lerp(source_mean, mean, weight), torch.lerp(source_var, var, weight)


def _values_per_channel(inputs: Tensor) -> int:
    return inputs.numel() // max(1, inputs.shape[1])
