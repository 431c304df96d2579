"""Mean average precision of models with several labels for an image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from acclimate.errors import DataError
from acclimate.vision.data.records import read_json
from acclimate.vision.evaluation.evaluate import Score, label_key
from acclimate.vision.models.adapter import Entry


def load_label_sets(path: Path) -> dict[str, frozenset[int]] | None:
    """Return the class ids of each image from a json file ``{"image": [class, ...]}``; None if it is another file.

    Raises:
        DataError: the file cannot be read, or a class is no integer.
    """
    if path.suffix != ".json":
        return None
    content = read_json(path, "labels file")
    if not isinstance(content, dict) or not content or not all(isinstance(value, list) for value in content.values()):
        return None
    try:
        return {str(image): frozenset(int(label) for label in labels) for image, labels in content.items()}
    except (TypeError, ValueError) as error:
        raise DataError(f"labels file {path}: classes must be integers ({error})") from error


class MultilabelScorer:
    """Scores models with several labels for an image by mean average precision over the classes.

    The average precision of a class is the mean, over the images that have it, of the precision among all images with
    at least the same score. Classes that no image has are left out.

    Args:
        labels: class ids by image, as :func:`load_label_sets` returns them.
        images: the predicted images, each of which must be in ``labels``.

    Raises:
        DataError: an image is not in ``labels``, or two images match the same entry.
    """

    metric = "mAP"

    def __init__(self, labels: Mapping[str, frozenset[int]], images: Sequence[str]) -> None:
        keys = {image: label_key(image, labels) for image in images}
        if missing := [image for image, key in keys.items() if key is None]:
            raise DataError(
                f"{len(missing)} of {len(keys)} predicted images have no labels (the first: {missing[0]}); in the "
                "labels file, use the paths of the predictions, or the last parts of them"
            )
        if len(set(keys.values())) < len(keys):
            raise DataError(
                "two predicted images share the labels of one, because the name in the labels file fits both; use "
                "longer paths in the labels file"
            )
        self._truth = {image: labels[key] for image, key in keys.items() if key is not None}
        self.image_count = len(self._truth)

    def score(self, entries: Sequence[Entry]) -> Score:
        """Score the entries.

        Raises:
            DataError: an entry has no score for each label.
        """
        if any("scores" not in entry.get("classification", {}) for entry in entries):
            raise DataError(
                "the ground truth has several labels for an image, and these predictions have no score for each label; "
                "predict with a model of kind multilabel"
            )
        predicted = {entry["image"]: dict(entry["classification"]["scores"]) for entry in entries}
        classes = sorted({label for scores in predicted.values() for label in scores})
        if unknown := sorted(frozenset[int]().union(*self._truth.values()) - set(classes)):
            raise DataError(
                f"the ground truth has the class {unknown[0]}, which was not predicted; check its class ids"
            )
        # An image without prediction has each label with the lowest score.
        scores = np.array([[predicted.get(i, {}).get(c, -1.0) for c in classes] for i in self._truth])
        present = np.array([[c in labels for c in classes] for labels in self._truth.values()])
        return Score({"mAP": _mean_average_precision(scores, present, np.ones(len(scores)))}, (scores, present))

    def resampled(self, score: Score, images: npt.NDArray[np.int64]) -> float:
        """Return the mean average precision over a multiset of images."""
        scores, present = score.per_image
        return _mean_average_precision(scores, present, np.bincount(images, minlength=len(scores)).astype(np.float64))


def _mean_average_precision(
    scores: npt.NDArray[np.float64], present: npt.NDArray[np.bool_], weights: npt.NDArray[np.float64]
) -> float:
    """Return the mean over the columns of ``(images, classes)``; ``weights``: how often each image counts."""
    found = []
    for column in range(scores.shape[1]):
        order = np.argsort(-scores[:, column], kind="stable")
        ranked = scores[order, column]
        positives = np.cumsum(weights[order] * present[order, column])
        if positives[-1] == 0:
            continue
        # Equal scores are one rank.
        last = np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1)
        counted = np.cumsum(weights[order])[last]
        precision = np.divide(positives[last], counted, out=np.zeros(len(last)), where=counted > 0)
        found.append(float((np.diff(positives[last], prepend=0.0) * precision).sum() / positives[-1]))
    return float(np.mean(found)) if found else 0.0
