"""Reading sounds, from files and from bytes, within limits."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from acclimate.errors import DataError, first_line
from acclimate.media.items import SAMPLE_RATE_HZ, Item, Limits

RATES_HZ: Final = (1_000, 768_000)
#: In all channels: two at the highest rate of recordings, or eight at that of films.
_MOST_SAMPLES_PER_S: Final = 2 * 192_000


def read_sound(path: Path, *, name: str | None = None, limits: Limits | None = None) -> Item:
    """Return the sound in a file (WAV, FLAC, Ogg, MP3 and whatever else libsndfile reads), mono at 16 kHz.

    Channels are averaged. Integers of 8 to 32 bits and floats are scaled to [-1, 1].

    Args:
        path: of the file.
        name: for messages and the report; by default the path.
        limits: by default those of :class:`Limits`.

    Raises:
        DataError: the file is missing, is no sound, is empty, or is longer than the limits allow.
    """
    return _sound(str(path), name or str(path), limits or Limits())


def sound_from_bytes(content: bytes, *, name: str, limits: Limits | None = None) -> Item:
    """Return the sound that a file with this ``content`` holds; see :func:`read_sound`.

    Raises:
        DataError: see :func:`read_sound`.
    """
    return _sound(io.BytesIO(content), name, limits or Limits())


def _sound(source: str | io.BytesIO, shown: str, limits: Limits) -> Item:
    import soundfile

    try:
        with soundfile.SoundFile(source) as file:
            rate, frames = int(file.samplerate), int(file.frames)
            _check(shown, rate, frames, limits)
            _check_size(shown, frames * int(file.channels), limits)
            samples = file.read(dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, RuntimeError, TypeError) as error:
        raise DataError(f"{shown}: is no sound that can be read ({first_line(error)})") from error
    if not np.isfinite(samples).all():
        raise DataError(f"{shown}: contains NaN or infinity")
    mono = resampled(samples.mean(1), rate)
    if not len(mono):
        raise DataError(f"{shown}: holds no samples")
    return Item.of("audio", mono, shown)


def _check(shown: str, rate: int, frames: int, limits: Limits) -> None:
    if not RATES_HZ[0] <= rate <= RATES_HZ[1]:
        raise DataError(f"{shown}: has {rate} samples a second; {RATES_HZ[0]} to {RATES_HZ[1]} can be read")
    if frames / rate > limits.max_seconds:
        raise DataError(f"{shown}: lasts {frames / rate:.1f} s, at most {limits.max_seconds:g} s are read; cut it")


def _check_size(shown: str, samples: int, limits: Limits) -> None:
    """Refuse what is short but would fill the memory: a small file can hold many channels of silence."""
    most = int(limits.max_seconds * _MOST_SAMPLES_PER_S)
    if samples > most:
        raise DataError(f"{shown}: has {samples} samples in all channels, at most {most} are read; reduce its rate")


def resampled(samples: NDArray[Any], rate: int) -> NDArray[np.float32]:
    """Return samples at ``rate`` Hz as samples at 16 kHz."""
    values = np.asarray(samples, np.float32)
    if rate == SAMPLE_RATE_HZ or not len(values):
        return values
    from scipy.signal import resample_poly

    common = math.gcd(rate, SAMPLE_RATE_HZ)
    return np.asarray(resample_poly(values, SAMPLE_RATE_HZ // common, rate // common), np.float32)
