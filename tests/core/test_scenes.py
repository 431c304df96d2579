from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acclimate.core import Classification
from acclimate.core.scenes import NEAREST, SourceScenes
from acclimate.core.source_images import SourceImages
from acclimate.core.spectrum import Sums, band_power, measure
from acclimate.methods import SpectrumFilter


def scene(count: int, *, side: int, light: float, seed: int) -> Tensor:
    """Return images that are alike: one smooth pattern, moved a little, with an amplitude and brightness ``light``."""
    draws = torch.Generator().manual_seed(seed)
    pattern = F.interpolate(torch.rand(1, 3, side, side, generator=draws), size=40, mode="bicubic")[0]
    moved = torch.stack([pattern.roll(step, -1)[:, :32, :32] for step in range(count)])
    return (light * moved).clamp(0, 1)


def source_images() -> Tensor:
    """Twenty scenes by day, and six images of one at dusk."""
    by_day = [scene(1, side=4 + number % 8, light=1.0, seed=number) for number in range(20)]
    return torch.cat([*by_day, scene(6, side=7, light=0.3, seed=99)])


def method() -> SpectrumFilter:
    source = SourceImages(lambda size: source_images().split(size or 8))
    return SpectrumFilter().with_source(nn.Identity(), source, task=Classification())


def test_a_scene_that_the_source_has_is_no_shift_and_a_damaged_one_is() -> None:
    spectrum, dusk = method(), scene(8, side=7, light=0.3, seed=99)
    without = SpectrumFilter(source=spectrum.source)
    assert without.strength(Sums.of(dusk)) == 1.0
    assert spectrum.strength(Sums.of(dusk)) == 0.0
    noise = 0.2 * torch.randn(dusk.shape, generator=torch.Generator().manual_seed(0))
    blurred = F.avg_pool2d(F.pad(dusk, (3, 3, 3, 3), mode="reflect"), 7, stride=1)
    for damaged in ((dusk + noise).clamp(0, 1), 0.3 * dusk, blurred):
        assert spectrum.strength(Sums.of(damaged)) == 1.0


def test_mixed_streams_and_single_images_are_compared_with_the_mean() -> None:
    images = source_images()
    source, scenes = measure([images]), SourceScenes(band_power(images))
    assert scenes.distance_nats(measure([images[:20]]), source) is None
    assert scenes.distance_nats(measure([images[-1:]]), source) is None
    assert scenes.distance_nats(measure([images[-6:]]), source) is not None
    few = SourceScenes(band_power(images[:NEAREST]))
    assert few.distance_nats(measure([images[-6:]]), source) is None


def test_the_spectra_of_single_images_are_those_of_the_source() -> None:
    spectrum = method()
    assert spectrum.scenes is not None
    assert spectrum.source is not None
    torch.testing.assert_close(spectrum.scenes.power.mean(0), spectrum.source.power)
    assert spectrum == SpectrumFilter(source=None)  # neither is a setting
