"""Prediction entries, and reading and writing their files.

A detector's entry is ``{image, image_id, width, height, detections: [{class_id, score, bbox: {cx, cy, w, h}}]}`` with
boxes as fractions of the image; a classifier's has ``classification: {class_id, score, topk: [[class_id, score]]}``,
and that of a model with several labels for an image also ``scores: [[class_id, score]]`` with every label. A
segmenter's has ``segments: [{class_id, score, area, segmentation: {size, counts}}]``, a mask in COCO's run-length
encoding for each class in the image; see :mod:`acclimate.vision.data.masks`.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from acclimate.errors import ConfigError, DataError
from acclimate.output_files import open_text_output
from acclimate.vision.data import masks
from acclimate.vision.data.labels import LabelMap
from acclimate.vision.data.records import finite_number, read_json, whole_number
from acclimate.vision.models.adapter import Entry, ImageBatch
from acclimate.vision.models.class_maps import class_map

SCHEMA_VERSION: Final = 1


def classification_entries(logits: Tensor, batch: ImageBatch, *, labels: LabelMap, top_k: int = 5) -> list[Entry]:
    """Return a classifier's entries for logits ``(B, K)``.

    Raises:
        ConfigError: the logits have another shape.
        DataError: the logits of an image are not finite.
    """
    if logits.dim() != 2 or len(logits) != len(batch.records):
        raise ConfigError(
            f"a classifier must return logits (B, K), got {tuple(logits.shape)} for {len(batch.records)} images; "
            "set kind='detector' in the TorchModel if it is a detector"
        )
    _require_finite(logits, batch)
    probabilities = logits.detach().float().softmax(-1).cpu()
    scores, indices = probabilities.sort(dim=-1, descending=True, stable=True)
    entries = []
    # Most classes are no one's: lists of all of them take longer than a small network.
    columns = probabilities.shape[1] if labels.ids is not None else min(top_k, probabilities.shape[1])
    for row, (row_indices, row_scores) in enumerate(
        zip(indices[:, :columns].tolist(), scores[:, :columns].tolist(), strict=True)
    ):
        written_pairs = (
            [written, score]
            for index, score in zip(row_indices, row_scores, strict=True)
            if (written := labels.written(index)) is not None
        )
        ranked = list(itertools.islice(written_pairs, top_k))
        classification = {"class_id": ranked[0][0], "score": ranked[0][1], "topk": ranked}
        entries.append({**_head(batch, row), "classification": classification})
    return entries


def multilabel_entries(logits: Tensor, batch: ImageBatch, *, labels: LabelMap, top_k: int = 5) -> list[Entry]:
    """Return the entries of a model with several labels for an image, for logits ``(B, K)`` of independent labels.

    ``scores`` has the probability of every label in the order of the classes; ``class_id``, ``score`` and ``topk`` are
    those of the most probable labels, as in a classifier's entry.

    Raises:
        ConfigError: the logits have another shape.
        DataError: the logits of an image are not finite.
    """
    if logits.dim() != 2 or len(logits) != len(batch.records):
        raise ConfigError(
            f"a model with several labels for an image must return logits (B, K), got {tuple(logits.shape)} for "
            f"{len(batch.records)} images"
        )
    _require_finite(logits, batch)
    probabilities = logits.detach().float().sigmoid().cpu()
    entries = []
    for row, values in enumerate(probabilities.tolist()):
        written = ((labels.written(index), score) for index, score in enumerate(values))
        scores = [[label, score] for label, score in written if label is not None]
        ranked = sorted(scores, key=lambda pair: -pair[1])[:top_k]
        classification = {"class_id": ranked[0][0], "score": ranked[0][1], "topk": ranked, "scores": scores}
        entries.append({**_head(batch, row), "classification": classification})
    return entries


def segmentation_entries(logits: Tensor, batch: ImageBatch, *, labels: LabelMap) -> list[Entry]:
    """Return a segmenter's entries for logits ``(B, K, h, w)``, at the size of the images.

    Each pixel gets the most probable of the classes that are written. A pixel outside of the network's input, such as
    one that was cropped, is in no segment. A segment's score is the mean probability of its class.

    Raises:
        ConfigError: the logits have another shape.
        DataError: the logits of an image are not finite.
    """
    if logits.dim() != 4 or len(logits) != len(batch.records):
        raise ConfigError(
            f"a segmenter must return logits (B, K, h, w), got {tuple(logits.shape)} for {len(batch.records)} images"
        )
    _require_finite(logits.flatten(1), batch)
    written = {index: label for index in range(logits.shape[1]) if (label := labels.written(index)) is not None}
    ids = np.array([*written.values(), masks.NO_CLASS], dtype=np.int32)
    places = batch.box_maps or (None,) * len(logits)
    entries = []
    for row, (size, placed) in enumerate(zip(batch.sizes, places, strict=True)):
        found, probability = class_map(logits[row], size=size, classes=tuple(written), placed=placed)
        segments = masks.segments(ids[found.cpu().numpy()], probability.cpu().numpy())
        entries.append({**_head(batch, row), "segments": segments})
    return entries


def detection_entries(
    found: Sequence[dict[str, Tensor]], batch: ImageBatch, *, labels: LabelMap, max_detections: int = 100
) -> list[Entry]:
    """Return a detector's entries.

    Args:
        found: for each image ``scores`` ``(N,)``, ``labels`` ``(N,)`` (class indices) and ``boxes`` ``(N, 4)`` as
            ``(x0, y0, x1, y1)`` fractions of the image. Further keys ``(N, ...)``, such as a pose's, are written under
            their own names.
        batch: the images.
        labels: maps class indices to the ids to write.
        max_detections: the limit for each image; those with the highest scores are written.

    Raises:
        DataError: an output is not finite.
    """
    entries = []
    for row, image in enumerate(found):
        values = {key: value.detach().cpu() for key, value in image.items()}
        scores, indices, boxes = (values.pop(key) for key in ("scores", "labels", "boxes"))
        if not all(bool(torch.isfinite(numbers).all()) for numbers in (scores, boxes, *values.values())):
            raise DataError(f"the model's output on {batch.records[row].image} is not finite; check its weights")
        detections = []
        for position in torch.argsort(scores, descending=True, stable=True).tolist():
            written = labels.written(int(indices[position]))
            if written is None:
                continue
            x0, y0, x1, y1 = boxes[position].clamp(0, 1).tolist()
            box = {"cx": (x0 + x1) / 2, "cy": (y0 + y1) / 2, "w": x1 - x0, "h": y1 - y0}
            more = {key: value[position].tolist() for key, value in values.items()}
            detections.append({"class_id": written, "score": float(scores[position]), "bbox": box, **more})
            if len(detections) == max_detections:
                break
        entries.append({**_head(batch, row), "detections": detections})
    return entries


def to_coco(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """Return detections or segments as COCO results.

    They are ``{image_id, category_id, bbox: [x, y, w, h] in pixels, score}`` for a detection, and ``{image_id,
    category_id, segmentation: {size, counts}, score}`` for a segment.

    Raises:
        DataError: the entries are a classifier's.
    """
    results = []
    for entry in entries:
        if "segments" in entry:
            results += [
                {
                    "image_id": entry["image_id"],
                    "category_id": segment["class_id"],
                    "segmentation": segment["segmentation"],
                    "score": segment["score"],
                }
                for segment in entry["segments"]
            ]
            continue
        if "detections" not in entry:
            raise DataError(
                "COCO results contain boxes or masks, and these predictions are a classifier's; use --format acclimate"
            )
        for detection in entry["detections"]:
            width, height, box = entry["width"], entry["height"], detection["bbox"]
            corner = [(box["cx"] - box["w"] / 2) * width, (box["cy"] - box["h"] / 2) * height]
            results.append(
                {
                    "image_id": entry["image_id"],
                    "category_id": detection["class_id"],
                    "bbox": [*corner, box["w"] * width, box["h"] * height],
                    "score": detection["score"],
                }
            )
    return results


def wrapping(meta: dict[str, Any]) -> dict[str, Any]:
    """Return the object that holds predictions, without any yet, and metadata on how they were made."""
    return {"schema_version": SCHEMA_VERSION, "predictions": [], "meta": meta}


def read_predictions(path: Path) -> list[Entry]:
    """Return the entries of a predictions file, written with or without ``--wrap``.

    Raises:
        DataError: the file is missing, is no JSON, or is no predictions file.
    """
    content = read_json(path, "predictions file")
    if isinstance(content, dict) and "predictions" in content:
        content = content["predictions"]
    if not isinstance(content, list) or not all(isinstance(entry, dict) and "image" in entry for entry in content):
        raise DataError(
            f"{path} is no predictions file: expected a list of entries with 'image', or an object with such a list "
            "under 'predictions'; give a file that acclimate export wrote"
        )
    return [_checked_entry(entry, path) for entry in content]


def read_coco_results(path: Path) -> list[dict[str, Any]] | None:
    """Return the COCO results in a file, or None if it contains something else.

    Raises:
        DataError: the file is missing or is no JSON, or a result has no whole number as ``image_id`` or
            ``category_id``, no finite numbers as ``bbox`` and ``score``, or has a mask instead of a box.
    """
    content = read_json(path, "predictions file")
    keys = {"image_id", "category_id", "bbox", "score"}
    if isinstance(content, list) and content and all(isinstance(r, dict) and keys <= set(r) for r in content):
        return [_checked_result(result, path) for result in content]
    masks_of = {"image_id", "category_id", "segmentation"}
    if isinstance(content, list) and content and all(isinstance(r, dict) and masks_of <= set(r) for r in content):
        raise DataError(
            f"{path} holds COCO results with masks, which do not name their images, so that no label images can be "
            "found for them; export with --format acclimate"
        )
    return None


def write_items(path: Path, items: Iterable[Any], *, wrapped_in: Mapping[str, Any] | None = None) -> None:
    """Write a JSON list as :func:`write_json` does, item by item, so that it is never in memory as a whole.

    ``wrapped_in``: an object to write instead, as :func:`wrapping` returns it.
    """
    before, after, indent = "[", "]", " "
    if wrapped_in is not None:
        # The first match is the key itself: what stands before it is the version, a number.
        before, found, rest = json.dumps(wrapped_in, indent=1, allow_nan=False).partition('"predictions": []')
        before, after, indent = f"{before}{found[:-1]}", f"]{rest}", "  "
    with open_text_output(path) as file:
        file.write(before)
        separator = "\n"
        for item in items:
            text = json.dumps(item, indent=1, allow_nan=False).replace("\n", f"\n{indent}")
            file.write(f"{separator}{indent}{text}")
            separator = ",\n"
        # An empty list is written on one line.
        file.write(after if separator == "\n" else f"\n{indent[1:]}{after}")
        file.write("\n")


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file whole or not at all, see :func:`acclimate.output_files.open_output`."""
    with open_text_output(path) as file:
        json.dump(content, file, indent=1, allow_nan=False)
        file.write("\n")


