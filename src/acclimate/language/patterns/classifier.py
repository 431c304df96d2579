"""The linear classifier that says which few-shot pattern a prompt shows, and its weights file."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Classifier:
    """Multinomial logistic regression over named features.

    Attributes:
        classes: names of the ``C`` classes.
        features: names of the ``F`` features, sorted.
        weights: float64 ``(C, F)``; 0 where a class does not use a feature.
        bias: float64 ``(C,)``.
    """

    classes: tuple[str, ...]
    features: tuple[str, ...]
    weights: npt.NDArray[np.float64]
    bias: npt.NDArray[np.float64]

    @classmethod
    def load(cls, path: Path) -> Classifier:
        """Read what :meth:`save` wrote."""
        with np.load(path, allow_pickle=False) as arrays:
            return cls(
                classes=tuple(arrays["classes"].tolist()),
                features=tuple(arrays["features"].tolist()),
                weights=arrays["weights"],
                bias=arrays["bias"],
            )

    def save(self, path: Path) -> None:
        """Write a compressed NumPy archive (``.npz``) with one array for each attribute."""
        np.savez_compressed(
            path,
            classes=np.array(self.classes),
            features=np.array(self.features),
            weights=self.weights,
            bias=self.bias,
        )

    def probabilities(self, values: Mapping[str, float]) -> dict[str, float]:
        """Return the probability of each class, by name; features that the classifier does not know count nothing."""
        columns = sorted(self._column[name] for name in values if name in self._column)
        given = [values[self.features[column]] for column in columns]
        scores = {
            name: bias + sum(value * weight for value, weight in zip(given, row, strict=True))
            for name, bias, row in zip(self.classes, self.bias.tolist(), self.weights[:, columns].tolist(), strict=True)
        }
        top = max(scores.values())
        powers = {name: math.exp(score - top) for name, score in scores.items()}
        total = sum(powers.values())
        return {name: power / total for name, power in powers.items()}

    @cached_property
    def _column(self) -> dict[str, int]:
        return {name: column for column, name in enumerate(self.features)}
