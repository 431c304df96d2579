"""A picture of poses: the ground truth, and the predictions without and with TTT."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from acclimate.output_files import open_output
from acclimate.vision.data import boxes as box_ops
from acclimate.vision.data.images import ImageReader
from acclimate.vision.data.records import Record
from acclimate.vision.models.adapter import Entry

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SHOWN_SCORE: Final = 0.3
_AXIS_COLORS: Final = ("#e5484d", "#30a46c", "#3e8bff")
_TRUE, _RIGHT, _WRONG = "#ffffff", "#46d37a", "#ff6369"


def truth_before_after(
    path: Path,
    reader: ImageReader,
    records: Sequence[Record],
    truth: Mapping[str, Any],
    before: Sequence[Entry],
    after: Sequence[Entry],
    *,
    axis_length_m: float,
    columns: int = 6,
) -> None:
    """Write a PNG of three rows: true boxes and axes, those predicted ``before``, and those predicted ``after``.

    Axes start at an object's centre: x red, y green, z (away from the printed side) blue. A predicted box is green
    where its class is that of a true box it overlaps, else red.

    Args:
        path: of the PNG.
        reader: where pixels come from, corrupted as the model saw them.
        records: the images to show, the first ``columns`` of them.
        truth: a COCO dictionary with ``pose`` in its annotations and ``true_intrinsics`` in its images.
        before: entries of the images.
        after: entries of the images.
        axis_length_m: how long to draw the axes.
        columns: how many images.
    """
    # Imported here: nothing but a picture needs it. Without pyplot no figure outlives the call.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    images = {image["id"]: image for image in truth["images"]}
    names = {category["id"]: category["name"] for category in truth["categories"]}
    shown = list(records[:columns])
    figure = Figure(figsize=(2.3 * len(shown) + 0.5, 7.4), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(3, len(shown), squeeze=False)
    by_image = [{entry["image_id"]: entry for entry in entries} for entries in (before, after)]
    for column, record in enumerate(shown):
        pixels = reader.read(record)
        annotations = [a for a in truth["annotations"] if a["image_id"] == record.image_id]
        size = np.array([pixels.shape[1], pixels.shape[0]], float)
        for axes in grid[:, column]:
            axes.imshow(pixels, interpolation="nearest")
            axes.set_xticks([])
            axes.set_yticks([])
            axes.set_xlim(-0.5, size[0] - 0.5)
            axes.set_ylim(size[1] - 0.5, -0.5)
        camera = np.array(images[record.image_id]["true_intrinsics"])
        for annotation in annotations:
            _box(grid[0][column], annotation["bbox"], names[annotation["category_id"]], _TRUE)
            _axes(grid[0][column], annotation["pose"], camera, axis_length_m)
        for row, entries in enumerate(by_image, start=1):
            for detection in entries.get(record.image_id, {"detections": ()})["detections"]:
                if detection["score"] >= _SHOWN_SCORE:
                    _detection(grid[row][column], detection, record, size, annotations, names, axis_length_m)
    for row, title in enumerate(("true", "without TTT", "with TTT")):
        grid[row][0].set_ylabel(title, fontsize=12)
    with open_output(path) as file:
        figure.savefig(file, format="png", dpi=110)


def _detection(
    axes: Axes,
    detection: Mapping[str, Any],
    record: Record,
    size: npt.NDArray[np.float64],
    annotations: Sequence[Mapping[str, Any]],
    names: Mapping[int, str],
    axis_length_m: float,
) -> None:
    box = detection["bbox"]
    width, height = box["w"] * size[0], box["h"] * size[1]
    corner = (box["cx"] * size[0] - width / 2, box["cy"] * size[1] - height / 2)
    alike = [a["bbox"] for a in annotations if a["category_id"] == detection["class_id"]]
    right = bool(alike) and bool(
        box_ops.pairwise_iou(
            box_ops.from_detections([detection]), box_ops.from_coco(alike, width=size[0], height=size[1])
        ).max()
        >= 0.5
    )
    _box(
        axes,
        (*corner, width, height),
        f"{names[detection['class_id']]} {detection['score']:.2f}",
        _RIGHT if right else _WRONG,
    )
    if record.intrinsics is not None:
        camera = np.array(record.intrinsics) * (1 + np.array(detection["k_delta"]))
        _axes(axes, detection["pose"], camera, axis_length_m)


def _box(axes: Axes, box: Sequence[float], text: str, color: str) -> None:
    from matplotlib.patches import Rectangle

    # Pixel k is drawn from k - 0.5 to k + 0.5.
    corner = (box[0] - 0.5, box[1] - 0.5)
    axes.add_patch(Rectangle(corner, box[2], box[3], fill=False, edgecolor=color, linewidth=1.4))
    # Above the box; inside it where the image ends above.
    above = corner[1] > 6
    axes.text(corner[0] + 1, corner[1] + (-1.5 if above else 1.5), text, fontsize=7, color="black",
              va="bottom" if above else "top", bbox={"facecolor": color, "edgecolor": "none", "pad": 0.8},
              clip_on=True)  # fmt: skip


def _axes(axes: Axes, pose: Mapping[str, Any], camera: npt.NDArray[np.float64], length_m: float) -> None:
    found = axis_ends(pose, camera, length_m)
    if found is None:
        return
    # Pixel k is drawn from k - 0.5 to k + 0.5.
    pixels = found - 0.5
    for end, color in zip(pixels[1:], _AXIS_COLORS, strict=True):
        axes.plot([pixels[0, 0], end[0]], [pixels[0, 1], end[1]], color=color, linewidth=2, solid_capstyle="round")


def axis_ends(
    pose: Mapping[str, Any], camera: npt.NDArray[np.float64], length_m: float
) -> npt.NDArray[np.float64] | None:
    """Return the pixels ``(4, 2)`` of an object's centre and its axes' ends; None where one is behind the camera.

    Args:
        pose: ``rotation`` ``(3, 3)`` and ``translation`` ``(3,)`` in metres.
        camera: ``fx, fy, cx, cy`` in pixels.
        length_m: of the axes.
    """
    rotation, translation = np.array(pose["rotation"]), np.array(pose["translation"])
    ends = np.vstack([translation, translation + length_m * rotation.T])
    if (ends[:, 2] <= 0).any():
        return None
    pixels: npt.NDArray[np.float64] = ends[:, :2] / ends[:, 2:] * camera[:2] + camera[2:]
    return pixels
