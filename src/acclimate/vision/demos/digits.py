"""A real task that needs no download: handwritten digits, and a small BatchNorm network trained on them on the spot.

The digits are the 1,797 of the UCI optical recognition set that scikit-learn ships (Alpaydin & Kaynak 1998).
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Final

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save
from sklearn.datasets import load_digits
from torch import Tensor, nn

from acclimate.core.determinism import generator, seeded
from acclimate.output_files import make_folder, open_output, write_output
from acclimate.vision.data.predictions import write_json
from acclimate.vision.models.torch_adapter import TorchModel

logger = logging.getLogger(__name__)

SIDE_PIXELS: Final = 32
TRAINING_IMAGES: Final = 1000


class DigitNetwork(nn.Module):
    """Four convolutions with BatchNorm; takes ``(B, 3, 32, 32)`` in [0, 1], returns logits ``(B, 10)``."""

    def __init__(self) -> None:
        super().__init__()
        channels = (3, 16, 32, 64, 64)
        self.convolutions = nn.ModuleList(
            nn.Conv2d(channels[i], channels[i + 1], 3, stride=1 if i == 0 else 2, padding=1, bias=False)
            for i in range(4)
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in channels[1:])
        self.classifier = nn.Linear(channels[-1], 10)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits ``(B, 10)``."""
        hidden = images
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            hidden = F.relu(norm(convolution(hidden)))
        logits: Tensor = self.classifier(hidden.mean((2, 3)))
        return logits


def digit_network() -> TorchModel:
    """Return the untrained network for the torch adapter; give it a checkpoint."""
    return TorchModel(
        module=DigitNetwork(),
        image_size=(SIDE_PIXELS, SIDE_PIXELS),
        class_names=tuple(str(digit) for digit in range(10)),
        flips=False,
    )


def digit_images() -> tuple[np.ndarray, np.ndarray]:
    """Return all digits as ``(1797, 32, 32, 3)`` uint8 and their classes ``(1797,)``."""
    digits = load_digits()
    large = [
        cv2.resize(image.astype(np.float32) / 16, (SIDE_PIXELS, SIDE_PIXELS), interpolation=cv2.INTER_CUBIC)
        for image in digits.images
    ]
    gray = np.rint(np.clip(np.stack(large), 0, 1) * 255).astype(np.uint8)
    return np.repeat(gray[..., None], 3, axis=3), digits.target.astype(np.int64)


def write_test_images(folder: Path) -> Path:
    """Write the digits that training does not see as PNG files; return the labels file beside them."""
    images, classes = digit_images()
    make_folder(folder / "images")
    labels = {}
    for number in range(TRAINING_IMAGES, len(images)):
        name = f"digit_{number:04d}.png"
        with open_output(folder / "images" / name) as file:
            Image.fromarray(images[number]).save(file, "PNG")
        labels[name] = int(classes[number])
    write_json(folder / "labels.json", labels)
    return folder / "labels.json"


def write_source_images(folder: Path) -> Path:
    """Write 200 of the digits that the network is trained on as PNG files, for methods that look at source images."""
    images, _ = digit_images()
    make_folder(folder / "source")
    for number in range(200):
        with open_output(folder / "source" / f"digit_{number:04d}.png") as file:
            Image.fromarray(images[number]).save(file, "PNG")
    return folder / "source"


def train(checkpoint: Path, *, epochs: int = 25, batch_size: int = 25, lr: float = 5e-3, seed: int = 0) -> float:
    """Train the network on the first 1,000 digits, clean; write it, and return its accuracy on the others."""
    images, classes = digit_images()
    inputs = torch.from_numpy(images).permute(0, 3, 1, 2).float().div(255).contiguous()
    targets = torch.from_numpy(classes)
    rng = generator(seed)
    with seeded(seed):
        model = DigitNetwork()
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=1e-2)
    steps = epochs * TRAINING_IMAGES // batch_size
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(epochs):
        for rows in torch.randperm(TRAINING_IMAGES, generator=rng).split(batch_size):
            # A shift of up to two pixels, so that a thousand images go further.
            offset = torch.randint(-2, 3, (2,), generator=rng).tolist()
            loss = F.cross_entropy(model(inputs[rows].roll(offset, (2, 3))), targets[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    model.eval()
    with torch.no_grad():
        right = model(inputs[TRAINING_IMAGES:]).argmax(1) == targets[TRAINING_IMAGES:]
    write_output(checkpoint, save(model.state_dict()))
    return float(right.float().mean())
