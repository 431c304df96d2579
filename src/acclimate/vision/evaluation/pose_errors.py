"""Errors of predicted poses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from acclimate.vision.data import boxes as box_ops
from acclimate.vision.models.adapter import Entry

_MATCH_IOU: Final = 0.5
# Half a turn about the object's z axis.
_HALF_TURN: Final = np.diag([-1.0, -1.0, 1.0])


@dataclass(frozen=True, slots=True)
class PoseErrors:
    """Median errors over the objects that were found.

    Attributes:
        found: the share of true objects that are matched by a detection of their class with an IoU of at least 0.5;
            each detection matches at most one object, in the order of scores.
        rotation_degrees: median angle between predicted and true rotation; for objects that look the same after half a
            turn in their own plane (``half_turn_symmetric`` in the ground truth), the smaller of the two angles.
        depth_relative: median of ``|z - true z| / true z``.
        translation_relative: median distance between predicted and true centre, over the true depth.
    """

    found: float
    rotation_degrees: float
    depth_relative: float
    translation_relative: float


def pose_errors(
    entries: Sequence[Entry],
    truth: Mapping[int, Sequence[Mapping[str, Any]]],
    *,
    sizes: Mapping[int, tuple[int, int]],
) -> PoseErrors | None:
    """Return the errors of the poses in ``entries``; None where there are no true poses or no object was found.

    Args:
        entries: predictions whose detections have ``pose``, by ``image_id``.
        truth: COCO annotations with ``pose`` by image id.
        sizes: ``(width, height)`` by image id.
    """
    objects = sum(len(annotations) for annotations in truth.values())
    pairs = [
        (detection, annotation)
        for entry in entries
        for detection, annotation in _matches(entry["detections"], truth.get(entry["image_id"], ()), entry, sizes)
        if "pose" in detection and "pose" in annotation
    ]
    if not pairs or not objects:
        return None
    angles, depths, shifts = [], [], []
    for detection, annotation in pairs:
        rotation, true_rotation = (np.array(side["pose"]["rotation"]) for side in (detection, annotation))
        translation, true_translation = (np.array(side["pose"]["translation"]) for side in (detection, annotation))
        angle = _angle_degrees(rotation, true_rotation)
        if annotation["pose"].get("half_turn_symmetric", False):
            angle = min(angle, _angle_degrees(rotation, true_rotation @ _HALF_TURN))
        angles.append(angle)
        depths.append(abs(translation[2] - true_translation[2]) / true_translation[2])
        shifts.append(float(np.linalg.norm(translation - true_translation)) / true_translation[2])
    return PoseErrors(len(pairs) / objects, *(float(np.median(values)) for values in (angles, depths, shifts)))


def _matches(
    detections: Sequence[Mapping[str, Any]],
    annotations: Sequence[Mapping[str, Any]],
    entry: Entry,
    sizes: Mapping[int, tuple[int, int]],
) -> Iterator[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """Yield matched pairs of detection and annotation."""
    if not annotations or not detections:
        return
    width, height = sizes[entry["image_id"]]
    true_boxes = box_ops.from_coco([annotation["bbox"] for annotation in annotations], width=width, height=height)
    overlaps = box_ops.pairwise_iou(box_ops.from_detections(detections), true_boxes).numpy()
    left = set(range(len(annotations)))
    for row in np.argsort([-detection["score"] for detection in detections], kind="stable").tolist():
        fitting = [
            column
            for column in left
            if overlaps[row, column] >= _MATCH_IOU and annotations[column]["category_id"] == detections[row]["class_id"]
        ]
        if fitting:
            best = max(fitting, key=lambda column: overlaps[row, column])
            left.remove(best)
            yield detections[row], annotations[best]


def _angle_degrees(first: npt.NDArray[np.float64], second: npt.NDArray[np.float64]) -> float:
    return float(np.degrees(np.arccos(np.clip((np.trace(first.T @ second) - 1) / 2, -1, 1))))
