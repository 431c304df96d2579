"""Score predictions: mean average precision against COCO annotations, accuracy against class labels."""

from __future__ import annotations

import contextlib
import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from acclimate.errors import DataError
from acclimate.vision.adapter import Entry
from acclimate.vision.predictions import to_coco
from acclimate.vision.records import read_json

_CONFIDENCE: Final = 0.95


@dataclass(frozen=True, slots=True)
class Score:
    """How good a set of predictions is.

    Attributes:
        metrics: by name, as fractions in [0, 1]; the first is the one that methods are compared by.
        per_image: what a bootstrap over images needs; its form is the scorer's own.
    """

    metrics: dict[str, float]
    per_image: Any


class Scorer(Protocol):
    """Scores predictions and says how sure a difference is."""

    metric: str
    image_count: int

    def score(self, entries: Sequence[Entry]) -> Score:
        """Score one set of predictions."""
        ...

    def resampled(self, score: Score, images: npt.NDArray[np.int64]) -> float:
        """Return the main metric over a multiset of images, given by position."""
        ...


@dataclass(frozen=True, slots=True)
class Interval:
    """A difference with its 95 % interval, from a paired bootstrap over images (Efron & Tibshirani 1993)."""

    value: float
    low: float
    high: float


def difference(scorer: Scorer, first: Score, second: Score, *, resamples: int = 1000, seed: int = 0) -> Interval:
    """Return ``second`` minus ``first`` in the main metric, over the same images."""
    rng = np.random.default_rng(seed)
    draws = []
    for _ in range(resamples):
        images = rng.integers(0, scorer.image_count, scorer.image_count)
        draws.append(scorer.resampled(second, images) - scorer.resampled(first, images))
    tail = 100 * (1 - _CONFIDENCE) / 2
    low, high = np.percentile(draws, [tail, 100 - tail])
    return Interval(second.metrics[scorer.metric] - first.metrics[scorer.metric], float(low), float(high))


class AccuracyScorer:
    """The share of images whose most probable class is right; an image without a prediction counts as wrong.

    Args:
        labels: class id by image, as :func:`load_labels` returns them.
    """

    metric = "accuracy"

    def __init__(self, labels: Mapping[str, int]) -> None:
        self._labels = dict(labels)
        self.image_count = len(self._labels)

    def score(self, entries: Sequence[Entry]) -> Score:
        """Score a classifier's entries.

        Raises:
            DataError: they are a detector's, or no image of theirs has a label.
        """
        if any("classification" not in entry for entry in entries):
            raise DataError("class labels score a classifier, and these predictions have detections; give a COCO json")
        predicted = {_key(entry["image"], self._labels): entry["classification"]["class_id"] for entry in entries}
        if not set(predicted) & set(self._labels):
            raise DataError("no predicted image has a label: check that the labels name the same files")
        right = np.array([predicted.get(name) == label for name, label in self._labels.items()], dtype=np.float64)
        return Score({"accuracy": float(right.mean())}, right)

    def resampled(self, score: Score, images: npt.NDArray[np.int64]) -> float:
        """Return the accuracy over a multiset of images."""
        return float(score.per_image[images].mean())


