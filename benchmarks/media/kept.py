"""Vectors kept in files, so that a benchmark that is run again does not encode everything again."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import packages

from acclimate.media import Encoder, EncoderInfo
from acclimate.media.encoders.protocol import Vectors
from acclimate.media.items import Values


class KeptEncoder:
    """An encoder whose vectors are kept in a file of the benchmark's cache.

    Attributes:
        cpu_s, count: of the vectors that were computed, in this run and before.
    """

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        name = hashlib.sha256(encoder.identity.encode()).hexdigest()[:16]
        self._path: Path = packages.cache() / "vectors" / f"{encoder.info.name}-{name}.npz"
        self._kept: dict[str, Vectors] = {}
        self.cpu_s, self.count = 0.0, 0
        if self._path.exists():
            with np.load(self._path) as stored:
                self._kept = dict(zip(stored["keys"].tolist(), stored["vectors"], strict=True))
                self.cpu_s, self.count = float(stored["cpu_s"]), int(stored["count"])

    @property
    def info(self) -> EncoderInfo:
        return self._encoder.info

    @property
    def identity(self) -> str:
        return self._encoder.identity

    def encode(self, values: Sequence[Values]) -> Vectors:
        keys = [hashlib.sha256(str(value.shape).encode() + value.tobytes()).hexdigest() for value in values]
        missing = {key: value for key, value in zip(keys, values, strict=True) if key not in self._kept}
        if missing:
            began = time.process_time()
            self._kept |= dict(zip(missing, self._encoder.encode(list(missing.values())), strict=True))
            self.cpu_s += time.process_time() - began
            self.count += len(missing)
        return np.stack([self._kept[key] for key in keys])

    def save(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        keys, vectors = list(self._kept), np.stack(list(self._kept.values()))
        np.savez(self._path, keys=np.array(keys), vectors=vectors, cpu_s=self.cpu_s, count=self.count)
