"""Small real networks that tests share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn


def classifier(kind: str = "bn", *, classes: int = 5, seed: int = 0) -> nn.Module:
    """A convolutional classifier of (B, 3, 16, 16) with BatchNorm, GroupNorm or LayerNorm, in eval mode."""
    torch.manual_seed(seed)
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
    torch.manual_seed(seed)
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
