"""What a camera does to images on the whole, seen in their mean power spectrum, and a filter that undoes it.

Noise adds power at high frequencies, blur takes it away, low contrast takes it away at all of them. Natural images have
a mean spectrum that hardly depends on what they show (Field, JOSA A 1987), so the spectrum of a stream, held against
the source's, shows what happened in between, without labels.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from acclimate.errors import ConfigError

BANDS: Final = 32
"""Bands of spatial frequency, spaced by the logarithm; from one half-period in the image up to its diagonal."""

# Brightness, red against blue, green against both: nearly uncorrelated in photos (Ohta et al., CGIP 1980).
_OPPONENT: Final = ((1.0, 1.0, 1.0), (1.0, 0.0, -1.0), (-1.0, 2.0, -1.0))
_LOWEST_FREQUENCY: Final = 1 / 128  # of the sampling rate: what is below shares the first band
_SMALL: Final = 1e-10
_END: Final = 1 / 255
_LEAST_SPIKE: Final = 0.2


@dataclass(frozen=True, slots=True)
class PowerSpectrum:
    """Mean power spectrum of a set of images in [0, 1].

    Attributes:
        power: ``(3, BANDS)`` mean power in each opponent colour and band, each image's own mean left out.
        variation: ``(3, BANDS)`` standard deviation over images of that power, relative to ``power``.
        mean: ``(3,)`` mean of each colour channel; ``mean_deviation`` ``(3,)``: of the images' means.
        count: images.
    """

    power: Tensor
    variation: Tensor
    mean: Tensor
    mean_deviation: Tensor
    count: int

    def tensors(self) -> dict[str, Tensor]:
        """Return everything as tensors by name, for a safetensors file."""
        fields = ("power", "variation", "mean", "mean_deviation")
        return {**{name: getattr(self, name) for name in fields}, "count": torch.tensor(self.count)}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> PowerSpectrum:
        """Return what :meth:`tensors` described.

        Raises:
            ConfigError: a tensor is missing or has another shape.
        """
        try:
            made = cls(
                tensors["power"],
                tensors["variation"],
                tensors["mean"],
                tensors["mean_deviation"],
                int(tensors["count"]),
            )
        except KeyError as error:
            raise ConfigError(f"a source spectrum needs a tensor {error}; measure it again") from error
        if made.power.shape != (3, BANDS) or made.variation.shape != (3, BANDS) or made.mean.shape != (3,):
            raise ConfigError(
                f"a source spectrum's power is (3, {BANDS}), got {tuple(made.power.shape)}; measure it again"
            )
        return made


@dataclass(frozen=True, slots=True)
class Sums:
    """Running sums over images; ``count`` is their weight, which decays where a stream is forgotten."""

    power: Tensor
    squared_power: Tensor
    mean: Tensor
    squared_mean: Tensor
    count: float

    @classmethod
    def of(cls, images: Tensor) -> Sums:
        """Return the sums over ``(B, 3, H, W)`` images in [0, 1]."""
        power, mean = band_power(images), images.mean((2, 3))
        return cls(power.sum(0), power.square().sum(0), mean.sum(0), mean.square().sum(0), float(len(images)))

    def plus(self, other: Sums, *, keep: float = 1.0) -> Sums:
        """Return these sums, weighted by ``keep``, and the other's."""
        return Sums(
            keep * self.power + other.power,
            keep * self.squared_power + other.squared_power,
            keep * self.mean + other.mean,
            keep * self.squared_mean + other.squared_mean,
            keep * self.count + other.count,
        )

    def spectrum(self) -> PowerSpectrum:
        """Return the means."""
        power, mean = self.power / self.count, self.mean / self.count
        spread = (self.squared_power / self.count - power.square()).clamp(min=0).sqrt()
        return PowerSpectrum(
            power,
            spread / power.clamp(min=_SMALL),
            mean,
            (self.squared_mean / self.count - mean.square()).clamp(min=0).sqrt(),
            max(1, round(self.count)),
        )


def measure(batches: Iterable[Tensor]) -> PowerSpectrum:
    """Return the spectrum of batches ``(B, 3, H, W)`` of images in [0, 1].

    Raises:
        ConfigError: there is no image.
    """
    total: Sums | None = None
    for images in batches:
        sums = Sums.of(images)
        total = sums if total is None else total.plus(sums)
    if total is None:
        raise ConfigError("a spectrum needs at least one batch of images, got none")
    return total.spectrum()


