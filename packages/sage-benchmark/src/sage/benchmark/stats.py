"""Point estimates with intervals: Wilson for rates, bootstrap for means, order statistics for percentiles."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Final

import numpy as np

__all__ = ["CONFIDENCE", "MIN_BEYOND", "Estimate", "mean", "percentile", "proportion"]

CONFIDENCE: Final = 0.95
MIN_BEYOND: Final = 10  # a percentile stands on fewer samples beyond it than this: starred
RESAMPLES: Final = 2000


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value with its interval at 95 %. `starred`: too few samples for this percentile to be trusted."""

    value: float
    low: float
    high: float
    n: int
    starred: bool = False

    def scaled(self, factor: float) -> Estimate:
        """The same estimate in another unit."""
        return Estimate(self.value * factor, self.low * factor, self.high * factor, self.n, self.starred)


def proportion(hits: int, n: int) -> Estimate:
    """Share of `n` trials that hit, with Wilson's score interval (Wilson 1927). ValueError when n is 0."""
    if not 0 <= hits <= n or n == 0:
        raise ValueError(f"A proportion needs 0 <= hits <= n and n > 0, got {hits} of {n}.")
    z = NormalDist().inv_cdf(0.5 + CONFIDENCE / 2)
    share = hits / n
    scale = 1 + z * z / n
    centre = (share + z * z / (2 * n)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # Rounding may push a bound a hair past the value at 0 and 1, where the bound is exact.
    return Estimate(share, min(share, max(0.0, centre - half)), max(share, min(1.0, centre + half)), n)


def mean(samples: Sequence[float], *, seed: int) -> Estimate:
    """Arithmetic mean with a percentile-bootstrap interval; the same seed gives the same interval."""
    values = _checked(samples)
    rng = np.random.default_rng(seed)
    n = len(values)
    means = [float(values[rng.integers(0, n, n)].mean()) for _ in range(RESAMPLES if n > 1 else 1)]
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(means, (tail, 1 - tail))
    point = float(values.mean())
    return Estimate(point, min(point, float(low)), max(point, float(high)), n)


def percentile(samples: Sequence[float], q: float) -> Estimate:
    """The `q`-quantile (nearest rank) with a distribution-free interval between two order statistics.

    An interval that would reach past the largest sample stops there, which is one reason why such a value is
    starred: below 100·k samples for p99, k = `MIN_BEYOND`.
    """
    if not 0 < q < 1:
        raise ValueError(f"A quantile lies between 0 and 1, got {q}.")
    ordered = np.sort(_checked(samples))
    n = len(ordered)
    rank = max(1, math.ceil(q * n - 1e-9))
    low, high = _rank_interval(n, q)
    starred = n * min(q, 1 - q) < MIN_BEYOND - 1e-9
    return Estimate(
        float(ordered[rank - 1]),
        float(ordered[min(low, rank) - 1]),
        float(ordered[max(high, rank) - 1]),
        n,
        starred,
    )


def _checked(samples: Sequence[float]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """The samples as an array. A missing or non-finite sample is an error, never a silent hole."""
    values = np.asarray(samples, dtype=np.float64)
    if values.size == 0:
        raise ValueError("There are no samples to summarise.")
    if not np.isfinite(values).all():
        raise ValueError("A sample is not a finite number.")
    return values


def _rank_interval(n: int, q: float) -> tuple[int, int]:
    """Ranks l <= u (1-based) with P(X_(l) <= quantile <= X_(u)) >= 95 %, clipped to 1…n.

    With B ~ Binomial(n, q) samples below the quantile: P(B < l) <= 2.5 % and P(B >= u) <= 2.5 %.
    """
    tail = (1 - CONFIDENCE) / 2
    log_q, log_p = math.log(q), math.log1p(-q)
    below, low, high = 0.0, 1, n
    for k in range(n + 1):
        if below <= tail:
            low = max(1, k)
        if 1 - below <= tail:
            high = k
            break
        ways = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
        below += math.exp(ways + k * log_q + (n - k) * log_p)
    return low, max(1, min(high, n))
