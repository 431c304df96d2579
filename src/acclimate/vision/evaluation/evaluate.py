"""Scores of predictions: mean average precision for COCO annotations, accuracy for class labels, mean IoU for masks."""

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

from acclimate.errors import ConfigError, DataError
from acclimate.output_files import is_special
from acclimate.vision.data.images import size_mismatch
from acclimate.vision.data.matching import ImageNames
from acclimate.vision.data.predictions import to_coco
from acclimate.vision.data.records import declared_size, finite_number, read_json, whole_number
from acclimate.vision.evaluation.pose_errors import PoseErrors, pose_errors
from acclimate.vision.models.adapter import Entry

_CONFIDENCE: Final = 0.95
_HEADERS: Final = tuple(["image", label] for label in ("label", "class"))


@dataclass(frozen=True, slots=True)
class Score:
    """The metrics of a set of predictions.

    Attributes:
        metrics: by name, as fractions in [0, 1]; the first is the main one, by which methods are compared.
        per_image: data for a bootstrap over images, in the scorer's own format.
    """

    metrics: dict[str, float]
    per_image: Any


class Scorer(Protocol):
    """Scores predictions, and scores them again over resampled images for a bootstrap."""

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
    """Return ``second`` minus ``first`` in the main metric, with its interval, over the same images."""
    rng = np.random.default_rng(seed)
    draws = []
    for _ in range(resamples):
        images = rng.integers(0, scorer.image_count, scorer.image_count)
        draws.append(scorer.resampled(second, images) - scorer.resampled(first, images))
    tail = 100 * (1 - _CONFIDENCE) / 2
    low, high = np.percentile(draws, [tail, 100 - tail])
    return Interval(second.metrics[scorer.metric] - first.metrics[scorer.metric], float(low), float(high))


class AccuracyScorer:
    """Scores a classifier by accuracy: the share of the predicted images whose most probable class is correct.

    Args:
        labels: class id by image, as :func:`load_labels` returns them.
        images: the predicted images, each of which must have one label.

    Raises:
        DataError: an image has no label, or two images match the same label.
    """

    metric = "accuracy"

    def __init__(self, labels: Mapping[str, int], images: Sequence[str]) -> None:
        keys = {image: label_key(image, labels) for image in images}
        if missing := [image for image, key in keys.items() if key is None]:
            raise DataError(
                f"{len(missing)} of {len(keys)} predicted images have no label (the first: {missing[0]}); "
                "in the labels file, use the paths of the predictions, or the last parts of them"
            )
        if len(set(keys.values())) < len(keys):
            raise DataError(
                "two predicted images share one label, because the name in the labels file fits both; use longer paths "
                "in the labels file"
            )
        self._truth = {image: labels[key] for image, key in keys.items() if key is not None}
        self.image_count = len(self._truth)

    def score(self, entries: Sequence[Entry]) -> Score:
        """Score a classifier's entries.

        Raises:
            DataError: they are a detector's.
        """
        if any("classification" not in entry for entry in entries):
            raise DataError("class labels are for classifiers, and these predictions have detections; give a COCO json")
        predicted = {entry["image"]: entry["classification"]["class_id"] for entry in entries}
        right = np.array([predicted.get(image) == label for image, label in self._truth.items()], dtype=np.float64)
        return Score({"accuracy": float(right.mean())}, right)

    def resampled(self, score: Score, images: npt.NDArray[np.int64]) -> float:
        """Return the accuracy over a multiset of images."""
        return float(score.per_image[images].mean())


