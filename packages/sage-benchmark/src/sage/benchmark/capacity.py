"""Where a server stops to meet its goals: a search over rates, by growth and then by bisection."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

__all__ = ["Bracket", "Search", "bracket"]


@dataclass(frozen=True, slots=True)
class Search:
    """How to look: from `first` on, times `factor`, up to `last`, then `steps` bisections."""

    first: float
    factor: float = 1.6
    last: float = 1024.0
    steps: int = 3


@dataclass(frozen=True, slots=True)
class Bracket:
    """`good`: the largest rate below all that failed (0 = none passed); `bad`: the smallest that failed.

    `bad` is None where nothing failed up to the last rate.
    """

    good: float
    bad: float | None


async def bracket(passes: Callable[[float], Awaitable[bool]], search: Search) -> Bracket:
    """Narrow down the rate from which on `passes` is False. Each rate is tried once.

    ValueError for a search that does not grow.
    """
    if not 0 < search.first <= search.last or search.factor <= 1 or search.steps < 0:
        raise ValueError(f"A search needs 0 < first <= last, factor > 1 and steps >= 0, got {search}.")
    good, rate = 0.0, search.first
    while await passes(rate):
        good = rate
        if rate >= search.last:
            return Bracket(good, None)
        rate = min(rate * search.factor, search.last)
    bad = rate
    for _ in range(search.steps):
        middle = (good + bad) / 2
        if await passes(middle):
            good = middle
        else:
            bad = middle
    return Bracket(good, bad)
