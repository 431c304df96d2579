"""Noise in all pixels: how strong it is, estimated from images alone, and a Wiener filter by block that removes it.

The power of photographs falls faster than with the square of spatial frequency (Field, JOSA A 1987), and noise has the
same power everywhere, so what is left at the highest frequencies of small blocks is noise. Each block is filtered with
its own ratio of signal to noise (Lee, IEEE PAMI 1980, does so by pixel), in its cosine transform (Yaroslavsky, 1996).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from acclimate.core.spectrum import cosines, from_opponent, to_opponent

_BLOCK: Final = 8
_STEP: Final = 4
_LOW: Final = (1.0, 3.0)
_HIGH: Final = 7.0
"""Bounds of the radial index of coefficients, by which the power of scenes is extrapolated, and where noise is left."""
_LEAST_SIGNAL: Final = 0.02
"""Share of the mean signal that a block is taken to have at least."""
_SMALL: Final = 1e-12
_MOST_VALUES: Final = 2**22
"""Of images that are filtered at once; more are filtered in parts."""


def noise_power(images: Tensor) -> Tensor:
    """Return the power of the noise in ``(B, 3, H, W)`` images in [0, 1], in each opponent colour: ``(3,)``.

    It is the mean over the images; zeros for images that are smaller than a block.
    """
    if min(images.shape[-2:]) < _BLOCK:
        return images.new_zeros(3)
    power = _power(_blocks(to_opponent(images)))
    power = power[power.isfinite().all(-1).all(-1)]
    return _noise(power.mean(0)) if len(power) else power.new_zeros(3)


def denoised(images: Tensor, noise: Tensor) -> Tensor:
    """Return ``(B, 3, H, W)`` images in [0, 1] without noise of the given power in each opponent colour ``(3,)``.

    Images that are smaller than a block are returned as they are.
    """
    if min(images.shape[-2:]) < _BLOCK:
        return images
    padded = F.pad(to_opponent(images), (_BLOCK - 1,) * 4, mode="reflect")
    # The transforms take (_BLOCK / _STEP) ** 2 times the memory of images.
    parts = padded.split(max(1, _MOST_VALUES // padded[0].numel()))
    blocks = _blocks(parts[0])
    power = torch.cat([_power(blocks), *(_power(_blocks(part)) for part in parts[1:])])
    # An image of one colour, or with a value that is no number, is not one of those that have this noise.
    counts = power[:, :, 1:].mean((1, 2)) >= noise.mean() / 2
    power = power[counts & power.isfinite().all(-1).all(-1)]
    if not len(power):
        return images
    signal = (power.mean(0) - noise[:, None]).clamp(min=_SMALL)
    found = [_filtered(blocks, signal, noise[:, None], padded.shape)]
    found += [_filtered(_blocks(part), signal, noise[:, None], padded.shape) for part in parts[1:]]
    first, (height, width) = _BLOCK - 1, images.shape[-2:]
    return from_opponent(torch.cat(found)[..., first : first + height, first : first + width]).clamp(0, 1)


def _power(blocks: Tensor) -> Tensor:
    """Return the mean power of the coefficients of blocks ``(B, 3, L, 64)`` in each image: ``(B, 3, 64)``."""
    return blocks.square().mean(2)


def _filtered(blocks: Tensor, signal: Tensor, power: Tensor, padded: torch.Size) -> Tensor:
    """Return filtered images in opponent colours, given the mean ``signal`` ``(3, 64)`` and the noise ``(3, 1)``."""
    wiener = signal / (signal + power)
    # How many times as much signal as on average a block has: the least squares estimate with equal relative errors.
    # The mean of a block says nothing about that.
    weight = wiener**2 / (signal + power)
    weight[:, 0] = 0.0
    excess = torch.einsum("bclk,ck->bcl", blocks.square(), weight) - (weight * power).sum(1)[:, None]
    usual = (weight * signal).sum(1)[:, None]
    own = (excess / usual.clamp(min=_SMALL)).clamp(min=_LEAST_SIGNAL)[..., None] * signal[:, None]
    gain = own / (own + power[:, None])
    gain[..., 0] = wiener[:, :1]
    return _joined(blocks * gain, padded)


def _noise(power: Tensor) -> Tensor:
    """Return the power of noise ``(3,)`` from that of the coefficients of blocks ``(3, 64)``."""
    radius = _radius(power.device)
    low, high = (radius >= _LOW[0]) & (radius <= _LOW[1]), radius >= _HIGH
    scene = (power[:, low] * radius[low] ** 2 + _SMALL).log().mean(1).exp()
    found = (power[:, high] - scene[:, None] * radius[high] ** -2).median(1).values.clamp(min=0)
    # Scenes have more power in brightness, which hides noise there; noise that is in both colours is in it too.
    found[0] = torch.maximum(found[0], torch.minimum(found[1], found[2]))
    return found


def _blocks(opponent: Tensor) -> Tensor:
    """Return the transforms of overlapping blocks ``(B, 3, L, 64)``."""
    found = opponent.unfold(2, _BLOCK, _STEP).unfold(3, _BLOCK, _STEP)
    return found.reshape(*opponent.shape[:2], -1, _BLOCK**2) @ _transform(opponent.device).T


def _joined(blocks: Tensor, padded: torch.Size) -> Tensor:
    """Return padded images ``(B, 3, H, W)`` from the transforms of their blocks; where blocks overlap, the mean."""
    parts = (blocks @ _transform(blocks.device)).flatten(0, 1).mT
    both = torch.cat([parts, torch.ones_like(parts[:1])])
    total = F.fold(both, padded[-2:], _BLOCK, stride=_STEP)
    return (total[:-1] / total[-1:].clamp(min=1)).reshape(len(blocks), *padded[1:])


@lru_cache(maxsize=4)
def _transform(device: torch.device) -> Tensor:
    """Return the cosine transform of a block's values as a matrix ``(64, 64)``."""
    rows = cosines(_BLOCK, device)
    return torch.kron(rows, rows)


@lru_cache(maxsize=4)
def _radius(device: torch.device) -> Tensor:
    index = torch.arange(_BLOCK, dtype=torch.float32, device=device)
    return torch.sqrt(index[:, None] ** 2 + index[None] ** 2).flatten()
