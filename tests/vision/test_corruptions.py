from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from acclimate.errors import ConfigError
from acclimate.vision.data.corruptions import CORRUPTIONS, corrupt
from acclimate.vision.data.images import CorruptionSpec


def scene(height: int = 48, width: int = 63) -> np.ndarray:
    # Blocks of three pixels have edges, which blurs change, and areas, which noise changes.
    blocks = np.random.default_rng(0).integers(20, 236, (height // 3, width // 3, 3), dtype=np.uint8)
    return blocks.repeat(3, 0).repeat(3, 1)


@pytest.mark.parametrize("name", list(CORRUPTIONS))
def test_the_effect_grows_with_severity_and_is_reproducible(name: str) -> None:
    image = scene()
    damage = []
    for severity in range(1, 6):
        result = corrupt(image, name, severity=severity, seed=3)
        assert result.shape == image.shape
        assert result.dtype == np.uint8
        assert np.array_equal(result, corrupt(image, name, severity=severity, seed=3))
        damage.append(float(np.abs(result.astype(float) - image).mean()))
    assert damage[0] > 0.5
    assert damage[4] > damage[0]
    assert np.array_equal(image, scene()), "the input must not be written to"


def test_the_required_corruptions_exist() -> None:
    required = {
        "gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "motion_blur", "zoom_blur", "fog", "snow",
        "frost", "brightness", "contrast", "pixelate", "jpeg",
    }  # fmt: skip
    assert required <= set(CORRUPTIONS)


@settings(max_examples=40, deadline=None)
@given(
    name=st.sampled_from(sorted(CORRUPTIONS)),
    severity=st.integers(1, 5),
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    value=st.integers(0, 255),
)
def test_images_of_any_size_and_constant_images_can_be_corrupted(
    name: str, severity: int, height: int, width: int, value: int
) -> None:
    image = np.full((height, width, 3), value, np.uint8)
    assert corrupt(image, name, severity=severity, seed=0).shape == image.shape


@pytest.mark.parametrize(
    ("name", "severity", "image", "message"),
    [
        ("rain", 1, scene(), "unknown corruption 'rain'"),
        ("fog", 0, scene(), "1 to 5, got 0"),
        ("fog", 1, scene().astype(np.float32), "uint8"),
        ("fog", 1, scene()[..., 0], r"\(48, 63\)"),
    ],
)
def test_bad_input(name: str, severity: int, image: np.ndarray, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        corrupt(image, name, severity=severity, seed=0)


def test_corruption_specifications_are_parsed() -> None:
    assert CorruptionSpec.parse("fog:3") == CorruptionSpec("fog", 3)
    assert str(CorruptionSpec.parse("fog")) == "fog:5"
    for text in ("fog:6", "fog:x", "rain:1"):
        with pytest.raises(ConfigError):
            CorruptionSpec.parse(text)