def band_power(images: Tensor) -> Tensor:
    """Return the mean power ``(B, 3, BANDS)`` of ``(B, 3, H, W)`` images in each opponent colour and band."""
    coefficients = _transformed(images)
    bands, sizes = _bands(images.shape[2], images.shape[3], images.device)
    power = coefficients.square().flatten(2)
    summed = power.new_zeros(*power.shape[:2], BANDS).index_add_(2, bands.flatten(), power)
    return summed / sizes


def distance_nats(spectrum: PowerSpectrum, source: PowerSpectrum) -> float:
    """Return how far apart two spectra are: the mean over colours and bands of ``|log ratio|``."""
    ratio = (spectrum.power + _SMALL) / (source.power + _SMALL)
    return float(ratio.log().abs()[_used(source)].mean())


def excess_distance_nats(spectrum: PowerSpectrum, source: PowerSpectrum, *, chance_nats: float) -> float:
    """Return the distance with what chance alone would give taken out of it (they add up as squares)."""
    return math.sqrt(max(0.0, distance_nats(spectrum, source) ** 2 - chance_nats**2))


def expected_distance_nats(source: PowerSpectrum, count: float) -> float:
    """Return the distance that ``count`` images of the source itself would have, from chance alone."""
    # The mean of |N(0, s)| is s sqrt(2 / pi), and log(1 + x) is about x.
    relative = source.variation[_used(source)].mean() / math.sqrt(max(count, 1.0))
    return float(relative) * math.sqrt(2 / math.pi)


def despiked(images: Tensor, *, deviations: float, least_share: float) -> Tensor:
    """Return ``(B, 3, H, W)`` images in [0, 1] without the spikes of dead, hot or flipped pixels.

    No linear filter takes those away. A spike is a value at an end of the range that is farther from the median of the
    3 x 3 values around it than ``deviations`` times what is usual in its image, and more than a fifth of the range; the
    median takes its place (a switching median filter, Sun & Neuvo, Pattern Recognition Letters 1994). Noise that is
    everywhere makes large distances usual, so it has no spikes.

    Args:
        images: in [0, 1].
        deviations: how unusual a spike is.
        least_share: with fewer spikes among all values the images are returned as they are.
    """
    extreme = (images <= _END) | (images >= 1 - _END)
    if float(extreme.float().mean()) < least_share:
        return images
    median = _median_of_neighbours(images)
    distance = (images - median).abs()
    usual = distance.flatten(1).median(dim=1).values[:, None, None, None]
    spikes = extreme & (distance > torch.clamp(deviations * usual, min=_LEAST_SPIKE))
    if float(spikes.float().mean()) < least_share:
        return images
    return torch.where(spikes, median, images)


def gains(stream: PowerSpectrum, source: PowerSpectrum, *, max_gain: float, sharpening: float) -> Tensor:
    """Return the factor ``(3, BANDS)`` for the amplitude of each opponent colour and band.

    What three quarters of a colour's bands have lost is lost contrast, and is given back in full to all of them. Of
    what is left, a band with too much power is taken for noise that was added, and weakened as Wiener's filter does, by
    the ratio of the powers; one with too little for blur, and raised by the ratio to the power of ``sharpening``.

    Args:
        stream: what the images are like on the whole.
        source: what they should be like.
        max_gain: the largest factor, which also limits how much noise is raised.
        sharpening: 0.5 would give the source's power back in full, noise and all.
    """
    ratio = ((source.power + _SMALL) / (stream.power + _SMALL)).log()
    contrast = torch.stack([_lower_quartile(row[used]) for row, used in zip(ratio, _used(source), strict=True)])
    contrast = contrast.clamp(min=0)[:, None]
    rest = ratio - contrast
    factor = contrast / 2 + torch.where(rest < 0, rest, sharpening * rest)
    return factor.clamp(max=math.log(max_gain)).exp()


