from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acclimate.core import Classification, Segmentation, Session, layout
from acclimate.core.scenes import NEAREST, SourceScenes
from acclimate.core.source_images import SourceImages
from acclimate.core.spectrum import Sums, measure
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
    source, scenes = measure([images]), SourceScenes.of(images)
    assert scenes.distance_nats(measure([images[:20]]), source) is None
    assert scenes.distance_nats(measure([images[-1:]]), source) is None
    assert scenes.distance_nats(measure([images[-6:]]), source) is not None
    few = SourceScenes.of(images[:NEAREST])
    assert few.distance_nats(measure([images[-6:]]), source) is None


def test_a_brighter_scene_is_known_in_spectrum_and_not_in_colours() -> None:
    spectrum, dusk = method(), scene(8, side=7, light=0.3, seed=99)
    assert spectrum.scenes is not None
    assert spectrum.source is not None
    for frames, known in ((dusk, True), (dusk + 0.2, False)):
        own = measure([frames])
        in_spectrum, in_both = (
            spectrum.scenes.distance_nats(own, spectrum.source, means=means) for means in (False, True)
        )
        assert in_spectrum is not None
        assert in_both is not None
        assert in_spectrum < spectrum.tolerance_nats
        assert (in_both < spectrum.tolerance_nats) == known


def test_a_stream_like_the_mean_of_the_source_and_like_no_image_of_it_is_judged_by_the_decisions() -> None:
    between, dark = scene(8, side=7, light=0.8, seed=5), scene(12, side=6, light=0.2, seed=6)
    own = measure([between])
    spectrum = SpectrumFilter(
        source=replace(own, variation=5 * own.variation), scenes=SourceScenes.of(dark), groups=(measure([dark]),)
    )
    assert spectrum.strength(Sums.of(between)) == 0.0
    level = float(dark.mean())
    for model, shifted in ((Certain(level), True), (Certain(float(between.mean())), False)):
        with Session(model, spectrum, task=Segmentation(), guards=()) as session:
            outputs, _ = session.adapt_and_predict(between)
            assert session.state.shifted == shifted
            assert session.state.reference == int(shifted)
            assert torch.equal(outputs, session.predict(between))
            assert torch.equal(outputs, model(between)) != shifted
            aimed = session.method.cleaned(between, session.state, task=Segmentation())  # type: ignore[attr-defined]
            assert (abs(float(aimed.mean()) - level) < 0.05) == shifted


def test_the_spectra_of_single_images_are_those_of_the_source() -> None:
    spectrum = method()
    assert spectrum.scenes is not None
    assert spectrum.source is not None
    torch.testing.assert_close(spectrum.scenes.power.mean(0), spectrum.source.power)
    assert spectrum == SpectrumFilter(source=None)  # neither is a setting


class Certain(nn.Module):
    """A segmenter that is the more certain, the closer the brightness of a pixel's image is to ``light``."""

    def __init__(self, light: float) -> None:
        super().__init__()
        self.light = light

    def forward(self, images: Tensor) -> Tensor:
        distance = (images.mean((1, 2, 3)) - self.light).abs()
        logit = (4 * (1 - distance))[:, None, None].expand(-1, *images.shape[2:])
        return torch.stack([logit, -logit], 1)


def test_the_filter_aims_at_the_group_of_source_images_with_which_a_segmenter_is_most_certain() -> None:
    spectrum, task = method(), Segmentation()
    assert len(spectrum.groups) == 2
    by_light = sorted((1, 2), key=lambda number: float(spectrum.groups[number - 1].mean.mean()))
    hazy = 0.3 * scene(8, side=7, light=0.3, seed=99) + 0.5
    for model, expected in ((Certain(0.0), by_light[0]), (Certain(1.0), by_light[1])):
        with Session(model, spectrum, task=task, guards=()) as session:
            outputs, _ = session.adapt_and_predict(hazy)
            assert session.state.reference == expected
            aimed = session.method.cleaned(hazy, session.state, task=task)  # type: ignore[attr-defined]
            assert abs(float(aimed.mean()) - float(spectrum.groups[expected - 1].mean.mean())) < 0.05
            assert torch.equal(outputs, session.predict(hazy))
            # It is decided once for a stream, and again where the stream changes.
            session.adapt(hazy)
            assert session.state.reference == expected
            session.adapt((hazy + 0.3 * torch.randn(hazy.shape)).clamp(0, 1))
            assert session.state.stream.count == 8
            other = SpectrumFilter(source=spectrum.source)
            assert other.cleaned(hazy, session.state, task=task).isfinite().all()  # a state of other source images
    with Session(Certain(0.0), spectrum, task=Segmentation(sampled_positions=100), guards=()) as session:
        session.adapt(hazy)
        assert session.state.reference == 0  # so few decisions say nothing


