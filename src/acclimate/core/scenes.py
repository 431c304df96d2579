"""Spectra of single source images, for streams whose images show one scene.

The images of a video are alike, and those that a model was trained on are not: a street at dusk is far from the mean of
streets by day and at dusk, and yet nothing about it is new. So a stream whose images are alike is also compared with
the source images that are most like it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from torch import Tensor

from acclimate.core.spectrum import PowerSpectrum, distance_nats

ALIKE: Final = 0.5
"""Images are of one scene where their spectra vary by less than this fraction of the source images' variation. On mixed
images of CIFAR-10 and ImageNet, damaged in thirteen ways, the fraction was 0.48 (noise) to 0.95; on street scenes at
dusk it is 0.3."""
NEAREST: Final = 3
"""How many of the most similar source images are averaged: single ones vary too much."""
MOST_IMAGES: Final = 512
"""How many source images are kept."""


@dataclass(frozen=True, slots=True)
class SourceScenes:
    """The power spectra of single source images.

    Attributes:
        power: ``(N, 3, BANDS)``, see :func:`acclimate.core.spectrum.band_power`.
    """

    power: Tensor

    def distance_nats(self, stream: PowerSpectrum, source: PowerSpectrum) -> float | None:
        """Return the distance of a stream to the source images most like it; None where it shows several scenes.

        ``source`` is the mean spectrum of the source images. None is also returned for a single image, and where there
        are too few source images.
        """
        used = source.power > 0
        variation = stream.variation[used].mean() / source.variation[used].mean().clamp(min=1e-9)
        if stream.count < 2 or len(self.power) <= NEAREST or float(variation) >= ALIKE:
            return None
        each = ((stream.power + 1e-10) / (self.power + 1e-10)).log().abs()[:, used].mean(1)
        nearest = each.topk(NEAREST, largest=False).indices
        return distance_nats(stream, replace(source, power=self.power[nearest].mean(0)))
