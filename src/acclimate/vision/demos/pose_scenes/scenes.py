"""Scenes of flat plates with handwritten digits, drawn by homography, with everything about them known exactly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import cv2
import numpy as np
import numpy.typing as npt
from sklearn.datasets import load_digits

from acclimate.errors import ConfigError
from acclimate.vision.data.corruptions import FloatImage, Uint8Image
from acclimate.vision.demos.pose_scenes.backgrounds import draw_background
from acclimate.vision.demos.pose_scenes.camera import Intrinsics, PlatePose, draw_intrinsics, draw_pose, perturbed
from acclimate.vision.demos.pose_scenes.splits import IMAGE_SIDE, SPLITS, Split

CLASSES: Final = tuple(str(digit) for digit in range(10))
HALF_TURN_SYMMETRIC: Final = (0, 1, 8)
"""The digits that half a turn in their own plane leaves (nearly) as they are."""

# Of the 1,797 digits, which are shuffled once and for all.
_SPLIT_SIZES: Final[dict[Split, int]] = {"train": 1197, "val": 200, "test": 400}
_TEXTURE: Final = 48
_DIGIT: Final = 36
_MOST_PLATES: Final = 3
_SMALLEST_PIXELS, _LARGEST_PIXELS = 0.27, 0.5  # of the image's side
_MIN_VISIBLE: Final = 0.7


@dataclass(frozen=True, slots=True)
class Plate:
    """One plate in a scene.

    Attributes:
        digit: the class, 0 to 9.
        digit_image: which of scikit-learn's digits it carries.
        pose: where it is.
        box: ``(x0, y0, x1, y1)`` in pixels of the whole plate, cut at the image's edge, occluded parts included.
        visible_fraction: of its pixels inside the image, how many nothing covers.
    """

    digit: int
    digit_image: int
    pose: PlatePose
    box: tuple[float, float, float, float]
    visible_fraction: float


@dataclass(frozen=True, slots=True)
class Scene:
    """An image with its camera and plates.

    Attributes:
        image: ``(S, S, 3)`` uint8.
        intrinsics: of the camera.
        given_intrinsics: what a bad calibration says they are, each off by up to 10 %.
        plates: far ones first.
    """

    image: Uint8Image
    intrinsics: Intrinsics
    given_intrinsics: Intrinsics
    plates: tuple[Plate, ...]


def make_scene(
    index: int, *, split: Split, seed: int = 0, side: int = IMAGE_SIDE, photos: Sequence[Uint8Image] = ()
) -> Scene:
    """Return scene ``index`` of a split; the same arguments always give the same scene.

    Args:
        index: which scene, from 0.
        split: train, val and test never share a digit image.
        seed: of the whole series.
        side: of the square image in pixels.
        photos: crops of these are among the backgrounds.

    Raises:
        ConfigError: there is no such split, or the image is smaller than 32 pixels.
    """
    if split not in SPLITS:
        raise ConfigError(f"unknown split {split!r}; choose one of {', '.join(SPLITS)}")
    if side < 32:
        raise ConfigError(f"a scene's side must be at least 32 pixels, got {side}")
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    camera = draw_intrinsics(rng, side)
    canvas = draw_background(rng, side, photos)
    light = _Light.draw(rng)
    poses = _draw_poses(rng, camera, side)
    coverage = [_covered(camera, pose, side) for pose in poses]
    pool = split_digits(split)
    digits = [int(rng.choice(pool)) for _ in poses]
    for pose, digit in zip(poses, digits, strict=True):
        _draw_plate(rng, canvas, camera, pose, digit, light)
    visible = _visible_parts(coverage)
    _draw_occluders(rng, canvas, visible, coverage)
    plates = tuple(
        Plate(_labels()[digit], digit, pose, _box(camera, pose, side), float(seen.sum() / max(1.0, whole.sum())))
        for pose, digit, seen, whole in zip(poses, digits, visible, coverage, strict=True)
    )
    image = _photographed(rng, canvas, camera)
    return Scene(image, camera, perturbed(rng, camera), plates)


@lru_cache
def split_digits(split: Split) -> npt.NDArray[np.int64]:
    """Return which of scikit-learn's digits a split draws from."""
    order = np.random.default_rng(0).permutation(sum(_SPLIT_SIZES.values()))
    names = list(_SPLIT_SIZES)
    start = sum(_SPLIT_SIZES[name] for name in names[: names.index(split)])
    return order[start : start + _SPLIT_SIZES[split]]


@dataclass(frozen=True, slots=True)
class _Light:
    direction: npt.NDArray[np.float64]
    ambient: float

    @classmethod
    def draw(cls, rng: np.random.Generator) -> _Light:
        direction = np.array([*rng.uniform(-1, 1, 2), -1.0])
        return cls(direction / np.linalg.norm(direction), float(rng.uniform(0.45, 0.8)))

    def gain(self, pose: PlatePose) -> float:
        """Return what Lambert's law leaves of a plate's colour."""
        return self.ambient + (1 - self.ambient) * max(0.0, float(pose.normal() @ self.direction))


@lru_cache
def _textures() -> npt.NDArray[np.float32]:
    images = load_digits().images.astype(np.float32) / 16
    return np.stack([cv2.resize(image, (_DIGIT, _DIGIT), interpolation=cv2.INTER_CUBIC) for image in images]).clip(0, 1)


@lru_cache
def _labels() -> tuple[int, ...]:
    return tuple(load_digits().target.tolist())


