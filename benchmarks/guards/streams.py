"""Streams that break a method that adapts: each one thing that goes wrong with cameras, scenes or settings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from acclimate.vision.data.corruptions import corrupt

BATCH = 64
REPORTED = (
    "gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "zoom_blur", "fog", "brightness", "contrast",
    "pixelate", "jpeg",
)  # fmt: skip
# On what thresholds were chosen: corruptions and severities that are not reported.
TUNED = (
    "motion_blur:5", "frost:3", "snow:4", "gaussian_noise:3", "fog:3", "contrast:3", "jpeg:3", "pixelate:3",
    "motion_blur:3", "snow:2",
)  # fmt: skip


@dataclass(frozen=True)
class Batch:
    """Images ``(B, 3, 32, 32)``; a label of -1 marks an image that is no real one and is not counted."""

    images: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Images:
    """Every condition's images, in the same order, and their labels."""

    conditions: Mapping[str, Tensor]
    labels: Tensor

    @property
    def corruptions(self) -> tuple[str, ...]:
        return tuple(name for name in self.conditions if name != "clean")

    @classmethod
    def reported(cls, folder: Path) -> Images:
        """Return the images on which the results are reported."""
        arrays = np.load(folder / "report_corrupted.npz")
        conditions = {name: to_tensor(arrays[name]) for name in ("clean", *REPORTED)}
        return cls(conditions, torch.from_numpy(arrays["labels"].astype(np.int64)))

    @classmethod
    def tuned(cls, folder: Path, *, count: int = 846, start: int = 0) -> Images:
        """Return images on which thresholds were chosen."""
        arrays = np.load(folder / "tune_jpeg.npz")
        order = np.random.default_rng(0).permutation(len(arrays["labels"]))[start : start + count]
        images = arrays["images"][order]
        conditions = {"clean": to_tensor(images)}
        for name in TUNED:
            kind, severity = name.split(":")
            changed = [corrupt(image, kind, severity=int(severity), seed=n) for n, image in enumerate(images)]
            conditions[name] = to_tensor(np.stack(changed))
        return cls(conditions, torch.from_numpy(arrays["labels"][order].astype(np.int64)))

    def mixed(self, condition: str, *, count: int | None = None, batch: int = BATCH) -> Iterator[Batch]:
        """Yield a condition's images in their order."""
        images, labels = self.conditions[condition][:count], self.labels[:count]
        for rows in torch.arange(len(labels)).split(batch):
            yield Batch(images[rows], labels[rows])

    def continual(self) -> Iterator[Batch]:
        """Yield all corruptions, one after the other."""
        for name in self.corruptions:
            yield from self.mixed(name)


def with_nan_and_infinity(data: Images, model: nn.Module) -> Iterator[Batch]:
    """Every third batch has one image of NaN or of infinity among real ones."""
    for number, batch in enumerate(data.continual()):
        images, labels = batch.images.clone(), batch.labels.clone()
        if number % 3 == 1:
            images[number % len(images)] = float("nan") if number % 2 else float("inf")
            labels[number % len(images)] = -1
        yield Batch(images, labels)


