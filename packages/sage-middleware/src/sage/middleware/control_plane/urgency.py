"""The order in which `hybrid` serves: bulk behind the rest with a floor, and first what can be in time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from sage.middleware.control_plane.disciplines import Keyed
from sage.middleware.control_plane.policy import Discipline
from sage.middleware.control_plane.records import Record

__all__ = ["AGING", "Feasible", "Floored"]

AGING: Final = 0.3  # engine-seconds that a second of waiting is worth
PRESSED: Final = 0.3  # share of its goal that the first in line may wait before cost decides


class Feasible:
    """Earliest due first while the backlog fits; when it does not, the cheapest that can still be in time.

    The backlog does not fit when the first in line has waited for `PRESSED` of its goal. Cost is in
    engine-seconds, less `AGING` per second of waiting, both as shares of the goal, so that nobody starves.
    What cannot be in time any more goes last. Least laxity is not used: it favours long requests.
    """

    def __init__(self) -> None:
        self._by_due = Keyed(_due)
        self._by_cost = Keyed(_cost)
        self._by_last_call = Keyed(_last_call)
        self._late = Keyed(_cost)
        self._waiting: dict[int, Record] = {}  # by sequence

    def __len__(self) -> int:
        return len(self._waiting)

    def push(self, record: Record, now: float) -> None:
        """Let it wait."""
        self._waiting[record.sequence] = record
        if _last_call(record) < now:
            self._late.push(record, now)
            return
        self._by_due.push(record, now)
        self._by_cost.push(record, now)
        self._by_last_call.push(record, now)

    def remove(self, record: Record) -> None:
        """Take it out."""
        self._waiting.pop(record.sequence, None)
        self._leave(record)

    def _leave(self, record: Record) -> None:
        for queue in (self._by_due, self._by_cost, self._by_last_call, self._late):
            queue.remove(record)

    def head(self, now: float) -> Record | None:
        """The one whose turn it is."""
        while (first := self._by_last_call.head(now)) is not None and _last_call(first) < now:
            self._leave(first)
            self._late.push(first, now)
        first = self._by_due.head(now)
        if first is None:
            return self._late.head(now)
        if now - first.arrived > PRESSED * (first.due - first.arrived):
            return self._by_cost.head(now)
        return first

    def key(self, record: Record, now: float) -> tuple[bool, float]:
        """In time or not, then when it is due."""
        return _last_call(record) < now, record.due


def _due(record: Record) -> float:
    return record.due


def _last_call(record: Record) -> float:
    """From when on even the quickest engine would be late."""
    return record.due - record.quick


def _cost(record: Record) -> float:
    """Cost less wait, as shares of the goal. For one goal this order does not change as time passes."""
    goal = record.due - record.arrived
    return (record.cost + AGING * record.arrived) / max(goal, 1e-3) if goal < float("inf") else record.cost


class Floored:
    """Two levels: nothing of the upper one waits for the lower, but for a floor.

    While both wait, the lower one gets at least `FLOOR` of the engine-seconds, so that it does not starve.
    """

    FLOOR: Final = 0.05

    def __init__(self, low: Callable[[Record], bool], inner: Callable[[], Discipline]) -> None:
        self._low = low
        self._levels = (inner(), inner())
        self._used = [0.0, 0.0]

    def __len__(self) -> int:
        return len(self._levels[0]) + len(self._levels[1])

    def push(self, record: Record, now: float) -> None:
        """Let it wait in its level."""
        self._levels[self._low(record)].push(record, now)

    def remove(self, record: Record) -> None:
        """Take it out. It has used what it was charged since."""
        self._levels[self._low(record)].remove(record)

    def head(self, now: float) -> Record | None:
        """Of the upper level, unless the lower one is below its floor."""
        upper, lower = (level.head(now) for level in self._levels)
        if upper is None or lower is None:
            self._used = [0.0, 0.0]
            return upper or lower
        return lower if self._used[1] < self.FLOOR * self._used[0] else upper

    def key(self, record: Record, now: float) -> tuple[int, Any]:
        """Its level, then its key there."""
        low = self._low(record)
        return int(low), self._levels[low].key(record, now)

    def charge(self, record: Record, seconds: float) -> None:
        """So much was sent of a request."""
        self._used[self._low(record)] += seconds
