"""A sequential test of a difference, valid however often it is looked at, and the fixed-horizon test beside it.

The sequential test is the one of Waudby-Smith and Ramdas (2024), "Estimating means of bounded random variables by
betting" (arXiv 2010.09686). For every candidate mean m it computes a test martingale: a nonnegative process that starts
at 1 and whose expectation stays at most 1 where m is the mean. By Ville's inequality the probability that it ever
reaches 1/alpha is then at most alpha, so p values and intervals are valid at all times at once, whenever one looks and
whenever one stops. The test assumes no normal distribution, only that outcomes are bounded, so it is valid for rare
outcomes and uneven arms too.

Arms are compared by augmented inverse-probability weighting: each request gives one number whose expectation is the
difference of the arms, whatever their running means were (as in Waudby-Smith et al. 2022, arXiv 2210.10768).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
ALPHA: Final = 0.05
#: Numbers of observations for which the multipliers (lambda in the paper) are chosen. The mean of their martingales is
#: a martingale too.
TUNED_FOR: Final = (200, 1000, 5000)
#: Greatest share of the martingale that one observation may take away (c in the paper's equation 26).
TRUNCATION: Final = 0.5
#: Steps of the bisection that finds an end of the interval.
_BISECTIONS: Final = 24
#: Assumed mean of an arm before its first outcome; the test is valid for any value, since assignment is random.
_FIRST_GUESS: Final = 0.5


@dataclass(frozen=True, slots=True)
class Comparison:
    """The result of a test of a difference.

    Attributes:
        effect: the difference of means.
        low, high: its 95 % interval; None before the test has a result.
        p_value: under no difference; None before the test has a result.
        count: observations.
    """

    effect: float
    low: float | None
    high: float | None
    p_value: float | None
    count: int

    def within(self, bound: float) -> Comparison:
        """Return the comparison with effect and interval inside ``-bound`` to ``bound``, where the difference lies."""
        low, high = (None if end is None else max(-bound, min(bound, end)) for end in (self.low, self.high))
        effect = self.effect if math.isnan(self.effect) else max(-bound, min(bound, self.effect))
        return Comparison(effect, low, high, self.p_value, self.count)

    @property
    def significant(self) -> bool:
        """Whether "no difference" is rejected at 5 %."""
        return self.p_value is not None and self.p_value <= ALPHA


def sequential_p_value(values: Sequence[float] | Array, *, bound: float, alpha: float = ALPHA) -> float:
    """Return the smallest p value of "the mean is 0" over all observations so far, valid at each of them.

    Args:
        values: one for each observation, from ``-bound`` to ``bound``.
        bound: of the values.
        alpha: the level that the multipliers are chosen for.
    """
    array = np.asarray(values, dtype=float)
    return float(min(1.0, np.exp(-_log_martingale(array, _multipliers(array, bound, alpha), 0.0, bound).max())))


def confidence_sequence(values: Sequence[float] | Array, *, bound: float, alpha: float = ALPHA) -> Comparison:
    """Return the sequential test of the mean of ``values``, in their order, after the last of them.

    Args:
        values: one for each observation, from ``-bound`` to ``bound``.
        bound: of the values.
        alpha: one minus the confidence level of the interval.
    """
    array = np.asarray(values, dtype=float)
    count = len(array)
    if not count:
        return Comparison(float("nan"), None, None, None, 0)
    multipliers = _multipliers(array, bound, alpha)
    effect = float(array.mean())

    def excluded(mean: float) -> bool:
        # The running intersection of intervals is valid too: a mean that was excluded once stays excluded.
        return bool(_log_martingale(array, multipliers, mean, bound).max() >= -np.log(alpha))

    low, high = _end(excluded, effect, -bound), _end(excluded, effect, bound)
    return Comparison(effect, low, high, sequential_p_value(array, bound=bound, alpha=alpha), count)


def _end(excluded: Callable[[float], bool], inside: float, outside: float) -> float:
    """Return the first excluded mean on the way from ``inside`` to ``outside``."""
    for _ in range(_BISECTIONS):
        middle = (inside + outside) / 2
        if excluded(middle):
            outside = middle
        else:
            inside = middle
    return outside


def _multipliers(array: Array, bound: float, alpha: float) -> Array:
    """Return ``(len(TUNED_FOR), n)`` multipliers, each computed from earlier observations only."""
    times, prior = np.arange(1, len(array) + 1), bound * bound / 4
    means = np.cumsum(array) / (times + 1)
    variances = (np.cumsum((array - means) ** 2) + prior) / (times + 1)
    before = np.concatenate([[prior], variances[:-1]])
    multipliers: Array = np.stack([np.sqrt(2 * np.log(2 / alpha) / (before * tuned)) for tuned in TUNED_FOR])
    return multipliers


def _log_martingale(array: Array, multipliers: Array, mean: float, bound: float) -> Array:
    """Return the logarithm of the two-sided martingale for ``mean`` after each observation."""
    # At the bound itself one side cannot decrease, whatever the multiplier; this avoids a division by zero.
    least = 1e-12 * bound
    above = np.log1p(np.minimum(multipliers, TRUNCATION / max(mean + bound, least)) * (array - mean)).cumsum(1)
    below = np.log1p(-np.minimum(multipliers, TRUNCATION / max(bound - mean, least)) * (array - mean)).cumsum(1)
    martingale: Array = np.logaddexp.reduce(np.concatenate([above, below])) - np.log(2 * len(multipliers))
    return martingale


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
        # Without any spread the t statistic is undefined.
        return Comparison(effect, effect, effect, 1.0 if effect == 0 else 0.0, count)
    # Imported here: it takes 0.7 CPU seconds, and only experiments need it.
    from scipy import stats

    found = stats.ttest_rel(after, before) if paired else stats.ttest_ind(after, before, equal_var=False)
    low, high = found.confidence_interval(1 - ALPHA)
    return Comparison(effect, float(low), float(high), float(found.pvalue), count)


def assignment_mismatch(counts: Sequence[int], weights: Sequence[float]) -> float:
    """Return the p value of the arms' counts under their weights (chi-square); a tiny one means broken assignment."""
    from scipy.stats import chisquare

    total = sum(counts)
    if not total:
        return 1.0
    return float(chisquare(counts, [total * w for w in weights]).pvalue)
