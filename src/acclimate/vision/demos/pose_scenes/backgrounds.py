"""What is behind the plates: gradients, textures, and crops of photos where there are any."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from acclimate.vision.data.corruptions import FloatImage, Uint8Image


def draw_background(rng: np.random.Generator, side: int, photos: Sequence[Uint8Image] = ()) -> FloatImage:
    """Return a background ``(S, S, 3)`` with values in [0, 1]; half of them are photos where ``photos`` are given."""
    if photos and rng.random() < 0.5:
        return _crop(rng, side, photos[int(rng.integers(len(photos)))])
    kinds = (_gradient, _clouds, _stripes, _tiles)
    return kinds[int(rng.integers(len(kinds)))](rng, side)


def _gradient(rng: np.random.Generator, side: int) -> FloatImage:
    """Blend four corner colours, and grain them."""
    image = _stretched(rng.random((2, 2, 3)).astype(np.float32), side, cv2.INTER_LINEAR)
    return image + rng.normal(0, 0.02, image.shape).astype(np.float32)


def _clouds(rng: np.random.Generator, side: int) -> FloatImage:
    """Add noise of several scales."""
    image = np.zeros((side, side, 3), np.float32) + rng.random(3).astype(np.float32)
    for cells in (3, 6, 12, 24):
        channels = 3 if rng.random() < 0.5 else 1
        noise = rng.normal(0, 1.0 / cells**0.5, (cells, cells, channels)).astype(np.float32)
        octave = _stretched(noise, side, cv2.INTER_CUBIC).reshape(side, side, channels)
        image += 0.5 * octave
    return image.clip(0, 1)


def _stripes(rng: np.random.Generator, side: int) -> FloatImage:
    """Alternate two colours along a random direction, softly or sharply."""
    angle, period, phase = rng.uniform(0, np.pi), side * rng.uniform(0.06, 0.4), rng.uniform(0, 2 * np.pi)
    ys, xs = np.mgrid[:side, :side].astype(np.float32)
    wave = np.sin(2 * np.pi * (xs * np.cos(angle) + ys * np.sin(angle)) / period + phase)
    mix = (0.5 + 0.5 * np.tanh(wave * rng.uniform(0.5, 6)))[..., None]
    first, second = rng.random((2, 3))
    image: FloatImage = (first + (second - first) * mix).astype(np.float32)
    return image


def _tiles(rng: np.random.Generator, side: int) -> FloatImage:
    """Scatter rectangles in many colours: shapes that are no plates."""
    image = np.zeros((side, side, 3), np.float32) + rng.random(3).astype(np.float32)
    for _ in range(int(rng.integers(4, 14))):
        centre = rng.uniform(0, side, 2).tolist()
        size = rng.uniform(0.05, 0.5, 2) * side
        corners = cv2.boxPoints((centre, size.tolist(), float(rng.uniform(0, 90))))
        cv2.fillConvexPoly(image, corners.astype(np.int32), rng.random(3).tolist(), cv2.LINE_AA)
    return image


def _crop(rng: np.random.Generator, side: int, photo: Uint8Image) -> FloatImage:
    """Cut a square out of a photo, mirrored or not."""
    shorter = min(photo.shape[:2])
    size = int(rng.uniform(min(side, shorter), shorter + 1))
    top, left = (int(rng.integers(0, extent - size + 1)) for extent in photo.shape[:2])
    square = photo[top : top + size, left : left + size]
    scaled = cv2.resize(square, (side, side), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    return np.ascontiguousarray(scaled[:, ::-1]) if rng.random() < 0.5 else scaled


def _stretched(values: FloatImage, side: int, interpolation: int) -> FloatImage:
    stretched: FloatImage = cv2.resize(values, (side, side), interpolation=interpolation)
    return stretched
