"""Estimates with 95 % confidence intervals: shares, means and relative gains of a limited number of requests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value with its 95 % confidence interval.

    Attributes:
        value: measured.
        low, high: ends of the interval.
        count: observations.
    """

    value: float
    low: float
    high: float
    count: int

    def within(self, least: float, most: float) -> Estimate:
        """Return the estimate with an interval that ends at the least and the greatest value that are possible."""
        return Estimate(self.value, min(max(self.low, least), most), max(min(self.high, most), least), self.count)


def proportion(successes: int, count: int, *, level: float = 0.95) -> Estimate:
    """Return a share with Wilson's score interval (Wilson 1927), which is valid for small counts and near 0 and 1."""
    # scipy.stats.binomtest(...).proportion_ci(method="wilson") gives the same numbers (a test compares them), but
    # with scipy.stats `acclimate health` takes 1.1 CPU seconds instead of 0.6, of which scipy.special takes 0.2.
    from scipy.special import ndtri

    z = float(ndtri(0.5 + level / 2))
    share = successes / count
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z * (share * (1 - share) / count + z * z / (4 * count * count)) ** 0.5 / (1 + z * z / count)
    return Estimate(share, middle - half, middle + half, count).within(0.0, 1.0)


def mean(values: Sequence[float], *, level: float = 0.95) -> Estimate:
    """Return a mean with Student's t interval, which is unbounded for a single value."""
    from scipy.special import stdtrit

    array = np.asarray(values, dtype=float)
    value = float(array.mean())
    if len(array) < 2:
        return Estimate(value, float("-inf"), float("inf"), len(array))
    half = float(stdtrit(len(array) - 1, 0.5 + level / 2)) * float(array.std(ddof=1)) / len(array) ** 0.5
    return Estimate(value, value - half, value + half, len(array))


def mean_of_sums(count: int, total: float, squares: float, *, level: float = 0.95) -> Estimate:
    """Return a mean with Student's t interval, from the number, the sum and the sum of squares of the values."""
    from scipy.special import stdtrit

    value = total / count
    if count < 2:
        return Estimate(value, float("-inf"), float("inf"), count)
    # Rounding can make it slightly negative where all values are the same.
    variance = max(0.0, (squares - count * value * value) / (count - 1))
    half = float(stdtrit(count - 1, 0.5 + level / 2)) * (variance / count) ** 0.5
    return Estimate(value, value - half, value + half, count)


def relative_gain(after: Sequence[float], before: Sequence[float], *, level: float = 0.95) -> Estimate | None:
    """Return mean(after) / mean(before) - 1 over pairs, with its delta-method interval; None if mean(before) is 0.

    Args:
        after: values of requests.
        before: values of the same requests, in the same order.
        level: of the interval.
    """
    one, other = np.asarray(after, dtype=float), np.asarray(before, dtype=float)
    base = float(other.mean())
    if base == 0:
        return None
    ratio = float(one.mean()) / base
    # To first order, the error of the ratio of means is the mean of these.
    linear = mean(list((one - ratio * other) / base), level=level)
    return Estimate(ratio - 1, ratio - 1 + linear.low, ratio - 1 + linear.high, len(one))


def quantile(values: Sequence[float], share: float) -> float | None:
    """Return the value below which ``share`` of the values lie; None if there are no values."""
    return float(np.quantile(np.asarray(values, dtype=float), share)) if len(values) else None
