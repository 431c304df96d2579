"""Mean power spectra of image streams, and a filter that changes a stream's spectrum towards the source's.

Noise adds power at high frequencies, blur removes it, and low contrast removes power at all frequencies. The mean
spectrum of natural images hardly depends on their content (Field, JOSA A 1987), so comparing the spectrum of a stream
with the source's reveals the degradation of the images without labels.
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
"""Number of bands of spatial frequency, spaced logarithmically up to the highest diagonal frequency."""

# Brightness, red minus blue, green minus both: nearly uncorrelated in photos (Ohta et al., CGIP 1980).
_OPPONENT: Final = ((1.0, 1.0, 1.0), (1.0, 0.0, -1.0), (-1.0, 2.0, -1.0))
_LOWEST_FREQUENCY: Final = 1 / 128  # of the sampling rate; lower frequencies belong to the first band
_SMALL: Final = 1e-10
_END: Final = 1 / 255
_LEAST_SPIKE: Final = 0.2
_LEAST_COARSE_STEP: Final = 4
"""Bytes between neighbouring grey levels; with fewer, 64 and more levels are left."""
_COARSE_PIXELS: Final = 64
"""About so many rows and columns of an image are looked at for that."""
_BESIDE: Final = 4
"""Coefficients of this many lowest indices, the zeroth left out, are compared with those of stripes."""
_MANY_IMAGES: Final = 32
_IMAGE_STEP: Final = 4
"""Of many images, the others are looked at only if every fourth has at least half of the spikes that are looked for."""


@dataclass(frozen=True, slots=True)
class PowerSpectrum:
    """Mean power spectrum of a set of images in [0, 1].

    Attributes:
        power: ``(3, BANDS)`` mean power in each opponent colour and band, without each image's own mean.
        variation: ``(3, BANDS)`` standard deviation of that power over images, relative to ``power``.
        mean: ``(3,)`` mean of each colour channel; ``mean_deviation``: ``(3,)`` standard deviation of the image means.
        count: number of images.
    """

    power: Tensor
    variation: Tensor
    mean: Tensor
    mean_deviation: Tensor
    count: int

    def tensors(self) -> dict[str, Tensor]:
        """Return all fields as tensors by name, for a safetensors file."""
        fields = ("power", "variation", "mean", "mean_deviation")
        return {**{name: getattr(self, name) for name in fields}, "count": torch.tensor(self.count)}

    def on(self, device: torch.device) -> PowerSpectrum:
        """Return the spectrum with its tensors on ``device``."""
        return PowerSpectrum(
            self.power.to(device),
            self.variation.to(device),
            self.mean.to(device),
            self.mean_deviation.to(device),
            self.count,
        )

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> PowerSpectrum:
        """Return the spectrum whose fields :meth:`tensors` returned.

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
            raise ConfigError(f"a source spectrum needs a tensor {error}, which is missing; compute it anew") from error
        if made.power.shape != (3, BANDS) or made.variation.shape != (3, BANDS) or made.mean.shape != (3,):
            raise ConfigError(
                f"a source spectrum's power is (3, {BANDS}), got {tuple(made.power.shape)}; compute it anew"
            )
        return made


@dataclass(frozen=True, slots=True)
class Sums:
    """Running sums over images; ``count`` is the sum of their weights, which decay exponentially on a stream."""

    power: Tensor
    squared_power: Tensor
    mean: Tensor
    squared_mean: Tensor
    count: float

    @classmethod
    def of(cls, images: Tensor, coefficients: Tensor | None = None) -> Sums:
        """Return the sums over ``(B, 3, H, W)`` images in [0, 1]; ``coefficients`` is their :func:`transformed`."""
        power, mean = band_power(images, coefficients), images.mean((2, 3))
        return cls(power.sum(0), power.square().sum(0), mean.sum(0), mean.square().sum(0), float(len(images)))

    def plus(self, other: Sums, *, keep: float = 1.0) -> Sums:
        """Return these sums, multiplied by ``keep``, plus the other's."""
        return Sums(
            keep * self.power + other.power,
            keep * self.squared_power + other.squared_power,
            keep * self.mean + other.mean,
            keep * self.squared_mean + other.squared_mean,
            keep * self.count + other.count,
        )

    def spectrum(self) -> PowerSpectrum:
        """Return the mean spectrum of the summed images."""
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


