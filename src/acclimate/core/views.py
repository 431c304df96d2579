"""Augmentations of image batches: functions that take and return tensors ``(B, C, H, W)``.

The ranges are those of the test-time augmentation in CoTTA's official CIFAR code (Wang et al. 2022). As there,
all images of a batch share one draw of the random numbers. The colour operations are composed into one matrix.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from acclimate.errors import ConfigError

PixelRange = tuple[float, float] | tuple[tuple[float, ...], tuple[float, ...]]
"""Lowest and highest possible pixel value, for all channels or for each."""

BRIGHTNESS: Final = (0.6, 1.4)
CONTRAST: Final = (0.7, 1.3)
SATURATION: Final = (0.5, 1.5)
HUE_TURNS: Final = (-0.06, 0.06)
GAMMA: Final = (0.7, 1.3)
ROTATION_DEGREES: Final = (-15.0, 15.0)
TRANSLATION_FRACTION: Final = (-1 / 16, 1 / 16)
SCALE: Final = (0.9, 1.1)
BLUR_SIGMA_PIXELS: Final = (0.001, 0.5)
NOISE_STD: Final = 0.005

# bfloat16 has three significant digits, and normalised pixels lie around 2.
_HALF_PRECISION_TOLERANCE: Final = 1e-2
_ONE_STEP: Final = 1 / 255
_LUMA: Final = (0.299, 0.587, 0.114)
# NTSC: rows give Y, I and Q; a rotation of the (I, Q) plane turns the hue and keeps the luma.
_RGB_TO_YIQ: Final = ((0.299, 0.587, 0.114), (0.595716, -0.274453, -0.321263), (0.211456, -0.522591, 0.311135))


def aligned_copies(
    images: Tensor, *, count: int, rng: torch.Generator, pixel_range: PixelRange | None, flips: bool
) -> Iterator[tuple[Tensor, bool]]:
    """Yield copies of a batch with changed colours, blur and noise, each with whether it is to be mirrored.

    Every place stays where it is, so that decisions on the copies can be compared place by place.

    Args:
        images: ``(B, C, H, W)``.
        count: copies.
        rng: a generator on the same device as ``images``.
        pixel_range: as in :func:`augmented`.
        flips: whether half of the copies, by chance, are to be mirrored.
    """
    for _ in range(count):
        flip = flips and float(torch.rand((), generator=rng, device=rng.device)) < 0.5
        yield augmented(images, rng=rng, pixel_range=pixel_range, flip_probability=0.0, geometric=False), flip


def augmented(
    images: Tensor,
    *,
    rng: torch.Generator,
    pixel_range: PixelRange | None,
    flip_probability: float,
    geometric: bool = True,
    range_tolerance: float = 1e-3,
) -> Tensor:
    """Return one randomly augmented copy of a batch; images in half precision are augmented in float32.

    Args:
        images: ``(B, C, H, W)``.
        rng: a generator on the same device as ``images``.
        pixel_range: lowest and highest possible pixel value; None leaves out colour changes and clipping.
        flip_probability: the probability of mirroring the whole batch left to right.
        geometric: whether to rotate, shift and scale.
        range_tolerance: how far pixels may lie outside ``pixel_range``, as a fraction of it.

    Raises:
        ConfigError: a pixel lies outside ``pixel_range``.
    """
    if images.is_floating_point() and images.element_size() < 4:
        result = augmented(
            images.float(),
            rng=rng,
            pixel_range=pixel_range,
            flip_probability=flip_probability,
            geometric=geometric,
            range_tolerance=_HALF_PRECISION_TOLERANCE,
        )
        return result.to(images.dtype)
    draws = torch.rand(11, generator=rng, device=rng.device).tolist()
    uniform = [low + (high - low) * draw for draw, (low, high) in zip(draws, _RANGES, strict=False)]
    brightness, contrast, saturation, hue, gamma, degrees, shift_x, shift_y, scale, sigma = uniform
    result = images
    if pixel_range is not None:
        result = color_jittered(
            result,
            brightness=brightness,
            contrast=contrast,
            saturation=saturation,
            hue_turns=hue,
            gamma=gamma,
            pixel_range=pixel_range,
            range_tolerance=range_tolerance,
        )
    flip = draws[10] < flip_probability
    if geometric:
        result = affine(result, degrees=degrees, shift=(shift_x, shift_y), scale=scale, flip=flip)
    elif flip:
        result = result.flip(-1)
    result = blurred(result, sigma_pixels=sigma)
    noise = torch.randn(result.shape, generator=rng, device=result.device, dtype=result.dtype)
    if pixel_range is None:
        return result.add(noise, alpha=NOISE_STD)
    if pixel_range == (0.0, 1.0):
        return result.add(noise, alpha=NOISE_STD).clamp_(0.0, 1.0)
    low, high = bounds(pixel_range, images)
    return torch.clamp(result + noise * (NOISE_STD * (high - low)), min=low, max=high)


_RANGES: Final = (
    BRIGHTNESS,
    CONTRAST,
    SATURATION,
    HUE_TURNS,
    GAMMA,
    ROTATION_DEGREES,
    TRANSLATION_FRACTION,
    TRANSLATION_FRACTION,
    SCALE,
    BLUR_SIGMA_PIXELS,
)


def color_jittered(
    images: Tensor,
    *,
    brightness: float,
    contrast: float,
    saturation: float,
    hue_turns: float,
    gamma: float,
    pixel_range: PixelRange,
    range_tolerance: float = 1e-3,
) -> Tensor:
    """Return ``images`` ``(B, C, H, W)`` with changed colours, clipped to ``pixel_range``.

    Hue and saturation are changed only in images with three channels.

    Raises:
        ConfigError: a pixel lies outside ``pixel_range``.
    """
    low, high = bounds(pixel_range, images)
    slack = range_tolerance * (high - low)
    if bool(((images < low - slack) | (images > high + slack)).any()):
        raise ConfigError(
            f"pixels lie outside the task's pixel_range {pixel_range}: they range from {float(images.min()):.3g} to "
            f"{float(images.max()):.3g}; give the task the range of your batches, or None"
        )
    unit = images if pixel_range == (0.0, 1.0) else ((images - low) / (high - low)).clamp(0.0, 1.0)
    batch, channels, height, width = unit.shape
    flat = unit.reshape(batch, channels, height * width)
    if channels == 3:
        matrix = brightness * _hue_saturation_matrix(saturation, hue_turns)
        flat = torch.matmul(matrix.to(flat), flat)
        luma = torch.tensor(_LUMA, dtype=flat.dtype, device=flat.device)
        gray = torch.matmul(luma, flat.mean(-1).T)[:, None, None]
    else:
        flat = flat * brightness
        gray = flat.mean((1, 2), keepdim=True)
    # contrast * x + (1 - contrast) * gray, then gamma on what lies in range
    flat = torch.lerp(gray, flat, contrast).clamp_(0.0, 1.0).pow_(gamma)
    result = flat.reshape(batch, channels, height, width)
    return result if pixel_range == (0.0, 1.0) else result * (high - low) + low


def normalised_range(mean: Sequence[float], std: Sequence[float]) -> PixelRange:
    """Return the pixel range of images in [0, 1] after normalisation with ``mean`` and ``std`` of each channel."""
    return tuple(-m / s for m, s in zip(mean, std, strict=True)), tuple(
        (1 - m) / s for m, s in zip(mean, std, strict=True)
    )


def bounds(pixel_range: PixelRange, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return lowest and highest pixel value as tensors that broadcast over ``(B, C, H, W)``."""
    low, high = (torch.tensor(bound, dtype=images.dtype, device=images.device).view(-1, 1, 1) for bound in pixel_range)
    return low, high