def _checked_entry(entry: dict[str, Any], path: Path) -> Entry:
    """Return an entry of a file; null as detections becomes an empty list.

    Raises:
        DataError: a part of the entry is missing or of another type.
    """
    try:
        if not isinstance(entry["image"], str) or not entry["image"]:
            raise TypeError("image must be text")
        sizes = {key: _positive(entry[key], key) for key in ("width", "height") if entry.get(key) is not None}
        checked = {**{key: value for key, value in entry.items() if key not in ("width", "height")}, **sizes}
        if entry.get("classification") is not None:
            whole_number(entry["classification"]["class_id"])
            return checked
        if entry.get("segments") is not None:
            return {**checked, **{side: sizes[side] for side in ("width", "height")},
                    "segments": masks.checked_segments(entry["segments"])}  # fmt: skip
        if "detections" not in entry:
            raise KeyError("detections")
        checked["detections"] = [
            {
                **detection,
                "class_id": whole_number(detection["class_id"]),
                "score": finite_number(detection["score"]),
                "bbox": {key: finite_number(detection["bbox"][key]) for key in ("cx", "cy", "w", "h")},
            }
            for detection in entry["detections"] or ()
        ]
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise DataError(
            f"{path} is no predictions file: each entry needs image, and classification with class_id, detections with "
            "class_id, score and bbox, or width, height and segments with class_id, score and segmentation "
            f"({type(error).__name__}: {error}); give a file that acclimate export wrote"
        ) from error
    return checked


def _checked_result(result: dict[str, Any], path: Path) -> dict[str, Any]:
    try:
        x, y, width, height = (finite_number(value) for value in result["bbox"])
        return {
            **result,
            "image_id": whole_number(result["image_id"]),
            "category_id": whole_number(result["category_id"]),
            "bbox": [x, y, width, height],
            "score": finite_number(result["score"]),
        }
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(
            f"{path} holds no COCO results: each needs whole numbers as image_id and category_id, four numbers as bbox "
            f"and a score ({error})"
        ) from error


def _positive(value: Any, name: str) -> int:
    number = whole_number(value)
    if number < 1:
        raise ValueError(f"{name} must be at least 1, got {number}")
    return number


def _require_finite(logits: Tensor, batch: ImageBatch) -> None:
    finite = torch.isfinite(logits).all(-1)
    if not bool(finite.all()):
        first = batch.records[int((~finite).int().argmax())].image
        raise DataError(f"the model's output on {first} is not finite; check its weights")


def _head(batch: ImageBatch, row: int) -> Entry:
    record, (width, height) = batch.records[row], batch.sizes[row]
    return {"image": record.image, "image_id": record.image_id, "width": width, "height": height}
