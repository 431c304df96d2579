"""What a head says about examples that it was not fitted on: each is held out with all of its copies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from acclimate.media.heads.protocol import FittedHead, Head, Labels, Matrix

MOST_PARTS: Final = 10
"""Into how many parts the examples are divided at most."""
FITS: Final = 15
"""Where there are fewer parts, the division is repeated in other orders, up to about so many fits."""


@dataclass(frozen=True, slots=True, eq=False)
class HeldOut:
    """Held-out predictions; an example that was held out several times has a row for each.

    Attributes:
        log_probabilities: ``(rows, copies, classes)``.
        labels: of the rows.
        examples: of the rows, as indices.
    """

    log_probabilities: NDArray[np.float64]
    labels: Labels
    examples: NDArray[np.int64]

    @property
    def count(self) -> int:
        """Examples that were held out."""
        return len(np.unique(self.examples))

    def right(self) -> NDArray[np.bool_]:
        """Return whether each copy was recognised, ``(rows, copies)``."""
        return np.asarray(self.log_probabilities.argmax(2) == self.labels[:, None])

    def by_example(self, rows: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return the mean of a value of each row over the rows of each example that was held out."""
        _, place = np.unique(self.examples, return_inverse=True)
        return np.asarray(np.bincount(place, rows) / np.bincount(place), np.float64)

    @property
    def accuracy(self) -> float | None:
        """Share of the unchanged examples that were recognised; None where none was held out."""
        return float(self.right()[:, 0].mean()) if len(self.labels) else None


def parts_of(labels: Labels, *, seed: int = 0) -> list[NDArray[np.int64]]:
    """Return what is held out in turn: one example of every class at a time, or more where there are many examples.

    One of every class, not one alone: the mean of a class that lacks one of its few examples is farther from everything
    than those of the others are, so an example that is held out alone is taken for another class too often. An example
    that is alone in its class is never held out.
    """
    counts = np.bincount(labels)
    number = min(int(counts.max()), MOST_PARTS)
    if number < 2:
        return []
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(max(1, FITS // number)):
        parts: list[list[int]] = [[] for _ in range(number)]
        for label in np.flatnonzero(counts > 1):
            for k, index in enumerate(rng.permutation(np.flatnonzero(labels == label))):
                parts[k % number].append(int(index))
        found += [np.array(part, np.int64) for part in parts]
    return found


def held_out(
    head: Head,
    vectors: NDArray[np.floating],
    labels: Labels,
    parts: Sequence[NDArray[np.int64]],
    *,
    examined: NDArray[np.floating] | None = None,
) -> HeldOut:
    """Return what ``head`` says about copies of each example after it was fitted without that example.

    Args:
        head: the kind of head.
        vectors: of the copies that it is fitted on, ``(n, copies, size)``.
        labels: of the examples.
        parts: see :func:`parts_of`.
        examined: of the copies that it is asked about, the unchanged one first; by default ``vectors``.
    """
    asked = vectors if examined is None else examined
    n = len(vectors)
    classes = int(labels.max()) + 1
    found = [np.empty((0, asked.shape[1], classes))]
    for part in parts:
        kept = np.setdiff1d(np.arange(n), part)
        fitted = fit(head, vectors[kept], labels[kept], classes)
        found.append(fitted.log_probabilities(flat(asked[part])).reshape(len(part), -1, classes))
    examples = np.concatenate([np.empty(0, np.int64), *parts])
    return HeldOut(np.concatenate(found), labels[examples], examples)


def fit(head: Head, vectors: NDArray[np.floating], labels: Labels, classes: int) -> FittedHead:
    """Return a head fitted on all copies of examples, ``(n, copies, size)``, the unchanged one first.

    That one counts as much as all others together: with equal weights, undamaged queries were recognised less often.
    """
    n, copies, _ = vectors.shape
    weights = np.tile([max(1.0, copies - 1.0)] + [1.0] * (copies - 1), n)
    return head.fit(flat(vectors), np.repeat(labels, copies), classes, weights)


def flat(vectors: NDArray[np.floating]) -> Matrix:
    """Return the vectors of all copies as rows."""
    return np.asarray(vectors.reshape(-1, vectors.shape[-1]), np.float64)
