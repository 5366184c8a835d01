"""How fast something grows: a slope that a few jumps do not carry away, with its interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

from sage.benchmark.stats import CONFIDENCE, Estimate

__all__ = ["binned", "slope"]


def slope(times: Sequence[float], values: Sequence[float]) -> Estimate:
    """Units of `values` for one unit of `times`: the median of all pairwise slopes (Theil 1950).

    The interval is that of Sen (1968): order statistics of the pairwise slopes, by the variance of Kendall's
    S without ties. Samples that depend on their neighbours make it too narrow: see `binned`. ValueError for
    fewer than three samples, or times that do not rise.
    """
    x, y = np.asarray(times, dtype=np.float64), np.asarray(values, dtype=np.float64)
    n = len(x)
    if n < 3 or len(y) != n or not (np.diff(x) > 0).all():
        raise ValueError(f"A slope needs at least three values at rising times, got {n} and {len(y)}.")
    first, second = np.triu_indices(n, 1)
    slopes = np.sort((y[second] - y[first]) / (x[second] - x[first]))
    z = NormalDist().inv_cdf(0.5 + CONFIDENCE / 2)
    spread = z * math.sqrt(n * (n - 1) * (2 * n + 5) / 18)
    low = max(0, math.floor((len(slopes) - spread) / 2))
    high = min(len(slopes) - 1, math.ceil((len(slopes) + spread) / 2))
    return Estimate(float(np.median(slopes)), float(slopes[low]), float(slopes[high]), n)


def binned(times: Sequence[float], values: Sequence[float], width: float) -> tuple[list[float], list[float]]:
    """The median of each `width` of time, at the middle of it; bins without a value are left out."""
    bins: dict[int, list[float]] = {}
    for at, value in zip(times, values, strict=True):
        bins.setdefault(math.floor(at / width), []).append(value)
    middles = [(number + 0.5) * width for number in sorted(bins)]
    return middles, [float(np.median(bins[number])) for number in sorted(bins)]
