"""The order in which `hybrid` serves: bulk behind the rest with a floor, and first what can be in time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import inf, log2
from typing import Any, Final

from sage.middleware.control_plane.disciplines import PATIENCE_S, Keyed
from sage.middleware.control_plane.policy import Discipline
from sage.middleware.control_plane.records import Record

__all__ = ["AGING", "Feasible", "Floor", "Floored"]

AGING: Final = 0.3  # engine-seconds that a second of waiting is worth
PRESSED: Final = 0.3  # share of its goal that the first in line may wait before cost decides


class Feasible:
    """Earliest due first while the backlog fits; when it does not, the cheapest that can still be in time.

    The backlog does not fit when the first in line has waited for `PRESSED` of its goal. Cost is in
    engine-seconds, less `AGING` per second of waiting, both as shares of the goal, so that nobody starves.
    What cannot be in time any more goes last. Least laxity is not used: it favours long requests.
    """

    def __init__(self) -> None:
        self._waiting: dict[int, Record] = {}  # by sequence
        self._by_due = Keyed(_due)
        self._backlog: _Backlog | None = None  # made when it is asked for, and kept while something waits
        self._first_call = inf  # without a backlog: no last call of what waits is before

    def __len__(self) -> int:
        return len(self._waiting)

    def push(self, record: Record, now: float) -> None:
        """Let it wait."""
        last_call = _last_call(record)
        if last_call < now:
            self._ordered(now).late.push(record, now)
        else:
            self._by_due.push(record, now)
            if self._backlog is not None:
                self._backlog.push(record, now)
            elif last_call < self._first_call:
                self._first_call = last_call
        self._waiting[record.sequence] = record

    def remove(self, record: Record) -> None:
        """Take it out."""
        self._waiting.pop(record.sequence, None)
        self._by_due.remove(record)
        if self._backlog is not None:
            self._backlog.remove(record)
        if not self._waiting:
            self._backlog, self._first_call = None, inf

    def head(self, now: float) -> Record | None:
        """The one whose turn it is."""
        backlog = self._backlog if now <= self._first_call else self._ordered(now)
        if backlog is not None:
            for record in backlog.overdue(now):
                self._by_due.remove(record)
        first = self._by_due.head(now)
        if first is None:
            return None if backlog is None else backlog.late.head(now)
        if now - first.arrived > PRESSED * (first.due - first.arrived):
            return self._ordered(now).by_cost.head(now)
        return first

    def _ordered(self, now: float) -> _Backlog:
        """What waits in the orders that only a backlog needs."""
        if self._backlog is None:
            self._backlog, self._first_call = _Backlog(), inf
            for record in self._waiting.values():
                self._backlog.push(record, now)
        return self._backlog

    def key(self, record: Record, now: float) -> tuple[bool, float]:
        """In time or not, then when it is due."""
        return _last_call(record) < now, record.due


def _due(record: Record) -> float:
    return record.due


def _last_call(record: Record) -> float:
    """From when on even the quickest engine would be late."""
    return record.due - record.quick


class _Backlog:
    """What can still be in time, by cost and by when it no longer can; and what cannot."""

    __slots__ = ("_by_last_call", "by_cost", "late")

    def __init__(self) -> None:
        self._by_last_call = Keyed(_last_call)
        self.by_cost = _Cheapest()
        self.late = _Cheapest()

    def push(self, record: Record, now: float) -> None:
        self.by_cost.push(record, now)
        self._by_last_call.push(record, now)

    def remove(self, record: Record) -> None:
        for queue in (self.by_cost, self._by_last_call, self.late):
            queue.remove(record)

    def overdue(self, now: float) -> Iterator[Record]:
        """Those that have become late, each once: they are among the late ones from now on."""
        while (first := self._by_last_call.head(now)) is not None and _last_call(first) < now:
            self.remove(first)
            self.late.push(first, now)
            yield first


class _Cheapest:
    """Least cost first, less `AGING` for each second of waiting, both as shares of the goal.

    There is a heap for each size of goal: within one the order does not change as time passes, between them
    it does.
    """

    def __init__(self) -> None:
        self._sizes: dict[float, Keyed] = {}

    def push(self, record: Record, now: float) -> None:
        size = _size(record)
        queue = self._sizes.get(size)
        if queue is None:
            queue = self._sizes[size] = Keyed(_aged)
        queue.push(record, now)

    def remove(self, record: Record) -> None:
        queue = self._sizes.get(_size(record))
        if queue is not None:
            queue.remove(record)

    def head(self, now: float) -> Record | None:
        best: Record | None = None
        least = inf
        for size, queue in self._sizes.items():
            record = queue.head(now)
            if record is not None and (cost := (_aged(record) - AGING * now) / size) < least:
                best, least = record, cost
        return best


def _aged(record: Record) -> float:
    return record.cost + AGING * record.arrived


def _size(record: Record) -> float:
    """Its goal, rounded to a power of the square root of 2, so that there are few; at most `PATIENCE_S`."""
    goal = min(max(record.due - record.arrived, 1e-3), PATIENCE_S)
    return float(2.0 ** (round(2.0 * log2(goal)) / 2.0))


class Floor:
    """What the two levels of each model have used while both waited: the lower one has a right to `SHARE`."""

    __slots__ = ("_used", "_waiting", "owed")

    SHARE: Final = 0.05  # of the engine-seconds
    GRACE: Final = 1.0  # engine-seconds of the upper level before the lower one is owed anything
    MOST: Final = 5.0  # engine-seconds of the upper level for which the lower one can be owed its share

    def __init__(self) -> None:
        self.owed = False  # something of the lower level waits: else what is charged does not matter
        self._used: dict[str, list[float]] = {}
        self._waiting: dict[str, set[Floored]] = {}  # lanes in which something of the lower level waits

    def enter(self, model: str, lane: Floored) -> None:
        """Something of the lower level waits in a lane of the model."""
        self._waiting.setdefault(model, set()).add(lane)
        self.owed = True

    def leave(self, model: str, lane: Floored) -> None:
        """Nothing does there any more. Where nothing does in any lane, nothing is owed."""
        lanes = self._waiting.get(model, set())
        lanes.discard(lane)
        if not lanes:
            self._waiting.pop(model, None)
            self._used.pop(model, None)
            self.owed = bool(self._waiting)

    def charge(self, model: str, level: int, seconds: float) -> None:
        """So much of a level's work was sent."""
        if model not in self._waiting:
            return
        used = self._used.setdefault(model, [0.0, 0.0])
        used[level] += seconds
        used[0] = min(used[0], used[1] / self.SHARE + self.MOST)

    def lower_is_due(self, model: str) -> bool:
        """Whether the lower level has had less than its share."""
        upper, lower = self._used.get(model, (0.0, 0.0))
        return lower < self.SHARE * (upper - self.GRACE)


