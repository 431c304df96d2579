"""Logistic regression, from scikit-learn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from acclimate.media.heads.protocol import FittedLinear, Labels, Matrix


@dataclass(frozen=True, slots=True)
class Logistic:
    """Softmax regression with a squared penalty on its weights.

    Attributes:
        inverse_penalty: scikit-learn's ``C``, for vectors whose mean square distance from their mean is 1; from 3 to
            100 it made no difference on the development tasks.
        tolerance: of the optimiser; a smaller one takes longer and changes nothing that matters.
        max_steps: of the optimiser.
    """

    inverse_penalty: float = 10.0
    tolerance: float = 1e-2
    max_steps: int = 100
    name: ClassVar[str] = "logistic"
    title: ClassVar[str] = "logistic regression"

    def fit(self, vectors: Matrix, labels: Labels, classes: int, weights: Matrix | None = None) -> FittedLinear:
        """Return the regression."""
        from sklearn.linear_model import LogisticRegression

        mean = vectors.mean(0)
        centred = vectors - mean
        scale = 1 / max(float(np.sqrt((centred**2).sum(1).mean())), 1e-12)
        model: Any = LogisticRegression(C=self.inverse_penalty, tol=self.tolerance, max_iter=self.max_steps)
        model.fit(centred * scale, labels, sample_weight=weights)
        slopes, bias = np.asarray(model.coef_), np.asarray(model.intercept_)
        if classes == 2:  # scikit-learn keeps the second class's scores alone
            slopes, bias = np.concatenate([-slopes, slopes]) / 2, np.concatenate([-bias, bias]) / 2
        return FittedLinear(slopes * scale, bias - (slopes * scale) @ mean)
