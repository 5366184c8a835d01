"""What happens, as records on the disk: those that come at the same time share one write."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from sage.kernel.ports import SnapshotStore
from sage.kernel.runtime.frames import DamagedError, frame, unframed
from sage.kernel.runtime.state import unpickled

__all__ = ["Journal"]

_SEGMENT = "requests-"

AHEAD = 8 << 20
"""Bytes that may wait to be written before those who add wait, too."""


class Journal:
    """Records in segments of a store that is open, which are read again in their order.

    What is added is written soon, off the event loop; one write takes all that has come since the last. After
    a write that failed nothing is written any more: its `error` is raised to whoever waits, then and later.
    """

    def __init__(self, store: SnapshotStore) -> None:
        self._store = store
        self._thread = ThreadPoolExecutor(1, "sage-journal")
        self._segment = 1
        self._waiting: dict[int, list[bytes]] = {}
        self._ahead = 0
        self._next: list[asyncio.Future[None]] = []  # who waits for the next write
        self._now: list[asyncio.Future[None]] = []  # who waits for the one under way
        self._busy = False
        self._size = 0  # bytes of the present segment
        self._growing = asyncio.Event()
        self._large = 0
        self.error: BaseException | None = None

    def read(self, first: int, damage: Callable[[str], None]) -> list[Any]:
        """The records from segment `first` on; what is added comes behind them. It blocks.

        `damage` is told of what cannot be read: at most what was being written when a process died.
        """
        numbers = sorted(number for number in self._segments() if number >= first)
        self._segment = numbers[-1] + 1 if numbers else first
        return [record for number in numbers for record in self._records(number, damage)]

    def add(self, record: Any) -> None:
        """Have a record written."""
        data = frame(pickle.dumps(record, pickle.HIGHEST_PROTOCOL))
        self._waiting.setdefault(self._segment, []).append(data)
        self._ahead += len(data)
        self._size += len(data)
        if self._size > self._large > 0:
            self._growing.set()
        if not self._busy and self.error is None:
            self._busy = True
            # At the end of this turn, so that all who are awake now get into this write.
            asyncio.get_running_loop().call_soon(self._write)

    async def durable(self) -> None:
        """Return once everything that was added until now is on the disk; raises what the disk says."""
        if self.error is not None:
            raise self.error
        if self._busy:
            waiter = asyncio.get_running_loop().create_future()
            (self._next if self._waiting else self._now).append(waiter)
            await waiter

    async def room(self) -> None:
        """Wait while too much is to be written."""
        if self._ahead > AHEAD:
            await self.durable()

    async def grown(self, size: int) -> None:
        """Return once the present segment has more bytes than that."""
        self._large = size
        self._growing.clear()
        if self._size <= size:
            await self._growing.wait()

    def turn(self) -> int:
        """Begin another segment; gives its number."""
        self._segment += 1
        self._size = 0
        return self._segment

    async def cut(self, first: int) -> None:
        """Remove the segments before this one."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._cut, first)

    async def close(self) -> None:
        """Write the rest."""
        try:
            await self.durable()
        finally:
            self._thread.shutdown(wait=False)

    def _write(self) -> None:
        waiting, self._waiting = self._waiting, {}
        self._now, self._next = self._next, []
        self._ahead = 0
        writing = asyncio.get_running_loop().run_in_executor(self._thread, self._append, waiting)
        writing.add_done_callback(self._written)

    def _written(self, writing: asyncio.Future[None]) -> None:
        self.error = writing.exception()
        told = self._now
        if self.error is not None:
            told, self._next, self._waiting = [*told, *self._next], [], {}
        for waiter in told:
            if waiter.done():
                continue
            if self.error is None:
                waiter.set_result(None)
            else:
                waiter.set_exception(self.error)
        self._now = []
        self._busy = bool(self._waiting)
        if self._busy:
            self._write()

    def _append(self, waiting: dict[int, list[bytes]]) -> None:
        for number, parts in waiting.items():
            self._store.append(f"{_SEGMENT}{number:08}", b"".join(parts))

    def _cut(self, first: int) -> None:
        for number in self._segments():
            if number < first:
                self._store.remove(f"{_SEGMENT}{number:08}")

    def _segments(self) -> list[int]:
        names = [name.removeprefix(_SEGMENT) for name in self._store.names() if name.startswith(_SEGMENT)]
        return [int(name) for name in names if name.isdigit()]

    def _records(self, number: int, damage: Callable[[str], None]) -> Iterator[Any]:
        name = f"{_SEGMENT}{number:08}"
        try:
            yield from map(partial(unpickled, what=name), unframed(self._store.read(name)))
        except DamagedError as error:
            damage(f"{name}: {error}; what is behind it is lost")
