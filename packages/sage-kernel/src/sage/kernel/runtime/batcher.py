"""Bringing single requests together into the batches of a `map_batch`."""

from __future__ import annotations

import asyncio
from collections import deque
from contextvars import copy_context
from dataclasses import dataclass
from typing import Any

from sage.kernel.options import Batch
from sage.kernel.runtime.kernels import AsyncCall

__all__ = ["Batcher"]


@dataclass(slots=True, eq=False)
class _Waiting:
    """One item, its result, and the call it is in."""

    item: Any
    result: asyncio.Future[Any]
    call: _Running | None = None


@dataclass(slots=True, eq=False)
class _Running:
    """One call under way."""

    members: list[_Waiting]
    task: asyncio.Task[None] | None = None


class Batcher:
    """`await batcher(item)` gives the item's own result of a call that may serve others too."""

    def __init__(self, call: AsyncCall, batch: Batch, concurrency: int) -> None:
        self._call = call
        self._batch = batch
        self._queue: deque[_Waiting] = deque()
        self._room = asyncio.Semaphore(concurrency)
        self._full = asyncio.Event()
        self._driver: asyncio.Task[None] | None = None
        self._running: set[_Running] = set()
        self._context = copy_context()  # a batch belongs to no one of those who wait for it

    @property
    def queued(self) -> int:
        """How many items wait for a call."""
        return len(self._queue)

    async def __call__(self, item: Any) -> Any:
        """Queue the item and wait; a call that nobody waits for any more is cancelled."""
        mine = _Waiting(item, asyncio.get_running_loop().create_future())
        self._queue.append(mine)
        if len(self._queue) >= self._batch.size:
            self._full.set()
        if self._driver is None or self._driver.done():
            self._driver = asyncio.create_task(self._drive(), context=self._context.copy())
        try:
            return await mine.result
        finally:
            call = mine.call
            if call and call.task and all(m.result.cancelled() for m in call.members):
                call.task.cancel()

    async def close(self) -> None:
        """Cancel what is still under way."""
        tasks = [t for t in (self._driver, *(call.task for call in self._running)) if t]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _drive(self) -> None:
        while self._queue:
            if self._batch.wait and len(self._queue) < self._batch.size:
                self._full.clear()
                try:
                    async with asyncio.timeout(self._batch.wait):
                        await self._full.wait()
                except TimeoutError:
                    pass
            await self._room.acquire()
            members: list[_Waiting] = []
            while self._queue and len(members) < self._batch.size:
                waiting = self._queue.popleft()
                if not waiting.result.done():
                    members.append(waiting)
            self._start(members)

    def _start(self, members: list[_Waiting]) -> None:
        if not members:
            self._room.release()
            return
        call = _Running(members)
        for member in members:
            member.call = call
        self._running.add(call)
        call.task = asyncio.create_task(self._serve(call))

    async def _serve(self, call: _Running) -> None:
        members = call.members
        try:
            results = await self._call([m.item for m in members])
            for member, result in zip(members, results, strict=True):
                if not member.result.done():
                    member.result.set_result(result)
        except Exception as error:
            for member in members:
                if not member.result.done():
                    member.result.set_exception(error)
        finally:
            for member in members:
                member.result.cancel()
            self._running.discard(call)
            self._room.release()
