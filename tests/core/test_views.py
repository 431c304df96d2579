from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from acclimate.core import views
from acclimate.errors import ConfigError
from tests.networks import images


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_neutral_settings_change_nothing() -> None:
    batch = images()
    same = views.color_jittered(
        batch, brightness=1, contrast=1, saturation=1, hue_turns=0, gamma=1, pixel_range=(0.0, 1.0)
    )
    torch.testing.assert_close(same, batch, atol=1e-5, rtol=1e-5)
    unmoved = views.affine(batch, degrees=0, shift=(0, 0), scale=1, flip=False)
    torch.testing.assert_close(unmoved, batch, atol=1e-5, rtol=1e-5)
    assert views.blurred(batch, sigma_pixels=0.001) is batch


def test_each_colour_change_has_its_effect() -> None:
    # Values far enough from black and white that no change is clipped.
    batch = images() * 0.4 + 0.25
    neutral = {"brightness": 1.0, "contrast": 1.0, "saturation": 1.0, "hue_turns": 0.0, "gamma": 1.0}

    def changed(**values: float) -> torch.Tensor:
        return views.color_jittered(batch, **{**neutral, **values}, pixel_range=(0.0, 1.0))

    torch.testing.assert_close(changed(brightness=1.4), batch * 1.4, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(changed(gamma=1.3), batch**1.3, atol=1e-5, rtol=1e-5)
    assert changed(contrast=0.7).std() < batch.std()
    gray = changed(saturation=0.0)
    torch.testing.assert_close(gray[:, 0], gray[:, 1], atol=1e-4, rtol=1e-4)
    luma = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
    torch.testing.assert_close((changed(hue_turns=0.02) * luma).sum(1), (batch * luma).sum(1), atol=1e-3, rtol=1e-3)


def test_mirror_shift_and_rotation() -> None:
    batch = images(2, side=9)
    torch.testing.assert_close(
        views.affine(batch, degrees=0, shift=(0, 0), scale=1, flip=True), batch.flip(-1), atol=1e-5, rtol=1e-5
    )
    turned = views.affine(batch, degrees=90, shift=(0, 0), scale=1, flip=False)
    assert any(torch.allclose(turned, batch.rot90(turns, (2, 3)), atol=1e-4) for turns in (1, 3))
    wide = images(1, side=8)[:, :, :4]
    assert views.affine(wide, degrees=10, shift=(0.1, 0), scale=0.9, flip=True).shape == wide.shape


def test_a_blur_keeps_the_mean_and_lowers_the_variance() -> None:
    batch = images(side=32)
    blurred = views.blurred(batch, sigma_pixels=1.0)
    assert blurred.var() < 0.5 * batch.var()
    assert float(blurred.mean()) == pytest.approx(float(batch.mean()), abs=0.01)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_any_number_of_channels(channels: int) -> None:
    batch = torch.rand(2, channels, 8, 8, generator=rng())
    view = views.augmented(batch, rng=rng(), pixel_range=(0.0, 1.0), flip_probability=0.5)
    assert view.shape == batch.shape


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), geometric=st.booleans())
def test_views_stay_in_range_and_are_reproducible(seed: int, geometric: bool) -> None:
    batch = images(2, side=12, seed=seed)

    def view() -> torch.Tensor:
        return views.augmented(batch, rng=rng(seed), pixel_range=(0.0, 1.0), flip_probability=0.5, geometric=geometric)

    first = view()
    assert 0 <= float(first.min()) <= float(first.max()) <= 1
    assert torch.equal(first, view())


def test_normalised_images_are_augmented_within_their_range() -> None:
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
    batch = images(3, side=12)
    shift, scale = torch.tensor(mean).view(1, 3, 1, 1), torch.tensor(std).view(1, 3, 1, 1)
    pixel_range = views.normalised_range(mean, std)
    inside = views.augmented((batch - shift) / scale, rng=rng(4), pixel_range=pixel_range, flip_probability=0.5)
    plain = views.augmented(batch, rng=rng(4), pixel_range=(0.0, 1.0), flip_probability=0.5)
    torch.testing.assert_close(inside * scale + shift, plain, atol=1e-4, rtol=1e-4)


def test_pixels_outside_the_range_are_an_error_and_not_clipped() -> None:
    with pytest.raises(ConfigError, match="outside the task's pixel_range"):
        views.augmented(images() * 2 - 1, rng=rng(), pixel_range=(0.0, 1.0), flip_probability=0)
    views.augmented(images() * 2 - 1, rng=rng(), pixel_range=None, flip_probability=0)


@pytest.mark.parametrize("side", [5, 16, 17])
def test_masks_cover_whole_patches_and_at_least_one(side: int) -> None:
    batch = images(64, side=side)
    mask = views.patch_mask(batch, patch_size=4, probability=0.5, rng=rng())
    assert mask.shape == (64, 1, side, side)
    assert 0.4 < float(mask[:, :, :4, :4].float().mean()) < 0.7
    block = mask[:, 0, :4, :4].flatten(1)
    assert bool((block.all(1) | ~block.any(1)).all())
    rarely = views.patch_mask(batch, patch_size=4, probability=1e-9, rng=rng())
    assert bool(rarely.flatten(1).any(1).all())