def segmenter() -> nn.Module:
    """A small segmenter that was trained on the source images at dusk, as far as its running statistics tell."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8, momentum=None), nn.ReLU(), nn.Conv2d(8, 4, 1)
    )
    with torch.no_grad():
        model.train()(source_images()[-6:])
    return model.eval()


def with_segmenter(model: nn.Module) -> SpectrumFilter:
    source = SourceImages(lambda size: source_images().split(size or 8))
    return SpectrumFilter().with_source(model, source, task=Segmentation())


def test_a_segmenters_statistics_are_mixed_where_light_changes_and_the_spectrum_does_not() -> None:
    model, dusk = segmenter(), scene(16, side=7, light=0.3, seed=99)
    spectrum = with_segmenter(model)
    assert spectrum.scenes is not None
    assert spectrum.scenes.shifts is not None
    assert bool(spectrum.scenes.shifts.isfinite().all())
    for brighter, departs in ((0.0, False), (0.25, True)):
        frames = dusk + brighter
        assert spectrum.strength(Sums.of(frames[:8])) == 0.0
        with Session(model, spectrum, task=Segmentation(), guards=()) as session:
            outputs, _ = session.adapt_and_predict(frames[:8])
            assert (session.state.departure == 0) != departs
            assert torch.equal(outputs, model(layout.for_prediction(frames[:8]))) != departs
            assert torch.equal(outputs, session.predict(frames[:8]))
            known = session.state.departure
            session.adapt(frames[8:])
            assert session.state.departure == known  # measured once for a stream
        # Few frames say little: until they are eight, the spectrum alone decides.
        with Session(model, spectrum, task=Segmentation(), guards=()) as session:
            for first in (0, 4):
                assert session.state.departure is None
                session.adapt(frames[first : first + 4])
            assert (session.state.departure == 0) != departs


def test_shifts_are_compared_with_those_of_the_source_images_most_like_a_stream() -> None:
    images = source_images()
    source, scenes = measure([images]), SourceScenes.of(images)
    dusk, mixed = measure([images[-6:]]), measure([images[:20]])
    assert scenes.usual_shift(dusk, source) is None
    shifts = torch.cat([torch.zeros(20), torch.ones(6)])
    assert replace(scenes, shifts=shifts).usual_shift(dusk, source) == 1.0
    assert replace(scenes, shifts=shifts).usual_shift(mixed, source) == pytest.approx(6 / 26)
    shifts[20:23] = torch.nan  # was not measured there
    assert replace(scenes, shifts=shifts).usual_shift(dusk, source) == 1.0
    assert replace(scenes, shifts=shifts).usual_shift(mixed, source) == pytest.approx(3 / 23)
    assert replace(scenes, shifts=torch.full((26,), torch.nan)).usual_shift(dusk, source) is None


def test_shifts_of_many_source_images_are_measured_on_some_of_all_of_them() -> None:
    model = segmenter()
    source = SourceImages(lambda size: torch.cat([source_images()] * 3).split(size or 8))
    scenes = SpectrumFilter().with_source(model, source, task=Segmentation()).scenes
    assert scenes is not None
    assert scenes.shifts is not None
    measured = (~scenes.shifts.isnan()).nonzero().flatten().tolist()
    assert (len(measured), measured[0], measured[-1]) == (32, 0, 77)


def test_source_images_of_one_kind_are_no_groups() -> None:
    alike = SourceScenes.of(torch.cat([scene(10, side=7, light=0.5, seed=1), scene(10, side=7, light=0.6, seed=1)]))
    assert alike.groups(least_distance_nats=0.6) == ()
    assert SourceScenes.of(source_images()[:4]).groups(least_distance_nats=0.0) == ()
    lonely = torch.cat([scene(12, side=7, light=1.0, seed=1), scene(2, side=7, light=0.1, seed=1)])
    assert SourceScenes.of(lonely).groups(least_distance_nats=0.0) == ()
