"""Whether a query is one of the classes at all: how far it is from the examples, compared with held-out examples.

A conformal p value (Vovk et al. 2005): if the query is drawn like the examples, the share of held-out examples that are
at least as far from the others is below p with a probability of at most p, whatever the encoder.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from acclimate.media.heads.protocol import Labels, Matrix

FEWEST: int = 10
"""Held-out examples below which nothing can be said: the smallest p value is one in their number."""


@dataclass(frozen=True, slots=True, eq=False)
class Typicality:
    """Distances of the held-out examples from the others, to compare the query's with.

    Attributes:
        vectors: of the examples, without their copies, ``(n, size)``.
        labels: of the examples.
        distances: of those that were held out.
    """

    vectors: Matrix
    labels: Labels
    distances: NDArray[np.float64]

    @classmethod
    def of(cls, vectors: Matrix, labels: Labels) -> Typicality:
        """Return the distances of the examples that are not alone in their class, each held out by itself."""
        kept = np.arange(len(vectors))
        held = np.flatnonzero(np.bincount(labels)[labels] > 1)
        found = [distance(vectors[kept != i], labels[kept != i], vectors[i : i + 1])[0] for i in held]
        return cls(vectors, labels, np.array(found))

    def p_value(self, query: Matrix) -> float | None:
        """Return the share of held-out examples at least as far as ``query``, which counts as one of them."""
        if len(self.distances) < FEWEST:
            return None
        (found,) = distance(self.vectors, self.labels, query)
        return float((1 + (self.distances >= found).sum()) / (1 + len(self.distances)))


def distance(vectors: Matrix, labels: Labels, queries: Matrix) -> NDArray[np.float64]:
    """Return how far queries are from the nearest class: one minus the cosine to its mean, around the common mean."""
    centre = vectors.mean(0)
    units, asked = _units(vectors - centre), _units(queries - centre)
    means = np.stack([units[labels == label].mean(0) for label in np.unique(labels)])
    return np.asarray(1 - (asked @ _units(means).T).max(1), np.float64)


def _units(vectors: Matrix) -> Matrix:
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12), np.float64)
