"""ImageNet-C style corruptions (Hendrycks & Dietterich, ICLR 2019, arXiv 1903.12261) on numpy, OpenCV and Pillow.

Every function takes an image ``(H, W, 3)`` uint8, a severity from 1 to 5 and a numpy generator, and returns an
image of the same shape. Lengths (blur radii, flake sizes) are the paper's values for 224 pixels, scaled with the
shorter side, so that a severity has a similar effect at every image size.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Final

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from acclimate.errors import ConfigError

Uint8Image = npt.NDArray[np.uint8]
FloatImage = npt.NDArray[np.float32]
Corruption = Callable[[Uint8Image, int, np.random.Generator], Uint8Image]

_REFERENCE_SIDE: Final = 224


def corrupt(image: Uint8Image, name: str, *, severity: int, seed: int) -> Uint8Image:
    """Return ``image`` with the corruption ``name`` applied; the same seed gives the same result.

    Raises:
        ConfigError: the name is unknown, the severity is not 1 to 5, or the image is not ``(H, W, 3)`` uint8.
    """
    if name not in CORRUPTIONS:
        raise ConfigError(f"unknown corruption {name!r}; choose one of {', '.join(CORRUPTIONS)}")
    if severity not in range(1, 6):
        raise ConfigError(f"severity must be 1 to 5, got {severity}")
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ConfigError(
            f"corruptions take images (H, W, 3) of type uint8, got {image.shape} of type {image.dtype}; convert them"
        )
    return CORRUPTIONS[name](image, severity, np.random.default_rng(seed))


def gaussian_noise(image: Uint8Image, severity: int, rng: np.random.Generator) -> Uint8Image:
    """Add Gaussian noise."""
    std = (0.08, 0.12, 0.18, 0.26, 0.38)[severity - 1]
    return _to_uint8(_to_unit(image) + rng.normal(0, std, image.shape).astype(np.float32))


def shot_noise(image: Uint8Image, severity: int, rng: np.random.Generator) -> Uint8Image:
    """Draw each value from a Poisson distribution (photon counts)."""
    photons = (60, 25, 12, 5, 3)[severity - 1]
    return _to_uint8(rng.poisson(_to_unit(image) * photons).astype(np.float32) / photons)


def impulse_noise(image: Uint8Image, severity: int, rng: np.random.Generator) -> Uint8Image:
    """Replace random values by 0 or 255 (salt and pepper)."""
    amount = (0.03, 0.06, 0.09, 0.17, 0.27)[severity - 1]
    draws = rng.random(image.shape)
    result = image.copy()
    result[draws < amount / 2] = 0
    result[draws > 1 - amount / 2] = 255
    return result


def defocus_blur(image: Uint8Image, severity: int, rng: np.random.Generator) -> Uint8Image:
    """Convolve with a disk."""
    radius, alias = ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5))[severity - 1]
    scaled = _scaled(image, radius)
    reach = int(np.ceil(scaled)) + 1
    # Each weight is the fraction of its pixel that the disk covers, so that radii below one pixel have an effect.
    fine = (np.arange(-reach * 8 - 4, reach * 8 + 4) + 0.5) / 8
    inside = np.hypot(*np.meshgrid(fine, fine)) <= scaled + 0.5
    disk = inside.reshape(2 * reach + 1, 8, 2 * reach + 1, 8).mean((1, 3)).astype(np.float32)
    disk = cv2.GaussianBlur(disk, (3, 3), alias)
    return _to_uint8(cv2.filter2D(_to_unit(image), -1, disk / disk.sum(), borderType=cv2.BORDER_REFLECT))


def motion_blur(image: Uint8Image, severity: int, rng: np.random.Generator) -> Uint8Image:
    """Blur along a random direction."""
    radius, sigma = ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))[severity - 1]
    angle = rng.uniform(-np.pi / 4, np.pi / 4)
    steps = np.arange(0, max(2.0, _scaled(image, 2 * radius)), 0.5)
    weights = np.exp(-0.5 * (steps / max(_scaled(image, sigma), 0.3)) ** 2)
    reach = int(np.ceil(steps[-1])) + 1
    kernel = np.zeros((2 * reach + 1, 2 * reach + 1), np.float32)
    columns = np.rint(reach + steps * np.cos(angle)).astype(int)
    rows = np.rint(reach + steps * np.sin(angle)).astype(int)
    np.add.at(kernel, (rows, columns), weights)
    return _to_uint8(cv2.filter2D(_to_unit(image), -1, kernel / kernel.sum(), borderType=cv2.BORDER_REFLECT))


def zoom_blur(image: Uint8Image, severity: int, rng: np.random.Generator) -> Uint8Image:
    """Average over increasing magnifications."""
    largest, step = ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.33, 0.03))[severity - 1]
    unit = _to_unit(image)
    zooms = np.arange(1, largest, step)
    height, width = image.shape[:2]
    total = np.copy(unit)
    for zoom in zooms:
        matrix = cv2.getRotationMatrix2D((width / 2 - 0.5, height / 2 - 0.5), 0, float(zoom))
        total += cv2.warpAffine(unit, matrix, (width, height), borderMode=cv2.BORDER_REFLECT)
    return _to_uint8(total / (len(zooms) + 1))


def fog(image: Uint8Image, severity: int, rng: np.random.Generator) -> Uint8Image:
    """Blend with a plasma fractal."""
    density, decay = ((1.5, 2), (2.0, 2), (2.5, 1.7), (2.5, 1.5), (3.0, 1.4))[severity - 1]
    unit = _to_unit(image)
    brightest = float(unit.max())
    plasma = _plasma(image.shape[0], image.shape[1], decay, rng)[..., None]
    return _to_uint8((unit + density * plasma) * brightest / max(brightest + density, 1e-6))


def frost(image: Uint8Image, severity: int, rng: np.random.Generator) -> Uint8Image:
    """Blend with ice crystals computed from noise (the paper uses photographs of frost)."""
    keep, ice = ((1.0, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75))[severity - 1]
    height, width = image.shape[:2]
    field = rng.random((height, width)).astype(np.float32)
    crystals = np.zeros((height, width), np.float32)
    for angle in (0.0, 60.0, 120.0):
        length = max(3, int(_scaled(image, 24)) | 1)
        needle = np.zeros((length, length), np.float32)
        needle[length // 2] = 1.0 / length
        turned = cv2.warpAffine(
            needle, cv2.getRotationMatrix2D((length // 2, length // 2), angle, 1.0), (length, length)
        )
        streaks = cv2.filter2D(field, -1, turned, borderType=cv2.BORDER_REFLECT)
        crystals = np.maximum(crystals, streaks)
    crystals = (crystals - crystals.min()) / max(float(np.ptp(crystals)), 1e-6)
    cover = np.clip(crystals * 1.6 * _plasma(height, width, 1.8, rng), 0, 1)[..., None]
    tint = np.array([0.85, 0.93, 1.0], np.float32)
    return _to_uint8(keep * _to_unit(image) + ice * cover * tint)


def snow(image: Uint8Image, severity: int, rng: np.random.Generator) -> Uint8Image:
    """Whiten the image and add motion-blurred snowflakes."""
    density, length, whitening = (
        (0.008, 6, 0.1), (0.012, 8, 0.15), (0.018, 10, 0.2), (0.024, 12, 0.25), (0.03, 14, 0.3),
    )[severity - 1]  # fmt: skip
    height, width = image.shape[:2]
    flakes = (rng.random((height, width)) < density).astype(np.float32) * rng.uniform(0.5, 1, (height, width))
    reach = max(3, int(_scaled(image, length)) | 1)
    streak = np.zeros((reach, reach), np.float32)
    angle = rng.uniform(np.pi * 0.25, np.pi * 0.75)
    for step in np.linspace(-reach / 2, reach / 2, 2 * reach):
        row, column = round(reach / 2 + step * np.sin(angle)), round(reach / 2 + step * np.cos(angle))
        if 0 <= row < reach and 0 <= column < reach:
            streak[row, column] = 1
    layer = np.clip(cv2.filter2D(flakes.astype(np.float32), -1, streak / max(1.0, reach / 3)), 0, 1)[..., None]
    unit = _to_unit(image)
    gray = cv2.cvtColor(unit, cv2.COLOR_RGB2GRAY)[..., None]
    whitened = (1 - whitening) * unit + whitening * np.maximum(unit, gray * 1.5 + 0.5)
    return _to_uint8(whitened + layer)


def brightness(image: Uint8Image, severity: int, rng: np.random.Generator) -> Uint8Image:
    """Increase the value channel of HSV."""
    added = (0.1, 0.2, 0.3, 0.4, 0.5)[severity - 1]
    hsv = cv2.cvtColor(_to_unit(image), cv2.COLOR_RGB2HSV)
    hsv[..., 2] = np.clip(hsv[..., 2] + added, 0, 1)
    return _to_uint8(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB))


def contrast(image: Uint8Image, severity: int, rng: np.random.Generator) -> Uint8Image:
    """Move every value towards the image's mean colour."""
    factor = (0.4, 0.3, 0.2, 0.1, 0.05)[severity - 1]
    unit = _to_unit(image)
    mean = unit.mean((0, 1), keepdims=True)
    return _to_uint8((unit - mean) * factor + mean)


