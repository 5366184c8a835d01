"""Keyed windows over event time, as kernels: records go in, a pane comes out when its window closes."""

from __future__ import annotations

import heapq
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from copy import copy
from itertools import count
from typing import Any

from sage.kernel.options import Pane, Window
from sage.kernel.plan import WindowFold
from sage.kernel.runtime.columns import Columns, Control, Watermark
from sage.kernel.runtime.kernels import Faults
from sage.kernel.runtime.state import GONE, Untracked

__all__ = ["LateError", "windows_of"]


class LateError(Exception):
    """A record came when every window that it belongs to was gone."""


class _Windows(ABC):
    """What all kinds share: a batch is folded record by record, a watermark closes what ends before it.

    `Stateful`: `states` by key, `dirty` the keys that changed since the last checkpoint. Timers follow from
    the states, so that no checkpoint has them.
    """

    def __init__(self, fold: WindowFold, faults: Faults) -> None:
        self.fold = fold
        self.spec: Window = fold.window
        self.watermark = float("-inf")
        self.states: dict[Any, Any] = {}
        self.dirty: set[Any] = Untracked()
        self._faults = faults
        self._timers: list[tuple[float, int, Any, float]] = []  # when, a number, key, start
        self._numbers = count()

    def run(self, batch: Columns) -> Columns:
        """Fold a batch; gives the panes of windows that had closed and are still held for late records."""
        out = Columns([], [])
        key, add, settle = self.fold.key, self.add, self._faults.settle
        first = self._faults.counters.items_in
        for at, (item, time) in enumerate(zip(batch.values, batch.times, strict=True)):
            try:
                kept = add(key(item), item, time, out)
            except Exception as error:
                settle(item, error, first + at)
                continue
            if not kept:
                behind = self.watermark - time
                settle(item, LateError(f"{behind:g} s behind the watermark"), first + at, self.spec.on_late)
        return out

    def control(self, message: Control) -> Columns:
        """The panes of the windows that a watermark closes, by their ends."""
        out = Columns([], [])
        if isinstance(message, Watermark):
            self.watermark = message.time
            while self._timers and self._timers[0][0] <= message.time:
                when, _, key, start = heapq.heappop(self._timers)
                self.due(when, key, start, out)
        return out

    def begin(self, states: Iterable[tuple[Any, Any]], plain: float | None, /) -> None:
        """See `Stateful`."""
        self.states, self.dirty = dict(states), set()
        self.watermark = self.watermark if plain is None else plain
        for key, state in self.states.items():
            self.remind_of(key, state)

    def changes(self) -> Iterator[tuple[Any, Any]]:
        """See `Stateful`."""
        changed, self.dirty = self.dirty, set()
        return ((key, self.states.get(key, GONE)) for key in changed)

    def plain(self) -> float:
        """The watermark."""
        return self.watermark

    @abstractmethod
    def remind_of(self, key: Any, state: Any) -> None:
        """Set the timers of a state that was restored."""

    @abstractmethod
    def add(self, key: Any, item: Any, time: float, out: Columns) -> bool:
        """Fold a record into its windows; false if they are all gone."""

    @abstractmethod
    def due(self, when: float, key: Any, start: float, out: Columns) -> None:
        """A timer has come."""

    def remind(self, when: float, key: Any, start: float) -> None:
        """Set a timer."""
        heapq.heappush(self._timers, (when, next(self._numbers), key, start))

    def emit(self, pane: Pane[Any, Any], out: Columns) -> None:
        """Give a pane; its time is its end. Where another may follow, it has a copy of the state."""
        out.values.append(pane if not self.spec.late else pane._replace(value=copy(pane.value)))
        out.times.append(pane.end)


class _Fixed(_Windows):
    """Tumbling and sliding windows. A state is start → accumulator, for each window that is held."""

    def add(self, key: Any, item: Any, time: float, out: Columns) -> bool:
        kept = False
        size, late = self.spec.size, self.spec.late
        for start in self._starts(time):
            end = start + size
            if end + late <= self.watermark:
                break  # and those before it end sooner
            kept = True
            held = self.states.get(key)
            if held is None or start not in held:
                value = self.fold.step(self.fold.init(), item)
                self.states.setdefault(key, {})[start] = value
                self.remind(end if end > self.watermark else end + late, key, start)
            else:
                value = held[start] = self.fold.step(held[start], item)
            self.dirty.add(key)
            if end <= self.watermark:
                self.emit(Pane(key, start, end, value), out)
        return kept

    def due(self, when: float, key: Any, start: float, out: Columns) -> None:
        held, end = self.states[key], start + self.spec.size
        if when == end:
            self.emit(Pane(key, start, end, held[start]), out)
        if when < end + self.spec.late:
            self.remind(end + self.spec.late, key, start)
            return
        self.dirty.add(key)
        del held[start]
        if not held:
            del self.states[key]

    def remind_of(self, key: Any, state: Any) -> None:
        for start in state:
            end = start + self.spec.size
            self.remind(end if end > self.watermark else end + self.spec.late, key, start)

    def _starts(self, time: float) -> Iterator[float]:
        """The starts of the windows that hold `time`, the latest first."""
        every = self.spec.slide or self.spec.size
        start = time // every * every
        while start > time - self.spec.size:
            yield start
            start -= every


class _Sessions(_Windows):
    """Sessions. A state is a list of [start, last time, accumulator, whether its pane is out], by time.

    A session ends `gap` after its last record. A timer that comes before that is one of an earlier end.
    """

    def add(self, key: Any, item: Any, time: float, out: Columns) -> bool:
        gap, late = self.spec.gap, self.spec.late
        held = self.states.get(key, [])
        met = [one for one in held if one[0] - gap < time < one[1] + gap]
        if not met and time + gap + late <= self.watermark:
            return False
        value = met[0][2] if met else self.fold.init()
        for other in met[1:]:
            value = self.fold.merge(value, other[2])
        value = self.fold.step(value, item)
        start, last = min([time, *(one[0] for one in met)]), max([time, *(one[1] for one in met)])
        closed = last + gap <= self.watermark
        rest = [one for one in held if one not in met]
        self.states[key] = sorted([*rest, [start, last, value, closed]], key=_start_of)
        self.dirty.add(key)
        if closed:
            self.emit(Pane(key, start, last + gap, value), out)
        self.remind(last + gap + (late if closed else 0.0), key, start)
        return True

    def due(self, when: float, key: Any, start: float, out: Columns) -> None:
        session = next((one for one in self.states.get(key, ()) if one[0] == start), None)
        if session is None or when < (end := session[1] + self.spec.gap):
            return
        if not session[3]:
            session[3] = True
            self.dirty.add(key)
            self.emit(Pane(key, start, end, session[2]), out)
        if when < end + self.spec.late:
            self.remind(end + self.spec.late, key, start)
            return
        self.dirty.add(key)
        self.states[key].remove(session)
        if not self.states[key]:
            del self.states[key]

    def remind_of(self, key: Any, state: Any) -> None:
        for start, last, _, closed in state:
            self.remind(last + self.spec.gap + (self.spec.late if closed else 0.0), key, start)


def _start_of(session: list[Any]) -> Any:
    return session[0]


def windows_of(fold: WindowFold, faults: Faults) -> _Windows:
    """The kernel of a window's kind."""
    return _Sessions(fold, faults) if fold.window.gap else _Fixed(fold, faults)
