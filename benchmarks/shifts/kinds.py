"""Kinds of damage for ``benchmarks/shifts``, written for it and apart from the package's own corruptions.

A kind is a function of images ``(N, H, W, 3)`` uint8 and a generator that returns as many images. Strengths are
relative to the image's side, so that a kind means the same at 32 and at 224 pixels. The kinds are divided in two
halves: ``TUNE`` is for choosing settings, ``REPORT`` is looked at only when a result is written down.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

Images = NDArray[np.uint8]
Damage = Callable[[Images, np.random.Generator], Images]


def _bytes(values: NDArray[np.floating]) -> Images:
    """Return values in [0, 1] as bytes."""
    return np.clip(np.rint(values * 255), 0, 255).astype(np.uint8)


def _unit(images: Images) -> NDArray[np.float32]:
    return images.astype(np.float32) / 255


def _each(images: Images, function: Callable[[NDArray[np.float32]], NDArray[np.floating]]) -> Images:
    return np.stack([_bytes(function(image)) for image in _unit(images)])


def _smooth_field(rng: np.random.Generator, shape: tuple[int, int], cells: int) -> NDArray[np.float32]:
    """Return smooth random values in [0, 1]: a grid of ``cells`` squared random numbers, interpolated, two octaves."""
    side = (shape[1], shape[0])
    coarse = cv2.resize(rng.random((cells, cells)).astype(np.float32), side, interpolation=cv2.INTER_CUBIC)
    fine = cv2.resize(rng.random((2 * cells, 2 * cells)).astype(np.float32), side, interpolation=cv2.INTER_CUBIC)
    field = coarse + 0.5 * fine
    return (field - field.min()) / max(float(np.ptp(field)), 1e-6)


# Optics.
def defocus(images: Images, rng: np.random.Generator) -> Images:
    side = images.shape[1]
    radius = side * 0.05
    grid = np.mgrid[-int(radius) - 1 : int(radius) + 2, -int(radius) - 1 : int(radius) + 2]
    disk = np.clip(radius + 0.5 - np.hypot(*grid), 0, 1).astype(np.float32)
    return _each(images, lambda image: cv2.filter2D(image, -1, disk / disk.sum(), borderType=cv2.BORDER_REFLECT))


def directional_blur(images: Images, rng: np.random.Generator) -> Images:
    length = max(3, round(images.shape[1] * 0.22)) | 1
    kernel = np.zeros((length, length), np.float32)
    for k in np.linspace(-1, 1, 4 * length):
        # Thirty degrees: neither axis is special.
        row, column = length // 2 + k * (length // 2) * 0.5, length // 2 + k * (length // 2) * 0.866
        kernel[round(row), round(column)] = 1
    return _each(images, lambda image: cv2.filter2D(image, -1, kernel / kernel.sum(), borderType=cv2.BORDER_REFLECT))


def zoom_blur(images: Images, rng: np.random.Generator) -> Images:
    side = images.shape[1]
    factors = np.linspace(1, 1.3, 9)

    def blur(image: NDArray[np.float32]) -> NDArray[np.floating]:
        views = [
            cv2.warpAffine(
                image, cv2.getRotationMatrix2D((side / 2, side / 2), 0, f), (side, side), borderMode=cv2.BORDER_REFLECT
            )
            for f in factors
        ]
        return np.mean(views, axis=0)

    return _each(images, blur)


def vignette(images: Images, rng: np.random.Generator) -> Images:
    side = images.shape[1]
    grid = (np.mgrid[0:side, 0:side] + 0.5) / side * 2 - 1
    fall = 1 / (1 + 1.6 * (grid[0] ** 2 + grid[1] ** 2)) ** 2
    return _each(images, lambda image: image * fall[..., None])


# Sensor.
def gaussian_noise(images: Images, rng: np.random.Generator) -> Images:
    return _bytes(_unit(images) + rng.normal(0, 0.14, images.shape))


def speckle(images: Images, rng: np.random.Generator) -> Images:
    return _bytes(_unit(images) * (1 + rng.normal(0, 0.35, images.shape)))


def shot_noise(images: Images, rng: np.random.Generator) -> Images:
    return _bytes(rng.poisson(_unit(images) * 18) / 18)


def line_noise(images: Images, rng: np.random.Generator) -> Images:
    count, _, width, _ = images.shape
    return _bytes(_unit(images) + rng.normal(0, 0.13, (count, 1, width, 1)))


def row_noise(images: Images, rng: np.random.Generator) -> Images:
    count, height = images.shape[:2]
    return _bytes(_unit(images) + rng.normal(0, 0.12, (count, height, 1, 3)))


def dead_pixels(images: Images, rng: np.random.Generator) -> Images:
    # The same pixels in every image: they belong to the camera.
    dead = rng.random(images.shape[1:3]) < 0.07
    value = (rng.random((*images.shape[1:3], 1)) < 0.5) * 255
    return np.where(dead[..., None], value, images).astype(np.uint8)


def low_light(images: Images, rng: np.random.Generator) -> Images:
    dark = _unit(images) ** 1.4 * 0.22
    return _bytes(dark + rng.normal(0, 0.02, images.shape))


def over_exposure(images: Images, rng: np.random.Generator) -> Images:
    return _bytes(_unit(images) * 1.9 + 0.12)


def quantisation(images: Images, rng: np.random.Generator) -> Images:
    return _bytes(np.floor(_unit(images) * 3.999) / 3)


def colour_cast(images: Images, rng: np.random.Generator) -> Images:
    return _bytes(_unit(images) * np.array([1.15, 0.85, 0.45]) + np.array([0.08, 0.0, 0.0]))


def hue(images: Images, rng: np.random.Generator) -> Images:
    def turn(image: NDArray[np.float32]) -> NDArray[np.floating]:
        colours = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
        colours[..., 0] = (colours[..., 0] + 110) % 360
        return cv2.cvtColor(colours, cv2.COLOR_HSV2RGB)

    return _each(images, turn)


def grey(images: Images, rng: np.random.Generator) -> Images:
    return np.repeat(_bytes(_unit(images) @ np.array([0.299, 0.587, 0.114]))[..., None], 3, axis=3)


# Transport.
def jpeg(images: Images, rng: np.random.Generator) -> Images:
    def coded(image: Images) -> Images:
        _, data = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 10])
        return cv2.imdecode(data, cv2.IMREAD_COLOR)[..., ::-1]

    return np.stack([coded(image) for image in images])


def low_resolution(images: Images, rng: np.random.Generator) -> Images:
    side = images.shape[1]
    small = max(4, round(side * 0.4))

    def scaled(image: NDArray[np.float32]) -> NDArray[np.floating]:
        down = cv2.resize(image, (small, small), interpolation=cv2.INTER_AREA)
        return cv2.resize(down, (side, side), interpolation=cv2.INTER_LINEAR)

    return _each(images, scaled)


def packet_loss(images: Images, rng: np.random.Generator) -> Images:
    found = images.copy()
    block = max(2, images.shape[1] // 8)
    for image in found:
        for row in range(0, image.shape[0], block):
            if rng.random() < 0.3:
                # What was received last is shown again, shifted.
                start = rng.integers(0, image.shape[1])
                image[row : row + block, start:] = image[max(0, row - 1), start:][None]
    return found


# Weather.
def fog(images: Images, rng: np.random.Generator) -> Images:
    shape = images.shape[1:3]
    return np.stack(
        [_bytes(image * 0.45 + 0.55 * (0.6 + 0.4 * _smooth_field(rng, shape, 3)[..., None])) for image in _unit(images)]
    )


def rain(images: Images, rng: np.random.Generator) -> Images:
    side = images.shape[1]

    def wet(image: NDArray[np.float32]) -> NDArray[np.floating]:
        layer = np.zeros((side, side), np.float32)
        for _ in range(22):
            row, column = rng.integers(-side // 4, side, 2)
            length = side * rng.uniform(0.2, 0.4)
            end = (int(column + length * 0.25), int(row + length))
            cv2.line(layer, (int(column), int(row)), end, float(rng.uniform(0.4, 0.9)), max(1, side // 96), cv2.LINE_AA)
        return image * 0.75 * (1 - layer[..., None]) + 0.85 * layer[..., None]

    return _each(images, wet)


def snow(images: Images, rng: np.random.Generator) -> Images:
    shape = images.shape[1:3]
    size = max(1, images.shape[1] // 32)

    def white(image: NDArray[np.float32]) -> NDArray[np.floating]:
        flakes = cv2.resize((rng.random((shape[0] // size, shape[1] // size)) < 0.1).astype(np.float32), shape[::-1])
        pale = 0.75 * image + 0.25 * np.maximum(image, image.mean(2, keepdims=True) * 1.4 + 0.35)
        return pale * (1 - 0.9 * flakes[..., None]) + 0.9 * flakes[..., None]

    return _each(images, white)


def spatter(images: Images, rng: np.random.Generator) -> Images:
    shape = images.shape[1:3]
    mud = np.array([0.25, 0.18, 0.1], np.float32)

    def dirty(image: NDArray[np.float32]) -> NDArray[np.floating]:
        field = _smooth_field(rng, shape, 6)
        cover = np.clip((field - 0.62) * 12, 0, 1)[..., None]
        return image * (1 - cover) + mud * cover

    return _each(images, dirty)


# Geometry.
def elastic(images: Images, rng: np.random.Generator) -> Images:
    side = images.shape[1]
    rows, columns = np.mgrid[0:side, 0:side].astype(np.float32)

    def bent(image: NDArray[np.float32]) -> NDArray[np.floating]:
        shift = [side * 0.16 * (_smooth_field(rng, (side, side), 5) - 0.5) for _ in range(2)]
        return cv2.remap(image, columns + shift[0], rows + shift[1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)

    return _each(images, bent)


def rotation(images: Images, rng: np.random.Generator) -> Images:
    side = images.shape[1]

    def turned(image: NDArray[np.float32]) -> NDArray[np.floating]:
        degrees = float(rng.choice([-1, 1]) * rng.uniform(20, 35))
        matrix = cv2.getRotationMatrix2D((side / 2 - 0.5, side / 2 - 0.5), degrees, 1)
        return cv2.warpAffine(image, matrix, (side, side), borderMode=cv2.BORDER_REFLECT)

    return _each(images, turned)


def occlusion(images: Images, rng: np.random.Generator) -> Images:
    found, size = images.copy(), round(images.shape[1] * 0.4)
    for image in found:
        row, column = rng.integers(0, images.shape[1] - size, 2)
        image[row : row + size, column : column + size] = 128
    return found


def another_size(images: Images, rng: np.random.Generator) -> Images:
    side = round(images.shape[1] * 1.5)
    return _each(images, lambda image: cv2.resize(image, (side, side), interpolation=cv2.INTER_CUBIC))


# Polarity and order of channels.
def negative(images: Images, rng: np.random.Generator) -> Images:
    return 255 - images


def channel_order(images: Images, rng: np.random.Generator) -> Images:
    return np.ascontiguousarray(images[..., ::-1])


TUNE: Final[Mapping[str, Damage]] = {
    f.__name__: f
    for f in (
        defocus, directional_blur, gaussian_noise, line_noise, low_light, quantisation, hue, jpeg, fog, snow, elastic,
        occlusion, channel_order,
    )
}  # fmt: skip
REPORT: Final[Mapping[str, Damage]] = {
    f.__name__: f
    for f in (
        zoom_blur, vignette, speckle, shot_noise, row_noise, dead_pixels, over_exposure, colour_cast, grey,
        low_resolution, packet_loss, rain, spatter, rotation, another_size, negative,
    )
}  # fmt: skip
