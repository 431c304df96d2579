"""Small real networks that tests share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn


def classifier(kind: str = "bn", *, classes: int = 5, seed: int = 0) -> nn.Module:
    """A convolutional classifier of (B, 3, 16, 16) with BatchNorm, GroupNorm or LayerNorm, in eval mode."""
    # Not torch.manual_seed: where no GPU is used it notes the call with its stack, in milliseconds, for later.
    torch.default_generator.manual_seed(seed)
    norm: nn.Module = {
        "bn": nn.BatchNorm2d(8),
        "gn": nn.GroupNorm(4, 8),
        "ln": nn.LayerNorm([8, 8, 8]),
    }[kind]
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),
        norm,
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, classes),
    )
    if kind == "bn":
        # Statistics that no batch of the tests has, so that modes of normalisation can be told apart.
        norm.running_mean.uniform_(-0.2, 0.2)
        norm.running_var.uniform_(0.5, 1.5)
    return model.eval()


def segmenter(kind: str = "bn", *, classes: int = 5, seed: int = 0) -> nn.Module:
    """A network that returns logits at half the size of (B, 3, 16, 16), with BatchNorm or LayerNorm, in eval mode."""
    torch.default_generator.manual_seed(seed)
    norm: nn.Module = nn.BatchNorm2d(8) if kind == "bn" else nn.LayerNorm([8, 8, 8])
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),
        norm,
        nn.ReLU(),
        nn.Conv2d(8, classes, 1),
    )
    # Smooth images have several classes.
    with torch.no_grad():
        model[-1].weight.normal_(0, 3)
        model[-1].bias.zero_()
    if kind == "bn":
        norm.running_mean.uniform_(-0.2, 0.2)
        norm.running_var.uniform_(0.5, 1.5)
    return model.eval()


class SharedModule(nn.Module):
    """The layers of a classifier registered under two names, of which the second one is called."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.backbone = network
        self.features = nn.Sequential(*network.children())

    def forward(self, images: Tensor) -> Tensor:
        return self.features(images)


class FrozenBatchNorm(nn.Module):
    """As the DETR family has it: even the affine parameters are buffers."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.linspace(0.5, 1.5, channels))
        self.register_buffer("bias", torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels), persistent=False)

    def forward(self, inputs: Tensor) -> Tensor:
        shape = (1, -1, 1, 1)
        scale = self.weight.reshape(shape) * (self.running_var.reshape(shape) + 1e-5).rsqrt()
        return inputs * scale + self.bias.reshape(shape) - self.running_mean.reshape(shape) * scale


class Tied(nn.Module):
    """Two blocks that have the same parameters, in layers of their own, and in a list that torch does not see."""

    def __init__(self, *, frozen: bool = False) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.conv1, self.conv2 = (nn.Conv2d(8, 8, 3, padding=1) for _ in range(2))
        self.norm1, self.norm2 = (FrozenBatchNorm(8) if frozen else nn.BatchNorm2d(8) for _ in range(2))
        self.head = nn.Linear(8, 5)
        for name in ("weight", "bias"):
            setattr(self.conv2, name, getattr(self.conv1, name))
            setattr(self.norm2, name, getattr(self.norm1, name))
        self.also = [] if frozen else [self.norm1.bias]
        if frozen:
            self.again = self.norm1

    def forward(self, images: Tensor) -> Tensor:
        found = self.norm1(self.conv1(self.stem(images))).relu()
        found = self.norm2(self.conv2(found)).relu()
        for bias in self.also:
            found = found + bias.reshape(1, -1, 1, 1)
        return self.head(found.mean((2, 3))) * 4


def shared_module(*, seed: int = 0) -> SharedModule:
    return SharedModule(classifier(seed=seed)).eval()


def tied(*, frozen: bool = False, seed: int = 0) -> Tied:
    torch.default_generator.manual_seed(seed)
    return Tied(frozen=frozen).eval()


def objects_of(model: nn.Module) -> list[tuple[Any, ...]]:
    """Every module, parameter and buffer by name, in order, as the objects themselves."""
    return [
        (name, module, kind, key, value)
        for name, module in model.named_modules(remove_duplicate=False)
        for kind in ("_parameters", "_buffers", "_modules")
        for key, value in getattr(module, kind).items()
    ]


def assert_same_objects(model: nn.Module, before: list[tuple[Any, ...]]) -> None:
    """The model consists of the same objects under the same names, in the same order."""
    after = objects_of(model)
    assert [(name, kind, key) for name, _, kind, key, _ in after] == [(n, kind, key) for n, _, kind, key, _ in before]
    for (name, module, _, key, value), (_, old_module, _, _, old_value) in zip(after, before, strict=True):
        assert module is old_module, name
        assert value is old_value, f"{name}.{key} is another object"


class Detector(nn.Module):
    """A DETR-like toy: (B, 3, 32, 32) to 16 queries with class logits and boxes."""

    def __init__(self, *, head: str = "sigmoid", classes: int = 3, norm: str = "bn") -> None:
        super().__init__()
        columns = classes + (head == "softmax")
        self.stem = nn.Conv2d(3, 16, 8, stride=8)
        self.scaling = {"bn": nn.BatchNorm2d(16), "gn": nn.GroupNorm(4, 16), "ln": nn.LayerNorm([16, 4, 4])}[norm]
        self.classes = nn.Linear(16, columns)
        self.boxes = nn.Linear(16, 4)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        queries = self.scaling(self.stem(images)).relu().flatten(2).transpose(1, 2)
        return {"logits": self.classes(queries) * 4, "pred_boxes": self.boxes(queries).sigmoid()}


def detector(*, head: str = "sigmoid", norm: str = "bn", seed: int = 0) -> Detector:
    torch.default_generator.manual_seed(seed)
    return Detector(head=head, norm=norm).eval()


def images(count: int = 8, *, side: int = 16, seed: int = 1) -> Tensor:
    return torch.rand((count, 3, side, side), generator=torch.Generator().manual_seed(seed))


def write_images(folder: Path, count: int, *, side: int = 32, seed: int = 0) -> list[Path]:
    """Write PNG files of smooth random colours."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        path = folder / f"image_{number:03d}.png"
        coarse.resize((side, side), Image.Resampling.BICUBIC).save(path)
        paths.append(path)
    return paths


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """A copy of every parameter and buffer."""
    return {name: value.detach().clone() for name, value in model.state_dict(keep_vars=True).items()}


def assert_identical(model: nn.Module, before: dict[str, Tensor]) -> None:
    """Every parameter and buffer is as it was, to the bit."""
    after = model.state_dict()
    assert set(after) == set(before)
    for name, value in before.items():
        assert torch.equal(after[name], value), f"{name} changed"
