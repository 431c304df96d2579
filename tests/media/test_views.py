"""Changed copies: deterministic, of the right kind, and what they claim to be."""

from __future__ import annotations

import numpy as np
import pytest

from acclimate.media.items import SAMPLE_RATE_HZ, Item
from acclimate.media.views import images, sounds
from acclimate.media.views.recipes import DEFAULT_VIEWS, RECIPES, Views, views_named
from tests.media import making

ALL = [(kind, views) for kind, recipes in RECIPES.items() for views in recipes]
ITEMS = {
    "image": Item.of("image", making.shape_image("lying", 0), "image"),
    "audio": Item.of("audio", making.tone(440, 0), "sound"),
}


@pytest.mark.parametrize(("kind", "views"), ALL, ids=lambda value: getattr(value, "name", value))
def test_copies_depend_on_the_item_alone(kind: str, views: Views) -> None:
    item = ITEMS[kind]
    first, second = views.of(item), views.of(item)
    assert len(first) == views.count - 1
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)
        assert a.dtype == item.values.dtype
        assert np.isfinite(a).all()
    assert len({a.tobytes() for a in first}) == len(first)


@pytest.mark.parametrize("kind", ["image", "audio"])
def test_the_smallest_inputs_have_copies(kind: str) -> None:
    values = np.zeros((1, 1, 3), np.uint8) if kind == "image" else np.zeros(1, np.float32)
    for views in RECIPES[kind]:
        assert len(views.of(Item.of(kind, values, "smallest"))) == views.count - 1


def test_default_views_exist_and_do_not_mirror() -> None:
    for kind, names in DEFAULT_VIEWS.items():
        for name in names:
            assert all(images.flip not in changes for changes in views_named(kind, name).copies)


def test_noise_is_as_strong_as_it_says() -> None:
    rng = np.random.default_rng(0)
    grey = np.full((64, 64, 3), 128, np.uint8)
    deviations = [float(images.noise(grey, rng).std()) for _ in range(30)]
    assert 9 < min(deviations) < 25
    assert 30 < max(deviations) < 52
    wave = making.tone(440, 0)
    ratios = [10 * np.log10(np.mean(wave**2) / np.mean((sounds.noise(wave, rng) - wave) ** 2)) for _ in range(30)]
    assert 2.9 < min(ratios) < 8
    assert 18 < max(ratios) < 25.1


def test_speed_changes_length_and_pitch() -> None:
    wave = making.tone(440, 0)
    for seed in range(5):
        faster = sounds.speed(wave, np.random.default_rng(seed))
        peak = np.abs(np.fft.rfft(faster)).argmax() / len(faster)
        before = np.abs(np.fft.rfft(wave)).argmax() / len(wave)
        assert peak / before == pytest.approx(len(wave) / len(faster), rel=0.03)


def test_a_room_keeps_the_sound_and_adds_echoes() -> None:
    click = np.zeros(SAMPLE_RATE_HZ, np.float32)
    click[100] = 1
    heard = sounds.reverberation(click, np.random.default_rng(0))
    assert heard[100] == pytest.approx(1, abs=1e-3)
    early, late = np.abs(heard[101:1500]).mean(), np.abs(heard[12_000:]).mean()
    assert early > 100 * late