def with_content(images: Tensor, *, pixel_range: PixelRange | None) -> Tensor:
    """Return for each of ``(B, C, H, W)`` images whether it has any content: ``(B,)``, false for uniform images.

    An image is uniform if its values differ by at most 1/255 of the range, or not at all where the range is unknown (a
    lens cap, a dropped frame). Such images contain nothing to learn from, and distort the statistics of their batch.
    """
    flat = images.flatten(2)
    spread = flat.amax(-1) - flat.amin(-1)
    least: Tensor | float = 0.0
    if pixel_range is not None:
        low, high = bounds(pixel_range, images)
        least = (high - low).flatten() * _ONE_STEP
    # Negated so that images with NaN count as having content: the guard NonFinite must still see them.
    return ~(spread <= least).all(-1)


def _hue_saturation_matrix(saturation: float, hue_turns: float) -> Tensor:
    to_yiq = torch.tensor(_RGB_TO_YIQ, dtype=torch.float64)
    cos, sin = math.cos(2 * math.pi * hue_turns), math.sin(2 * math.pi * hue_turns)
    change = torch.tensor(
        [[1, 0, 0], [0, saturation * cos, -saturation * sin], [0, saturation * sin, saturation * cos]],
        dtype=torch.float64,
    )
    matrix: Tensor = torch.linalg.inv(to_yiq) @ change @ to_yiq
    return matrix


