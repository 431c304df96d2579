"""Statistics of the log-mel spectrogram: an encoder of sounds without weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from acclimate.media.encoders.mel import MelSettings, mel_power
from acclimate.media.encoders.protocol import EncoderInfo, Vectors
from acclimate.media.items import Values


@dataclass(frozen=True, slots=True)
class LogMel:
    """Mean and deviation of each band and of its change in time, and the course of each band over the sound.

    Attributes:
        mel: of the spectrogram.
        parts: the sound is divided into this many parts of equal length, and the mean of each band in each part is
            added; so that sounds that differ in their order alone are told apart.
        floor_db: quieter bands are taken to be this far below the loudest.
    """

    mel: MelSettings = field(default=MelSettings(bands=40))
    parts: int = 4
    floor_db: float = 80.0
    info: ClassVar[EncoderInfo] = EncoderInfo(
        name="log_mel",
        kind="audio",
        title="Statistics of the log-mel spectrogram",
        licence="-",
        source="a formula",
        cost_ms=0.6,
    )

    @property
    def identity(self) -> str:
        """The settings."""
        return repr(self)

    def encode(self, values: Sequence[Values]) -> Vectors:
        """Return vectors of 320 numbers (with the default settings)."""
        return np.stack([self._one(np.asarray(samples, np.float32)) for samples in values])

    def _one(self, samples: NDArray[np.float32]) -> Vectors:
        power = mel_power(samples, self.mel)
        decibels = 10 * torch.log10(power.clamp_min(1e-10))
        # The level of a recording says nothing about what is in it.
        decibels = (decibels - decibels.max()).clamp_min(-self.floor_db) / self.floor_db + 1
        change = decibels.diff(dim=0) if len(decibels) > 1 else torch.zeros_like(decibels)
        parts = [part.mean(0) for part in _parts(decibels, self.parts)]
        level = [decibels.mean(0), decibels.std(0, correction=0)]
        course = [change.abs().mean(0), change.std(0, correction=0)]
        return torch.cat([*level, *course, *parts]).numpy()


def _parts(frames: Tensor, count: int) -> list[Tensor]:
    """Return ``count`` consecutive parts; of fewer frames than parts, some are repeated."""
    edges = [round(len(frames) * k / count) for k in range(count + 1)]
    return [frames[min(a, len(frames) - 1) : max(b, a + 1)] for a, b in pairwise(edges)]
