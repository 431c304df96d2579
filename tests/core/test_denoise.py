"""Estimating noise from images alone, and removing it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from acclimate.core import denoise
from acclimate.core.denoise import denoised, noise_power
from acclimate.core.spectrum import cosines


def scenes(count: int, *, height: int = 32, width: int = 32, exponent: float = 2.5, seed: int = 0) -> Tensor:
    """Return grey images in [0, 1] whose power falls with this power of frequency."""
    generator = torch.Generator().manual_seed(seed)
    rows, columns = torch.arange(height)[:, None] / height, torch.arange(width)[None] / width
    frequency = torch.sqrt(rows**2 + columns**2)
    frequency[0, 0] = 1.0
    amplitude = frequency ** (-exponent / 2)
    amplitude[0, 0] = 0.0
    coefficients = torch.randn(count, 1, height, width, generator=generator) * amplitude
    device = coefficients.device
    found = cosines(height, device).T @ coefficients @ cosines(width, device)
    found = 0.5 + 0.12 * found / found.std((2, 3), keepdim=True)
    return found.clamp(0, 1).expand(-1, 3, -1, -1).contiguous()


def noisy(images: Tensor, deviation: float, *, grey: bool = False, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (len(images), 1, *images.shape[-2:]) if grey else images.shape
    return images + deviation * torch.randn(shape, generator=generator)


@pytest.mark.parametrize("exponent", [2.5, 3.0])
def test_images_without_noise_have_none(exponent: float) -> None:
    assert float(noise_power(scenes(16, exponent=exponent)).sqrt().max()) < 0.01
    assert torch.equal(noise_power(torch.full((8, 3, 32, 32), 0.5)), torch.zeros(3))


@pytest.mark.parametrize("deviation", [0.03, 0.1, 0.2])
def test_the_power_of_noise_is_found(deviation: float) -> None:
    found = noise_power(noisy(scenes(32), deviation)).sqrt()
    torch.testing.assert_close(found, torch.full((3,), deviation), rtol=0.1, atol=0.0)


def test_noise_that_is_alike_in_all_channels_is_in_the_brightness() -> None:
    brightness, *colours = noise_power(noisy(scenes(32), 0.1, grey=True)).sqrt().tolist()
    # The brightness is the sum of three channels, divided by the root of three.
    assert brightness == pytest.approx(0.1 * 3**0.5, rel=0.1)
    assert max(colours) < 0.005


@pytest.mark.parametrize("deviation", [0.05, 0.15])
def test_removing_noise_brings_images_closer_to_what_they_were(deviation: float) -> None:
    clean = scenes(16)
    images = noisy(clean, deviation).clamp(0, 1)
    found = denoised(images, noise_power(images))
    assert float((found - clean).square().mean()) < 0.45 * float((images - clean).square().mean())


def test_blocks_with_more_signal_keep_more() -> None:
    clean = scenes(16)
    clean[:, :, :, 16:] = 0.5 + 0.1 * (clean[:, :, :, 16:] - 0.5)
    images = noisy(clean, 0.05)
    change = (denoised(images, noise_power(images)) - images.clamp(0, 1)).square().mean((0, 1, 2))
    assert float(change[20:].mean()) > 1.2 * float(change[:12].mean()), "the right half is hardly more than noise"


def test_no_noise_changes_nothing() -> None:
    images = scenes(4)
    torch.testing.assert_close(denoised(images, torch.zeros(3)), images, rtol=0, atol=1e-4)


@given(height=st.integers(8, 40), width=st.integers(8, 40), count=st.integers(1, 3))
def test_images_of_any_size_keep_it(height: int, width: int, count: int) -> None:
    images = noisy(scenes(count, height=height, width=width), 0.1).clamp(0, 1)
    found = denoised(images, torch.full((3,), 0.01))
    assert found.shape == images.shape
    assert bool(torch.isfinite(found).all())
    assert float(found.min()) >= 0
    assert float(found.max()) <= 1
    torch.testing.assert_close(denoised(images, torch.zeros(3)), images, rtol=0, atol=1e-4)


def test_large_batches_are_filtered_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    images = noisy(scenes(5), 0.1).clamp(0, 1)
    whole = denoised(images, noise_power(images))
    monkeypatch.setattr(denoise, "_MOST_VALUES", 3 * 46 * 46 * 2)
    torch.testing.assert_close(denoised(images, noise_power(images)), whole)


def test_a_broken_image_and_images_of_one_colour_change_nothing_for_others() -> None:
    clean = scenes(8)
    images = noisy(clean, 0.1)
    alone = denoised(images, noise_power(images))
    broken = torch.full((1, 3, 32, 32), 0.5)
    broken[0, 0, 3, 3] = float("nan")
    together = torch.cat([images, broken, torch.full((9, 3, 32, 32), 0.2)])
    found = denoised(together, noise_power(images))
    torch.testing.assert_close(found[:8], alone)
    torch.testing.assert_close(found[9:], together[9:], rtol=0, atol=1e-3)
    torch.testing.assert_close(noise_power(together[:9]), noise_power(images))
    assert torch.equal(noise_power(broken), torch.zeros(3))
    assert denoised(broken, torch.full((3,), 0.01)) is broken


@pytest.mark.parametrize("size", [1, 7])
def test_images_smaller_than_a_block_have_no_known_noise(size: int) -> None:
    images = torch.rand(4, 3, size, 32)
    assert torch.equal(noise_power(images), torch.zeros(3))
    assert denoised(images, torch.full((3,), 0.01)) is images
