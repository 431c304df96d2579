"""Errors over a stream, and differences between two ways to predict it, paired over images."""

from __future__ import annotations

from typing import Any

import numpy as np

RESAMPLES = 2000


def difference(ours: list[np.ndarray[Any, Any]], theirs: list[np.ndarray[Any, Any]]) -> dict[str, float]:
    """Return mean difference in points with its 95 % interval; batches are drawn anew."""
    sums = np.array([(a - b).sum() for a, b in zip(ours, theirs, strict=True)])
    sizes = np.array([len(a) for a in ours])
    rows = np.random.default_rng(0).integers(0, len(sums), (RESAMPLES, len(sums)))
    drawn = 100 * sums[rows].sum(1) / np.maximum(1, sizes[rows].sum(1))
    low, high = np.percentile(drawn, [2.5, 97.5])
    change = 100 * sums.sum() / sizes.sum()
    return {"points": round(float(change), 2), "low": round(float(low), 2), "high": round(float(high), 2)}


def percent(errors: list[np.ndarray[Any, Any]]) -> float:
    """Return the error in per cent; ``errors`` are 1 and 0, by batches."""
    return round(100 * float(np.concatenate(errors).mean()), 2)