def affine(images: Tensor, *, degrees: float, shift: tuple[float, float], scale: float, flip: bool) -> Tensor:
    """Return ``images`` rotated, shifted (fractions of the size), scaled, and mirrored if ``flip``; edges repeated."""
    height, width = images.shape[-2:]
    radians = math.radians(degrees)
    cos, sin = math.cos(radians) / scale, math.sin(radians) / scale
    mirror = -1.0 if flip else 1.0
    # Maps output to input coordinates in [-1, 1]; without the ratio, a rotation would distort non-square images.
    matrix = torch.tensor(
        [
            [mirror * cos, sin * height / width, 2 * shift[0]],
            [-mirror * sin * width / height, cos, 2 * shift[1]],
        ],
        dtype=images.dtype,
        device=images.device,
    )
    grid = F.affine_grid(matrix[None], [1, 1, height, width], align_corners=False)
    return F.grid_sample(
        images, grid.expand(len(images), -1, -1, -1), mode="bilinear", padding_mode="border", align_corners=False
    )


def moved(images: Tensor, *, fraction: float = 1 / 16) -> Tensor:
    """Return ``images`` ``(B, C, H, W)`` moved upwards by a fraction of their height, the last row repeated."""
    rows = torch.arange(images.shape[-2], device=images.device) + max(1, round(fraction * images.shape[-2]))
    return images[..., rows.clamp(max=images.shape[-2] - 1), :]


def blurred(images: Tensor, *, sigma_pixels: float) -> Tensor:
    """Return ``images`` ``(B, C, H, W)`` with a Gaussian blur; edges repeated."""
    radius = max(1, math.ceil(3 * sigma_pixels))
    offsets = torch.arange(-radius, radius + 1, dtype=torch.float64)
    weights = torch.exp(-0.5 * (offsets / max(sigma_pixels, 1e-3)) ** 2)
    weights /= weights.sum()
    if float(weights[radius]) > 0.999:
        return images
    channels = images.shape[1]
    kernel = torch.outer(weights, weights).to(images).expand(channels, 1, -1, -1)
    padded = F.pad(images, (radius,) * 4, mode="replicate")
    return F.conv2d(padded, kernel, groups=channels)


def patch_mask(images: Tensor, *, patch_size: int, probability: float, rng: torch.Generator) -> Tensor:
    """Return a boolean mask ``(B, 1, H, W)``, true on the square patches to hide.

    Each patch is hidden with the given probability, and at least one patch of every image is hidden.
    """
    batch, _, height, width = images.shape
    rows, columns = math.ceil(height / patch_size), math.ceil(width / patch_size)
    draws = torch.rand((batch, rows * columns), generator=rng, device=images.device)
    hidden = draws < probability
    hidden.scatter_(1, draws.argmin(1, keepdim=True), True)
    hidden = hidden.reshape(batch, 1, rows, columns)
    grown = hidden.repeat_interleave(patch_size, 2).repeat_interleave(patch_size, 3)
    return grown[:, :, :height, :width]
