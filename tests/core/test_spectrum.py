"""Power spectra, and the filter that reverses corruptions."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from acclimate.core.spectrum import (
    BANDS,
    PowerSpectrum,
    Sums,
    _median_of_neighbours,
    band_power,
    despiked,
    destriped,
    distance_nats,
    excess_distance_nats,
    expected_distance_nats,
    filtered,
    gains,
    is_striped,
    measure,
    transformed,
)
from acclimate.errors import ConfigError
from acclimate.vision.demos.pose_scenes import make_scene
from acclimate.vision.demos.pose_scenes.tensors import as_tensors


def scenes(first: int, count: int) -> Tensor:
    return as_tensors([make_scene(first + k, split="train") for k in range(count)])[0]


@pytest.fixture(scope="module")
def source() -> PowerSpectrum:
    return measure([scenes(0, 100), scenes(100, 100)])


@pytest.fixture(scope="module")
def stream() -> Tensor:
    return scenes(1000, 64)


def low_contrast(images: Tensor) -> Tensor:
    mean = images.mean((2, 3), keepdim=True)
    return (images - mean) * 0.2 + mean


def noisy(images: Tensor) -> Tensor:
    return (images + 0.2 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)


def blurred(images: Tensor) -> Tensor:
    arrays = [cv2.GaussianBlur(image.permute(1, 2, 0).numpy(), (0, 0), 1.5) for image in images]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)


def repaired(images: Tensor, source: PowerSpectrum, strength: float = 1.0) -> Tensor:
    return filtered(images, measure([images]), source, strength=strength, max_gain=10.0, sharpening=0.25)


def error(images: Tensor, truth: Tensor) -> float:
    return float((images - truth).square().mean().sqrt())


def test_the_power_of_white_noise_is_its_variance_in_every_band() -> None:
    noise = 0.5 + 0.1 * torch.randn(200, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    power = band_power(noise).mean(0)
    occupied = power > 0
    assert torch.allclose(power[occupied], torch.full_like(power[occupied], 0.01), rtol=0.3)
    assert occupied.sum() > 2 * BANDS


def test_the_band_of_a_wave_is_that_of_its_frequency() -> None:
    columns = torch.arange(64) + 0.5

    def strongest_band(frequency: float) -> int:
        wave = 0.5 + 0.3 * torch.cos(2 * torch.pi * frequency * columns)
        return int(band_power(wave.expand(1, 3, 64, 64))[0, 0].argmax())

    bands = [strongest_band(frequency) for frequency in (1 / 64, 1 / 16, 1 / 4, 1 / 2 - 1 / 128)]
    assert bands == sorted(set(bands))


def test_a_band_means_the_same_at_every_size() -> None:
    large = torch.rand(20, 3, 48, 80, generator=torch.Generator().manual_seed(0))
    power = [band_power(image).mean(0)[:, 20:] for image in (large, large[..., :32, :32])]
    assert torch.allclose(*power, rtol=0.2)


def test_sums_over_parts_equal_the_sum_over_all_images(stream: Tensor) -> None:
    whole = measure([stream])
    parts = Sums.of(stream[:20]).plus(Sums.of(stream[20:])).spectrum()
    for name in ("power", "variation", "mean", "mean_deviation"):
        assert torch.allclose(getattr(whole, name), getattr(parts, name), rtol=1e-3, atol=1e-6)
    assert whole.count == parts.count == 64
    forgotten = Sums.of(stream[:20]).plus(Sums.of(stream[20:]), keep=0.0).spectrum()
    assert torch.allclose(forgotten.power, measure([stream[20:]]).power)


def test_a_stream_like_the_source_is_not_changed(stream: Tensor) -> None:
    own = measure([stream])
    same = filtered(stream, own, own, strength=1.0, max_gain=10.0, sharpening=0.25)
    assert error(same, stream) < 1e-5
    assert torch.allclose(gains(own, own, max_gain=10.0, sharpening=0.25), torch.ones(3, BANDS))


def test_strength_zero_leaves_images_unchanged(stream: Tensor, source: PowerSpectrum) -> None:
    assert error(repaired(noisy(stream), source, strength=0.0), noisy(stream)) < 1e-5


def test_lost_contrast_is_restored(stream: Tensor, source: PowerSpectrum) -> None:
    dull = low_contrast(stream)
    assert error(repaired(dull, source), stream) < 0.5 * error(dull, stream)
    factor = gains(measure([dull]), source, max_gain=10.0, sharpening=0.25)
    # The gain is equal in all bands, and about the inverse of the loss.
    assert 3.5 < float(factor.median()) < 7


def test_too_much_contrast_is_undone_where_that_is_asked_for(stream: Tensor, source: PowerSpectrum) -> None:
    mean = stream.mean((2, 3), keepdim=True)
    harsh = mean + 2 * (stream - mean)
    lowered, attenuated = (
        filtered(harsh, measure([harsh]), source, strength=1.0, max_gain=10.0, sharpening=0.25, lowers_contrast=lowers)
        for lowers in (True, False)
    )
    assert error(lowered, stream) < 0.5 * error(attenuated, stream)
    # Noise is not taken for contrast: as much of the brightness as before is left.
    power = measure([noisy(stream)])
    with_option, without = (
        gains(power, source, max_gain=10.0, sharpening=0.25, lowers_contrast=lowers)[0] for lowers in (True, False)
    )
    assert torch.allclose(with_option, without, rtol=0.1)


def test_noise_is_reduced(stream: Tensor, source: PowerSpectrum) -> None:
    assert error(repaired(noisy(stream), source), stream) < 0.6 * error(noisy(stream), stream)


def test_spikes_are_removed_and_no_other_value_changes(stream: Tensor) -> None:
    rng = torch.Generator().manual_seed(1)
    draws = torch.rand(stream.shape, generator=rng)
    spiky = torch.where(draws < 0.05, 0.0, torch.where(draws > 0.95, 1.0, stream))
    clean = despiked(spiky, deviations=6.0, least_share=0.005)
    assert error(clean, stream) < 0.25 * error(spiky, stream)
    untouched = (draws >= 0.05) & (draws <= 0.95) & (stream > 0.01) & (stream < 0.99)
    assert torch.equal(clean[untouched], stream[untouched])


@pytest.mark.parametrize("change", [lambda images: images, noisy, lambda images: noisy(low_contrast(images))])
def test_images_without_spikes_are_unchanged(stream: Tensor, change: Callable[[Tensor], Tensor]) -> None:
    images = change(stream)
    assert despiked(images, deviations=6.0, least_share=0.005) is images or torch.equal(
        despiked(images, deviations=6.0, least_share=0.005), images
    )


@pytest.mark.parametrize("levels", [2, 3, 6])
def test_single_pixels_of_images_with_few_grey_levels_are_no_spikes(stream: Tensor, levels: int) -> None:
    coarse = (noisy(stream) * (levels - 1)).round() / (levels - 1)
    assert despiked(coarse, deviations=6.0, least_share=0.0001) is coarse
    # Each image is judged by itself, and single rows have no neighbours.
    spiky = stream.clone()
    spiky[:, :, 5, 7] = 1.0
    found = despiked(torch.cat([coarse, spiky]), deviations=6.0, least_share=0.0001)
    assert torch.equal(found[: len(coarse)], coarse)
    assert float(found[len(coarse) :, :, 5, 7].mean()) < 0.9
    row = torch.ones(4, 3, 1, 64)
    assert despiked(row, deviations=6.0, least_share=0.0001) is row
    # The levels of a dark image are few too, but next to each other.
    dark = (0.1 * stream * 255).round() / 255
    dark[:, :, 5, 7] = 1.0
    assert float(despiked(dark, deviations=6.0, least_share=0.0001)[:, :, 5, 7].max()) < 0.2


@pytest.mark.parametrize("along_rows", [True, False], ids=["rows", "columns"])
@pytest.mark.parametrize("coloured", [True, False], ids=["coloured", "grey"])
def test_stripes_are_removed(stream: Tensor, along_rows: bool, coloured: bool) -> None:
    rng = torch.Generator().manual_seed(2)
    count, channels, side, _ = stream.shape
    stream = 0.4 * stream + 0.3
    lines = 0.08 * torch.randn((count, channels if coloured else 1, side, 1), generator=rng)
    striped = (stream + (lines if along_rows else lines.transpose(2, 3))).clamp(0, 1)
    assert error(destriped(striped, excess_nats=2.5), stream) < 0.4 * error(striped, stream)
    one = destriped(striped[:1], excess_nats=2.5)
    assert error(one, stream[:1]) < 0.8 * error(striped[:1], stream[:1])


@pytest.mark.parametrize("change", [lambda images: images, noisy, low_contrast, blurred])
def test_images_without_stripes_are_returned_as_they_are(stream: Tensor, change: Callable[[Tensor], Tensor]) -> None:
    images = change(stream)
    assert destriped(images, excess_nats=2.5) is images


def test_black_images_have_no_stripes() -> None:
    images = torch.zeros(2, 3, 16, 16)
    assert destriped(images, excess_nats=2.5) is images
    narrow = torch.rand(2, 3, 1, 9, generator=torch.Generator().manual_seed(0))
    assert destriped(narrow, excess_nats=2.5) is narrow


@pytest.mark.parametrize("strength", [0.0, 0.3])
def test_stripes_are_found_where_they_would_be_removed(stream: Tensor, strength: float) -> None:
    rows = torch.rand(len(stream), 1, stream.shape[2], 1, generator=torch.Generator().manual_seed(0))
    images = (stream + strength * rows).clamp(0, 1)
    removed = destriped(images, excess_nats=2.5) is not images
    assert is_striped(transformed(images), excess_nats=2.5) == removed == (strength > 0)


def test_the_median_is_over_nine_values() -> None:
    images = torch.rand(2, 3, 7, 9, generator=torch.Generator().manual_seed(0))
    padded = torch.nn.functional.pad(images, (1, 1, 1, 1), mode="reflect")
    nine = torch.stack([padded[:, :, i : i + 7, j : j + 9] for i in range(3) for j in range(3)], dim=-1)
    assert torch.equal(_median_of_neighbours(images), nine.median(dim=-1).values)


def test_blur_is_sharpened(stream: Tensor, source: PowerSpectrum) -> None:
    soft = blurred(stream)
    before, after = (distance_nats(measure([images]), source) for images in (soft, repaired(soft, source)))
    assert after < 0.8 * before
    # In the middle bands, where the blurred image is above the sensor's noise, the image is restored.
    truth = measure([stream]).power[0, 18:24]
    lost, kept = (measure([images]).power[0, 18:24] / truth for images in (soft, repaired(soft, source)))
    assert (kept - 1).abs().mean() < (lost - 1).abs().mean()


def test_means_are_shifted_to_the_sources(stream: Tensor, source: PowerSpectrum) -> None:
    bright = (0.6 * stream + 0.4).clamp(0, 1)
    before = (measure([bright]).mean - source.mean).abs().max()
    after = (measure([repaired(bright, source)]).mean - source.mean).abs().max()
    assert float(after) < 0.3 * float(before)


def test_gains_are_limited(stream: Tensor, source: PowerSpectrum) -> None:
    mean = stream.mean((2, 3), keepdim=True)
    factor = gains(measure([(stream - mean) * 1e-3 + mean]), source, max_gain=4.0, sharpening=0.5)
    assert float(factor.max()) == pytest.approx(4.0)


def test_sampling_error_is_no_shift(source: PowerSpectrum) -> None:
    for count in (8, 32, 128):
        chance = expected_distance_nats(source, count)
        clean = [measure([scenes(2000 + count * k, count)]) for k in range(3)]
        assert all(excess_distance_nats(one, source, chance_nats=chance) < 0.5 for one in clean)
    for change in (low_contrast, noisy, blurred):
        changed = measure([change(scenes(3000, 16))])
        chance = expected_distance_nats(source, 16)
        assert excess_distance_nats(changed, source, chance_nats=chance) > 0.6
    assert distance_nats(source, source) == 0


def test_a_spectrum_survives_a_round_trip_through_tensors(source: PowerSpectrum) -> None:
    again = PowerSpectrum.from_tensors(source.tensors())
    assert torch.equal(again.power, source.power)
    assert again.count == source.count == 200
    with pytest.raises(ConfigError, match="needs a tensor 'variation'"):
        PowerSpectrum.from_tensors({"power": source.power})
    with pytest.raises(ConfigError, match=r"power is \(3, 32\), got \(3, 4\)"):
        PowerSpectrum.from_tensors({**source.tensors(), "power": torch.ones(3, 4)})
    with pytest.raises(ConfigError, match="at least one batch"):
        measure([])