class CocoScorer:
    """Scores a detector by mean average precision as defined by COCO, over the predicted images.

    Args:
        annotations: a COCO json with annotations.
        images: the paths of the predicted images; all images of the file by default. They are matched to the file by
            :class:`~acclimate.vision.data.matching.ImageNames`, never by id: ids of images from a folder are counted.

    Raises:
        DataError: the file has no images, categories or annotations, a predicted image matches none or several of its
            images, or the predicted images have no annotations but crowds.
    """

    metric = "mAP"

    def __init__(self, annotations: Path, *, images: Sequence[str] | None = None) -> None:
        content = _coco_truth(read_json(annotations, "ground truth"), annotations)
        self._truth = COCO()
        self._truth.dataset = content
        with _quiet():
            self._truth.createIndex()
        self._images: dict[int, dict[str, Any]] = {image["id"]: image for image in content["images"]}
        self._names = ImageNames({number: image["file_name"] for number, image in self._images.items()})
        self._image_ids = sorted(self._images if images is None else self._names.match_all(images).values())
        self.image_count = len(self._image_ids)
        scored = set(self._image_ids)
        if not any(a["image_id"] in scored and not a["iscrowd"] for a in content["annotations"]):
            raise DataError(
                f"nothing to score: {annotations} has no objects in the {self.image_count} predicted images (crowds, "
                "iscrowd, do not count); give annotations of these images"
            )

    def image_id(self, image: str) -> int:
        """Return the file's id of a predicted image.

        Raises:
            DataError: the file has no such image, or several that match equally well.
        """
        return self._names.match(image)

    def score(self, entries: Sequence[Entry]) -> Score:
        """Score a detector's entries.

        Raises:
            DataError: they are a classifier's, have a category that is not in the ground truth, or were predicted on
                images of another size than the annotations are for.
        """
        numbers = self._names.match_all([entry["image"] for entry in entries])
        placed = []
        for entry in entries:
            number = numbers[entry["image"]]
            size = _size(entry, self._images[number])
            if entry.get("detections") and size is None:
                raise DataError(
                    f"neither predictions nor ground truth contain the size of {entry['image']}; add width and height "
                    "to the ground truth"
                )
            width, height = size or (None, None)
            placed.append({**entry, "width": width, "height": height, "image_id": number})
        return self.score_results(to_coco(placed))

    def pose_errors(self, entries: Sequence[Entry]) -> PoseErrors | None:
        """Return the errors of the poses in ``entries``; None where predictions or ground truth have no poses."""
        placed = [{**entry, "image_id": self.image_id(entry["image"])} for entry in entries]
        truth = {number: self._truth.imgToAnns[number] for number in self._image_ids}
        sizes = {number: (image.get("width", 0), image.get("height", 0)) for number, image in self._images.items()}
        return pose_errors(placed, truth, sizes=sizes)

    def score_results(self, results: Sequence[Mapping[str, Any]]) -> Score:
        """Score COCO results.

        Raises:
            DataError: a result has an image or a category that is not in the ground truth.
        """
        if not results:
            return Score({"mAP": 0.0, "mAP50": 0.0, "mAP75": 0.0, "AR100": 0.0}, None)
        for key, known in (("image_id", set(self._images)), ("category_id", set(self._truth.getCatIds()))):
            if unknown := {result[key] for result in results} - known:
                raise DataError(
                    f"the ground truth has no {key} {sorted(unknown)[0]}, which was predicted; give the ground truth "
                    "of the predicted images"
                )
        with _quiet():
            evaluation = COCOeval(self._truth, self._truth.loadRes([dict(result) for result in results]), "bbox")
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
        """Return the mAP over a multiset of images, accumulated from the matches of :meth:`score_results`."""
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


def make_scorer(ground_truth: Path, entries: Sequence[Entry], *, ignore_value: int | None = None) -> Scorer:
    """Return the scorer for a ground truth and the images in ``entries``.

    Args:
        ground_truth: a COCO json, labels as json or csv, a json file with a list of labels for each image, or a folder
            of label images.
        entries: the predictions.
        ignore_value: the value of pixels in label images that do not count; None takes 255.

    Raises:
        DataError: the ground truth is missing, is of no such kind, or does not contain an image of the entries.
        ConfigError: an ``ignore_value`` is given, and the ground truth is no folder.
    """
    check_ignore_value(ground_truth, ignore_value)
    if is_label_folder(ground_truth):
        # Imported here, because it uses the types of this module.
        from acclimate.vision.evaluation.segmentation import IGNORE_VALUE, SegmentationScorer

        images = [entry["image"] for entry in entries]
        ignored = IGNORE_VALUE if ignore_value is None else ignore_value
        return SegmentationScorer(ground_truth, images, ignore_value=ignored)
    if any("segments" in entry for entry in entries):
        raise DataError(
            f"these predictions have segments, and {ground_truth} is no folder; give a folder of label images, whose "
            "pixels are class ids"
        )
    if is_coco(ground_truth):
        return CocoScorer(ground_truth, images=[entry["image"] for entry in entries])
    # Imported here, because it uses the types of this module.
    from acclimate.vision.evaluation.multilabel import MultilabelScorer, load_label_sets

    if (label_sets := load_label_sets(ground_truth)) is not None:
        return MultilabelScorer(label_sets, [entry["image"] for entry in entries])
    return AccuracyScorer(load_labels(ground_truth), [entry["image"] for entry in entries])


def is_label_folder(ground_truth: Path) -> bool:
    """Return whether a ground truth is a folder; False also for names that the system refuses."""
    try:
        return ground_truth.is_dir()
    except (OSError, ValueError):
        return False


def check_ignore_value(ground_truth: Path | None, ignore_value: int | None) -> None:
    """Check that a value to ignore is given with label images only.

    Raises:
        ConfigError: it is given with another ground truth, or with none.
    """
    if ignore_value is not None and (ground_truth is None or not is_label_folder(ground_truth)):
        raise ConfigError(
            "--ignore-value is a value in label images, and the ground truth is no folder of them; leave it out"
        )


def is_coco(ground_truth: Path) -> bool:
    """Return whether a ground truth file is a COCO json."""
    if ground_truth.suffix.lower() != ".json":
        return False
    content = read_json(ground_truth, "ground truth")
    return isinstance(content, dict) and "annotations" in content


