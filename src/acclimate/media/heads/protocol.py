"""What a head is: a classifier on the vectors of a frozen encoder, fitted on the examples of one request."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]
Labels = NDArray[np.int64]


class FittedHead(Protocol):
    """A head after it has seen examples."""

    def log_probabilities(self, vectors: Matrix) -> Matrix:
        """Return ``(n, classes)``, not calibrated."""
        ...


class Head(Protocol):
    """A kind of classifier."""

    @property
    def name(self) -> str:
        """As it is chosen."""
        ...

    @property
    def title(self) -> str:
        """In words."""
        ...

    def fit(self, vectors: Matrix, labels: Labels, classes: int, weights: Matrix | None = None) -> FittedHead:
        """Return the head fitted on vectors.

        Args:
            vectors: ``(n, size)``.
            labels: 0 to ``classes - 1``, each of which occurs.
            classes: their number.
            weights: how much each vector counts, for heads that can use it; None counts all alike.
        """
        ...


def log_softmax(scores: Matrix) -> Matrix:
    """Return normalised logarithms of each row."""
    shifted = scores - scores.max(1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(1, keepdims=True)), np.float64)


@dataclass(frozen=True, slots=True)
class FittedLinear:
    """A head that is a linear layer: ``weights`` ``(classes, size)`` and ``bias`` ``(classes,)``."""

    weights: Matrix
    bias: Matrix

    def log_probabilities(self, vectors: Matrix) -> Matrix:
        """Return ``(n, classes)``, not calibrated."""
        return log_softmax(vectors @ self.weights.T + self.bias)
