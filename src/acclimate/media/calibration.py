"""From a head's scores to probabilities: one temperature, fitted on held-out examples."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from acclimate.media.heads.protocol import Matrix, log_softmax
from acclimate.media.held_out import HeldOut

PRIOR_LOG_TEMPERATURE: Final[dict[str, float]] = {"class_means": 0.3, "lda": 3.5, "logistic": -0.2}
"""By head: the mean of the logarithm over the development tasks of benchmarks/media."""
PRIOR_DEVIATION: Final = 1.0
"""Of the logarithm, over the same tasks."""
_LOG_TEMPERATURES: Final = np.linspace(-4.0, 6.0, 101)


def temperature(head: str, found: HeldOut) -> float:
    """Return what scores are to be divided by (Guo et al., ICML 2017), the most probable on the held-out examples.

    With few of them the prior decides: five examples that were all recognised say that the temperature is not high, and
    not that it is zero.

    Args:
        head: its name.
        found: its held-out predictions; the unchanged copies count, an example that was held out several times once.
    """
    prior = PRIOR_LOG_TEMPERATURE.get(head, 0.0)
    objective = -0.5 * ((_LOG_TEMPERATURES - prior) / PRIOR_DEVIATION) ** 2
    if found.count:
        scaled = found.log_probabilities[:, 0] / np.exp(_LOG_TEMPERATURES)[:, None, None]
        objective += _of_labels(scaled, found.labels).mean(1) * found.count
    return float(np.exp(_LOG_TEMPERATURES[int(objective.argmax())]))


def calibrated(log_probabilities: Matrix, temperature: float) -> Matrix:
    """Return probabilities, ``(n, classes)``."""
    return np.asarray(np.exp(log_softmax(log_probabilities / temperature)), np.float64)


def held_out_log_likelihoods(head: str, found: HeldOut) -> NDArray[np.float64]:
    """Return the calibrated logarithm of the probability of the right class, for each example that was held out."""
    scaled = found.log_probabilities[:, 0] / temperature(head, found)
    return found.by_example(_of_labels(scaled[None], found.labels)[0])


def _of_labels(scores: NDArray[np.float64], labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the normalised score of each row's label: ``(k, rows)`` from ``(k, rows, classes)``."""
    rows = np.arange(len(labels))
    return np.stack([log_softmax(one)[rows, labels] for one in scores])