def transformed(images: Tensor) -> Tensor:
    """Return the orthonormal cosine transform ``(B, 3, H, W)`` of the opponent colours of images in [0, 1]."""
    height, width = images.shape[-2:]
    opponent = to_opponent(images)
    return cosines(height, images.device) @ opponent @ cosines(width, images.device).T


def band_power(images: Tensor, coefficients: Tensor | None = None) -> Tensor:
    """Return the mean power ``(B, 3, BANDS)`` of ``(B, 3, H, W)`` images in each opponent colour and band.

    ``coefficients`` is their :func:`transformed`, where that is known.
    """
    power = (transformed(images) if coefficients is None else coefficients).square().flatten(2)
    power[..., 0] = 0.0  # an image's mean is in no band
    bands, sizes = _bands(images.shape[2], images.shape[3], images.device)
    summed = power.new_zeros(*power.shape[:2], BANDS).index_add_(2, bands.flatten(), power)
    return summed / sizes


def distance_nats(spectrum: PowerSpectrum, source: PowerSpectrum) -> float:
    """Return the distance of two spectra: the mean over colours and bands of ``|log ratio|``."""
    ratio = (spectrum.power + _SMALL) / (source.power + _SMALL)
    return float(ratio.log().abs()[_used(source)].mean())


def excess_distance_nats(spectrum: PowerSpectrum, source: PowerSpectrum, *, chance_nats: float) -> float:
    """Return the distance without the part that is due to sampling error; the squares of the two parts add up."""
    return math.sqrt(max(0.0, distance_nats(spectrum, source) ** 2 - chance_nats**2))


def expected_distance_nats(source: PowerSpectrum, count: float) -> float:
    """Return the expected distance between the source and ``count`` images of the source, due to sampling error."""
    # The mean of |N(0, s)| is s sqrt(2 / pi), and log(1 + x) is about x.
    relative = source.variation[_used(source)].mean() / math.sqrt(max(count, 1.0))
    return float(relative) * math.sqrt(2 / math.pi)


def despiked(images: Tensor, *, deviations: float, least_share: float) -> Tensor:
    """Return ``(B, 3, H, W)`` images in [0, 1] without the outliers of dead, hot or flipped pixels (spikes).

    No linear filter removes them, so this is a switching median filter (Sun & Neuvo, Pattern Recognition Letters 1994).
    A spike is a value at an end of the range whose distance from the median of the 3 x 3 values around it is more than
    ``deviations`` times the median of such distances in its image, and more than a fifth of the range; it is replaced
    by the median of its 3 x 3 values. Noise in all pixels makes large distances common, so it is not taken for spikes.
    Nor are single pixels of images with few grey levels, which are edges of what they show.

    Args:
        images: in [0, 1].
        deviations: the factor in the definition above.
        least_share: the images are returned unchanged if the share of spikes among all values is smaller.
    """
    if len(images) >= _MANY_IMAGES and not _has_spikes(images[::_IMAGE_STEP], deviations, least_share):
        return images
    if min(images.shape[-2:]) < 2:
        return images
    spikes, median = _spikes(images, deviations=deviations, least_share=least_share)
    if spikes is None or float(spikes.float().mean()) < least_share:
        return images
    coarse = torch.tensor([_is_coarse(image) for image in images], device=images.device)
    if bool(coarse.all()):
        return images
    spikes &= ~coarse[:, None, None, None]
    return torch.where(spikes, median, images)