def load_labels(path: Path) -> dict[str, int]:
    """Return class ids by image from a json file ``{"image": class}`` or a csv file with lines ``image,class``.

    The first line of the csv file may be a header, ``image,class`` or ``image,label``.

    Raises:
        DataError: the file is missing or empty, or a class is no integer.
    """
    if path.suffix.lower() == ".json":
        pairs = list(_mapping(read_json(path, "labels file"), path).items())
    else:
        if is_special(path):
            raise DataError(f"labels file {path} is a device, FIFO or socket; give a file")
        try:
            with path.open(newline="", encoding="utf-8-sig") as file:
                rows = [row for row in csv.reader(file) if row]
        except (OSError, ValueError, csv.Error) as error:
            raise DataError(f"labels file {path} cannot be read: {error}") from error
        if any(len(row) != 2 for row in rows):
            raise DataError(f"labels file {path} must have exactly two columns, image and class")
        headed = bool(rows) and [cell.strip().lower() for cell in rows[0]] in _HEADERS
        pairs = [(row[0], row[1]) for row in rows[headed:]]
    try:
        labels = {str(name): whole_number(label) for name, label in pairs}
    except (TypeError, ValueError) as error:
        raise DataError(f"labels file {path}: classes must be integers ({error})") from error
    if not labels:
        raise DataError(f"labels file {path} is empty; give one line image,class for each image")
    return labels


def _mapping(content: Any, path: Path) -> Mapping[str, Any]:
    if not isinstance(content, dict):
        raise DataError(f"labels file {path} must contain one object {{image: class}}, or COCO annotations")
    return content


def label_key(image: str, labels: Mapping[str, Any]) -> str | None:
    """Return the key of an image in ``labels``: its path, or the longest trailing part of it; None if there is none."""
    parts = Path(image).parts
    ends = (image, *(str(Path(*parts[start:])) for start in range(len(parts))))
    return next((end for end in ends if end in labels), None)


def _coco_truth(content: Any, path: Path) -> dict[str, Any]:
    """Return COCO annotations as pycocotools requires them.

    Annotations are numbered anew from 1: pycocotools takes an id of 0 for "no match" and keeps one annotation for each
    id, while files have ids from 0, ids that repeat, text, or none. ``iscrowd`` and ``area`` are added where they are
    missing.
    """
    if not isinstance(content, dict) or not content.get("annotations"):
        raise DataError(f"{path} has no annotations to score against; give a COCO json with annotations")
    try:
        annotations = [_annotation(number, given) for number, given in enumerate(content["annotations"], start=1)]
        images = [
            {**image, "id": whole_number(image["id"]), "file_name": str(image["file_name"])}
            for image in content["images"]
        ]
        categories = [{**category, "id": whole_number(category["id"])} for category in content["categories"]]
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise DataError(
            f"{path} is no COCO ground truth: each image needs id and file_name, each category id and name, each "
            f"annotation image_id, category_id and bbox, with whole numbers as ids ({error!r})"
        ) from error
    for what, rows in (("images", images), ("categories", categories)):
        if len({row["id"] for row in rows}) < len(rows):
            raise DataError(f"{path} gives two {what} the same id; make the ids unique")
    if unknown := {annotation["category_id"] for annotation in annotations} - {c["id"] for c in categories}:
        raise DataError(
            f"{path} has annotations of category_id {min(unknown)} and no such category; add it to the categories"
        )
    return {"info": {}, "images": images, "categories": categories, "annotations": annotations}


def _annotation(number: int, given: Mapping[str, Any]) -> dict[str, Any]:
    x, y, width, height = (finite_number(value) for value in given["bbox"])
    area = given.get("area")
    return {
        **given,
        "id": number,
        "image_id": whole_number(given["image_id"]),
        "category_id": whole_number(given["category_id"]),
        "bbox": [x, y, width, height],
        "area": width * height if area is None else finite_number(area),
        "iscrowd": int(given.get("iscrowd") or 0),
    }


def _size(entry: Entry, image: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return ``(width, height)`` of a predicted image; None where neither predictions nor ground truth have them.

    Raises:
        DataError: the two differ.
    """
    declared = declared_size(image)
    if not entry.get("width") or not entry.get("height"):
        return declared
    found = (entry["width"], entry["height"])
    if declared is not None and declared != found:
        message = size_mismatch(entry["image"], declared=declared, found=found)
        turned = found == declared[::-1]
        raise DataError(message + ("; predict again with or without --no-exif-orientation" if turned else ""))
    return found


def _mean(values: npt.NDArray[np.float64]) -> float:
    # pycocotools uses -1 for categories without ground truth.
    valid = values[values > -1]
    return float(valid.mean()) if valid.size else 0.0


def _quiet() -> contextlib.AbstractContextManager[Any]:
    # pycocotools prints its progress.
    return contextlib.redirect_stdout(io.StringIO())
