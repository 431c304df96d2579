"""What happens to queries: damage that the views of the examples know (noise), and damage that they do not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, Final

import cv2
import numpy as np

from acclimate.media.items import SAMPLE_RATE_HZ, Item, Kind

Damage = Callable[[Any, np.random.Generator], Any]


def _bytes(values: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def noisy_image(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return _bytes(image + rng.normal(0, 45, image.shape))


def blurred_image(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return cv2.GaussianBlur(image, (0, 0), min(image.shape[:2]) * 0.045)


def faded_image(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return _bytes(image * 0.35 + 0.65 * 210)


def noisy_sound(sound: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    level = np.sqrt(np.mean(sound**2)) * 10 ** (-8 / 20)
    return (sound + rng.normal(0, max(level, 1e-9), len(sound))).astype(np.float32)


def muffled_sound(sound: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    spectrum = np.fft.rfft(sound)
    frequency = np.fft.rfftfreq(len(sound), 1 / SAMPLE_RATE_HZ)
    return np.fft.irfft(spectrum / (1 + (frequency / 900) ** 4), len(sound)).astype(np.float32)


def clipped_sound(sound: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    top = max(float(np.abs(sound).max()) * 0.08, 1e-6)
    return np.clip(sound, -top, top).astype(np.float32)


DAMAGES: Final[Mapping[Kind, Mapping[str, Damage]]] = {
    "image": {"noise": noisy_image, "blur": blurred_image, "faded": faded_image},
    "audio": {"noise": noisy_sound, "muffled": muffled_sound, "clipped": clipped_sound},
}


@cache
def damaged(item: Item, name: str) -> Item:
    """Return the item as a query under one kind of damage; the random numbers depend on the item alone."""
    rng = np.random.default_rng([int(item.digest[:15], 16), 7919])
    return Item.of(item.kind, DAMAGES[item.kind][name](item.values, rng), f"{item.name} ({name})")
