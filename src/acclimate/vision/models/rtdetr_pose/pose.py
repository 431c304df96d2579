"""Conversion between the outputs of the pose heads and rotations and translations.

The pose of an object maps its own coordinates to the camera's: ``x_camera = R x_object + t``, in metres, with x to
the right, y down and z away from the camera.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def rotation_from_6d(rot6d: Tensor) -> Tensor:
    """Return rotation matrices ``(..., 3, 3)`` for ``(..., 6)`` numbers (Zhou et al., CVPR 2019, arXiv 1812.07035).

    The numbers are the first two columns, which are orthonormalised by the Gram-Schmidt process; the third column is
    their cross product.
    """
    first = F.normalize(rot6d[..., :3], dim=-1)
    second = F.normalize(rot6d[..., 3:] - (first * rot6d[..., 3:]).sum(-1, keepdim=True) * first, dim=-1)
    return torch.stack([first, second, torch.linalg.cross(first, second)], dim=-1)


def rotation_to_6d(rotation: Tensor) -> Tensor:
    """Return the first two columns ``(..., 6)`` of rotation matrices ``(..., 3, 3)``."""
    return torch.cat([rotation[..., 0], rotation[..., 1]], dim=-1)


def rotation_angle(first: Tensor, second: Tensor) -> Tensor:
    """Return the angle in radians ``(...)`` between rotations ``(..., 3, 3)``."""
    trace = (first * second).sum((-2, -1))
    return torch.acos(((trace - 1) / 2).clamp(-1, 1))


def corrected_intrinsics(intrinsics: Tensor, k_delta: Tensor) -> Tensor:
    """Return ``intrinsics * (1 + k_delta)``, both ``(..., 4)`` as ``(fx, fy, cx, cy)``."""
    return intrinsics * (1 + k_delta)


def decode_pose(outputs: Mapping[str, Any], intrinsics: Tensor) -> tuple[Tensor, Tensor]:
    """Return the rotation ``(B, Q, 3, 3)`` and the translation ``(B, Q, 3)`` in metres of every query.

    The object's centre is projected to the box's centre plus ``offsets`` times the box's size. Its depth is
    ``exp(log_z)`` times the corrected focal length as a fraction of the image's size. ``exp(log_z)`` is the depth for a
    camera whose focal length equals the image's size (virtual depth, Brazil et al., CVPR 2023, arXiv 2207.10660), which
    a network can predict from the apparent size alone.

    Args:
        outputs: ``pred_boxes`` ``(B, Q, 4)`` as fractions, ``log_z`` ``(B, Q, 1)``, ``rot6d`` ``(B, Q, 6)``,
            ``offsets`` ``(B, Q, 2)``, ``k_delta`` ``(B, 4)``.
        intrinsics: the assumed ones ``(B, 4)``: ``(fx / W, fy / H, cx / W, cy / H)``.
    """
    boxes = outputs["pred_boxes"]
    camera = corrected_intrinsics(intrinsics, outputs["k_delta"])[:, None]
    focal, centre = camera[..., :2], camera[..., 2:]
    seen = boxes[..., :2] + outputs["offsets"] * boxes[..., 2:]
    depth = outputs["log_z"].exp() * focal.prod(-1, keepdim=True).sqrt()
    translation = torch.cat([(seen - centre) / focal * depth, depth], dim=-1)
    return rotation_from_6d(outputs["rot6d"]), translation


def encode_pose(rotation: Tensor, translation: Tensor, boxes: Tensor, intrinsics: Tensor) -> dict[str, Tensor]:
    """Return the target outputs of the pose heads for known poses: the inverse of :func:`decode_pose`.

    Args:
        rotation: ``(N, 3, 3)``.
        translation: ``(N, 3)`` in metres.
        boxes: ``(N, 4)`` centre boxes as fractions.
        intrinsics: the true ones ``(4,)``, as fractions.
    """
    focal, centre = intrinsics[:2], intrinsics[2:]
    depth = translation[:, 2:]
    seen = translation[:, :2] / depth * focal + centre
    return {
        "log_z": (depth / focal.prod().sqrt()).log(),
        "rot6d": rotation_to_6d(rotation),
        "offsets": (seen - boxes[:, :2]) / boxes[:, 2:],
    }
