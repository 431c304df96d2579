"""Low-rank weights (Hu et al. 2021, arXiv 2106.09685): attach, detach, save and load in PEFT's format.

The base layer is not replaced; a forward hook adds ``scale * up(down(x))`` to its output. So no parameter changes its
name, and torch does not use its fused transformer path, which reads the base weight directly and would bypass a
wrapper, on layers with hooks.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as serialized
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from acclimate.errors import CheckpointError, ConfigError, first_line
from acclimate.json_values import from_json
from acclimate.output_files import write_output

_CHILD: Final = "low_rank"
_PEFT_PREFIX: Final = "base_model.model."
_LOW_RANK_PARTS: Final = frozenset({_CHILD, "lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B", "lora"})


class LowRank(nn.Module):
    """A pair of small matrices whose product is added to a layer's output.

    Attributes:
        lora_A: ``(rank, in)``, or ``(rank, in, kh, kw)`` under a convolution; Kaiming-uniform.
        lora_B: ``(out, rank)``, or ``(out, rank, 1, 1)``; zero, so that attaching changes nothing.
        copies: number of independent pairs that share one forward pass; the rows of a batch are divided among them in
            equal blocks. With more than one, both matrices have a first dimension ``copies``; all pairs start from the
            same values.

    Args:
        layer: that they belong to.
        rank: of the product.
        alpha: scale times rank.
        rng: that the initial values are drawn from; None leaves ``lora_A`` to be filled by the caller.
        copies: see above.
    """

    def __init__(
        self, layer: nn.Module, *, rank: int, alpha: float, rng: torch.Generator | None, copies: int = 1
    ) -> None:
        super().__init__()
        weight = _weight(layer)
        self.scale = alpha / rank
        self.copies = copies
        self.fan_in_fan_out = _is_conv1d(layer)
        self.layer_settings: dict[str, Any] = {}
        if isinstance(layer, nn.Conv2d):
            self.layer_settings = {"stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation}
            down_shape: tuple[int, ...] = (rank, layer.in_channels, *layer.kernel_size)
            up_shape: tuple[int, ...] = (layer.out_channels, rank, 1, 1)
        else:
            # Conv1D of transformers keeps its weight as (in, out), a linear layer as (out, in).
            out_features, in_features = reversed(weight.shape) if _is_conv1d(layer) else weight.shape
            down_shape, up_shape = (rank, in_features), (out_features, rank)
        if rng is None:
            down = torch.empty(down_shape, device=weight.device)
        else:
            # Drawn on the CPU, so that one seed gives the same start on every device.
            bound = math.sqrt(1.0 / math.prod(down_shape[1:]))
            down = (torch.rand(down_shape, generator=rng) * 2 - 1) * bound
        if copies > 1:
            down, up_shape = down.expand(copies, *down_shape).contiguous(), (copies, *up_shape)
        self.lora_A = nn.Parameter(down.to(weight.device, torch.float32))
        self.lora_B = nn.Parameter(torch.zeros(up_shape, device=weight.device, dtype=torch.float32))

    def added(self, inputs: Tensor, output: Tensor) -> Tensor:
        """Return the layer's ``output`` with the low-rank product added."""
        down, up = self.lora_A.to(inputs.dtype), self.lora_B.to(inputs.dtype)
        if down.dim() == 4:
            hidden = nn.functional.conv2d(inputs, down, **self.layer_settings)
            return output + nn.functional.conv2d(hidden, up) * self.scale
        if self.copies == 1:
            down, up = down[None], up[None]
        return _Added.apply(output, inputs, down, up, self.scale)  # type: ignore[no-any-return, no-untyped-call]


class _Added(torch.autograd.Function):
    """Computes ``output + scale * inputs @ down.T @ up.T`` for blocks of rows, writing into ``output``.

    It records one node of the autograd graph instead of seven, which for small models cost as much as the arithmetic.
    ``output`` is the first argument because where it is a view, as with Conv1D, autograd takes the first returned
    gradient for that of the tensor written to.
    """

    @staticmethod
    def forward(ctx: Any, output: Tensor, inputs: Tensor, down: Tensor, up: Tensor, scale: float) -> Tensor:
        copies = len(down)
        rows = inputs.reshape(copies, -1, inputs.shape[-1])
        hidden = torch.bmm(rows, down.transpose(1, 2))
        ctx.mark_dirty(output)
        output.view(copies, -1, output.shape[-1]).baddbmm_(hidden, up.transpose(1, 2), alpha=scale)
        ctx.save_for_backward(rows, hidden, down, up)
        ctx.scale, ctx.shape = scale, inputs.shape
        return output

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        rows, hidden, down, up = ctx.saved_tensors
        (grad,) = grads
        scaled = grad.reshape(len(down), -1, grad.shape[-1])
        if ctx.scale != 1:
            scaled = scaled * ctx.scale
        inner = torch.bmm(scaled, up)
        inputs_grad = torch.bmm(inner, down).view(ctx.shape) if ctx.needs_input_grad[0] else None
        return (
            grad,
            inputs_grad,
            torch.bmm(inner.transpose(1, 2), rows),
            torch.bmm(scaled.transpose(1, 2), hidden),
            None,
        )