def pixelate(image: Uint8Image, severity: int, rng: np.random.Generator) -> Uint8Image:
    """Downsample with a box filter and upsample with nearest neighbours."""
    factor = (0.6, 0.5, 0.4, 0.3, 0.25)[severity - 1]
    height, width = image.shape[:2]
    small = Image.fromarray(image).resize(
        (max(1, round(width * factor)), max(1, round(height * factor))), Image.Resampling.BOX
    )
    return np.asarray(small.resize((width, height), Image.Resampling.NEAREST))


def jpeg(image: Uint8Image, severity: int, rng: np.random.Generator) -> Uint8Image:
    """Compress as JPEG."""
    quality = (25, 18, 15, 10, 7)[severity - 1]
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer).convert("RGB"))


CORRUPTIONS: Final[dict[str, Corruption]] = {
    function.__name__: function
    for function in (
        gaussian_noise, shot_noise, impulse_noise, defocus_blur, motion_blur, zoom_blur, fog, frost, snow,
        brightness, contrast, pixelate, jpeg,
    )
}  # fmt: skip


def _to_unit(image: Uint8Image) -> FloatImage:
    return image.astype(np.float32) / np.float32(255)


def _to_uint8(image: npt.NDArray[np.floating]) -> Uint8Image:
    result: Uint8Image = np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)
    return result


def _scaled(image: Uint8Image, pixels: float) -> float:
    return pixels * float(min(image.shape[:2])) / _REFERENCE_SIDE


def _plasma(height: int, width: int, decay: float, rng: np.random.Generator) -> FloatImage:
    """Return a fractal ``(height, width)`` in [0, 1]: octaves of smooth noise, each ``decay`` times weaker."""
    total = np.zeros((height, width), np.float32)
    amplitude, cells = 1.0, 2
    while cells <= max(height, width):
        coarse = rng.random((cells + 1, cells + 1)).astype(np.float32)
        total += amplitude * cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
        amplitude /= decay
        cells *= 2
    low, high = float(total.min()), float(total.max())
    scaled: FloatImage = ((total - low) / max(high - low, 1e-6)).astype(np.float32)
    return scaled
