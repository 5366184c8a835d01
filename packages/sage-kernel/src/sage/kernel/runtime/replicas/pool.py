"""The workers of one stage: who is free, how many there are, and what happens when one is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import monotonic
from typing import Any, Final, NamedTuple, Protocol

from sage.kernel.provision import Scale
from sage.kernel.runtime.columns import part
from sage.kernel.runtime.replicas.bench import Done
from sage.kernel.runtime.replicas.process import WorkerLostError
from sage.kernel.runtime.replicas.scaling import Load, Scaler

__all__ = ["Piece", "Pool", "Replica", "retried"]

ATTEMPTS: Final = 2
"""How many workers may be lost on the same items before they are divided, and at last given up."""

LOOK_S: Final = 0.1
"""How often it is looked whether there should be more workers."""


class Replica(Protocol):
    """One worker; it can be started again after it was closed."""

    async def start(self) -> None:
        """Make and set up its operators; raises what failed."""
        ...

    async def run(self, items: Any, one_by_one: bool, /) -> list[Done]:
        """What became of a batch, in one account or one for each item; one call at a time."""
        ...

    async def close(self, now: bool, /) -> None:
        """Close its operators and end; `now`: whatever it is doing."""
        ...


class Piece(NamedTuple):
    """Items `start` to `end` of a batch: what became of them, or why no worker can say."""

    start: int
    end: int
    done: list[Done]
    error: Exception | None = None


def retried(start: int, end: int, lost: int) -> list[tuple[int, int, int]]:
    """What to try after items `start` to `end` were lost `lost` times, as (start, end, lost): the same once
    more, then its halves, so that one item that ends workers is found; nothing = give it up.
    """
    if lost < ATTEMPTS:
        return [(start, end, lost)]
    if end - start > 1:
        middle = (start + end) // 2
        return [(start, middle, lost - 1), (middle, end, lost - 1)]
    return []


class Pool:
    """Workers that are made by `make`; it gives None where there is no room for another one.

    `ended` is told of each that has ended.
    """

    def __init__(self, make: Callable[[], Replica | None], ended: Callable[[Replica], None]) -> None:
        self._make = make
        self._ended = ended
        self._free: asyncio.LifoQueue[Replica] = asyncio.LifoQueue()
        self._all: list[Replica] = []
        self._surplus = 0
        self.on_free: Callable[[], None] = lambda: None
        """Called when a worker is free."""
        self.working = 0
        """How many workers have a batch."""
        self.waiting = 0
        """How many items of `call` wait for a worker."""

    def __len__(self) -> int:
        return len(self._all) - self._surplus

    async def open(self, count: int) -> None:
        """Start so many at once; where one fails, all are ended."""
        try:
            async with asyncio.TaskGroup() as starting:
                for _ in range(count):
                    starting.create_task(self._add())
        except BaseExceptionGroup as group:
            await self.close(now=True)
            raise group.exceptions[0] from group.exceptions[0].__cause__
        except BaseException:
            await self.close(now=True)
            raise

    @property
    def keeps(self) -> bool:
        """Whether a worker that is done goes on, or makes way."""
        return not self._surplus

    async def resize(self, count: int) -> None:
        """Start or end workers, one after the other; a busy one ends when it is done."""
        while len(self) < count and await self._add():
            pass
        while len(self) > count:
            if self._free.empty():
                self._surplus += 1
            else:
                await self._end(self._free.get_nowait())

    async def take(self) -> Replica:
        """A worker, once one is free."""
        return await self._free.get()

    def take_now(self) -> Replica | None:
        """A worker that is free."""
        return None if self._free.empty() else self._free.get_nowait()

    async def give(self, replica: Replica) -> None:
        """It is free again."""
        if self._surplus:
            self._surplus -= 1
            await self._end(replica)
        else:
            self._free.put_nowait(replica)
            self.on_free()

    async def run(self, replica: Replica, items: Any, *, one_by_one: bool = False) -> list[Piece]:
        """What became of a batch: one piece, or several in its order where a worker was lost on it."""
        self.working += 1
        try:
            return await self._pieces(replica, items, one_by_one)
        finally:
            self.working -= 1

    async def _pieces(self, replica: Replica, items: Any, one_by_one: bool) -> list[Piece]:
        found: list[Piece] = []
        todo = [(0, len(items), 0)]
        while todo:
            start, end, lost = todo.pop()
            whole = end - start == len(items)
            try:
                done = await replica.run(items if whole else part(items, start, end), one_by_one)
            except WorkerLostError as caught:
                error: Exception = WorkerLostError(f"its worker was lost {lost + 1} times: {caught}")
                await replica.close(True)
                await replica.start()
                again = retried(start, end, lost + 1)
            except Exception as caught:  # it cannot be sent, or its results cannot be read
                error, again = caught, retried(start, end, ATTEMPTS)
            else:
                found.append(Piece(start, end, done))
                if not one_by_one and done[0].broken:
                    break
                continue
            todo.extend(reversed(again))
            if not again:
                found.append(Piece(start, end, [], error))
        return found

    async def call(self, items: list[Any]) -> list[Piece]:
        """Have each of the items done for itself; a caller that goes away leaves the worker in peace."""
        return await asyncio.shield(asyncio.ensure_future(self._serve(items)))

    async def close(self, *, now: bool) -> None:
        """End all of them; raises the first error of a `close`."""
        workers, self._all = self._all, []
        ends = await asyncio.gather(*(one.close(now) for one in workers), return_exceptions=True)
        for worker in workers:
            self._ended(worker)
        for error in ends:
            if isinstance(error, BaseException) and not now:
                raise error

    async def _serve(self, items: list[Any]) -> list[Piece]:
        self.waiting += len(items)
        try:
            replica = await self.take()
        finally:
            self.waiting -= len(items)
        try:
            return await self.run(replica, items, one_by_one=True)
        finally:
            await self.give(replica)

    async def keep_scaled(self, scale: Scale, look: Callable[[], Load]) -> None:
        """Look at the load again and again, and have as many workers as it asks for."""
        scaler = Scaler(scale, monotonic())
        while True:
            await asyncio.sleep(LOOK_S)
            await self.resize(scaler.decide(monotonic(), look(), len(self)))

    async def _add(self) -> bool:
        replica = self._make()
        if replica is None:
            return False
        self._all.append(replica)
        await replica.start()
        self._free.put_nowait(replica)
        self.on_free()
        return True

    async def _end(self, replica: Replica) -> None:
        self._all.remove(replica)
        await replica.close(False)
        self._ended(replica)