def is_low_rank(name: str) -> bool:
    """Return whether a parameter name belongs to low-rank weights (this package's or PEFT's), not to a base layer."""
    return any(part in _LOW_RANK_PARTS for part in name.split("."))


def is_adapter(name: str) -> bool:
    """Return whether a parameter name belongs to low-rank weights or to a module with "adapter" in its name."""
    return is_low_rank(name) or any("adapter" in part.lower() for part in name.split(".")[:-1])


def target_layers(model: nn.Module, wanted: Callable[[str], bool]) -> list[str]:
    """Return the names of the layers that can have low-rank weights and for which ``wanted`` returns True.

    These are linear layers (also of a class derived from torch's, as Falcon's are), transformers' Conv1D, and
    convolutions without groups. The output projection of ``nn.MultiheadAttention`` is left out: attention reads its
    weight and never calls it.
    """
    return [
        name
        for name, module in model.named_modules()
        if (_is_linear(module) or _is_conv1d(module) or (isinstance(module, nn.Conv2d) and module.groups == 1))
        and wanted(name)
        and _CHILD not in name.split(".")
    ]


def created(
    model: nn.Module,
    targets: Sequence[str],
    *,
    rank: int,
    alpha: float | None = None,
    seed: int | None = 0,
    copies: int = 1,
) -> dict[str, LowRank]:
    """Return low-rank weights for the layers named ``targets``, by layer name; the model is not changed.

    Args:
        model: any module.
        targets: names as :func:`target_layers` returns them.
        rank: at least 1.
        alpha: scale times rank; None means ``rank``.
        seed: of the initialisation; None leaves the weights to be filled by the caller.
        copies: number of independent low-rank weights, each for its own block of rows; linear layers only.

    Raises:
        ConfigError: the rank or the number of copies is below 1, a convolution should get several copies, or two of the
            names are of one layer.
    """
    if rank < 1 or copies < 1:
        raise ConfigError(f"rank and copies must be at least 1, got {rank} and {copies}")
    if copies > 1 and (found := [name for name in targets if isinstance(model.get_submodule(name), nn.Conv2d)]):
        raise ConfigError(f"{found[0]} is a convolution, which takes one copy of low-rank weights; got {copies}")
    first: dict[int, str] = {}
    for name in targets:
        other = first.setdefault(id(model.get_submodule(name)), name)
        if other != name:
            raise ConfigError(f"{other} and {name} are one layer, which takes one pair of low-rank weights; name one")
    rng = None if seed is None else torch.Generator().manual_seed(seed)
    return {
        name: LowRank(
            model.get_submodule(name), rank=rank, alpha=rank if alpha is None else alpha, rng=rng, copies=copies
        )
        for name in targets
    }


@contextmanager
def in_use(model: nn.Module, pairs: Mapping[str, LowRank]) -> Iterator[None]:
    """Let the layers of ``model`` add the low-rank products of ``pairs``, as :func:`created` makes them, inside it."""
    hooks = []
    placed = []
    try:
        for name, pair in pairs.items():
            layer = model.get_submodule(name)
            layer.add_module(_CHILD, pair)
            placed.append(layer)
            hooks.append(layer.register_forward_hook(_adding(pair)))
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for layer in placed:
            delattr(layer, _CHILD)


@contextmanager
def attached(
    model: nn.Module,
    targets: Sequence[str],
    *,
    rank: int,
    alpha: float | None = None,
    seed: int | None = 0,
    copies: int = 1,
) -> Iterator[dict[str, LowRank]]:
    """Attach new low-rank weights to the layers named ``targets`` inside the block; yield them by layer name.

    See :func:`created` for the arguments and the errors.
    """
    pairs = created(model, targets, rank=rank, alpha=alpha, seed=seed, copies=copies)
    with in_use(model, pairs):
        yield pairs


