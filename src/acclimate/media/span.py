"""Vectors rotated into the space that the examples span, which has far fewer dimensions than a vector has numbers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from acclimate.media.heads.protocol import Matrix


@dataclass(frozen=True, slots=True)
class Span:
    """A rotation; distances and products of centred vectors are kept.

    Attributes:
        mean: of the examples.
        axes: orthonormal rows, ``(dimensions, size)``.
    """

    mean: Matrix
    axes: Matrix

    @classmethod
    def of(cls, vectors: NDArray[np.floating]) -> Span:
        """Return the span of ``(..., size)`` vectors around their mean."""
        rows = np.asarray(vectors.reshape(-1, vectors.shape[-1]), np.float64)
        mean = rows.mean(0)
        centred = rows - mean
        # The eigenvectors of the smaller of the two products.
        if len(rows) > rows.shape[1]:
            return cls(mean, np.eye(rows.shape[1]))
        values, left = np.linalg.eigh(centred @ centred.T)
        kept = values > max(float(values[-1]), 1e-300) * 1e-10
        return cls(mean, (left[:, kept] / np.sqrt(values[kept])).T @ centred)

    def rotated(self, vectors: NDArray[np.floating]) -> Matrix:
        """Return ``(..., dimensions)``."""
        return np.asarray((vectors - self.mean) @ self.axes.T, np.float64)
