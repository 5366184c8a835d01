"""Who gets which cores: pure decisions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from sage.common.errors import UsageError
from sage.platform.cgroup import Limits

__all__ = ["share_cores", "usable_cores"]


def usable_cores(affinity: Sequence[int], limits: Limits) -> tuple[int, ...]:
    """The cores of `affinity`, and no more of them than the quota can keep busy (at least one)."""
    cores = sorted(affinity)
    if limits.cpus is None:
        return tuple(cores)
    return tuple(cores[: max(1, math.ceil(limits.cpus))])


def share_cores(cores: Sequence[int], demands: Sequence[int]) -> list[tuple[int, ...]]:
    """Cores for each demand, in order. A demand is a number of cores; 0 asks for an even share of the rest.

    Demands that fit are disjoint. One that finds too few free cores gets its number (at most all) from those
    with the fewest users, and even shares without a core of their own go round. Nobody gets none.
    Raises UsageError without cores or with a negative demand.
    """
    pool = list(dict.fromkeys(cores))
    if not pool:
        raise UsageError("There are no cores to share.")
    if any(demand < 0 for demand in demands):
        raise UsageError(f"A demand for cores is below 0: {list(demands)}; valid is 0 (even share) or more.")
    users = dict.fromkeys(pool, 0)
    shares: dict[int, tuple[int, ...]] = {}
    for place, demand in enumerate(demands):
        if demand:
            shares[place] = _least_used(users, demand)
    even = [place for place, demand in enumerate(demands) if not demand]
    free = [core for core in pool if not users[core]]
    if len(free) >= len(even):
        shares.update(zip(even, _slices(free, len(even)), strict=True))
    else:  # keep what was asked for to those who asked, as long as one core is left for the others
        rest = dict.fromkeys(free, 0) or users
        shares.update((place, _least_used(rest, 1)) for place in even)
    return [shares[place] for place in range(len(demands))]


def _least_used(users: dict[int, int], count: int) -> tuple[int, ...]:
    """Take the `count` cores with the fewest users, earlier ones first, and count them in `users`."""
    taken = sorted(users, key=users.__getitem__)[:count]
    for core in taken:
        users[core] += 1
    return tuple(sorted(taken))


def _slices(cores: Sequence[int], parts: int) -> list[tuple[int, ...]]:
    """Consecutive slices whose sizes differ by one at most, the larger ones first."""
    if not parts:
        return []
    size, extra = divmod(len(cores), parts)
    bounds = [place * size + min(place, extra) for place in range(parts + 1)]
    return [tuple(cores[low:high]) for low, high in pairwise(bounds)]
