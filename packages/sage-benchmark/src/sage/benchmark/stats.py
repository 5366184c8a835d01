"""Point estimates with intervals: Wilson for rates, bootstrap for means, order statistics for percentiles.

Arms are compared by blocks: in each block every arm ran once, under the same schedule and within the same
minutes, so that block i of one arm pairs with block i of another.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Final

import numpy as np

__all__ = [
    "CONFIDENCE",
    "MIN_BEYOND",
    "Comparison",
    "Estimate",
    "Samples",
    "Statistic",
    "holm",
    "mean",
    "over_blocks",
    "paired",
    "percentile",
    "proportion",
    "quantile",
    "ratio",
]

CONFIDENCE: Final = 0.95
MIN_BEYOND: Final = 10  # a percentile stands on fewer samples beyond it than this: starred
RESAMPLES: Final = 2000
AT_ONCE: Final = 1000  # values whose resamples are drawn in one go
EXACT_PAIRS: Final = 14  # up to here all 2^n flips of sign are counted, beyond it they are sampled
FLIPS: Final = 10_000


Samples = np.ndarray[tuple[int], np.dtype[np.float64]]
Statistic = Callable[[Samples], float]


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


@dataclass(frozen=True, slots=True)
class Comparison:
    """Mean of the paired differences, and how likely one as large is when the arms do not differ."""

    difference: Estimate
    p: float


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
    resamples = RESAMPLES if n > 1 else 1
    if n <= AT_ONCE:
        means = values[rng.integers(0, n, (resamples, n))].mean(axis=1)
    else:  # all resamples of many values would not fit into memory
        means = np.array([values[rng.integers(0, n, n)].mean() for _ in range(resamples)])
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
    rank = _rank(n, q)
    low, high = _rank_interval(n, q)
    starred = n * min(q, 1 - q) < MIN_BEYOND - 1e-9
    return Estimate(
        float(ordered[rank - 1]),
        float(ordered[min(low, rank) - 1]),
        float(ordered[max(high, rank) - 1]),
        n,
        starred,
    )


def quantile(samples: Sequence[float] | Samples, q: float) -> float:
    """The `q`-quantile (nearest rank) alone: the value of `percentile` without its interval."""
    if not 0 < q < 1:
        raise ValueError(f"A quantile lies between 0 and 1, got {q}.")
    values = _checked(samples)
    rank = _rank(len(values), q)
    return float(np.partition(values, rank - 1)[rank - 1])


def over_blocks(blocks: Sequence[Sequence[float]], of: Statistic, *, seed: int) -> Estimate:
    """`of` all samples in one array, with a percentile-bootstrap interval that resamples whole blocks.

    Samples of one block depend on each other, blocks do not. `n` counts the blocks; with few of them the
    interval is rather too narrow. A single block has an interval of no width.
    """
    arrays = [_checked(block) for block in blocks]
    draws = [of(_pooled(arrays, pick)) for pick in _picks(len(arrays), seed)]
    return _interval(of(np.concatenate(arrays)), draws, len(arrays))


def ratio(
    above: Sequence[Sequence[float]], below: Sequence[Sequence[float]], of: Statistic, *, seed: int
) -> Estimate:
    """`of(above) / of(below)` over all samples, with a paired bootstrap interval over blocks.

    Each resample takes the same blocks of both arms. A denominator of 0 makes a ratio, or the upper bound,
    infinite; 0 over 0 is 1. ValueError when the arms do not have the same number of blocks.
    """
    _check_pairs(above, below)
    tops, bottoms = [_checked(block) for block in above], [_checked(block) for block in below]
    point = _quotient(of(np.concatenate(tops)), of(np.concatenate(bottoms)))
    draws = [
        _quotient(of(_pooled(tops, pick)), of(_pooled(bottoms, pick))) for pick in _picks(len(tops), seed)
    ]
    return _interval(point, draws, len(tops))


def paired(first: Sequence[float], second: Sequence[float], *, seed: int) -> Comparison:
    """Mean of `first[i] - second[i]` with a bootstrap interval, and the two-sided p of a sign-flip test.

    The test (Fisher 1935) is exact up to 14 pairs and sampled beyond; 5 pairs cannot give less than 1/16.
    """
    _check_pairs(first, second)
    differences = _checked(first) - _checked(second)
    n = len(differences)
    if n <= EXACT_PAIRS:
        bits = (np.arange(2**n)[:, None] >> np.arange(n)) & 1
        signs = 1.0 - 2.0 * bits
        extra = 0
    else:
        rng = np.random.default_rng(seed)
        signs = rng.choice((-1.0, 1.0), size=(FLIPS, n))
        extra = 1  # what was seen is one of the flips (Phipson and Smyth 2010)
    # A hair of tolerance: sums of the same terms in another order differ by rounding.
    bound = abs(float(differences.sum())) * (1 - 1e-12)
    as_large = int((np.abs(signs @ differences) >= bound).sum())
    p = (as_large + extra) / (len(signs) + extra)
    return Comparison(mean([float(d) for d in differences], seed=seed), p)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Holm's step-down adjustment (1979): the k-th smallest of m p-values times m - k + 1, made monotone."""
    if any(not 0 <= p <= 1 for p in p_values.values()):
        raise ValueError(f"A p-value lies between 0 and 1, got {dict(p_values)}.")
    adjusted: dict[str, float] = {}
    so_far = 0.0
    for place, name in enumerate(sorted(p_values, key=p_values.__getitem__)):
        so_far = max(so_far, min(1.0, (len(p_values) - place) * p_values[name]))
        adjusted[name] = so_far
    return {name: adjusted[name] for name in p_values}


def _rank(n: int, q: float) -> int:
    """Nearest rank, 1-based."""
    return max(1, math.ceil(q * n - 1e-9))


def _check_pairs(first: Sequence[object], second: Sequence[object]) -> None:
    if len(first) != len(second) or not first:
        raise ValueError(f"Arms pair block by block; one has {len(first)} blocks, the other {len(second)}.")


def _pooled(blocks: Sequence[Samples], pick: Sequence[int]) -> Samples:
    return np.concatenate([blocks[i] for i in pick])


def _picks(blocks: int, seed: int) -> Iterator[list[int]]:
    """Blocks drawn with replacement, again and again."""
    rng = np.random.default_rng(seed)
    for _ in range(RESAMPLES if blocks > 1 else 1):
        yield [int(i) for i in rng.integers(0, blocks, blocks)]


def _quotient(above: float, below: float) -> float:
    if below == 0:
        return 1.0 if above == 0 else math.inf
    return above / below


def _interval(point: float, draws: Sequence[float], n: int) -> Estimate:
    """Nearest ranks, since a draw may be infinite, where interpolation gives no number."""
    ordered = sorted(draws)
    tail = (1 - CONFIDENCE) / 2
    low, high = (ordered[_rank(len(ordered), q) - 1] for q in (tail, 1 - tail))
    return Estimate(point, min(point, low), max(point, high), n)


def _checked(samples: Sequence[float] | Samples) -> Samples:
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
