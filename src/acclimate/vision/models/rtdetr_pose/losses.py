"""The training losses of the pose heads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.loss.loss_rt_detr import RTDetrHungarianMatcher

from acclimate.vision.models.rtdetr_pose.pose import encode_pose, rotation_from_6d

_DEPTH_WEIGHT: Final = 2.0
_OFFSETS_WEIGHT: Final = 2.0
_CAMERA_WEIGHT: Final = 4.0


def pose_losses(
    config: Any,
    found: Any,
    heads: Mapping[str, Tensor],
    k_delta: Tensor,
    given_intrinsics: Tensor,
    labels: Sequence[Mapping[str, Tensor]],
) -> dict[str, Tensor]:
    """Return the losses of depth, rotation, offset and intrinsics.

    Queries are matched to objects as in the detector's own loss. Denoising queries, which start from a known object,
    are trained on its pose as well.

    Args:
        config: the model's configuration.
        found: the detector's own output, in which denoising queries come first during training.
        heads: ``log_z``, ``rot6d`` and ``offsets`` of all queries.
        k_delta: the predicted correction of the intrinsics, ``(B, 4)``.
        given_intrinsics: the assumed intrinsics, ``(B, 4)``.
        labels: as for :meth:`RTDETRPose.forward`.
    """
    images, queries, objects = _matched(config, found, labels)
    counts = [len(label["class_labels"]) for label in labels]
    start = torch.tensor([0, *counts[:-1]]).cumsum(0)
    target = {
        key: torch.cat(values)
        for key, values in _by_key(
            encode_pose(label["rotation"], label["translation"], label["boxes"], label["intrinsics"])
            for label in labels
        ).items()
    }
    rotation = torch.cat([label["rotation"] for label in labels])
    symmetric = torch.cat([label["symmetric"] for label in labels])
    truth = start.to(objects.device)[images] + objects
    true_k = torch.stack([label["intrinsics"] for label in labels])
    return {
        "loss_log_z": _DEPTH_WEIGHT * F.l1_loss(heads["log_z"][images, queries].float(), target["log_z"][truth]),
        "loss_rotation": rotation_loss(heads["rot6d"][images, queries].float(), rotation[truth], symmetric[truth]),
        "loss_offsets": _OFFSETS_WEIGHT
        * F.l1_loss(heads["offsets"][images, queries].float(), target["offsets"][truth]),
        "loss_k_delta": _CAMERA_WEIGHT * F.l1_loss(k_delta.float(), true_k / given_intrinsics - 1),
    }


def rotation_loss(rot6d: Tensor, rotation: Tensor, symmetric: Tensor) -> Tensor:
    """Return the mean chordal distance of rotations ``(N, 6)`` and ``(N, 3, 3)``.

    Where ``symmetric`` ``(N,)`` is true, the object looks the same after half a turn about its z axis, and the smaller
    of the two distances is used.
    """
    predicted = rotation_from_6d(rot6d)
    distance = (predicted - rotation).flatten(1).norm(dim=1)
    turned = torch.cat([-rotation[..., :2], rotation[..., 2:]], dim=-1)
    other = (predicted - turned).flatten(1).norm(dim=1)
    return torch.where(symmetric, torch.minimum(distance, other), distance).mean()


def denoising_count(found: Any) -> int:
    """Return how many denoising queries come before the detection queries in a detector's output."""
    meta = found.denoising_meta_values
    return 0 if meta is None else int(meta["dn_num_split"][0])


def _matched(config: Any, found: Any, labels: Sequence[Mapping[str, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
    """Return the image, the query and the object's index in its image, for every match."""
    meta, split = found.denoising_meta_values, denoising_count(found)
    real = {
        "logits": found.logits[:, split:].detach().float(),
        "pred_boxes": found.pred_boxes[:, split:].detach().float(),
    }
    pairs = []
    for image, (query, thing) in enumerate(RTDetrHungarianMatcher(config)(real, labels)):
        pairs.append((torch.full_like(query, image), query + split, thing))
    if meta is not None:
        for image, query in enumerate(meta["dn_positive_idx"]):
            count = len(labels[image]["class_labels"])
            thing = torch.arange(count, device=query.device).tile(meta["dn_num_group"])[: len(query)]
            pairs.append((torch.full_like(query, image), query, thing))
    device = found.logits.device
    images, queries, objects = (torch.cat([pair[part].to(device) for pair in pairs]) for part in range(3))
    return images, queries, objects


def _by_key(encoded: Any) -> dict[str, list[Tensor]]:
    gathered: dict[str, list[Tensor]] = {}
    for one in encoded:
        for key, value in one.items():
            gathered.setdefault(key, []).append(value)
    return gathered
