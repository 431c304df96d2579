"""Changed copies of a sound that keep what is heard in it: what the examples are multiplied by."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from acclimate.media.items import SAMPLE_RATE_HZ

Sound = NDArray[np.float32]
Change = Callable[[Sound, np.random.Generator], Sound]


def shift(sound: Sound, rng: np.random.Generator) -> Sound:
    """Return the sound after up to 0.1 s of silence, or without up to a tenth of its beginning."""
    longest = round(0.1 * SAMPLE_RATE_HZ)
    by = int(rng.integers(-min(longest, len(sound) // 10), longest + 1))
    return sound[-by:] if by < 0 else np.concatenate([np.zeros(by, np.float32), sound])


def speed(sound: Sound, rng: np.random.Generator) -> Sound:
    """Return the sound played at 90 to 110 % of its speed, which changes its pitch too."""
    length = max(2, round(len(sound) / rng.uniform(0.9, 1.1)))
    return np.asarray(np.interp(np.linspace(0, len(sound) - 1, length), np.arange(len(sound)), sound), np.float32)


def gain(sound: Sound, rng: np.random.Generator) -> Sound:
    """Return the sound up to 6 dB louder or quieter."""
    return sound * np.float32(10 ** (rng.uniform(-6, 6) / 20))


def noise(sound: Sound, rng: np.random.Generator) -> Sound:
    """Return the sound with noise 3 to 25 dB below it; from white noise to noise whose power falls with frequency."""
    spectrum = np.fft.rfft(rng.normal(size=len(sound)))
    frequency = np.maximum(np.arange(len(spectrum)), 1.0)
    coloured = np.fft.irfft(spectrum * frequency ** -rng.uniform(0, 0.5), len(sound))
    level = np.sqrt(np.mean(sound**2)) * 10 ** (-rng.uniform(3, 25) / 20)
    return np.asarray(sound + coloured * (level / max(float(np.std(coloured)), 1e-9)), np.float32)


def reverberation(sound: Sound, rng: np.random.Generator) -> Sound:
    """Return the sound as in a room whose echoes fall by 60 dB in 0.15 to 0.6 s."""
    seconds = rng.uniform(0.15, 0.6)
    time_s = np.arange(round(seconds * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
    echoes = rng.normal(size=len(time_s)) * 10 ** (-3 * time_s / seconds)
    echoes *= rng.uniform(0.2, 0.7) / max(float(np.sqrt((echoes**2).sum())), 1e-9)
    echoes[0] = 1.0
    size = len(sound) + len(echoes) - 1
    spectrum = np.fft.rfft(sound, size) * np.fft.rfft(echoes, size)
    return np.fft.irfft(spectrum, size)[: len(sound)].astype(np.float32)
