"""Spectra of single source images, for streams whose images show one scene.

The images of a video are alike, and those that a model was trained on are not: a street at dusk is far from the mean of
streets by day and at dusk, and yet nothing about it is new. So a stream whose images are alike is also compared with
the source images that are most like it, and its filter may aim at one of two groups of source images.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import Tensor

from acclimate.core.spectrum import PowerSpectrum, Sums, band_power, distance_nats

ALIKE: Final = 0.5
"""Images are of one scene where their spectra vary by less than this fraction of the source images' variation. On mixed
images of CIFAR-10 and ImageNet, damaged in thirteen ways, the fraction was 0.48 (noise) to 0.95; on street scenes at
dusk it is 0.3."""
MANY_KINDS: Final = 1.6
"""Images are damaged in different ways where the power in a quarter of the bands varies by more than this times the
source images' variation. On images of CIFAR-10, damaged in one of thirteen ways, the factor was at most 1.31, and 1.98
and more where noisy images were among others; haze and hue among others (1.08, 0.91) hardly change the spectrum."""
NEAREST: Final = 3
"""How many of the most similar source images are averaged: single ones vary too much."""
MOST_IMAGES: Final = 512
"""How many source images are kept."""

MEAN_NATS: Final = 5.0
"""A difference of colour means by the whole range counts as this distance of spectra. Brighter dusk has the spectrum
of day and the means of neither: 0.6 nats from the nearest street scenes, where clean frames at dusk are 0.2 from them
and single source images 0.3 from one another (median)."""

_LEAST_IMAGES: Final = 16
_FLOOR: Final = 0.1
_ROUNDS: Final = 20
_SMALL: Final = 1e-10


@dataclass(frozen=True, slots=True)
class SourceScenes:
    """The power spectra of single source images.

    Attributes:
        power: ``(N, 3, BANDS)``, see :func:`acclimate.core.spectrum.band_power`.
        mean: ``(N, 3)`` mean of each colour channel.
        shifts: ``(N,)`` how far the statistics of the model's layers on each image are from those on all, see
            :func:`acclimate.core.norm.mean_shift`; NaN where that was not measured, None where it was on no image.
    """

    power: Tensor
    mean: Tensor
    shifts: Tensor | None = None

    @classmethod
    def of(cls, images: Tensor) -> SourceScenes:
        """Return the spectra of ``(B, 3, H, W)`` images in [0, 1]."""
        return cls(band_power(images), images.mean((2, 3)))

    def plus(self, other: SourceScenes) -> SourceScenes:
        """Return these spectra and the other's; 512 at most."""
        power, mean = torch.cat([self.power, other.power]), torch.cat([self.mean, other.mean])
        return SourceScenes(power[:MOST_IMAGES], mean[:MOST_IMAGES])

    @staticmethod
    def are_alike(stream: PowerSpectrum, source: PowerSpectrum) -> bool:
        """Return whether the images of a stream are of one scene; False for a single image."""
        used = source.power > 0
        variation = stream.variation[used].mean() / source.variation[used].mean().clamp(min=1e-9)
        return stream.count > 1 and float(variation) < ALIKE

    def distance_nats(self, stream: PowerSpectrum, source: PowerSpectrum, *, means: bool = False) -> float | None:
        """Return the distance of a stream to the source images most like it.

        ``source`` is the mean spectrum of the source images. With ``means``, images are compared in colour means too.
        None is returned for a stream whose images are not alike, and where there are too few source images.
        """
        if len(self.power) <= NEAREST or not self.are_alike(stream, source):
            return None
        each = self._spectral_distances(stream, source)
        weight = MEAN_NATS if means else 0.0
        apart = weight * (stream.mean - self.mean).abs().mean(1)
        nearest = torch.hypot(each, apart).topk(NEAREST, largest=False).indices
        spectral = distance_nats(stream, replace(source, power=self.power[nearest].mean(0)))
        return math.hypot(spectral, weight * float((stream.mean - self.mean[nearest].mean(0)).abs().mean()))

    def usual_shift(self, stream: PowerSpectrum, source: PowerSpectrum) -> float | None:
        """Return the mean of ``shifts`` over the source images most like a stream; None where they were not measured.

        A street at dusk is far from the statistics of streets by day, and damaged only if it is farther than other
        streets at dusk. Of a stream whose images are not alike, it is the mean over all source images.
        """
        if self.shifts is None:
            return None
        known = ~self.shifts.isnan()
        shifts = self.shifts[known]
        if len(shifts) > NEAREST and self.are_alike(stream, source):
            each = self._spectral_distances(stream, source)[known]
            shifts = shifts[each.topk(NEAREST, largest=False).indices]
        return float(shifts.mean()) if len(shifts) else None

    def are_of_many_kinds(self, power: Tensor, source: PowerSpectrum) -> bool:
        """Return whether images with spectra ``(B, 3, BANDS)`` vary more than the source images do.

        ``source`` is the mean spectrum of the source images. Power far below it does not count: the logarithm of next
        to nothing varies without meaning.
        """
        if min(len(power), len(self.power)) < _LEAST_IMAGES:
            return False
        found, usual = ((each + _FLOOR * source.power + _SMALL).log().std(0) for each in (power, self.power))
        factors = (found / usual.clamp(min=1e-3))[source.power > _SMALL]
        return float(factors.quantile(0.75)) > MANY_KINDS

    def groups(self, *, least_distance_nats: float) -> tuple[PowerSpectrum, ...]:
        """Return the mean spectra of two groups of source images; none where they are less than that apart.

        The groups are those of 2-means clustering by the logarithms of power and by the colour means, which begins with
        the two images that are far from the mean and from each other.
        """
        if len(self.power) <= 2 * NEAREST:
            return ()
        # Each part has the weight that it has in distances.
        parts = (self.power + _SMALL).log().flatten(1), MEAN_NATS * self.mean
        features = torch.cat([part / math.sqrt(part.shape[1]) for part in parts], 1)
        first = (features - features.mean(0)).square().sum(1).argmax()
        second = (features - features[first]).square().sum(1).argmax()
        centres = features[torch.stack([first, second])]
        for _ in range(_ROUNDS):
            near = torch.cdist(features, centres).argmin(1)
            if min(int((near == group).sum()) for group in (0, 1)) <= NEAREST:
                return ()
            centres = torch.stack([features[near == group].mean(0) for group in (0, 1)])
        found = tuple(self._mean_of(near == group) for group in (0, 1))
        return found if distance_nats(*found) > least_distance_nats else ()

    def _spectral_distances(self, stream: PowerSpectrum, source: PowerSpectrum) -> Tensor:
        """Return the distances ``(N,)`` of a stream's spectrum to those of the single images, in nats."""
        return ((stream.power + _SMALL) / (self.power + _SMALL)).log().abs()[:, source.power > 0].mean(1)

    def _mean_of(self, chosen: Tensor) -> PowerSpectrum:
        power, mean = self.power[chosen], self.mean[chosen]
        return Sums(
            power.sum(0), power.square().sum(0), mean.sum(0), mean.square().sum(0), float(chosen.sum())
        ).spectrum()
