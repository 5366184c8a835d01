"""Virtual time: what is to happen when."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any

__all__ = ["Agenda"]


class Agenda:
    """Handlers by time; of those at the same time the one that was entered first goes first."""

    __slots__ = ("_count", "heap", "now")

    def __init__(self) -> None:
        self.now = 0.0
        self.heap: list[tuple[float, int, Callable[[Any], None], Any]] = []
        self._count = 0

    def at(self, when: float, handler: Callable[[Any], None], subject: Any) -> None:
        """Call `handler(subject)` at time `when`."""
        self._count += 1
        heappush(self.heap, (when, self._count, handler, subject))

    def step(self) -> None:
        """Go on to the next entry and do it."""
        self.now, _, handler, subject = heappop(self.heap)
        handler(subject)