def black_and_constant(data: Images, model: nn.Module) -> Iterator[Batch]:
    """After every second batch one of black or of one constant colour; every fourth batch is half black."""
    for number, batch in enumerate(data.continual()):
        images, labels = batch.images.clone(), batch.labels.clone()
        if number % 4 == 3:
            images[: len(images) // 2], labels[: len(images) // 2] = 0.0, -1
        yield Batch(images, labels)
        if number % 2:
            shade = 0.0 if number % 4 == 1 else (number % 10) / 10
            yield Batch(torch.full_like(images, shade), torch.full_like(labels, -1))


def one_class(label: int, only: str | None = None) -> Callable[[Images, nn.Module], Iterator[Batch]]:
    """One class for 1,000 images in a row, clean and then under each corruption, mirrored images the second time."""

    def stream(data: Images, model: nn.Module) -> Iterator[Batch]:
        chosen = data.labels == label
        names = [only] if only else list(data.conditions)
        once = torch.cat([data.conditions[name][chosen] for name in names])
        repeats = -(-1000 // (2 * len(once)))
        images = torch.cat([once, once.flip(-1)] * repeats)[:1000]
        for part in images.split(BATCH):
            yield Batch(part, torch.full((len(part),), label))

    return stream


def batches_of_one(data: Images, model: nn.Module) -> Iterator[Batch]:
    """Images one by one, clean first."""
    for name in ("clean", *data.corruptions[::3]):
        yield from data.mixed(name, count=100, batch=1)


def clean_corrupted_clean(data: Images, model: nn.Module) -> Iterator[Batch]:
    """A clean stream that is corrupted for a while."""
    yield from data.mixed("clean")
    for name in data.corruptions[:3]:
        yield from data.mixed(name)
    yield from data.mixed("clean")


def noise_instead_of_images(data: Images, model: nn.Module) -> Iterator[Batch]:
    """Ten batches of random values before each condition, clean ones included."""
    rng = torch.Generator().manual_seed(0)
    for name in data.conditions:
        for _ in range(10):
            yield Batch(torch.rand(BATCH, 3, 32, 32, generator=rng), torch.full((BATCH,), -1))
        yield from data.mixed(name, count=256)


def plain(data: Images, model: nn.Module) -> Iterator[Batch]:
    """All corruptions, one after the other; what goes wrong is the setting."""
    yield from data.continual()


def adversarial(data: Images, model: nn.Module) -> Iterator[Batch]:
    """Made against Tent: 800 single images that the model takes for one class, in the noise; then the real stream.

    Statistics of one image leave it unsure, and the way to be sure that works on all of them is one class.
    """
    pool = torch.cat([data.conditions[name] for name in data.corruptions[:3]])
    with torch.no_grad():
        probability = torch.cat([model(part).softmax(-1) for part in pool.split(256)])
    target = int(probability.mean(0).argmax())
    order = probability[:, target].argsort(descending=True)[:800]
    for rows in order.split(1):
        yield Batch(pool[rows], torch.full((len(rows),), -1))
    for name in data.conditions:
        yield from data.mixed(name, count=256)


def ordered_by_class(data: Images, model: nn.Module) -> Iterator[Batch]:
    """Every corruption, its images ordered by class."""
    order = torch.argsort(data.labels, stable=True)
    for name in data.corruptions:
        for rows in order.split(BATCH):
            yield Batch(data.conditions[name][rows], data.labels[rows])


def clean(data: Images, model: nn.Module) -> Iterator[Batch]:
    """Images as in training: there is nothing to adapt to."""
    yield from data.mixed("clean")


def upside_down(data: Images, model: nn.Module) -> Iterator[Batch]:
    """Turned upside down, clean and under three corruptions: no statistics make up for it."""
    for name in ("clean", *data.corruptions[::3]):
        for batch in data.mixed(name, count=512):
            yield Batch(batch.images.flip(2), batch.labels)


def drift_to_one_class(data: Images, model: nn.Module) -> Iterator[Batch]:
    """Clean and under three corruptions: at first all classes, at last images of one class only."""
    rng = np.random.default_rng(0)
    one = np.flatnonzero(data.labels.numpy() == 3)
    for name in ("clean", *data.corruptions[::3]):
        for step in range(8):
            share = step / 7
            rows = np.where(rng.random(BATCH) < share, rng.choice(one, BATCH), rng.choice(len(data.labels), BATCH))
            yield Batch(data.conditions[name][rows], data.labels[rows])


@dataclass(frozen=True)
class Fault:
    """A stream, and by how much the learning rate is wrong."""

    name: str
    stream: Callable[[Images, nn.Module], Iterator[Batch]]
    lr_factor: float = 1.0


FAULTS = (
    Fault("nothing wrong", plain),
    Fault("NaN and infinity", with_nan_and_infinity),
    Fault("black and constant", black_and_constant),
    Fault("one class, 0", one_class(0)),
    Fault("one class, 3", one_class(3)),
    Fault("one class, 8", one_class(8)),
    Fault("one class, clean", one_class(5, only="clean")),
    Fault("ordered by class", ordered_by_class),
    Fault("batches of one", batches_of_one),
    Fault("learning rate x 1000", plain, lr_factor=1000),
    Fault("clean, corrupted, clean", clean_corrupted_clean),
    Fault("noise instead of images", noise_instead_of_images),
    Fault("adversarial", adversarial),
    Fault("clean", clean),
    Fault("upside down", upside_down),
    Fault("drift to one class", drift_to_one_class),
)


def to_tensor(images: np.ndarray[Any, Any]) -> Tensor:
    """Return uint8 images ``(B, H, W, 3)`` as a tensor ``(B, 3, H, W)`` in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float().div(255).contiguous()