def _draw_poses(rng: np.random.Generator, camera: Intrinsics, side: int) -> list[PlatePose]:
    wanted = int(rng.integers(1, _MOST_PLATES + 1))
    poses: list[PlatePose] = []
    boxes: list[tuple[float, float, float, float]] = []
    for _ in range(12 * wanted):
        if len(poses) == wanted:
            break
        size = side * float(np.exp(rng.uniform(np.log(_SMALLEST_PIXELS), np.log(_LARGEST_PIXELS))))
        u, v = rng.uniform(0.4 * size, side - 0.4 * size, 2)
        pose = draw_pose(rng, camera, (u, v), size_pixels=size)
        box = _box(camera, pose, side)
        if all(_overlap(box, other) < 0.1 for other in boxes):
            poses.append(pose)
            boxes.append(box)
    return sorted(poses, key=lambda pose: -float(pose.translation[2]))


def _box(camera: Intrinsics, pose: PlatePose, side: int) -> tuple[float, float, float, float]:
    corners = camera.project(pose.corners_m()).clip(0, side)
    (x0, y0), (x1, y1) = corners.min(0), corners.max(0)
    return float(x0), float(y0), float(x1), float(y1)


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    """Return the intersection as a fraction of the smaller box."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    smaller = min((a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1]))
    return max(0.0, width) * max(0.0, height) / max(smaller, 1e-9)


def _homography(camera: Intrinsics, pose: PlatePose, side: float) -> npt.NDArray[np.float64]:
    corners = camera.project(pose.corners_m()).astype(np.float32)
    # OpenCV's coordinates are of pixel centres, ours of their corners.
    square = np.array([[0, 0], [side, 0], [side, side], [0, side]], np.float32) - 0.5
    homography: npt.NDArray[np.float64] = cv2.getPerspectiveTransform(square, corners - 0.5)
    return homography


def _covered(camera: Intrinsics, pose: PlatePose, side: int) -> FloatImage:
    """Return how much of each pixel the plate covers: ``(S, S)`` in [0, 1]."""
    ones = np.ones((_TEXTURE, _TEXTURE), np.float32)
    mask: FloatImage = cv2.warpPerspective(ones, _homography(camera, pose, _TEXTURE), (side, side))
    return mask


def _draw_plate(
    rng: np.random.Generator, canvas: FloatImage, camera: Intrinsics, pose: PlatePose, digit: int, light: _Light
) -> None:
    dark, bright = rng.uniform(0, 0.4, 3), rng.uniform(0.6, 1, 3)
    paper, ink = (dark, bright) if rng.random() < 0.5 else (bright, dark)
    strokes = np.zeros((_TEXTURE, _TEXTURE, 1), np.float32)
    margin = (_TEXTURE - _DIGIT) // 2
    strokes[margin : margin + _DIGIT, margin : margin + _DIGIT, 0] = _textures()[digit]
    texture = (light.gain(pose) * (paper + (ink - paper) * strokes)).astype(np.float32)
    layer = np.concatenate([texture, np.ones_like(strokes)], axis=2)
    side = canvas.shape[0]
    warped = cv2.warpPerspective(layer, _homography(camera, pose, _TEXTURE), (side, side))
    # Outside the plate everything is 0, so colours come weighted with what they cover already.
    canvas *= 1 - warped[..., 3:]
    canvas += warped[..., :3]


def _visible_parts(coverage: Sequence[FloatImage]) -> list[FloatImage]:
    """Return what nearer plates leave of each, far ones first."""
    visible = [mask.copy() for mask in coverage]
    for far in range(len(visible)):
        for nearer in coverage[far + 1 :]:
            visible[far] *= 1 - nearer
    return visible


def _draw_occluders(
    rng: np.random.Generator, canvas: FloatImage, visible: list[FloatImage], coverage: Sequence[FloatImage]
) -> None:
    side = canvas.shape[0]
    for _ in range(int(rng.integers(0, 3))):
        mask = np.zeros((side, side), np.float32)
        start, end = rng.uniform(0, side, (2, 2)).astype(int).tolist()
        if rng.random() < 0.6:
            cv2.line(mask, start, end, 1.0, int(rng.integers(2, max(3, side // 14))), cv2.LINE_AA)
        else:
            axes = rng.uniform(0.04, 0.12, 2) * side
            cv2.ellipse(
                mask, start, axes.astype(int).tolist(), float(rng.uniform(0, 180)), 0, 360, 1.0, -1, cv2.LINE_AA
            )
        mask = mask.clip(0, 1)
        left = [part * (1 - mask) for part in visible]
        if any(part.sum() < _MIN_VISIBLE * whole.sum() for part, whole in zip(left, coverage, strict=True)):
            continue
        visible[:] = left
        canvas *= 1 - mask[..., None]
        canvas += mask[..., None] * rng.uniform(0, 1, 3).astype(np.float32)


def _photographed(rng: np.random.Generator, canvas: FloatImage, camera: Intrinsics) -> Uint8Image:
    """Return what the camera makes of a scene: the cos^4 law, exposure, blur, noise, and eight bits."""
    side = canvas.shape[0]
    x = (np.arange(side, dtype=np.float32) + 0.5 - camera.cx) / camera.fx
    y = (np.arange(side, dtype=np.float32) + 0.5 - camera.cy) / camera.fy
    # cos^4 of the angle to the optical axis: the one trace that intrinsics leave all over an image.
    falloff = (1 + x[None] ** 2 + y[:, None] ** 2) ** -2.0
    image = canvas * (falloff[..., None] * rng.uniform(0.8, 1.3))
    if rng.random() < 0.5:
        image = cv2.GaussianBlur(image, (0, 0), side * float(rng.uniform(0.002, 0.007)))
    noise = rng.normal(0, rng.uniform(0.002, 0.015), image.shape)
    pixels: Uint8Image = np.rint((image + noise).clip(0, 1) * 255).astype(np.uint8)
    return pixels
