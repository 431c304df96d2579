"""Changed copies of an image that keep what it shows: what the examples are multiplied by."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]
Change = Callable[[Image, np.random.Generator], Image]


def crop(image: Image, rng: np.random.Generator) -> Image:
    """Return a part of the image: 70 to 100 % of its area, stretched by up to a tenth, somewhere."""
    height, width = image.shape[:2]
    share, stretch = rng.uniform(0.7, 1.0), np.exp(rng.uniform(-0.1, 0.1))
    rows = min(height, max(1, round(height * np.sqrt(share) * stretch)))
    columns = min(width, max(1, round(width * np.sqrt(share) / stretch)))
    top, left = rng.integers(0, height - rows + 1), rng.integers(0, width - columns + 1)
    return image[top : top + rows, left : left + columns]


def flip(image: Image, rng: np.random.Generator) -> Image:
    """Return the mirror image in half of the calls."""
    return image[:, ::-1] if rng.random() < 0.5 else image


def light(image: Image, rng: np.random.Generator) -> Image:
    """Return the image with another contrast and brightness."""
    contrast, brightness = rng.uniform(0.75, 1.25), rng.uniform(-25, 25)
    mean = float(image.mean())
    return _bytes((image.astype(np.float32) - mean) * contrast + mean + brightness)


def noise(image: Image, rng: np.random.Generator) -> Image:
    """Return the image with Gaussian noise of a deviation of 10 to 50 of 255."""
    deviation = np.exp(rng.uniform(np.log(10), np.log(50)))
    return _bytes(image + rng.normal(0, deviation, image.shape))


def blur(image: Image, rng: np.random.Generator) -> Image:
    """Return the image blurred by a Gaussian of 1 to 5 % of its shorter side."""
    deviation = min(image.shape[:2]) * np.exp(rng.uniform(np.log(0.01), np.log(0.05)))
    return np.asarray(cv2.GaussianBlur(image, (0, 0), float(max(deviation, 0.1))), np.uint8)


def _bytes(values: NDArray[np.floating]) -> Image:
    return np.asarray(np.clip(np.rint(values), 0, 255), np.uint8)
