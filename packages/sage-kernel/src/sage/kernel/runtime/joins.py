"""A keyed join of two streams over event time, as a kernel: a pair comes out once both halves are here."""

from __future__ import annotations

import heapq
from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator
from itertools import count
from typing import Any, Final

from sage.kernel.plan import Join
from sage.kernel.runtime.columns import Columns, Control, Watermark
from sage.kernel.runtime.kernels import Faults
from sage.kernel.runtime.state import GONE, Untracked
from sage.kernel.runtime.windows import LateError

__all__ = ["IntervalJoin"]

_SIDES: Final = ("left", "right")


class IntervalJoin:
    """Pairs every left record with every right one of its key that is at most `within` seconds away.

    A record is held until the watermark is `within` past it: what comes later and is not late cannot meet it.
    A pair has the later time of its two. `Stateful`: `states` holds, for each key, the records of both sides
    as (time, number, record), by time.
    """

    def __init__(self, join: Join, faults: Faults) -> None:
        self._join = join
        self._keys = (join.left, join.right)
        self._faults = faults
        self._watermark = float("-inf")
        self._timers: list[tuple[float, int, Any]] = []  # when the oldest record of a key may go
        self._numbers = count()
        self.states: dict[Any, tuple[list[Any], list[Any]]] = {}
        self.dirty: set[Any] = Untracked()

    def run(self, batch: Columns) -> Columns:
        """Take the records of one side, which the batch names; gives (left, right) pairs."""
        out = Columns([], [])
        side, settle = batch.side, self._faults.settle
        key, first = self._keys[side], self._faults.counters.items_in
        for at, (item, time) in enumerate(zip(batch.values, batch.times, strict=True)):
            if time < self._watermark:
                late = LateError(f"{self._watermark - time:g} s behind the watermark, on the {_SIDES[side]}")
                settle(item, late, first + at, self._join.on_late)
                continue
            try:
                its_key = key(item)
                held = self.states.setdefault(its_key, ([], []))
            except Exception as error:
                settle(item, error, first + at)
                continue
            self._pair(held, side, item, time, out)
            self.dirty.add(its_key)
            heapq.heappush(self._timers, (time + self._join.within, next(self._numbers), its_key))
        return out

    def control(self, message: Control) -> Columns:
        """Forget what a watermark has left behind."""
        if isinstance(message, Watermark):
            self._watermark = message.time
            oldest = message.time - self._join.within
            while self._timers and self._timers[0][0] < message.time:
                key = heapq.heappop(self._timers)[2]
                if (held := self.states.get(key)) is not None:
                    self._forget(key, held, oldest)
        return Columns([], [])

    def begin(self, states: Iterable[tuple[Any, Any]], plain: float | None, /) -> None:
        """See `Stateful`."""
        self.states, self.dirty = dict(states), set()
        self._watermark = self._watermark if plain is None else plain
        last = 0
        for key, held in self.states.items():
            for time, number, _ in (*held[0], *held[1]):
                last = max(last, number)
                self._timers.append((time + self._join.within, number, key))
        heapq.heapify(self._timers)
        self._numbers = count(last + 1)

    def changes(self) -> Iterator[tuple[Any, Any]]:
        """See `Stateful`."""
        changed, self.dirty = self.dirty, set()
        return ((key, self.states.get(key, GONE)) for key in changed)

    def plain(self) -> float:
        """The watermark."""
        return self._watermark

    def _pair(
        self, held: tuple[list[Any], list[Any]], side: int, item: Any, time: float, out: Columns
    ) -> None:
        others, within = held[1 - side], self._join.within
        for at in range(bisect_left(others, (time - within,)), len(others)):
            when, _, other = others[at]
            if when > time + within:
                break
            out.values.append((other, item) if side else (item, other))
            out.times.append(max(time, when))
        insort(held[side], (time, next(self._numbers), item))

    def _forget(self, key: Any, held: tuple[list[Any], list[Any]], oldest: float) -> None:
        for records in held:
            del records[: bisect_left(records, (oldest,))]
        self.dirty.add(key)
        if not held[0] and not held[1]:
            del self.states[key]
