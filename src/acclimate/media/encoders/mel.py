"""Mel spectrograms, as the encoders of sounds need them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from acclimate.media.items import SAMPLE_RATE_HZ


@dataclass(frozen=True, slots=True)
class MelSettings:
    """How a mel spectrogram is computed.

    Attributes:
        bands: mel bands.
        window: samples of a window (Hann), which is also the length of the transform.
        hop: samples between windows.
        low_hz, high_hz: of the bands.
    """

    bands: int
    window: int = 400
    hop: int = 160
    low_hz: float = 0.0
    high_hz: float = SAMPLE_RATE_HZ / 2


def mel_power(samples: NDArray[np.float32], settings: MelSettings) -> Tensor:
    """Return the power in mel bands, ``(frames, bands)``; frames are centred, and the ends are padded with zeros."""
    wave = torch.from_numpy(np.ascontiguousarray(samples, np.float32))
    spectrum = torch.stft(
        wave,
        settings.window,
        settings.hop,
        window=torch.hann_window(settings.window),
        center=True,
        pad_mode="constant",
        return_complex=True,
    )
    return (spectrum.abs() ** 2).T @ _filters(settings)


@cache
def _filters(settings: MelSettings) -> Tensor:
    """Return the filters, ``(frequencies, bands)``: triangles of equal area on Slaney's mel scale, as librosa's."""
    from transformers.audio_utils import mel_filter_bank

    bank = mel_filter_bank(
        num_frequency_bins=settings.window // 2 + 1,
        num_mel_filters=settings.bands,
        min_frequency=settings.low_hz,
        max_frequency=settings.high_hz,
        sampling_rate=SAMPLE_RATE_HZ,
        norm="slaney",
        mel_scale="slaney",
    )
    return torch.from_numpy(np.asarray(bank, np.float32))
