"""A picture of predictions before and after: the same images without and with TTT."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from acclimate.output_files import open_output
from acclimate.vision.data.images import ImageReader
from acclimate.vision.data.masks import NO_CLASS, ClassMap, class_map_of
from acclimate.vision.data.matching import ImageNames
from acclimate.vision.data.records import Record, read_json, whole_number
from acclimate.vision.evaluation.evaluate import is_coco, label_key, load_labels
from acclimate.vision.evaluation.multilabel import load_label_sets
from acclimate.vision.evaluation.segmentation import IGNORE_VALUE, LabelImages
from acclimate.vision.models.adapter import Entry

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLUMNS: Final = 8
_SHOWN_SCORE: Final = 0.3
_OPACITY: Final = 0.55
_GOLDEN_RATIO: Final = 0.618
_RIGHT, _WRONG, _NEUTRAL = "#1a7f37", "#cf222e", "#0969da"


def before_and_after(
    path: Path,
    reader: ImageReader,
    before: Sequence[Entry],
    after: Sequence[Entry],
    *,
    title: str,
    ground_truth: Path | None = None,
    ignore_value: int | None = None,
) -> None:
    """Write a PNG with two rows: the images as predicted ``before`` and ``after``.

    Images on which the two differ come first. Where there is ground truth, right classes are green and wrong ones
    red, and true boxes are drawn dashed. Classes of pixels are colours over the image; ground truth of them is a third
    row.
    """
    # Imported here: nothing but a picture needs it. Without pyplot no figure outlives the call.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    masks = any("segments" in entry for entry in before)
    labels = _label_images(ground_truth, ignore_value, before) if masks else None
    truth = _truth(None if masks else ground_truth)
    pairs = list(zip(before, after, strict=True))
    # Stable: among those that differ, and among those that do not, the order of the data set.
    pairs.sort(key=lambda pair: _headline(pair[0]) == _headline(pair[1]))
    chosen = pairs[:_COLUMNS]
    rows = 2 if labels is None else 3
    # Frames of a camera are wide, and classifiers' images mostly square.
    shape = chosen[0][0]["height"] / chosen[0][0]["width"] if masks else 1.0
    figure = Figure(figsize=(2.1 * len(chosen) + 0.6, (2.1 * shape + 0.35) * rows), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, len(chosen), squeeze=False)
    for column, pair in enumerate(chosen):
        record = Record(pair[0]["image"], pair[0]["image_id"])
        pixels = reader.read(record)
        true = None if labels is None else labels(pair[0])
        for axes in grid[:, column]:
            axes.imshow(pixels, interpolation="nearest")
            axes.set_xticks([])
            axes.set_yticks([])
        for axes, entry in zip(grid[:2, column], pair, strict=True):
            if masks:
                _draw_classes(axes, class_map_of(entry), true)
            else:
                _draw(axes, entry, pixels.shape[1], pixels.shape[0], truth)
        if true is not None:
            _draw_classes(grid[2][column], true, None)
    grid[0][0].set_ylabel("without TTT", fontsize=12)
    grid[1][0].set_ylabel(f"with {title}", fontsize=12)
    if labels is not None:
        grid[2][0].set_ylabel("ground truth", fontsize=12)
    with open_output(path) as file:
        figure.savefig(file, format="png", dpi=110)


def _draw(axes: Axes, entry: Entry, width: int, height: int, truth: Callable[[str], Any]) -> None:
    if "classification" in entry:
        decided = entry["classification"]
        label = truth(entry["image"])
        labels = label if isinstance(label, frozenset) else {label}
        color = _NEUTRAL if label is None else _RIGHT if decided["class_id"] in labels else _WRONG
        text = f"{decided['class_id']}  ({decided['score']:.2f})"
        axes.set_title(
            text if label is None else f"{text}\ntrue {', '.join(map(str, sorted(labels)))}", fontsize=10, color=color
        )
        return
    from matplotlib.patches import Rectangle

    for x, y, w, h in truth(entry["image"]) or ():
        axes.add_patch(Rectangle((x, y), w, h, fill=False, edgecolor="white", linewidth=1, linestyle="--"))
    for detection in entry["detections"]:
        if detection["score"] < _SHOWN_SCORE:
            continue
        box = detection["bbox"]
        corner = ((box["cx"] - box["w"] / 2) * width, (box["cy"] - box["h"] / 2) * height)
        axes.add_patch(
            Rectangle(corner, box["w"] * width, box["h"] * height, fill=False, edgecolor=_RIGHT, linewidth=1.5)
        )
        axes.text(*corner, f"{detection['class_id']} {detection['score']:.2f}", fontsize=7, color="white",
                  backgroundcolor=_RIGHT, va="bottom")  # fmt: skip
    axes.set_title(f"{sum(d['score'] >= _SHOWN_SCORE for d in entry['detections'])} found", fontsize=10)


def _draw_classes(axes: Axes, found: ClassMap, true: ClassMap | None) -> None:
    colours = np.empty((*found.shape, 4), dtype=np.float32)
    colours[..., :3] = class_colours(int(found.max(initial=0)) + 1)[found]
    colours[..., 3] = np.where(found == NO_CLASS, 0.0, _OPACITY)
    axes.imshow(colours, interpolation="nearest")
    if true is not None and (labelled := true != NO_CLASS).any():
        axes.set_title(f"{(found == true)[labelled].mean():.0%} right", fontsize=10)


def class_colours(count: int) -> npt.NDArray[np.float32]:
    """Return an RGB colour ``(count, 3)`` in [0, 1] for each class; those of neighbouring ids are unlike."""
    from matplotlib.colors import hsv_to_rgb

    ids = np.arange(count)
    turns, values = (ids * _GOLDEN_RATIO) % 1, np.where(ids % 2 == 0, 1.0, 0.75)
    return np.asarray(hsv_to_rgb(np.stack([turns, np.full(count, 0.85), values], 1)), dtype=np.float32)


def _label_images(
    folder: Path | None, ignore_value: int | None, entries: Sequence[Entry]
) -> Callable[[Entry], ClassMap] | None:
    """Return a function of an entry that gives its labels; None where there is no ground truth."""
    if folder is None:
        return None
    labels = LabelImages(folder, ignore_value=IGNORE_VALUE if ignore_value is None else ignore_value)
    paths = labels.match_all([entry["image"] for entry in entries])
    return lambda entry: labels.read(paths[entry["image"]], entry)


def _headline(entry: Entry) -> Any:
    if "segments" in entry:
        return [segment["segmentation"]["counts"] for segment in entry["segments"]]
    if "classification" in entry:
        return entry["classification"]["class_id"]
    return [detection["class_id"] for detection in entry["detections"] if detection["score"] >= _SHOWN_SCORE]


def _truth(path: Path | None) -> Callable[[str], Any]:
    """Return a function of an image that gives its label or its boxes; None where there are none."""
    if path is None:
        return lambda image: None
    if not is_coco(path):
        label_sets = load_label_sets(path)
        labels: Mapping[str, Any] = load_labels(path) if label_sets is None else label_sets
        return lambda image: labels.get(label_key(image, labels) or "")
    content = read_json(path, "ground truth")
    names = ImageNames({whole_number(image["id"]): str(image["file_name"]) for image in content["images"]})
    boxes: dict[int, list[Any]] = {}
    for annotation in content["annotations"]:
        boxes.setdefault(whole_number(annotation["image_id"]), []).append(annotation["bbox"])
    return lambda image: boxes.get(names.match(image), ())
