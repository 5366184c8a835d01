"""How far the steps of an engine are from what was fitted: quantiles, and for how long they stay. Pure.

What the machine does beside (stalls, another frequency, threads that are moved) is in no formula, but it is
what a p99 is made of. The residuals' own quantiles say how much there is, and their correlation over time how
long a slow moment lasts: it is matched by `exp(-t / hold_s)`.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from sage.middleware.control_plane.simulator.fleet import PROBABILITIES, Dispersion

__all__ = ["ENOUGH", "dispersion"]

ENOUGH: Final = 100  # fewer observations have no p99
_RANGE: Final = (0.25, 8.0)  # actual / predicted; beyond it a row is not what it was taken for
_HOLDS: Final = tuple(float(one) for one in np.geomspace(0.02, 20.0, 31))  # candidates, in seconds
_LAGS: Final = np.concatenate([[0.0], np.geomspace(0.05, 12.8, 9)])  # edges of what is told apart, in seconds
_UNCORRELATED: Final = 0.1  # below it a slow moment is over before the next step

Array = NDArray[np.float64]


def dispersion(seconds: Array, expected: Array, at: Array) -> Dispersion | None:
    """From durations, what was expected of them, and when they were; None for fewer than `ENOUGH`."""
    ratio = seconds / expected
    kept = (ratio > _RANGE[0]) & (ratio < _RANGE[1])
    ratio, at = ratio[kept], at[kept]
    if len(ratio) < ENOUGH:
        return None
    factors = tuple(float(f"{one:.4g}") for one in np.quantile(ratio, PROBABILITIES))
    return Dispersion(factors=factors, hold_s=_hold(np.log(ratio), at))


def _hold(residuals: Array, at: Array) -> float:
    """The time constant whose exponential is nearest to the correlation over time; 0 where there is none."""
    order = np.argsort(at)
    at, centred = at[order], residuals[order] - residuals.mean()
    variance = float(np.square(centred).mean())
    sums, counts = np.zeros(len(_LAGS) - 1), np.zeros(len(_LAGS) - 1)
    for lag in range(1, len(at)):
        apart = at[lag:] - at[:-lag]
        if apart.min() >= _LAGS[-1]:
            break
        where = np.digitize(apart, _LAGS) - 1
        near = where < len(sums)
        np.add.at(sums, where[near], (centred[lag:] * centred[:-lag])[near])
        np.add.at(counts, where[near], 1)
    seen = counts > 0
    if not variance or not seen.any():
        return 0.0
    correlation = sums[seen] / counts[seen] / variance
    middle = ((_LAGS[1:] + _LAGS[:-1]) / 2)[seen]
    if correlation[0] < _UNCORRELATED:
        return 0.0
    misses = [float(np.square(correlation - np.exp(-middle / hold)).sum()) for hold in _HOLDS]
    return float(f"{_HOLDS[int(np.argmin(misses))]:.2g}")
