"""Counts of observations by size, in bounded memory."""

from __future__ import annotations

import operator
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from itertools import accumulate, repeat
from typing import Final

from sage.common.api import Quantiles
from sage.middleware.native import uses_native

__all__ = ["FIRST", "LAST", "LogHistogram", "count_values"]

FIRST: Final = -20  # exponents of two: from about a microsecond, or a millionth
LAST: Final = 20  # to about twelve days, or a million
PER_OCTAVE: Final = 4
_LUMP: Final = 64  # observations
_BOUNDS: Final = tuple(2.0 ** (FIRST + step / PER_OCTAVE) for step in range((LAST - FIRST) * PER_OCTAVE + 1))


def count_values(counts: list[int], values: list[float], bounds: tuple[float, ...]) -> None:
    """Add one to the count of each value's bucket: what `SAGE_NATIVE=0` runs."""
    for bucket, count in Counter(map(bisect_left, repeat(bounds), values)).items():
        counts[bucket] += count


@cache
def _sorter() -> Callable[[list[int], list[float], tuple[float, ...]], None]:
    if not uses_native():
        return count_values
    from sage.middleware import _native

    return _native.count_values


class LogHistogram:
    """Four buckets to an octave from 2^-20 to 2^20, upper bounds inclusive; a quantile is within 10 %."""

    __slots__ = ("_counts", "_fresh", "_total")

    def __init__(self) -> None:
        self._counts = [0] * (len(_BOUNDS) + 1)  # the last is for what is larger
        self._fresh: list[float] = []  # not sorted into buckets yet
        self._total = 0.0

    def add(self, value: float) -> None:
        """Count one observation, 0 or more."""
        fresh = self._fresh
        fresh.append(value)
        if len(fresh) >= _LUMP:
            self._sorted()

    def _sorted(self) -> list[int]:
        """The counts with the newest observations in them; in lumps, as that costs less than one by one."""
        fresh, counts = self._fresh, self._counts
        if fresh:
            self._total += sum(fresh)
            _sorter()(counts, fresh, _BOUNDS)
            fresh.clear()
        return counts

    @property
    def count(self) -> int:
        """Observations."""
        return sum(self._counts) + len(self._fresh)

    @property
    def total(self) -> float:
        """Their sum."""
        return self._total + sum(self._fresh)

    def merge(self, other: LogHistogram) -> None:
        """Count what another one has counted."""
        self._counts = list(map(operator.add, self._sorted(), other._sorted()))
        self._total += other._total

    def quantile(self, share: float) -> float | None:
        """The middle of the bucket below whose end `share` of the observations are; None without any."""
        counts = self._sorted()
        seen_in_all = sum(counts)
        if not seen_in_all:
            return None
        wanted = share * seen_in_all
        index = next(i for i, seen in enumerate(accumulate(counts)) if seen >= wanted)
        return 0.0 if index == 0 else 2.0 ** ((index - 0.5) / PER_OCTAVE + FIRST)

    def quantiles(self) -> Quantiles | None:
        """Half, 90 % and 99 %."""
        p50, p90, p99 = (self.quantile(share) for share in (0.5, 0.9, 0.99))
        if p50 is None or p90 is None or p99 is None:
            return None
        return Quantiles(p50=p50, p90=p90, p99=p99)

    def up_to(self, first: int, last: int) -> Iterator[tuple[float, int]]:
        """For each power of two from 2^first to 2^last: it, and how many observations are at most that."""
        seen = list(accumulate(self._sorted()))
        for exponent in range(first, last + 1):
            yield 2.0**exponent, seen[(exponent - FIRST) * PER_OCTAVE]
