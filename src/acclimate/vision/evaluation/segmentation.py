"""Mean intersection over union of segmenters, and the agreement of class maps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from acclimate.errors import DataError
from acclimate.vision.data.images import size_mismatch
from acclimate.vision.data.masks import NO_CLASS, VOID, ClassMap, class_map_of, read_label_image, without_suffix
from acclimate.vision.data.matching import ImageNames
from acclimate.vision.data.records import load_dataset
from acclimate.vision.evaluation.evaluate import Score
from acclimate.vision.models.adapter import Entry

IGNORE_VALUE: Final = VOID
"""The value of pixels in label images that do not count, unless another is given."""

Counts = npt.NDArray[np.int64]
"""Numbers of pixels ``(images, 3, classes)``: rightly predicted, in the ground truth, and predicted, for each class."""


class LabelImages:
    """The label images in a folder, found by the paths of the images that they are for.

    A label image has the name of its image, whatever the suffixes; of several, the one whose folders fit best.

    Args:
        folder: searched with the folders below it.
        ignore_value: of pixels that have no label.

    Raises:
        DataError: the folder cannot be read or has no images.
    """

    def __init__(self, folder: Path, *, ignore_value: int = IGNORE_VALUE) -> None:
        self.ignore_value = ignore_value
        self._paths = {record.image_id: Path(record.image) for record in load_dataset(folder).records}
        self._names = ImageNames({number: without_suffix(str(path)) for number, path in self._paths.items()})

    def match_all(self, images: Sequence[str]) -> dict[str, Path]:
        """Return the label image of each image.

        Raises:
            DataError: an image has none or several, or two images have the same.
        """
        found = self._names.match_all([without_suffix(image) for image in images])
        return {image: self._paths[found[without_suffix(image)]] for image in images}

    def read(self, path: Path, entry: Entry) -> ClassMap:
        """Return the labels ``(H, W)`` of a predicted image, with :data:`NO_CLASS` where they do not count.

        Raises:
            DataError: the file is no label image, or has another size than the image.
        """
        labels = read_label_image(path)
        declared, found = (labels.shape[1], labels.shape[0]), (entry["width"], entry["height"])
        if declared != found:
            raise DataError(size_mismatch(entry["image"], declared=declared, found=found))
        return np.where(labels == self.ignore_value, NO_CLASS, labels)


class SegmentationScorer:
    """Scores segmenters by mean intersection over union (IoU), over all pixels of the predicted images.

    The IoU of a class is the number of pixels that have it in ground truth and prediction, over the number of those
    that have it in either. Pixels with the value ``ignore_value`` count for nothing. The mean is over the classes in
    the ground truth.

    Args:
        labels: a folder of label images, see :class:`LabelImages`.
        images: the predicted images.
        ignore_value: of pixels in label images that do not count.

    Raises:
        DataError: an image has no label image, or two images have the same.
    """

    metric = "mIoU"

    def __init__(self, labels: Path, images: Sequence[str], *, ignore_value: int = IGNORE_VALUE) -> None:
        self._labels = LabelImages(labels, ignore_value=ignore_value)
        self._paths = self._labels.match_all(images)
        self.image_count = len(images)

    def score(self, entries: Sequence[Entry]) -> Score:
        """Score a segmenter's entries; an image without entry counts as predicted wrongly everywhere.

        Raises:
            DataError: they are not a segmenter's, a label image cannot be used, or no pixel has a label.
        """
        if any("segments" not in entry for entry in entries):
            raise DataError(
                "a folder of label images is the ground truth of segmenters, and these predictions have no segments; "
                "give class labels or a COCO json"
            )
        by_image = {entry["image"]: entry for entry in entries}
        parts = []
        for image, path in self._paths.items():
            if (entry := by_image.get(image)) is None:
                labels = read_label_image(path)
                truth = np.where(labels == self._labels.ignore_value, NO_CLASS, labels)
                parts.append(confusion(truth, np.full_like(truth, NO_CLASS)))
            else:
                parts.append(confusion(self._labels.read(path, entry), class_map_of(entry)))
        classes = max(part.shape[1] for part in parts)
        counts = np.stack([np.pad(part, ((0, 0), (0, classes - part.shape[1]))) for part in parts])
        if not counts[:, 1].any():
            raise DataError(
                f"nothing to score: no pixel of the label images has another value than {self._labels.ignore_value}, "
                "which is ignored; give another --ignore-value"
            )
        total = counts.sum(0)
        accuracy = float(total[0].sum() / total[1].sum())
        return Score({"mIoU": _mean_iou(total), "accuracy": accuracy}, counts)

    def resampled(self, score: Score, images: npt.NDArray[np.int64]) -> float:
        """Return the mean IoU over a multiset of images."""
        times = np.bincount(images, minlength=self.image_count)
        return _mean_iou(np.tensordot(times, score.per_image, axes=1))

    @staticmethod
    def by_class(score: Score) -> dict[int, float]:
        """Return the IoU of each class in the ground truth, by class id."""
        total = score.per_image.sum(0)
        return {int(label): float(value) for label, value in zip(np.flatnonzero(total[1]), _ious(total), strict=True)}

    @staticmethod
    def never_predicted(score: Score) -> tuple[int, ...]:
        """Return the classes of the ground truth that no pixel was predicted to have."""
        total = score.per_image.sum(0)
        return tuple(np.flatnonzero((total[1] > 0) & (total[2] == 0)).tolist())


def confusion(truth: ClassMap, predicted: ClassMap) -> npt.NDArray[np.int64]:
    """Return the numbers of pixels ``(3, classes)`` of one image: right, in the ground truth, and predicted.

    Pixels without label count for nothing.
    """
    labelled = truth != NO_CLASS
    true, found = truth[labelled], predicted[labelled]
    classes = int(max(true.max(initial=0), found.max(initial=0))) + 1
    columns = (true[true == found], true, found[found != NO_CLASS])
    return np.stack([np.bincount(values, minlength=classes) for values in columns])


def agreement(first: Entry, second: Entry) -> float:
    """Return the share of pixels that have the same class in two predictions of one image."""
    return float((class_map_of(first) == class_map_of(second)).mean())


def _ious(total: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    right, true, found = total[:, total[1] > 0]
    values: npt.NDArray[np.float64] = right / (true + found - right)
    return values


def _mean_iou(total: npt.NDArray[np.int64]) -> float:
    values = _ious(total)
    return float(values.mean()) if len(values) else 0.0
