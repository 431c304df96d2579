"""Faulty streams and settings on real images and a real network: Tent fails, and the guards detect it.

``benchmarks/guards`` measures the same streams on CIFAR-10, with every method and with intervals.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from acclimate.core import Session, StepReport
from acclimate.methods import Blend, Eata, Tent
from acclimate.vision.data.corruptions import corrupt
from acclimate.vision.demos import digits

BATCH = 50
UNREAL = -1


@dataclass(frozen=True)
class Digits:
    """A network trained on clean digits, and digits that are not in its training data, clean and noisy."""

    model: nn.Module
    clean: Tensor
    noisy: Tensor
    labels: Tensor

    def batches(self, images: Tensor, *, size: int = BATCH, label: int | None = None) -> list[tuple[Tensor, Tensor]]:
        rows = torch.arange(len(images)) if label is None else (self.labels == label).nonzero().flatten()
        return [(images[part], self.labels[part]) for part in rows.split(size)]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Digits:
    path = tmp_path_factory.mktemp("digits") / "weights.safetensors"
    assert digits.train(path, epochs=8) > 0.9
    model = digits.DigitNetwork().eval()
    model.load_state_dict(load_file(path))
    pixels, classes = digits.digit_images()
    held_out = pixels[digits.TRAINING_IMAGES :][:600]
    noisy = [corrupt(image, "gaussian_noise", severity=3, seed=number) for number, image in enumerate(held_out)]

    def to_tensor(images: Any) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float().div(255).contiguous()

    labels = torch.from_numpy(classes[digits.TRAINING_IMAGES :][:600])
    return Digits(model, to_tensor(held_out), to_tensor(np.stack(noisy)), labels)


@dataclass(frozen=True)
class Outcome:
    """Error in per cent over the real images, and the report of each step."""

    error: float
    steps: tuple[StepReport, ...] = ()

    def rejections(self) -> list[tuple[int, str]]:
        return [(step.index, step.reason or "") for step in self.steps if step.verdict in ("rolled_back", "reset")]


def wrong(outputs: Tensor, labels: Tensor) -> tuple[int, int]:
    real = labels != UNREAL
    right = (outputs.argmax(1) == labels) & outputs.isfinite().all(1)
    return int((~right & real).sum()), int(real.sum())


def unadapted(data: Digits, stream: list[tuple[Tensor, Tensor]]) -> Outcome:
    with torch.no_grad():
        found = [wrong(data.model(images), labels) for images, labels in stream]
    return Outcome(100 * sum(bad for bad, _ in found) / sum(count for _, count in found))


def adapted(data: Digits, stream: list[tuple[Tensor, Tensor]], method: Any, *, guarded: bool) -> Outcome:
    found = []
    options = {} if guarded else {"guards": ()}
    with Session(copy.deepcopy(data.model), method, **options) as session:
        for images, labels in stream:
            outputs, _ = session.adapt_and_predict(images)
            found.append(wrong(outputs, labels))
        steps = session.report().steps
    return Outcome(100 * sum(bad for bad, _ in found) / sum(count for _, count in found), steps)


def unreal(images: Tensor) -> tuple[Tensor, Tensor]:
    return images, torch.full((len(images),), UNREAL)


def poisoned(data: Digits) -> Iterator[tuple[Tensor, Tensor]]:
    for number, (images, labels) in enumerate(data.batches(data.noisy)):
        images, labels = images.clone(), labels.clone()
        if number in (2, 5):
            images[number] = float("nan") if number == 2 else float("inf")
            labels[number] = UNREAL
        yield images, labels


def dark(data: Digits) -> Iterator[tuple[Tensor, Tensor]]:
    for number, (images, labels) in enumerate(data.batches(data.noisy)):
        yield images, labels
        yield unreal(torch.full_like(images, 0.0 if number % 2 else 0.5))


def noise_between(data: Digits) -> Iterator[tuple[Tensor, Tensor]]:
    rng = torch.Generator().manual_seed(0)
    for images, labels in data.batches(data.clean):
        for _ in range(3):
            yield unreal(torch.rand(images.shape, generator=rng))
        yield images, labels


def singles_of_one_class_first(data: Digits) -> Iterator[tuple[Tensor, Tensor]]:
    for images, _ in data.batches(data.noisy, size=1, label=1) * 10:
        yield unreal(images)
    yield from data.batches(data.noisy)


def test_without_faults_no_guard_fires_and_tent_helps(data: Digits) -> None:
    stream = data.batches(data.noisy)
    free, guarded = (adapted(data, stream, Tent(lr=1e-3), guarded=on) for on in (False, True))
    assert guarded.rejections() == []
    # The network is trained here, and processors round differently: how much noise costs it is not the same everywhere.
    before = unadapted(data, stream).error
    assert guarded.error == free.error < before - min(10, before / 2)


def test_nan_and_infinity(data: Digits) -> None:
    stream = list(poisoned(data))
    none, free = unadapted(data, stream), adapted(data, stream, Tent(lr=1e-3), guarded=False)
    guarded = adapted(data, stream, Tent(lr=1e-3), guarded=True)
    assert free.error > 80, "after the first NaN an unguarded model is NaN"
    assert [index for index, reason in guarded.rejections() if "non-finite" in reason] == [2, 5]
    assert guarded.error < none.error - 5


def test_black_and_constant_images(data: Digits) -> None:
    stream = list(dark(data))
    none, guarded = unadapted(data, stream), adapted(data, stream, Tent(lr=1e-3), guarded=True)
    assert guarded.error < none.error - 5, "the dark frames are set aside, and the others still gain"


@pytest.mark.parametrize("method", [Tent(lr=1e-3), Eata(), Blend(flip_averaging=False)], ids=["tent", "eata", "blend"])
def test_one_class_only(data: Digits, method: Any) -> None:
    for label in (0, 4, 8):
        stream = data.batches(data.clean, label=label) * 10
        none, guarded = unadapted(data, stream), adapted(data, stream, method, guarded=True)
        assert guarded.error <= none.error + 1, label


def test_one_class_breaks_unguarded_tent_and_is_detected_on_the_first_batch(data: Digits) -> None:
    stream = data.batches(data.clean, label=4) * 10
    none, free = unadapted(data, stream), adapted(data, stream, Tent(lr=1e-3), guarded=False)
    guarded = adapted(data, stream, Tent(lr=1e-3), guarded=True)
    assert free.error > none.error + 30
    index, reason = guarded.rejections()[0]
    assert index == 0
    assert "less certain than the unadapted model" in reason


def test_batches_of_one(data: Digits) -> None:
    stream = data.batches(data.clean[:150], size=1)
    none, free = unadapted(data, stream), adapted(data, stream, Tent(lr=1e-3), guarded=False)
    guarded = adapted(data, stream, Tent(lr=1e-3), guarded=True)
    assert free.error > none.error + 30
    assert guarded.rejections()[0][0] == 0
    assert guarded.error <= none.error + 1


def test_a_learning_rate_a_thousand_times_too_high(data: Digits) -> None:
    stream = data.batches(data.noisy)
    none, free = unadapted(data, stream), adapted(data, stream, Tent(lr=1.0), guarded=False)
    guarded = adapted(data, stream, Tent(lr=1.0), guarded=True)
    assert free.error > none.error + 20
    assert guarded.rejections()[0][0] == 0
    assert "exceeds" in guarded.rejections()[0][1]
    assert guarded.error < none.error - 10, "the statistics of the batch still help"


def test_clean_to_corrupted_and_back(data: Digits) -> None:
    stream = [*data.batches(data.clean), *data.batches(data.noisy), *data.batches(data.clean)]
    none, guarded = unadapted(data, stream), adapted(data, stream, Tent(lr=1e-3), guarded=True)
    assert guarded.error <= none.error + 1
    verdicts = [step.verdict for step in guarded.steps]
    assert verdicts.count("kept") > 0.8 * len(verdicts), "it is not the unadapted model that predicts"


def test_noise_instead_of_images(data: Digits) -> None:
    stream = list(noise_between(data))
    none, guarded = unadapted(data, stream), adapted(data, stream, Tent(lr=1e-3), guarded=True)
    assert guarded.error <= none.error + 1


def test_a_stream_constructed_to_collapse_tent(data: Digits) -> None:
    stream = list(singles_of_one_class_first(data))
    none, free = unadapted(data, stream), adapted(data, stream, Tent(lr=1e-3), guarded=False)
    guarded = adapted(data, stream, Tent(lr=1e-3), guarded=True)
    healthy = adapted(data, data.batches(data.noisy), Tent(lr=1e-3), guarded=False)
    assert free.error > none.error + 5
    assert guarded.error <= min(none.error + 1, healthy.error + 3)
