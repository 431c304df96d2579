"""Cosine to the mean of each class: the head with nothing to fit (Snell et al., NeurIPS 2017, with cosines)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from acclimate.media.heads.protocol import Labels, Matrix, log_softmax


@dataclass(frozen=True, slots=True)
class ClassMeans:
    """The class whose mean points most nearly where the vector points.

    Attributes:
        scale: of the cosines, before they are turned into probabilities; calibration changes it.
    """

    scale: float = 10.0
    name: ClassVar[str] = "class_means"
    title: ClassVar[str] = "cosine to the mean of each class"

    def fit(self, vectors: Matrix, labels: Labels, classes: int, weights: Matrix | None = None) -> _Fitted:
        """Return the head with the means of the classes."""
        units = _units(vectors)
        counts = np.ones(len(units)) if weights is None else weights
        means = [np.average(units[labels == c], axis=0, weights=counts[labels == c]) for c in range(classes)]
        return _Fitted(_units(np.stack(means)), self.scale)


@dataclass(frozen=True, slots=True)
class _Fitted:
    means: Matrix
    scale: float

    def log_probabilities(self, vectors: Matrix) -> Matrix:
        return log_softmax(self.scale * _units(vectors) @ self.means.T)


def _units(vectors: Matrix) -> Matrix:
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12), np.float64)
