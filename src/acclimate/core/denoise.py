"""Noise in all pixels: how strong it is, estimated from images alone, and a Wiener filter by block that removes it.

The power of photographs falls at least with the square of spatial frequency (Field, JOSA A 1987), and noise has the
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


def noise_power(images: Tensor) -> Tensor:
    """Return the power of the noise in ``(B, 3, H, W)`` images in [0, 1], in each opponent colour: ``(3,)``.

    It is the mean over the images; zeros for images that are smaller than a block.
    """
    if min(images.shape[-2:]) < _BLOCK:
        return images.new_zeros(3)
    return _noise(_blocks(to_opponent(images))[0].square().mean((0, 3)))


def denoised(images: Tensor, noise: Tensor) -> Tensor:
    """Return ``(B, 3, H, W)`` images in [0, 1] without noise of the given power in each opponent colour."""
    padded = F.pad(to_opponent(images), (_BLOCK - 1,) * 4, mode="reflect")
    blocks, places = _blocks(padded)
    power = noise[:, None, None]
    signal = (blocks.square().mean((0, 3))[..., None] - power).clamp(min=_SMALL)
    weight = (signal / (signal + power)) ** 2
    # How many times as much signal as on average a block has: the least squares estimate with equal relative errors.
    excess = ((blocks.square() - power) * weight / (signal + power))[:, :, 1:].sum(2, keepdim=True)
    usual = (signal * weight / (signal + power))[:, 1:].sum(1, keepdim=True)
    own = (excess / usual.clamp(min=_SMALL)).clamp(min=_LEAST_SIGNAL) * signal
    gain = own / (own + power)
    gain[:, :, 0] = (signal / (signal + power))[:, 0]
    return from_opponent(_joined(blocks * gain, places, images.shape[-2:])).clamp(0, 1)


def _noise(power: Tensor) -> Tensor:
    """Return the power of noise ``(3,)`` from that of the coefficients of blocks ``(3, 64)``."""
    radius = _radius(power.device)
    low, high = (radius >= _LOW[0]) & (radius <= _LOW[1]), radius >= _HIGH
    scene = (power[:, low] * radius[low] ** 2 + _SMALL).log().mean(1).exp()
    found = (power[:, high] - scene[:, None] * radius[high] ** -2).median(1).values.clamp(min=0)
    # Scenes have more power in brightness, which hides noise there; noise that is in both colours is in it too.
    found[0] = torch.maximum(found[0], torch.minimum(found[1], found[2]))
    return found


def _blocks(opponent: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """Return the transforms of overlapping blocks ``(B, 3, 64, L)``, and how many there are in each direction."""
    images, colours, height, width = opponent.shape
    kernel = _kernel(opponent.device)
    found = F.conv2d(opponent.reshape(images * colours, 1, height, width), kernel, stride=_STEP)
    return found.reshape(images, colours, _BLOCK**2, -1), (found.shape[-2], found.shape[-1])


def _joined(blocks: Tensor, places: tuple[int, int], size: torch.Size) -> Tensor:
    """Return images ``(B, 3, H, W)`` from the transforms of blocks of padded ones; where blocks overlap, the mean."""
    images, colours = blocks.shape[:2]
    kernel = _kernel(blocks.device)
    parts = blocks.reshape(images * colours, _BLOCK**2, *places)
    total = F.conv_transpose2d(parts, kernel, stride=_STEP)
    counts = F.conv_transpose2d(total.new_ones(1, 1, *places), total.new_ones(1, 1, _BLOCK, _BLOCK), stride=_STEP)
    first = _BLOCK - 1
    inner = (total / counts)[..., first : first + size[0], first : first + size[1]]
    return inner.reshape(images, colours, *size)


@lru_cache(maxsize=4)
def _kernel(device: torch.device) -> Tensor:
    rows = cosines(_BLOCK, device)
    return torch.einsum("ia,jb->ijab", rows, rows).reshape(_BLOCK**2, 1, _BLOCK, _BLOCK)


@lru_cache(maxsize=4)
def _radius(device: torch.device) -> Tensor:
    index = torch.arange(_BLOCK, dtype=torch.float32, device=device)
    return torch.sqrt(index[:, None] ** 2 + index[None] ** 2).flatten()
