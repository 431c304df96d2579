"""Draw the picture of the README: scenes without and with adaptation, and what the filter gave the network to see.

python docs/pictures/make.py

Everything in it ships with the package: scenes from ``acclimate pose-scenes``, the detector of the adapter
``rtdetr_pose``, and the settings that ``--ttt --ttt-reset online`` takes. The same versions draw the same picture.
"""

from __future__ import annotations

import argparse
import io
import json
import tempfile
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from PIL import Image
from torch import nn

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from acclimate.vision import TTTConfig, TTTRun, load_dataset
from acclimate.vision.data.images import CorruptionSpec, ImageReader
from acclimate.vision.demos.pose_scenes.dataset import write_dataset
from acclimate.vision.models.rtdetr_pose.adapter import RTDETRPoseAdapter

CORRUPTIONS = ("contrast:5", "impulse_noise:5", "gaussian_noise:3")
SHOWN = {"contrast:5": (5, 9), "impulse_noise:5": (17, 21), "gaussian_noise:3": (30, 33)}
IMAGES = 64
SHOWN_SCORE = 0.4
RIGHT, WRONG = "#2ea043", "#f85149"


def main() -> None:
    """Write ``before_after.png`` beside this file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "before_after.png")
    out: Path = parser.parse_args().out
    with tempfile.TemporaryDirectory() as folder:
        annotations = write_dataset(Path(folder) / "scenes", images=IMAGES)
        truth = json.loads(annotations.read_text(encoding="utf-8"))
        records = load_dataset(annotations).records
        streams = {name: seen_and_found(name, records, truth) for name in CORRUPTIONS}
    draw(out, streams, truth)


def seen_and_found(corruption: str, records: Any, truth: Any) -> tuple[Any, Any, Any, Any]:
    """Return the images as they came, as the network saw them, and the entries without and with adaptation."""
    categories = {category["id"]: category["name"] for category in truth["categories"]}
    adapter = RTDETRPoseAdapter(reader=ImageReader(CorruptionSpec.parse(corruption)), categories=categories)
    came = [adapter.reader.read(record) for record in records]
    before = adapter.predict(records)
    seen: list[np.ndarray] = []
    first = next(module for module in adapter.get_model().modules() if isinstance(module, nn.Conv2d))

    def note(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        seen.extend(inputs[0].detach().permute(0, 2, 3, 1).clamp(0, 1).numpy())

    config = TTTConfig.resolve({"method": "spectrum", "reset": "online", "guards": False}, kind="detector")
    handle = first.register_forward_pre_hook(note)
    try:
        with TTTRun(adapter, config) as run:
            after = [entry for batch in run.online(records) for entry in batch]
    finally:
        handle.remove()
    if len(seen) != len(records):
        raise RuntimeError(f"the network saw {len(seen)} images of {len(records)}: one pass for each is shown here")
    return came, seen, before, after


def draw(path: Path, streams: Any, truth: Any) -> None:
    """Draw two rows: what came with its detections, and what the network saw with its detections."""
    columns = [(name, index) for name in streams for index in SHOWN[name]]
    figure, grid = plt.subplots(2, len(columns), figsize=(1.75 * len(columns), 3.95), squeeze=False)
    boxes: dict[int, list[Any]] = {}
    for annotation in truth["annotations"]:
        boxes.setdefault(annotation["image_id"], []).append((annotation["bbox"], annotation["category_id"]))
    for column, (name, index) in enumerate(columns):
        came, seen, before, after = streams[name]
        for row, (pixels, entries) in enumerate(((came, before), (seen, after))):
            axes = grid[row][column]
            axes.imshow(pixels[index], interpolation="nearest")
            axes.set_xticks([])
            axes.set_yticks([])
            boxes_on(axes, entries[index], boxes.get(entries[index]["image_id"], []))
        if column % 2 == 0:
            kind, severity = name.split(":")
            grid[0][column].set_title(f"{kind.replace('_', ' ')}, severity {severity}", fontsize=9, loc="left")
    grid[0][0].set_ylabel("as the camera gives it,\nwithout adaptation", fontsize=9)
    grid[1][0].set_ylabel("what the network sees,\nwith --ttt", fontsize=9)
    figure.tight_layout(pad=0.4, w_pad=0.3, h_pad=0.4)
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=105)
    plt.close(figure)
    # A palette: a third of the size, and nothing that the eye sees is lost.
    Image.open(drawn).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)


def boxes_on(axes: Axes, entry: Any, true: Any) -> None:
    """Draw the detections: green where a true object of that class overlaps by half, red elsewhere."""
    for detection in entry["detections"]:
        if detection["score"] < SHOWN_SCORE:
            continue
        box, width, height = detection["bbox"], entry["width"], entry["height"]
        x, y = (box["cx"] - box["w"] / 2) * width, (box["cy"] - box["h"] / 2) * height
        found = (x, y, box["w"] * width, box["h"] * height)
        right = any(overlap(found, one) >= 0.5 and category == detection["class_id"] for one, category in true)
        color = RIGHT if right else WRONG
        axes.add_patch(Rectangle((x, y), found[2], found[3], fill=False, edgecolor=color, linewidth=1.8))
        axes.text(
            x + 1, y + 2, str(detection["class_id"]), fontsize=9, weight="bold", color="white", va="top",
            bbox={"facecolor": color, "edgecolor": "none", "pad": 1.0},
        )  # fmt: skip


def overlap(first: Any, second: Any) -> float:
    """Return the intersection over union of two boxes ``x, y, width, height``."""
    width = min(first[0] + first[2], second[0] + second[2]) - max(first[0], second[0])
    height = min(first[1] + first[3], second[1] + second[3]) - max(first[1], second[1])
    both = max(0.0, width) * max(0.0, height)
    return both / (first[2] * first[3] + second[2] * second[3] - both)


if __name__ == "__main__":
    main()