def _is_coarse(image: Tensor) -> bool:
    """Say whether an image ``(3, H, W)`` in [0, 1] has only few grey levels, far from each other."""
    rows, columns = (max(1, size // _COARSE_PIXELS) for size in image.shape[-2:])
    levels = (image[:, ::rows, ::columns] * 255).round().unique()
    return len(levels) < 2 or float(levels.diff().median()) > _LEAST_COARSE_STEP


def _has_spikes(images: Tensor, deviations: float, least_share: float) -> bool:
    spikes, _ = _spikes(images, deviations=deviations, least_share=least_share)
    return spikes is not None and float(spikes.float().mean()) >= least_share / 2


def _spikes(images: Tensor, *, deviations: float, least_share: float) -> tuple[Tensor | None, Tensor]:
    """Return which values are spikes, and the medians of their neighbours; None where too few values are extreme."""
    extreme = (images <= _END) | (images >= 1 - _END)
    if float(extreme.float().mean()) < least_share / 2:
        return None, images
    median = _median_of_neighbours(images)
    distance = (images - median).abs()
    # A quarter of the values has the same median, and takes a quarter of the time.
    usual = distance[:, :, ::2, ::2].flatten(1).median(dim=1).values[:, None, None, None]
    return extreme & (distance > torch.clamp(deviations * usual, min=_LEAST_SPIKE)), median


def destriped(images: Tensor, *, excess_nats: float, coefficients: Tensor | None = None) -> Tensor:
    """Return ``(B, 3, H, W)`` images in [0, 1] without stripes along rows or columns, as line noise and flicker make.

    What is alike along a whole row or column lies in the cosine coefficients whose other index is 0. Scenes have about
    as much power there as in the coefficients of the next indices (1 to 3), stripes have nearly all of theirs. So these
    coefficients are weakened by the ratio of the two powers, as by a Wiener filter, in each opponent colour and
    direction by itself.

    Args:
        images: in [0, 1]; powers are means over them.
        excess_nats: the median over frequencies of the logarithm of the ratio from which on stripes are removed; where
            there are none, the images are returned as they are.
        coefficients: their :func:`transformed`, where that is known.
    """
    coefficients = transformed(images) if coefficients is None else coefficients
    gain = _stripe_gain(coefficients, excess_nats)
    if bool((gain == 1).all()):
        return images
    return _restored(coefficients * gain).clamp(0, 1)


def is_striped(coefficients: Tensor, *, excess_nats: float) -> bool:
    """Say whether :func:`destriped` would change the images with this :func:`transformed`."""
    return not bool((_stripe_gain(coefficients, excess_nats) == 1).all())


def _stripe_gain(coefficients: Tensor, excess_nats: float) -> Tensor:
    """Return the factor ``(3, H, W)`` for each coefficient that removes stripes, 1 where there are none."""
    # Contrast counts, and not how bright images are: coefficient (0, 0) is left as it is.
    power = coefficients.square().mean(0)
    gain = torch.ones_like(power)
    for along, beside, target in (
        (power[:, 0, 1:], power[:, 1:_BESIDE, 1:].mean(1), gain[:, 0, 1:]),
        (power[:, 1:, 0], power[:, 1:, 1:_BESIDE].mean(2), gain[:, 1:, 0]),
    ):
        if not along.numel() or not beside.numel():
            continue
        ratio = (beside + _SMALL) / (along + _SMALL)
        striped = -ratio.log().median(1, keepdim=True).values > excess_nats
        target.copy_(torch.where(striped, ratio.clamp(max=1), 1.0))
    return gain


def gains(
    stream: PowerSpectrum, source: PowerSpectrum, *, max_gain: float, sharpening: float, lowers_contrast: bool = False
) -> Tensor:
    """Return the factor ``(3, BANDS)`` for the amplitude of each opponent colour and band.

    A loss of power that at least three quarters of a colour's bands share is taken for lost contrast and is made up for
    in full in all bands. Of the remaining difference, too much power in a band is taken for added noise, and the band
    is attenuated by the ratio of the powers, as by a Wiener filter; too little power is taken for blur, and the band is
    amplified by the ratio to the power of ``sharpening``.

    Args:
        stream: the spectrum of the stream.
        source: the spectrum of the source.
        max_gain: the largest factor, which also limits the amplification of noise.
        sharpening: exponent for blurred bands; 0.5 would restore the source's power in full, but amplify noise too.
        lowers_contrast: in the same way, an excess of power that three quarters of a colour's bands share, and three
            quarters of the brightness's, is taken for too much contrast and undone. Noise adds next to nothing to the
            lowest bands of brightness.
    """
    ratio = ((source.power + _SMALL) / (stream.power + _SMALL)).log()
    rows = [row[used] for row, used in zip(ratio, _used(source), strict=True)]
    contrast = torch.stack([_quantile(row, 0.25) for row in rows]).clamp(min=0)[:, None]
    if lowers_contrast:
        gained = torch.stack([_quantile(row, 0.75) for row in rows]).clamp(max=0)
        contrast = contrast + torch.maximum(gained, gained[0])[:, None]
    rest = ratio - contrast
    factor = contrast / 2 + torch.where(rest < 0, rest, sharpening * rest)
    return factor.clamp(max=math.log(max_gain)).exp()


def filtered(
    images: Tensor,
    stream: PowerSpectrum,
    source: PowerSpectrum,
    *,
    strength: float,
    max_gain: float,
    sharpening: float,
    lowers_contrast: bool = False,
    coefficients: Tensor | None = None,
) -> Tensor:
    """Return ``(B, 3, H, W)`` images in [0, 1], filtered with :func:`gains` and shifted by the difference of the means.

    ``strength`` in [0, 1] is the exponent of the gains and the factor of the shift; 0 returns the images unchanged.
    ``coefficients`` is their :func:`transformed`, where that is known.
    """
    factor = gains(stream, source, max_gain=max_gain, sharpening=sharpening, lowers_contrast=lowers_contrast)
    factor = factor**strength
    bands, _ = _bands(images.shape[2], images.shape[3], images.device)
    gain = factor.to(images)[:, bands]
    gain[:, 0, 0] = 1.0  # each image keeps its own mean
    restored = _restored((transformed(images) if coefficients is None else coefficients) * gain)
    shift = strength * (source.mean - stream.mean).to(images)
    return (restored + shift[:, None, None]).clamp(0, 1)


def _median_of_neighbours(images: Tensor) -> Tensor:
    """Return the median of the 3 x 3 values around each."""
    padded = F.pad(images, (1, 1, 1, 1), mode="reflect")
    low, middle, high = _sorted(padded[:, :, :-2], padded[:, :, 1:-1], padded[:, :, 2:])

    def beside(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return values[..., :-2], values[..., 1:-1], values[..., 2:]

    # With three sorted columns, the median of the nine values is the median of three: the largest of the low values,
    # the median of the middle values, and the smallest of the high values.
    lows, highs = beside(low), beside(high)
    highest_low = torch.maximum(torch.maximum(lows[0], lows[1]), lows[2])
    lowest_high = torch.minimum(torch.minimum(highs[0], highs[1]), highs[2])
    return _sorted(highest_low, _sorted(*beside(middle))[1], lowest_high)[1]


def _sorted(a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    a, b = torch.minimum(a, b), torch.maximum(a, b)
    b, c = torch.minimum(b, c), torch.maximum(b, c)
    return torch.minimum(a, b), torch.maximum(a, b), c


def _quantile(values: Tensor, share: float) -> Tensor:
    return torch.quantile(values, share) if len(values) else values.new_zeros(())


def _used(source: PowerSpectrum) -> Tensor:
    """Return which bands contain coefficients; small images have none in the lowest bands."""
    return source.power > _SMALL


def _restored(coefficients: Tensor) -> Tensor:
    height, width = coefficients.shape[-2:]
    device = coefficients.device
    return from_opponent(cosines(height, device).T @ coefficients @ cosines(width, device))


def to_opponent(images: Tensor) -> Tensor:
    """Return ``(B, 3, H, W)`` images in opponent colours, the first of which is brightness; lengths are kept."""
    found: Tensor = torch.einsum("oc,bchw->bohw", _opponent(images.device), images.float())
    return found


def from_opponent(opponent: Tensor) -> Tensor:
    """Return the images ``(B, 3, H, W)`` whose opponent colours are given."""
    images: Tensor = torch.einsum("oc,bohw->bchw", _opponent(opponent.device), opponent)
    return images


@lru_cache(maxsize=8)
def _opponent(device: torch.device) -> Tensor:
    rows = torch.tensor(_OPPONENT, device=device)
    orthonormal: Tensor = rows / rows.norm(dim=1, keepdim=True)
    return orthonormal


@lru_cache(maxsize=16)
def cosines(size: int, device: torch.device) -> Tensor:
    """Return the orthonormal DCT-II ``(size, size)``, which extends images by reflection: no ringing at edges."""
    frequency, position = torch.arange(size)[:, None], torch.arange(size)[None]
    matrix = torch.cos(math.pi * (position + 0.5) * frequency / size) * math.sqrt(2 / size)
    matrix[0] /= math.sqrt(2)
    return matrix.to(device)


@lru_cache(maxsize=16)
def _bands(height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the band of each coefficient ``(H, W)``, and the number of coefficients in each band ``(BANDS,)``."""
    # In cycles per pixel (k / (2 H) for row k), so that bands mean the same at every image size.
    rows, columns = torch.arange(height) / (2 * height), torch.arange(width) / (2 * width)
    frequency = torch.sqrt(rows[:, None] ** 2 + columns[None] ** 2)
    highest = math.sqrt(0.5)
    position = (frequency.clamp(min=_LOWEST_FREQUENCY) / _LOWEST_FREQUENCY).log() / math.log(
        highest / _LOWEST_FREQUENCY
    )
    bands = (position * BANDS).long().clamp(max=BANDS - 1)
    sizes = torch.bincount(bands.flatten()[1:], minlength=BANDS).clamp(min=1)  # an image's mean is in no band
    return bands.to(device), sizes.to(device)