class Floored:
    """Two levels: nothing of the upper one waits for the lower, but for the `Floor` that models share."""

    def __init__(self, low: Callable[[Record], bool], inner: Callable[[], Discipline], floor: Floor) -> None:
        self._low = low
        self._levels = (inner(), inner())
        self._floor = floor

    def __len__(self) -> int:
        return len(self._levels[0]) + len(self._levels[1])

    def push(self, record: Record, now: float) -> None:
        """Let it wait in its level."""
        low = self._low(record)
        self._levels[low].push(record, now)
        if low:
            self._floor.enter(record.job.model, self)

    def remove(self, record: Record) -> None:
        """Take it out."""
        low = self._low(record)
        self._levels[low].remove(record)
        if low and not self._levels[1]:
            self._floor.leave(record.job.model, self)

    def head(self, now: float) -> Record | None:
        """Of the upper level, unless the lower one is below its floor."""
        upper = self._levels[0].head(now)
        lower = self._levels[1].head(now) if self._levels[1] else None
        if upper is None:
            return lower
        if lower is None:
            return upper
        return lower if self._floor.lower_is_due(upper.job.model) else upper

    def key(self, record: Record, now: float) -> tuple[int, Any]:
        """Its level, then its key there; the lower one goes before the upper of other lanes if it is due."""
        low = self._low(record)
        level = (-1 if self._floor.lower_is_due(record.job.model) else 1) if low else 0
        return level, self._levels[low].key(record, now)
