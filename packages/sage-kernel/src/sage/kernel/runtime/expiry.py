"""Keyed folds that forget: the state of a key that no record came for is gone after a while."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from itertools import count
from typing import Any

from sage.common.clock import Clock
from sage.kernel.plan import Fold
from sage.kernel.runtime.columns import Columns, Control, Watermark
from sage.kernel.runtime.kernels import Faults
from sage.kernel.runtime.state import GONE, Untracked

__all__ = ["ExpiringFold"]


class ExpiringFold:
    """A fold whose keys begin anew `ttl` seconds after their last record.

    Records with event times go by them: a key begins anew with a record that is `ttl` after the latest one,
    whenever that is processed, and a watermark frees the memory. Others go by the clock, read once per batch.
    `Stateful`: (state, last) by key. Timers follow from the states, so that no checkpoint has them.
    """

    def __init__(self, fold: Fold, faults: Faults, clock: Clock) -> None:
        self.states: dict[Any, tuple[Any, float]] = {}
        self.dirty: set[Any] = Untracked()
        self._fold = fold
        self._faults = faults
        self._clock = clock
        # When a key may go: one timer for each, which is set again if a record came meanwhile.
        self._timers: list[tuple[float, int, Any]] = []
        self._numbers = count()

    def run(self, items: list[Any]) -> list[Any]:
        """Fold a batch at the clock's time."""
        now = self._clock.wall()
        self._forget(now)
        return self._folded(items, [now] * len(items))

    def run_timed(self, batch: Columns) -> Columns:
        """Fold a batch by its event times."""
        return Columns(self._folded(batch.values, batch.times), batch.times)

    def control(self, message: Control) -> Columns:
        """Forget what a watermark has left behind."""
        if isinstance(message, Watermark):
            self._forget(message.time)
        return Columns([], [])

    def begin(self, states: Iterable[tuple[Any, tuple[Any, float]]], plain: None, /) -> None:  # noqa: ARG002
        """See `Stateful`."""
        self.states, self.dirty = dict(states), set()
        timers = ((last + self._fold.ttl, next(self._numbers), k) for k, (_, last) in self.states.items())
        self._timers = sorted(timers)

    def changes(self) -> Iterator[tuple[Any, Any]]:
        """See `Stateful`."""
        changed, self.dirty = self.dirty, set()
        return ((key, self.states.get(key, GONE)) for key in changed)

    def plain(self) -> None:
        """It has no other state."""

    def _folded(self, items: list[Any], times: list[float]) -> list[Any]:
        out: list[Any] = []
        for at, (item, time) in enumerate(zip(items, times, strict=True)):
            try:
                out.append(self._step(item, time))
            except Exception as error:
                self._faults.settle(item, error, self._faults.counters.items_in + at)
        return out

    def _step(self, item: Any, time: float) -> Any:
        fold, key = self._fold, self._fold.key(item)
        held = self.states.get(key)
        if held is None or time >= held[1] + fold.ttl:
            state, last = fold.init(), time
        else:
            state, last = held[0], max(held[1], time)
        state, result = fold.step(state, item)
        self.states[key] = (state, last)
        self.dirty.add(key)
        if held is None:
            heapq.heappush(self._timers, (last + fold.ttl, next(self._numbers), key))
        return result

    def _forget(self, now: float) -> None:
        timers, ttl = self._timers, self._fold.ttl
        while timers and timers[0][0] <= now:
            key = timers[0][2]
            until = self.states[key][1] + ttl
            if until > now:
                heapq.heapreplace(timers, (until, next(self._numbers), key))
                continue
            heapq.heappop(timers)
            del self.states[key]
            self.dirty.add(key)
