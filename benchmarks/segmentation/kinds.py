"""Kinds of damage for street scenes, each a function of frames ``(N, H, W, 3)`` uint8 (RGB) and a generator.

None of them moves a pixel, so that labels stay right. The kinds are divided in two halves: ``TUNE`` is for choosing
settings, ``REPORT`` is looked at only when a result is written down.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

Frames = NDArray[np.uint8]
Damage = Callable[[Frames, np.random.Generator], Frames]


def _bytes(values: NDArray[np.floating]) -> Frames:
    """Return values in [0, 1] as bytes."""
    return np.clip(np.rint(values * 255), 0, 255).astype(np.uint8)


def _unit(frames: Frames) -> NDArray[np.float32]:
    return frames.astype(np.float32) / 255


def _each(frames: Frames, function: Callable[[NDArray[np.float32]], NDArray[np.floating]]) -> Frames:
    return np.stack([_bytes(function(frame)) for frame in _unit(frames)])


def _smooth_field(rng: np.random.Generator, shape: tuple[int, int], cells: int) -> NDArray[np.float32]:
    """Return smooth random values in [0, 1]."""
    grid = rng.random((cells, cells)).astype(np.float32)
    field = cv2.resize(grid, shape[::-1], interpolation=cv2.INTER_CUBIC)
    return (field - field.min()) / max(float(np.ptp(field)), 1e-6)


def shot_noise(frames: Frames, rng: np.random.Generator) -> Frames:
    return _bytes(rng.poisson(_unit(frames) * 14) / 14)


def defocus(frames: Frames, rng: np.random.Generator) -> Frames:
    radius = 6.0
    grid = np.mgrid[-8:9, -8:9]
    disk = np.clip(radius + 0.5 - np.hypot(*grid), 0, 1).astype(np.float32)
    return _each(frames, lambda frame: cv2.filter2D(frame, -1, disk / disk.sum(), borderType=cv2.BORDER_REFLECT))


def haze(frames: Frames, rng: np.random.Generator) -> Frames:
    # Evenly grey, as behind a misted window.
    return _bytes(_unit(frames) * 0.3 + 0.45)


def low_light(frames: Frames, rng: np.random.Generator) -> Frames:
    return _bytes(_unit(frames) ** 1.3 * 0.3 + rng.normal(0, 0.02, frames.shape))


def jpeg(frames: Frames, rng: np.random.Generator) -> Frames:
    def coded(frame: Frames) -> Frames:
        _, data = cv2.imencode(".jpg", frame[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 8])
        return cv2.imdecode(data, cv2.IMREAD_COLOR)[..., ::-1]

    return np.stack([coded(frame) for frame in frames])


def colour_cast(frames: Frames, rng: np.random.Generator) -> Frames:
    return _bytes(_unit(frames) * np.array([1.2, 0.8, 0.4]) + np.array([0.1, 0.0, 0.0]))


def row_noise(frames: Frames, rng: np.random.Generator) -> Frames:
    count, height = frames.shape[:2]
    return _bytes(_unit(frames) + rng.normal(0, 0.12, (count, height, 1, 3)))


def snow(frames: Frames, rng: np.random.Generator) -> Frames:
    shape = frames.shape[1:3]

    def white(frame: NDArray[np.float32]) -> NDArray[np.floating]:
        flakes = cv2.resize((rng.random((shape[0] // 4, shape[1] // 4)) < 0.06).astype(np.float32), shape[::-1])
        return (0.7 * frame + 0.25) * (1 - 0.9 * flakes[..., None]) + 0.9 * flakes[..., None]

    return _each(frames, white)


def gaussian_noise(frames: Frames, rng: np.random.Generator) -> Frames:
    return _bytes(_unit(frames) + rng.normal(0, 35 / 255, frames.shape))


def fog(frames: Frames, rng: np.random.Generator) -> Frames:
    shape = frames.shape[1:3]
    return _each(frames, lambda frame: frame * 0.4 + 0.6 * (0.7 + 0.3 * _smooth_field(rng, shape, 5)[..., None]))


def blur(frames: Frames, rng: np.random.Generator) -> Frames:
    return _each(frames, lambda frame: cv2.GaussianBlur(frame, (0, 0), 4, borderType=cv2.BORDER_REFLECT))


def dark(frames: Frames, rng: np.random.Generator) -> Frames:
    return _bytes(_unit(frames) * 0.2)


def speckle(frames: Frames, rng: np.random.Generator) -> Frames:
    return _bytes(_unit(frames) * (1 + rng.normal(0, 0.35, frames.shape)))


def over_exposure(frames: Frames, rng: np.random.Generator) -> Frames:
    return _bytes(_unit(frames) * 2.2 + 0.1)


def low_resolution(frames: Frames, rng: np.random.Generator) -> Frames:
    height, width = frames.shape[1:3]

    def scaled(frame: NDArray[np.float32]) -> NDArray[np.floating]:
        down = cv2.resize(frame, (width // 5, height // 5), interpolation=cv2.INTER_AREA)
        return cv2.resize(down, (width, height), interpolation=cv2.INTER_LINEAR)

    return _each(frames, scaled)


def rain(frames: Frames, rng: np.random.Generator) -> Frames:
    height, width = frames.shape[1:3]

    def wet(frame: NDArray[np.float32]) -> NDArray[np.floating]:
        layer = np.zeros((height, width), np.float32)
        for _ in range(350):
            row, column = int(rng.integers(-height // 8, height)), int(rng.integers(-width // 8, width))
            length = height * rng.uniform(0.05, 0.15)
            end = (int(column + length * 0.25), int(row + length))
            cv2.line(layer, (column, row), end, float(rng.uniform(0.3, 0.7)), 1, cv2.LINE_AA)
        return frame * 0.75 * (1 - layer[..., None]) + 0.85 * layer[..., None]

    return _each(frames, wet)


TUNE: Final[Mapping[str, Damage]] = {
    f.__name__: f for f in (shot_noise, defocus, haze, low_light, jpeg, colour_cast, row_noise, snow)
}
REPORT: Final[Mapping[str, Damage]] = {
    f.__name__: f for f in (gaussian_noise, fog, blur, dark, speckle, over_exposure, low_resolution, rain)
}
