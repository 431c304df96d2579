"""A pinhole camera, and the pose of a flat plate in front of it.

Axes are OpenCV's: x to the right, y down, z away from the camera. A plate's own axes are the same when it faces the
camera upright, so its rotation is the identity then; ``rotation`` takes plate coordinates to camera coordinates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

PLATE_SIDE_M: Final = 0.1
"""Side of every plate in metres: what turns an apparent size into a depth."""

_CORNERS_M: Final = PLATE_SIDE_M / 2 * np.array([[-1.0, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]])


@dataclass(frozen=True, slots=True)
class Intrinsics:
    """Focal lengths and principal point in pixels."""

    fx: float
    fy: float
    cx: float
    cy: float

    def as_tuple(self) -> tuple[float, float, float, float]:
        """Return ``(fx, fy, cx, cy)``."""
        return self.fx, self.fy, self.cx, self.cy

    def project(self, points_m: FloatArray) -> FloatArray:
        """Return the pixels ``(N, 2)`` of points ``(N, 3)`` in camera coordinates."""
        x, y, z = points_m.T
        return np.stack([self.fx * x / z + self.cx, self.fy * y / z + self.cy], axis=1)

    def ray(self, pixel: tuple[float, float]) -> FloatArray:
        """Return the point ``(3,)`` at depth 1 that is seen at ``pixel``."""
        return np.array([(pixel[0] - self.cx) / self.fx, (pixel[1] - self.cy) / self.fy, 1.0])


@dataclass(frozen=True, slots=True)
class PlatePose:
    """Where a plate is: ``rotation`` ``(3, 3)`` and ``translation`` ``(3,)`` of its centre, in metres."""

    rotation: FloatArray
    translation: FloatArray

    def corners_m(self) -> FloatArray:
        """Return the corners ``(4, 3)`` in camera coordinates: top left first, then clockwise as printed."""
        return _CORNERS_M @ self.rotation.T + self.translation

    def normal(self) -> FloatArray:
        """Return the unit vector ``(3,)`` out of the printed side."""
        return -self.rotation[:, 2]


def draw_intrinsics(rng: np.random.Generator, side: int) -> Intrinsics:
    """Return a random camera for square images of ``side`` pixels: focal length 0.95 to 1.4 sides."""
    fx = side * rng.uniform(0.95, 1.4)
    cx, cy = side * rng.uniform(0.45, 0.55, 2)
    return Intrinsics(fx, fx * rng.uniform(0.97, 1.03), cx, cy)


def perturbed(rng: np.random.Generator, true: Intrinsics, *, limit: float = 0.1) -> Intrinsics:
    """Return intrinsics as a bad calibration would give them: each value off by up to the fraction ``limit``.

    The true value is the perturbed one times ``1 + k_delta`` with ``|k_delta| <= limit``.
    """
    return Intrinsics(*(value / (1 + delta) for value, delta in zip(true.as_tuple(), rng.uniform(-limit, limit, 4))))  # noqa: B905


def draw_pose(
    rng: np.random.Generator, camera: Intrinsics, pixel: tuple[float, float], *, size_pixels: float
) -> PlatePose:
    """Return a random pose whose centre is seen at ``pixel``, ``size_pixels`` wide if it faced the camera.

    The plate is turned by up to 45 degrees in its own plane, and tilted by up to 50 degrees against the line of
    sight, so its printed side is always seen and a 6 is never a 9.
    """
    depth = np.sqrt(camera.fx * camera.fy) * PLATE_SIDE_M / size_pixels
    ray = camera.ray(pixel)
    turn, direction, tilt = np.radians([rng.uniform(-45, 45), rng.uniform(0, 360), rng.uniform(0, 50)])
    tilted = _rotation(tilt * np.array([np.cos(direction), np.sin(direction), 0.0])) @ _rotation(
        np.array([0.0, 0.0, turn])
    )
    return PlatePose(_towards(ray) @ tilted, ray * depth)


def _towards(ray: FloatArray) -> FloatArray:
    """Return the smallest rotation that takes the optical axis to ``ray``."""
    unit = ray / np.linalg.norm(ray)
    axis = np.cross([0.0, 0.0, 1.0], unit)
    sine = np.linalg.norm(axis)
    return _rotation(axis / sine * np.arctan2(sine, unit[2])) if sine > 1e-9 else np.eye(3)


def _rotation(vector: FloatArray) -> FloatArray:
    matrix: FloatArray = cv2.Rodrigues(vector)[0]
    return matrix
