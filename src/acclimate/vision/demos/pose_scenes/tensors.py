"""Scenes as the tensors that a detector with pose heads trains on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from acclimate.vision.demos.pose_scenes.camera import Intrinsics
from acclimate.vision.demos.pose_scenes.scenes import HALF_TURN_SYMMETRIC, Scene


def as_tensors(scenes: Sequence[Scene]) -> tuple[Tensor, Tensor, list[dict[str, Tensor]]]:
    """Return images ``(B, 3, S, S)`` in [0, 1], given intrinsics ``(B, 4)`` as fractions, and labels.

    Each image's labels are ``class_labels`` ``(N,)``, ``boxes`` ``(N, 4)`` centre boxes as fractions, ``rotation``
    ``(N, 3, 3)``, ``translation`` ``(N, 3)`` in metres, ``symmetric`` ``(N,)`` (half a turn in its own plane leaves
    the plate as it is) and the true ``intrinsics`` ``(4,)`` as fractions.
    """
    images = torch.from_numpy(np.stack([scene.image for scene in scenes])).permute(0, 3, 1, 2)
    given = torch.stack([_fractions(scene.given_intrinsics, scene) for scene in scenes])
    return images.float().div(255).contiguous(), given, [_labels(scene) for scene in scenes]


def _labels(scene: Scene) -> dict[str, Tensor]:
    corners = torch.tensor([plate.box for plate in scene.plates]).reshape(-1, 4) / scene.image.shape[0]
    return {
        "class_labels": torch.tensor([plate.digit for plate in scene.plates], dtype=torch.int64),
        "boxes": torch.cat([(corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]], dim=1),
        "rotation": _stacked([plate.pose.rotation for plate in scene.plates], 3, 3),
        "translation": _stacked([plate.pose.translation for plate in scene.plates], 3),
        "symmetric": torch.tensor([plate.digit in HALF_TURN_SYMMETRIC for plate in scene.plates], dtype=torch.bool),
        "intrinsics": _fractions(scene.intrinsics, scene),
    }


def _stacked(arrays: Sequence[np.ndarray], *shape: int) -> Tensor:
    return torch.from_numpy(np.array(arrays, dtype=np.float32).reshape(-1, *shape))


def _fractions(intrinsics: Intrinsics, scene: Scene) -> Tensor:
    # Images are square: one side serves both axes.
    fractions: Tensor = torch.tensor(intrinsics.as_tuple(), dtype=torch.float32) / scene.image.shape[0]
    return fractions