def nearest_of_rank(rank: int, down: Tensor, up: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """Return the product of rank ``rank`` that is nearest to ``up @ down``, as two factors, and all singular values.

    It is the product without its smaller singular values (Eckart and Young 1936).
    """
    outer, left_inner = torch.linalg.qr(up)
    inner, right_inner = torch.linalg.qr(down.T)
    left, values, right = torch.linalg.svd(left_inner @ right_inner.T, full_matrices=False)
    root = values[:rank].sqrt()
    return (root[:, None] * (right[:rank] @ inner.T), outer @ (left[:, :rank] * root)), values


def save(folder: Path, pairs: Mapping[str, LowRank], *, base_model: str | None = None) -> None:
    """Write ``pairs`` as ``adapter_config.json`` and ``adapter_model.safetensors``, which peft loads."""
    if not pairs:
        raise CheckpointError("there are no low-rank weights to save; attach them first")
    first = next(iter(pairs.values()))
    rank = first.lora_A.shape[0]
    write(
        folder,
        {name: (pair.lora_A, pair.lora_B) for name, pair in pairs.items()},
        rank=rank,
        alpha=first.scale * rank,
        fan_in_fan_out=first.fan_in_fan_out,
        base_model=base_model,
    )


def write(
    folder: Path,
    weights: Mapping[str, tuple[Tensor, Tensor]],
    *,
    rank: int,
    alpha: float,
    fan_in_fan_out: bool = False,
    base_model: str | None = None,
    task_type: str | None = None,
) -> None:
    """Write low-rank weights that are attached to no model; see :func:`save`.

    Args:
        folder: created if it does not exist.
        weights: ``lora_A`` and ``lora_B`` by layer name.
        rank: of all of them.
        alpha: scale times rank.
        fan_in_fan_out: whether the layers store their weights as ``(in, out)``.
        base_model: name or folder of the base model, written to the configuration.
        task_type: PEFT's name of what the model is for, from which its ``AutoPeftModel`` knows how to load it.
    """
    tensors = {
        f"{_PEFT_PREFIX}{name}.{part}.weight": tensor.detach().cpu().contiguous()
        for name, pair in weights.items()
        for part, tensor in zip(("lora_A", "lora_B"), pair, strict=True)
    }
    write_output(folder / "adapter_model.safetensors", serialized(tensors))
    config = {
        "peft_type": "LORA",
        "task_type": task_type,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": fan_in_fan_out,
        "target_modules": sorted(weights),
        "base_model_name_or_path": base_model,
        "inference_mode": True,
    }
    write_output(folder / "adapter_config.json", json.dumps(config, indent=2) + "\n")


@contextmanager
def loaded(model: nn.Module, folder: Path) -> Iterator[dict[str, LowRank]]:
    """Attach the low-rank weights that :func:`save` or peft wrote to ``folder`` inside the block.

    Raises:
        CheckpointError: files are missing or unreadable, use settings that are not supported, or do not fit the model.
    """
    try:
        config = from_json((folder / "adapter_config.json").read_text())
        tensors = load_file(str(folder / "adapter_model.safetensors"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{folder} holds no adapter: {error.filename} is missing") from error
    except (ValueError, OSError, SafetensorError) as error:
        raise CheckpointError(f"the adapter in {folder} cannot be read: {first_line(error)}") from error
    unsupported = [key for key in ("use_rslora", "use_dora", "rank_pattern", "alpha_pattern") if config.get(key)]
    if unsupported or config.get("bias", "none") != "none" or not {"r", "lora_alpha"} <= config.keys():
        raise CheckpointError(f"{folder}/adapter_config.json uses {unsupported or 'settings'} that are not supported")
    names = sorted({key.removeprefix(_PEFT_PREFIX).rsplit(".lora_", 1)[0] for key in tensors})
    modules = dict(model.named_modules())
    if missing := [name for name in names if name not in modules]:
        raise CheckpointError(f"{folder} has weights for {missing[0]!r}, which this model does not have")
    with attached(model, names, rank=config["r"], alpha=config["lora_alpha"], seed=None) as pairs:
        with torch.no_grad():
            for name, pair in pairs.items():
                for part in ("lora_A", "lora_B"):
                    stored = tensors.get(f"{_PEFT_PREFIX}{name}.{part}.weight")
                    if stored is None or stored.shape != getattr(pair, part).shape:
                        raise CheckpointError(f"the adapter in {folder} does not fit the layer {name!r}")
                    getattr(pair, part).copy_(stored)
        yield pairs


def _adding(pair: LowRank) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
    return lambda _layer, inputs, output: pair.added(inputs[0], output)


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) and not isinstance(module, NonDynamicallyQuantizableLinear)


def _is_conv1d(module: nn.Module) -> bool:
    return type(module).__name__ == "Conv1D" and isinstance(getattr(module, "weight", None), Tensor)


def _weight(layer: nn.Module) -> Tensor:
    weight = layer.weight
    if not isinstance(weight, Tensor):
        raise TypeError(f"{type(layer).__name__} has no weight tensor")
    return weight
