"""A test of a difference that may be looked at as often as one likes, and the fixed-horizon test to set beside it.

The sequential test bets against "the mean is m" (Waudby-Smith and Ramdas 2024, "Estimating means of bounded random
variables by betting", arXiv 2010.09686): a capital that can only grow by luck where m is true, so that by Ville's
inequality the chance that it ever reaches 1/alpha is at most alpha, whatever is looked at and whenever one stops. It
needs no normal approximation, only that outcomes are bounded, so it holds for rare outcomes and uneven arms too. Arms
are compared by augmented inverse-probability weighting: each request gives one number whose expectation is the
difference of the arms, whatever their running means were (as in Waudby-Smith et al. 2022, arXiv 2210.10768).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Array = NDArray[np.float64]
ALPHA: Final = 0.05
#: Observations after which each of the bets does best; their capitals are averaged, which keeps the guarantee.
TUNED_FOR: Final = (200, 1000, 5000)
#: Share of the capital that one observation may cost at the most (c of the paper's equation 26).
LARGEST_BET: Final = 0.5
#: Halvings in which an end of the interval is found.
_HALVINGS: Final = 24
#: What an arm is taken for before it has been seen; any value is valid, since assignment is random.
_FIRST_GUESS: Final = 0.5


@dataclass(frozen=True, slots=True)
class Comparison:
    """What a test says of a difference.

    Attributes:
        effect: the difference of means.
        low, high: its 95 % interval; None where the test does not say yet.
        p_value: of no difference; None where the test does not say yet.
        count: observations.
    """

    effect: float
    low: float | None
    high: float | None
    p_value: float | None
    count: int

    @property
    def significant(self) -> bool:
        """Whether no difference is excluded at 5 %."""
        return self.p_value is not None and self.p_value <= ALPHA


def sequential_p_value(values: Sequence[float] | Array, *, bound: float, alpha: float = ALPHA) -> float:
    """Return the smallest p value of "the mean is 0" over all looks so far, which holds at all of them.

    Args:
        values: one for each observation, from ``-bound`` to ``bound``.
        bound: of the values.
        alpha: one less the confidence that bets are made for.
    """
    array = np.asarray(values, dtype=float)
    return float(min(1.0, np.exp(-_log_capital(array, _bets(array, bound, alpha), 0.0, bound).max())))


def confidence_sequence(values: Sequence[float] | Array, *, bound: float, alpha: float = ALPHA) -> Comparison:
    """Return what the sequential test says of the mean of ``values``, in their order, after all of them.

    Args:
        values: one for each observation, from ``-bound`` to ``bound``.
        bound: of the values.
        alpha: one less the confidence.
    """
    array = np.asarray(values, dtype=float)
    count = len(array)
    if not count:
        return Comparison(float("nan"), None, None, None, 0)
    bets = _bets(array, bound, alpha)
    effect = float(array.mean())

    def excluded(mean: float) -> bool:
        # An interval that ever excluded a mean goes on excluding it.
        return bool(_log_capital(array, bets, mean, bound).max() >= -np.log(alpha))

    low, high = _end(excluded, effect, -bound), _end(excluded, effect, bound)
    return Comparison(effect, low, high, sequential_p_value(array, bound=bound, alpha=alpha), count)


def _end(excluded: Callable[[float], bool], inside: float, outside: float) -> float:
    """Return where, between the mean and a bound, means begin to be excluded."""
    for _ in range(_HALVINGS):
        middle = (inside + outside) / 2
        if excluded(middle):
            outside = middle
        else:
            inside = middle
    return outside


def _bets(array: Array, bound: float, alpha: float) -> Array:
    """Return ``(tunings, n)`` bets, each from what came before its observation."""
    times, prior = np.arange(1, len(array) + 1), bound * bound / 4
    means = np.cumsum(array) / (times + 1)
    variances = (np.cumsum((array - means) ** 2) + prior) / (times + 1)
    before = np.concatenate([[prior], variances[:-1]])
    bets: Array = np.stack([np.sqrt(2 * np.log(2 / alpha) / (before * tuned)) for tuned in TUNED_FOR])
    return bets


def _log_capital(array: Array, bets: Array, mean: float, bound: float) -> Array:
    """Return the logarithm of the capital after each observation, betting on both sides of ``mean``."""
    # At a bound itself nothing can be lost on one side; any bet is as safe there.
    least = 1e-12 * bound
    above = np.log1p(np.minimum(bets, LARGEST_BET / max(mean + bound, least)) * (array - mean)).cumsum(1)
    below = np.log1p(-np.minimum(bets, LARGEST_BET / max(bound - mean, least)) * (array - mean)).cumsum(1)
    capital: Array = np.logaddexp.reduce(np.concatenate([above, below])) - np.log(2 * len(bets))
    return capital


def weighted_differences(values: Sequence[float], treated: Sequence[bool], probability: float) -> Array:
    """Return for each request a number whose expectation is the difference of arms, at most 1 / the smaller share.

    Args:
        values: outcomes from 0 to 1, in the order of requests.
        treated: whether each was in the second arm.
        probability: of the second arm.
    """
    outcomes, second = np.asarray(values, dtype=float), np.asarray(treated, dtype=bool)
    guesses = [_means_before(outcomes, arm) for arm in (~second, second)]
    difference = guesses[1] - guesses[0]
    correction = np.where(second, (outcomes - guesses[1]) / probability, -(outcomes - guesses[0]) / (1 - probability))
    weighted: Array = difference + correction
    return weighted


def _means_before(outcomes: Array, arm: NDArray[np.bool_]) -> Array:
    """Return the arm's mean over earlier requests; using the request's own outcome would bias it."""
    counts = np.concatenate([[0], np.cumsum(arm)[:-1]])
    sums = np.concatenate([[0.0], np.cumsum(np.where(arm, outcomes, 0.0))[:-1]])
    means: Array = (sums + _FIRST_GUESS) / (counts + 1)
    return means


def fixed_horizon(control: Sequence[float], treatment: Sequence[float], *, paired: bool) -> Comparison:
    """Return Welch's t test (paired: Student's), valid where the number of observations was fixed beforehand.

    Args:
        control: outcomes of the first arm.
        treatment: of the second; pairs in the same order.
        paired: whether they are pairs.
    """
    before, after = np.asarray(control, dtype=float), np.asarray(treatment, dtype=float)
    count = len(before) if paired else len(before) + len(after)
    if min(len(before), len(after)) < 2:
        effect = float(after.mean() - before.mean()) if min(len(before), len(after)) else float("nan")
        return Comparison(effect, None, None, None, count)
    effect = float(after.mean() - before.mean())
    spread = np.ptp(after - before if paired else np.concatenate([before - before.mean(), after - after.mean()]))
    if spread <= 1e-9 * max(np.abs(before).max(), np.abs(after).max()):
        # Without any spread there is nothing to test with.
        return Comparison(effect, effect, effect, 1.0 if effect == 0 else 0.0, count)
    found = stats.ttest_rel(after, before) if paired else stats.ttest_ind(after, before, equal_var=False)
    low, high = found.confidence_interval(1 - ALPHA)
    return Comparison(effect, float(low), float(high), float(found.pvalue), count)


def assignment_mismatch(counts: Sequence[int], weights: Sequence[float]) -> float:
    """Return the p value of the arms' counts under their weights (chi-square); a tiny one means broken assignment."""
    total = sum(counts)
    if not total:
        return 1.0
    return float(stats.chisquare(counts, [total * w for w in weights]).pvalue)