class CocoScorer:
    """Mean average precision as COCO defines it.

    Args:
        annotations: a COCO json with annotations.
        image_ids: score only these images; all by default.

    Raises:
        DataError: the file has no annotations.
    """

    metric = "mAP"

    def __init__(self, annotations: Path, *, image_ids: Sequence[int] | None = None) -> None:
        content = read_json(annotations, "ground truth")
        if not isinstance(content, dict) or not content.get("annotations"):
            raise DataError(f"{annotations} has no annotations to score against")
        self._truth = COCO()
        # pycocotools asks for a key that COCO files in the wild leave out.
        self._truth.dataset = {"info": {}, **content}
        with _quiet():
            self._truth.createIndex()
        self._image_ids = sorted(self._truth.getImgIds() if image_ids is None else set(image_ids))
        self.image_count = len(self._image_ids)

    def score(self, entries: Sequence[Entry]) -> Score:
        """Score a detector's entries."""
        results = to_coco(entries)
        if not results:
            return Score({"mAP": 0.0, "mAP50": 0.0, "mAP75": 0.0, "AR100": 0.0}, None)
        with _quiet():
            evaluation = COCOeval(self._truth, self._truth.loadRes(results), "bbox")
            evaluation.params.imgIds = self._image_ids
            evaluation.params.areaRng = [evaluation.params.areaRng[0]]
            evaluation.params.areaRngLbl = ["all"]
            evaluation.params.maxDets = [100]
            evaluation.evaluate()
            evaluation.accumulate()
        precision, recall = evaluation.eval["precision"], evaluation.eval["recall"]
        metrics = {
            "mAP": _mean(precision),
            "mAP50": _mean(precision[0]),
            "mAP75": _mean(precision[5]),
            "AR100": _mean(recall),
        }
        return Score(metrics, evaluation)

    def resampled(self, score: Score, images: npt.NDArray[np.int64]) -> float:
        """Return the mAP over a multiset of images, by accumulating their matches again."""
        evaluation = score.per_image
        if evaluation is None:
            return 0.0
        matches = evaluation.evalImgs
        count = len(self._image_ids)
        try:
            evaluation.evalImgs = [
                matches[start + image] for start in range(0, len(matches), count) for image in images.tolist()
            ]
            with _quiet():
                evaluation.accumulate()
            return _mean(evaluation.eval["precision"])
        finally:
            evaluation.evalImgs = matches


def make_scorer(ground_truth: Path, entries: Sequence[Entry] = ()) -> Scorer:
    """Return the scorer for a ground truth file: COCO json, or labels as json or csv.

    Raises:
        DataError: the file is missing or of neither kind.
    """
    if ground_truth.suffix == ".json" and "annotations" in read_json(ground_truth, "ground truth"):
        return CocoScorer(ground_truth, image_ids=[entry["image_id"] for entry in entries] or None)
    return AccuracyScorer(load_labels(ground_truth))


def load_labels(path: Path) -> dict[str, int]:
    """Return class ids by image from ``{"image": class}`` json or ``image,label`` csv lines.

    Raises:
        DataError: the file is missing, empty, or a class is no whole number.
    """
    if path.suffix == ".json":
        pairs = list(_mapping(read_json(path, "labels file"), path).items())
    else:
        try:
            with path.open(newline="", encoding="utf-8") as file:
                rows = [row for row in csv.reader(file) if row]
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise DataError(f"labels file {path} cannot be read: {error}") from error
        if any(len(row) != 2 for row in rows):
            raise DataError(f"labels file {path} must have two columns, image and label")
        pairs = [(row[0], row[1]) for row in rows if row != ["image", "label"]]
    try:
        labels = {str(name): int(label) for name, label in pairs}
    except (TypeError, ValueError) as error:
        raise DataError(f"labels file {path}: classes must be whole numbers ({error})") from error
    if not labels:
        raise DataError(f"labels file {path} is empty")
    return labels


def _mapping(content: Any, path: Path) -> Mapping[str, Any]:
    if not isinstance(content, dict):
        raise DataError(f"labels file {path} must hold one object of image: class, or COCO annotations")
    return content


def _key(image: str, labels: Mapping[str, int]) -> str:
    # Labels may name files by the path in the predictions, or by the last part of it.
    return image if image in labels else Path(image).name


def _mean(values: npt.NDArray[np.float64]) -> float:
    # -1 marks categories without any ground truth.
    valid = values[values > -1]
    return float(valid.mean()) if valid.size else 0.0


def _quiet() -> contextlib.AbstractContextManager[Any]:
    # pycocotools reports its progress by print.
    return contextlib.redirect_stdout(io.StringIO())
