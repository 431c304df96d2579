"""Linear discriminant analysis whose covariance is shrunk as Ledoit and Wolf (2004) say."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from acclimate.media.heads.protocol import FittedLinear, Labels, Matrix


@dataclass(frozen=True, slots=True)
class ShrinkageLda:
    """Gaussian classes with one covariance, equally frequent.

    scikit-learn's discriminant analysis solves a system of as many equations as a vector has numbers, 1,280, for every
    fit. There are far fewer examples, and outside of their span the shrunk covariance is a multiple of the identity; so
    a system of as many equations as there are examples gives the same scores.

    Attributes:
        size: numbers of a vector, where the vectors were rotated into the span of the examples; the shrinkage depends
            on it. None takes the vectors' own.
    """

    size: int | None = None
    name: ClassVar[str] = "lda"
    title: ClassVar[str] = "linear discriminant analysis, covariance shrunk by Ledoit and Wolf's rule"

    def fit(self, vectors: Matrix, labels: Labels, classes: int, weights: Matrix | None = None) -> FittedLinear:
        """Return the discriminants; ``weights`` are not used, which made no difference on the development tasks."""
        means = np.stack([vectors[labels == c].mean(0) for c in range(classes)])
        within = vectors - means[labels]
        n, size = within.shape
        gram = within @ within.T / n
        shrinkage, spread = ledoit_wolf(gram, self.size or size)
        # inverse((1 - s) W'W / n + s m I) times the means, by the formula of Woodbury.
        ridge = max(shrinkage * spread, 1e-12 * max(spread, 1e-12))
        system = ridge * np.eye(n) + (1 - shrinkage) * gram
        slopes = (means - (1 - shrinkage) / n * (means @ within.T) @ np.linalg.solve(system, within)) / ridge
        return FittedLinear(slopes, -0.5 * np.einsum("cd,cd->c", slopes, means))


def ledoit_wolf(gram: Matrix, size: int) -> tuple[float, float]:
    """Return how far a covariance is to be shrunk, 0 to 1, and the mean of its eigenvalues (Ledoit and Wolf 2004).

    Args:
        gram: products of the n centred vectors, divided by n: ``(n, n)``. It has the eigenvalues of the covariance.
        size: of a vector.
    """
    n = len(gram)
    spread = float(np.trace(gram)) / size
    squares = float((gram**2).sum())
    distance = squares / size - spread**2
    error = (float((np.diag(gram) ** 2).sum()) * n - squares) / (size * n)
    return (0.0 if distance <= 0 else min(max(error, 0.0), distance) / distance), spread
