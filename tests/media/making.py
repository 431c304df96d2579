"""Small images and sounds of known classes, and an encoder that needs no weights."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile
from PIL import Image

from acclimate.media.items import Item, MediaExample


def shape_image(kind: str, seed: int) -> np.ndarray:
    """A grey noisy 40 x 40 image with a bar, upright or lying, or a filled square."""
    rng = np.random.default_rng(seed)
    image = rng.integers(90, 120, (40, 40, 3))
    a, b = rng.integers(8, 14, 2)
    rows, columns = {"upright": ((4, 36), (a, a + 6)), "lying": ((a, a + 6), (4, 36)), "square": ((a, 30), (b, 30))}[
        kind
    ]
    image[rows[0] : rows[1], columns[0] : columns[1]] = 230
    return image.astype(np.uint8)


def tone(hertz: float, seed: int, seconds: float = 0.5, rate: int = 16_000) -> np.ndarray:
    """A tone with a little noise."""
    rng = np.random.default_rng(seed)
    time_s = np.arange(round(seconds * rate)) / rate
    sound = 0.3 * np.sin(2 * np.pi * hertz * (1 + 0.02 * rng.normal()) * time_s + rng.uniform(0, 6))
    return (sound + 0.01 * rng.normal(size=len(sound))).astype(np.float32)


def image_examples(per_class: int = 4, kinds: Sequence[str] = ("upright", "lying", "square")) -> list[MediaExample]:
    return [
        MediaExample(Item.of("image", shape_image(kind, seed), f"{kind}{seed}.png"), kind)
        for kind in kinds
        for seed in range(per_class)
    ]


def sound_examples(per_class: int = 3) -> list[MediaExample]:
    return [
        MediaExample(Item.of("audio", tone(hertz, seed), f"{name}{seed}.wav"), name)
        for name, hertz in (("low", 300.0), ("high", 2500.0))
        for seed in range(per_class)
    ]


def image_file(path: Path, kind: str = "upright", seed: int = 0) -> Path:
    Image.fromarray(shape_image(kind, seed)).save(path)
    return path


def sound_file(path: Path, samples: np.ndarray, rate: int = 16_000, subtype: str = "PCM_16") -> Path:
    soundfile.write(path, samples, rate, subtype=subtype)
    return path


def image_task(folder: Path, per_class: int = 3) -> Path:
    """Write examples and a query (``open.png``, an upright bar); return the file of examples."""
    lines = []
    for kind in ("upright", "lying", "square"):
        for seed in range(per_class):
            image_file(folder / f"{kind}{seed}.png", kind, seed)
            lines.append({"input": {"image": f"{kind}{seed}.png"}, "output": kind})
    image_file(folder / "open.png", "upright", 99)
    return write_lines(folder / "examples.jsonl", lines)


def write_lines(path: Path, lines: Sequence[object]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path
