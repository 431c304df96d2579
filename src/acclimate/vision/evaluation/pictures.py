"""A picture of predictions before and after: the same images without and with TTT."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from acclimate.output_files import open_output
from acclimate.vision.data.images import ImageReader
from acclimate.vision.data.matching import ImageNames
from acclimate.vision.data.records import Record, read_json, whole_number
from acclimate.vision.evaluation.evaluate import is_coco, label_key, load_labels
from acclimate.vision.evaluation.multilabel import load_label_sets
from acclimate.vision.models.adapter import Entry

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLUMNS: Final = 8
_SHOWN_SCORE: Final = 0.3
_RIGHT, _WRONG, _NEUTRAL = "#1a7f37", "#cf222e", "#0969da"


def before_and_after(
    path: Path,
    reader: ImageReader,
    before: Sequence[Entry],
    after: Sequence[Entry],
    *,
    title: str,
    ground_truth: Path | None = None,
) -> None:
    """Write a PNG with two rows: the images as predicted ``before`` and ``after``.

    Images on which the two differ come first. Where there is ground truth, right classes are green and wrong ones
    red, and true boxes are drawn dashed.
    """
    # Imported here: nothing but a picture needs it. Without pyplot no figure outlives the call.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    truth = _truth(ground_truth)
    pairs = list(zip(before, after, strict=True))
    # Stable: among those that differ, and among those that do not, the order of the data set.
    pairs.sort(key=lambda pair: _headline(pair[0]) == _headline(pair[1]))
    chosen = pairs[:_COLUMNS]
    figure = Figure(figsize=(2.1 * len(chosen) + 0.6, 4.9), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(2, len(chosen), squeeze=False)
    for column, pair in enumerate(chosen):
        record = Record(pair[0]["image"], pair[0]["image_id"])
        pixels = reader.read(record)
        for axes, entry in zip(grid[:, column], pair, strict=True):
            axes.imshow(pixels, interpolation="nearest")
            axes.set_xticks([])
            axes.set_yticks([])
            _draw(axes, entry, pixels.shape[1], pixels.shape[0], truth)
    grid[0][0].set_ylabel("without TTT", fontsize=12)
    grid[1][0].set_ylabel(f"with {title}", fontsize=12)
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


def _headline(entry: Entry) -> Any:
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
