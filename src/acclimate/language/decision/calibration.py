"""From evidence to probabilities: that the adapted model answers right, and that the base model does."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from acclimate.errors import CheckpointError, DataError
from acclimate.json_values import from_json
from acclimate.language.decision.evidence import Evidence
from acclimate.output_files import write_output

FOLDER: Final = Path(__file__).parent / "calibrations"
_LIKELIHOOD_FLOOR: Final = -20.0
_STAGES: Final = ("before_training", "after_training")
_MODELS: Final = ("adapted", "icl")
#: The keys of :func:`feature_values`; the last three are there after training.
FEATURES: Final = (
    "before_exact", "after_exact", "before_likelihood", "after_likelihood", "fold_loss", "answer_likelihood",
    "answers_agree", "agreement",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """Logistic models of two probabilities at two stages of a request.

    Attributes:
        model: the name of the model they hold for.
        weights: by stage (``before_training``, ``after_training``), then ``adapted`` or ``icl``, then feature.
        fitted_on: the requests that they were fitted on, in words.
        requests: their number.
    """

    model: str
    weights: Mapping[str, Mapping[str, Mapping[str, float]]]
    fitted_on: str
    requests: int

    def probability(self, evidence: Evidence, which: str) -> float:
        """Return the probability that ``adapted`` or ``icl`` answers exactly right, from the evidence so far."""
        stage = "before_training" if evidence.answer_log_likelihood is None else "after_training"
        row = self.weights[stage][which]
        values = feature_values(evidence)
        score = row["bias"] + sum(weight * values[name] for name, weight in row.items() if name != "bias")
        return 1 / (1 + math.exp(-max(-30.0, min(30.0, score))))

    def save(self, path: Path) -> None:
        """Write the calibration as JSON."""
        content = {"model": self.model, "fitted_on": self.fitted_on, "requests": self.requests, "weights": self.weights}
        write_output(path, json.dumps(content, indent=2) + "\n")

    @classmethod
    def load(cls, path: Path) -> Calibration:
        """Read a calibration.

        Raises:
            CheckpointError: the file cannot be read as one.
        """
        try:
            found = cls(**from_json(path.read_text()))
            for stage in _STAGES:
                for which in _MODELS:
                    found.weights[stage][which]["bias"]
            rows = [row for stage in _STAGES for row in found.weights[stage].values()]
            if unknown := sorted({name for row in rows for name in row} - {"bias", *FEATURES}):
                raise ValueError(f"it weighs {unknown[0]!r}, which this version does not look at")
            for name, weight in (pair for row in rows for pair in row.items()):
                if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):
                    raise ValueError(f"the weight {name!r} is {weight!r}, and must be a finite number")
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise CheckpointError(
                f"{path} is not a calibration ({error}); make one with 'acclimate calibrate'"
            ) from error
        return found


def shipped(model: str) -> Calibration | None:
    """Return the calibration that ships for ``model``, or None."""
    known = {path.stem: path for path in FOLDER.glob("*.json")}
    return Calibration.load(known[model]) if model in known else None


def feature_values(evidence: Evidence) -> dict[str, float]:
    """Return the inputs of the logistic models.

    The evidence holds more than this. With the least likely held-out answer, the number of examples, the last loss on
    all of them and the likelihood of the base model's answer as well, a fit generalised less well to task families that
    it was not fitted on.
    """
    before, after = evidence.before, evidence.after
    values = {
        "before_exact": before.exact,
        "after_exact": after.exact,
        "before_likelihood": _scaled(before.log_likelihood),
        "after_likelihood": _scaled(after.log_likelihood),
        "fold_loss": min(3.0, evidence.fold_loss) if math.isfinite(evidence.fold_loss) else 3.0,
    }
    if evidence.answer_log_likelihood is not None:
        values |= {
            "answer_likelihood": _scaled(evidence.answer_log_likelihood),
            "answers_agree": float(bool(evidence.answers_agree)),
            "agreement": 1.0 if evidence.agreement is None else evidence.agreement,
        }
    return values


def _scaled(likelihood: float) -> float:
    """Return a log-likelihood on a logarithmic scale, so that very unlikely answers do not dominate a fit."""
    return -math.log1p(min(-_LIKELIHOOD_FLOOR, max(0.0, -likelihood)))


def fit(
    model: str,
    evidence: Sequence[Evidence],
    adapted_right: Sequence[bool],
    icl_right: Sequence[bool],
    *,
    fitted_on: str,
) -> Calibration:
    """Return logistic models fitted to requests with known answers.

    Args:
        model: name of the model.
        evidence: of each request, after training.
        adapted_right: whether the adapted model's answer was exactly right.
        icl_right: whether the base model's was.
        fitted_on: in words.

    Raises:
        DataError: there are fewer than twenty requests, or all of them have one outcome.
    """
    from sklearn.linear_model import LogisticRegression

    if len(evidence) < 20:
        raise DataError(f"{len(evidence)} requests are too few to calibrate on; give at least 20")
    weights: dict[str, dict[str, dict[str, float]]] = {}
    for stage in _STAGES:
        known = [e.held_out_only for e in evidence] if stage == _STAGES[0] else list(evidence)
        rows = [feature_values(e) for e in known]
        names = list(rows[0])
        matrix = np.array([[row[name] for name in names] for row in rows])
        weights[stage] = {}
        for which, right in zip(_MODELS, (adapted_right, icl_right), strict=True):
            if len(set(map(bool, right))) < 2:
                raise DataError(
                    f"all requests have one outcome for {which}; calibrate on easier and harder tasks together"
                )
            mean, spread = matrix.mean(0), matrix.std(0) + 1e-6
            fitted = LogisticRegression(C=1.0, max_iter=2000).fit((matrix - mean) / spread, np.array(right, dtype=int))
            slopes = fitted.coef_[0] / spread
            row_weights: dict[str, float] = {"bias": float(fitted.intercept_[0] - (slopes * mean).sum())}
            row_weights |= {name: float(slope) for name, slope in zip(names, slopes, strict=True)}
            weights[stage][which] = {name: round(value, 5) for name, value in row_weights.items()}
    return Calibration(model=model, weights=weights, fitted_on=fitted_on, requests=len(evidence))


def area_under_roc(scores: Sequence[float], right: Sequence[bool]) -> float:
    """Return the probability that a request answered right scores above one answered wrong; ties count half."""
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(np.array(right, dtype=int), np.array(scores)))


def expected_calibration_error(probabilities: Sequence[float], right: Sequence[bool], *, bins: int = 10) -> float:
    """Return the mean distance between probability and share right, over bins of equal width (Guo et al. 2017)."""
    p, y = np.array(probabilities), np.array(right, dtype=float)
    bin_of = np.minimum((p * bins).astype(int), bins - 1)
    return float(
        sum(abs(p[bin_of == b].mean() - y[bin_of == b].mean()) * (bin_of == b).mean() for b in set(bin_of.tolist()))
    )