def filtered(
    images: Tensor, stream: PowerSpectrum, source: PowerSpectrum, *, strength: float, max_gain: float, sharpening: float
) -> Tensor:
    """Return ``(B, 3, H, W)`` images in [0, 1] filtered by :func:`gains`, means moved by the difference of the means.

    ``strength`` in [0, 1] is the exponent of the gains and the factor of the shift: 0 leaves the images as they are.
    """
    factor = gains(stream, source, max_gain=max_gain, sharpening=sharpening) ** strength
    bands, _ = _bands(images.shape[2], images.shape[3], images.device)
    gain = factor.to(images)[:, bands]
    gain[:, 0, 0] = 1.0  # each image keeps its own mean
    restored = _restored(_transformed(images, centred=False) * gain)
    shift = strength * (source.mean - stream.mean).to(images)
    return (restored + shift[:, None, None]).clamp(0, 1)


def _median_of_neighbours(images: Tensor) -> Tensor:
    """Return the median of the 3 x 3 values around each."""
    padded = F.pad(images, (1, 1, 1, 1), mode="reflect")
    low, middle, high = _sorted(padded[:, :, :-2], padded[:, :, 1:-1], padded[:, :, 2:])

    def beside(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return values[..., :-2], values[..., 1:-1], values[..., 2:]

    # Of nine values in three sorted columns, it is the median of the highest low, the middle middle, the lowest high.
    lows, highs = beside(low), beside(high)
    highest_low = torch.maximum(torch.maximum(lows[0], lows[1]), lows[2])
    lowest_high = torch.minimum(torch.minimum(highs[0], highs[1]), highs[2])
    return _sorted(highest_low, _sorted(*beside(middle))[1], lowest_high)[1]


def _sorted(a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    a, b = torch.minimum(a, b), torch.maximum(a, b)
    b, c = torch.minimum(b, c), torch.maximum(b, c)
    return torch.minimum(a, b), torch.maximum(a, b), c


def _lower_quartile(values: Tensor) -> Tensor:
    return torch.quantile(values, 0.25) if len(values) else values.new_zeros(())


def _used(source: PowerSpectrum) -> Tensor:
    """Say which bands exist: a small image has no coefficient in the lowest."""
    return source.power > _SMALL


def _transformed(images: Tensor, *, centred: bool = True) -> Tensor:
    """Return the orthonormal cosine transform of the opponent colours; without the mean of each where ``centred``."""
    height, width = images.shape[-2:]
    opponent = torch.einsum("oc,bchw->bohw", _opponent(images.device), images.float())
    coefficients = _cosines(height, images.device) @ opponent @ _cosines(width, images.device).T
    if centred:
        coefficients[..., 0, 0] = 0.0
    return coefficients


def _restored(coefficients: Tensor) -> Tensor:
    height, width = coefficients.shape[-2:]
    device = coefficients.device
    opponent = _cosines(height, device).T @ coefficients @ _cosines(width, device)
    images: Tensor = torch.einsum("oc,bohw->bchw", _opponent(device), opponent)
    return images


@lru_cache(maxsize=8)
def _opponent(device: torch.device) -> Tensor:
    rows = torch.tensor(_OPPONENT, device=device)
    orthonormal: Tensor = rows / rows.norm(dim=1, keepdim=True)
    return orthonormal


@lru_cache(maxsize=16)
def _cosines(size: int, device: torch.device) -> Tensor:
    """Return the orthonormal DCT-II ``(size, size)``; its implied mirror images leave no edge to ring at."""
    frequency, position = torch.arange(size)[:, None], torch.arange(size)[None]
    matrix = torch.cos(math.pi * (position + 0.5) * frequency / size) * math.sqrt(2 / size)
    matrix[0] /= math.sqrt(2)
    return matrix.to(device)


@lru_cache(maxsize=16)
def _bands(height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the band of each coefficient ``(H, W)``, and how many there are in each ``(BANDS,)``."""
    # Row k oscillates k / (2 H) times a pixel, so that bands mean the same at every size.
    rows, columns = torch.arange(height) / (2 * height), torch.arange(width) / (2 * width)
    frequency = torch.sqrt(rows[:, None] ** 2 + columns[None] ** 2)
    highest = math.sqrt(0.5)
    position = (frequency.clamp(min=_LOWEST_FREQUENCY) / _LOWEST_FREQUENCY).log() / math.log(
        highest / _LOWEST_FREQUENCY
    )
    bands = (position * BANDS).long().clamp(max=BANDS - 1)
    sizes = torch.bincount(bands.flatten()[1:], minlength=BANDS).clamp(min=1)  # an image's mean is in no band
    return bands.to(device), sizes.to(device)
