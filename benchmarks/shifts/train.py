"""Trains a network of ``networks.py`` by distillation from the ResNet-20 of ``benchmarks/cifar``.

    python benchmarks/shifts/train.py --data DATA --network group_norm --minutes 8

The images are those of ``source_train.npz``, and those of ``tune_jpeg.npz`` that ``run.py`` does not damage; no label
is used. Where a network is the ResNet-20 with another normalisation, or begins like it, its convolutions begin as the
teacher's. Each image is cropped, mirrored and mixed with another (mixup) anew, for student and teacher alike. Running
statistics of BatchNorm are measured at the end on images that are not mixed, as those of a data set are.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

sys.path.insert(0, str(Path(__file__).parent.parent / "cifar"))
sys.path.insert(0, str(Path(__file__).parent))
from network import load

from networks import NETWORKS, WEIGHTS, WITH_BATCH_NORM, ConvolutionalTransformer

BATCH = 64
HELD_OUT = 512
"""So many images of ``tune_jpeg.npz`` are damaged by ``run.py``; they are not trained on."""
TEMPERATURE = 2.0
LEARNING_RATE = 1e-3
"""Of networks that begin as the teacher; those that do not take five times as much."""
BATCH_NORM_EPSILON = 1e-5
"""Of the teacher's layers (the default of torch)."""


def training_images(data: Path) -> tuple[Tensor, Tensor, Tensor]:
    """Return the images to train on, and others with their labels."""
    archive = np.load(data / "tune_jpeg.npz")
    order = np.random.default_rng(0).permutation(len(archive["images"]))
    images = np.concatenate([np.load(data / "source_train.npz")["images"], archive["images"][order[HELD_OUT:]]])
    held_out = archive["images"][order[:HELD_OUT]]
    return _tensor(images), _tensor(held_out), torch.tensor(archive["labels"][order[:HELD_OUT]])


def _tensor(images: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2)


def changed(images: Tensor, rng: torch.Generator) -> Tensor:
    """Return images ``(B, 3, 32, 32)`` in [0, 1], each cropped and mirrored at random, half of them mixed."""
    padded = F.pad(images.float() / 255, (4, 4, 4, 4), mode="reflect")
    rows, columns = torch.randint(0, 9, (2, len(images)), generator=rng).tolist()
    flips = torch.rand(len(images), generator=rng) < 0.5
    crops = torch.stack(
        [
            image[:, row : row + 32, column : column + 32]
            for image, row, column in zip(padded, rows, columns, strict=True)
        ]
    )
    crops[flips] = crops[flips].flip(-1)
    share = torch.rand(len(images), 1, 1, 1, generator=rng) * 0.5
    share[torch.rand(len(images), generator=rng) < 0.5] = 0
    return (1 - share) * crops + share * crops.roll(1, 0)


def begun(name: str, data: Path) -> nn.Module:
    """Return the network before training."""
    model = NETWORKS[name]()
    if name in WITH_BATCH_NORM:
        return model
    weights = load_file(str(data / "resnet20.safetensors"))
    begins = model
    if isinstance(model, ConvolutionalTransformer):
        begins, weights = model.stem, with_fixed_statistics(weights)
    # GroupNorm has no running statistics to take over.
    begins.load_state_dict({key: weights[key] for key in begins.state_dict()})
    return model


def with_fixed_statistics(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return weights in which the running statistics of each BatchNorm are part of its scale and shift."""
    fixed = dict(weights)
    for layer in [key.removesuffix(".running_var") for key in weights if key.endswith(".running_var")]:
        scale = weights[f"{layer}.weight"] * (weights[f"{layer}.running_var"] + BATCH_NORM_EPSILON).rsqrt()
        fixed[f"{layer}.weight"] = scale
        fixed[f"{layer}.bias"] = weights[f"{layer}.bias"] - scale * weights[f"{layer}.running_mean"]
    return fixed


def train(name: str, data: Path, *, minutes: float) -> nn.Module:
    """Return the network after so many minutes of CPU time; it is stored once a minute."""
    torch.manual_seed(0)
    rng = torch.Generator().manual_seed(0)
    images, held_out, labels = training_images(data)
    teacher, student = (
        load(data / "resnet20.safetensors").eval(),
        begun(name, data).train().to(memory_format=torch.channels_last),
    )
    rate = 5 * LEARNING_RATE if name in WITH_BATCH_NORM else LEARNING_RATE
    optimizer = torch.optim.AdamW(student.parameters(), lr=rate, weight_decay=0.02)
    began, stored, done = time.process_time(), 0.0, 0
    while (share := (time.process_time() - began) / (60 * minutes)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, share / 0.03) * 0.5 * (1 + math.cos(math.pi * share))
        batch = changed(images[torch.randint(0, len(images), (BATCH,), generator=rng)], rng)
        batch = batch.to(memory_format=torch.channels_last)
        with torch.no_grad():
            target = (teacher(batch) / TEMPERATURE).softmax(1)
        loss = F.cross_entropy(student(batch) / TEMPERATURE, target)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        done += 1
        if share - stored > 1 / minutes:
            stored = share
            print(
                f"{share:4.0%}  {done} batches  accuracy {accuracy(student.eval(), held_out, labels):.1f} %", flush=True
            )
            store(student.train(), name)
    update_bn((batch.float() / 255 for batch in images.split(256)), student)
    print(f"{done} batches  accuracy {accuracy(student.eval(), held_out, labels):.1f} %", flush=True)
    return student


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Return the accuracy in per cent."""
    return 100 * float((model(images.float() / 255).argmax(1) == labels).float().mean())


def store(model: nn.Module, name: str) -> None:
    """Write the weights in half precision."""
    WEIGHTS.mkdir(exist_ok=True)
    save_file(
        {key: value.half().contiguous() for key, value in model.state_dict().items()},
        WEIGHTS / f"{name}.safetensors",
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with cifar10/")
    parser.add_argument("--network", choices=tuple(NETWORKS), required=True)
    parser.add_argument("--minutes", type=float, required=True, help="of CPU time")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    store(train(given.network, given.data / "cifar10", minutes=given.minutes), given.network)


if __name__ == "__main__":
    main()
