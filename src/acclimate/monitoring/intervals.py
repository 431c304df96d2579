"""How far a number may be off for having been measured on so few requests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value with its 95 % interval.

    Attributes:
        value: measured.
        low, high: ends of the interval.
        count: observations.
    """

    value: float
    low: float
    high: float
    count: int


def proportion(successes: int, count: int, *, level: float = 0.95) -> Estimate:
    """Return a share with Wilson's score interval (Wilson 1927), which holds for small counts and near 0 and 1."""
    z = float(stats.norm.ppf(0.5 + level / 2))
    share = successes / count
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z * (share * (1 - share) / count + z * z / (4 * count * count)) ** 0.5 / (1 + z * z / count)
    return Estimate(share, max(0.0, middle - half), min(1.0, middle + half), count)


def mean(values: Sequence[float], *, level: float = 0.95) -> Estimate:
    """Return a mean with Student's t interval; of one value, the interval is everything."""
    array = np.asarray(values, dtype=float)
    value = float(array.mean())
    if len(array) < 2:
        return Estimate(value, float("-inf"), float("inf"), len(array))
    half = float(stats.t.ppf(0.5 + level / 2, len(array) - 1)) * float(array.std(ddof=1)) / len(array) ** 0.5
    return Estimate(value, value - half, value + half, len(array))


def relative_gain(after: Sequence[float], before: Sequence[float], *, level: float = 0.95) -> Estimate | None:
    """Return mean(after) / mean(before) - 1 over pairs, with its delta-method interval; None where before is all 0.

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
    # The ratio of means moves, to first order, by the mean of these.
    linear = mean(list((one - ratio * other) / base), level=level)
    return Estimate(ratio - 1, ratio - 1 + linear.low, ratio - 1 + linear.high, len(one))


def quantile(values: Sequence[float], share: float) -> float | None:
    """Return the value below which ``share`` of the values lie; None of nothing."""
    return float(np.quantile(np.asarray(values, dtype=float), share)) if len(values) else None
