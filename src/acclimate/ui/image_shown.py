"""Predictions drawn on images: boxes with poses, masks, and labels in words."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from acclimate.ui.image_decisions import SHOWN_SCORE
from acclimate.ui.image_runs import Shown
from acclimate.vision.data.corruptions import Uint8Image
from acclimate.vision.data.masks import NO_CLASS, class_map_of
from acclimate.vision.evaluation.pictures import class_colours
from acclimate.vision.evaluation.pose_pictures import axis_ends
from acclimate.vision.models.adapter import Entry

#: Sides of pictures on the page, in pixels.
_SMALL, _LARGE = 160, 640
_OPACITY: Final = 0.55
_BOX: Final = (255, 209, 71)
_AXES: Final = ((229, 72, 77), (48, 164, 108), (62, 139, 255))
#: Length of the drawn axes, in metres: half of a plate of the generated scenes.
_AXIS_LENGTH_M: Final = 0.05


def picture(pixels: Uint8Image, entry: Entry | None = None, *, shown: Shown | None = None, large: bool = False) -> str:
    """Return an image as a data address, with what was predicted drawn on it.

    Args:
        pixels: ``(H, W, 3)``.
        entry: of the predictions file; None draws the image alone.
        shown: where intrinsics for poses come from.
        large: draw it large.
    """
    side = _LARGE if large else _SMALL
    image = Image.fromarray(pixels)
    scale = side / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    if entry is not None and "segments" in entry:
        image = _with_classes(image, class_map_of(entry))
    image = image.resize(size, Image.Resampling.NEAREST if scale > 2 else Image.Resampling.BILINEAR)
    if entry is not None and "detections" in entry:
        _draw_boxes(image, entry, shown, scale)
    file = io.BytesIO()
    image.save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def words(entry: Entry, names: Mapping[int, str]) -> str:
    """Return what was predicted, in a few words."""
    if "classification" in entry:
        decided = entry["classification"]
        return f"{_name(decided['class_id'], names)} ({decided['score']:.0%})"
    if "segments" in entry:
        largest = sorted(entry["segments"], key=lambda segment: -segment.get("area", 0))[:3]
        return ", ".join(_name(segment["class_id"], names) for segment in largest) or "nothing"
    found = [d for d in entry["detections"] if d["score"] >= SHOWN_SCORE]
    listed = ", ".join(_name(d["class_id"], names) for d in sorted(found, key=lambda d: -d["score"])[:4])
    return f"{len(found)} found: {listed}" if found else "nothing found"


def _name(number: int, names: Mapping[int, str]) -> str:
    return names.get(number, str(number))


def _draw_boxes(image: Image.Image, entry: Entry, shown: Shown | None, scale: float) -> None:
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(size=max(9, image.width // 40))
    for detection in entry["detections"]:
        if detection["score"] < SHOWN_SCORE:
            continue
        box = detection["bbox"]
        left, top = (box["cx"] - box["w"] / 2) * image.width, (box["cy"] - box["h"] / 2) * image.height
        right, bottom = left + box["w"] * image.width, top + box["h"] * image.height
        draw.rectangle((left, top, max(left, right), max(top, bottom)), outline=_BOX, width=max(1, image.width // 250))
        text = f"{detection['class_id']} {detection['score']:.2f}"
        around = draw.textbbox((left + 1, top + 1), text, font=font)
        draw.rectangle(around, fill=_BOX)
        draw.text((left + 1, top + 1), text, fill=(0, 0, 0), font=font)
        _draw_axes(draw, detection, shown, scale)


def _draw_axes(draw: ImageDraw.ImageDraw, detection: Mapping[str, Any], shown: Shown | None, scale: float) -> None:
    if shown is None or shown.record.intrinsics is None or "pose" not in detection:
        return
    camera = np.array(shown.record.intrinsics) * (1 + np.array(detection.get("k_delta", [0.0] * 4)))
    ends = axis_ends(detection["pose"], camera, _AXIS_LENGTH_M)
    if ends is None:
        return
    points: Sequence[tuple[float, float]] = [(float(x), float(y)) for x, y in ends * scale]
    for end, colour in zip(points[1:], _AXES, strict=True):
        draw.line((points[0], end), fill=colour, width=2)


def _with_classes(image: Image.Image, classes: npt.NDArray[Any]) -> Image.Image:
    known = np.where(classes == NO_CLASS, 0, classes)
    colours = 255 * class_colours(int(known.max(initial=0)) + 1)
    pixels = np.asarray(image, dtype=np.float32)
    mixed = (1 - _OPACITY) * pixels + _OPACITY * colours[known]
    return Image.fromarray(np.where((classes == NO_CLASS)[..., None], pixels, mixed).astype(np.uint8))
