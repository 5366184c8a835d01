"""Async operators of a finite run: long-lived workers, a bounded window, results in either order."""

from __future__ import annotations

import asyncio
from collections import deque
from time import perf_counter_ns
from typing import Any

from sage.kernel.compile import Op
from sage.kernel.options import Batch
from sage.kernel.runtime.channel import Channel
from sage.kernel.runtime.kernels import AsyncCall, Faults, Kernel
from sage.kernel.runtime.stages import Outputs, collect

__all__ = ["CALLS", "BATCH_CALLS", "AsyncStage"]

CALLS = 64
BATCH_CALLS = 8
_NOTHING: Any = object()


class _AnyOrder:
    """Results as they come."""

    def __init__(self) -> None:
        self._done: list[Any] = []
        self._count = 0

    def add(self, _number: int, result: Any) -> bool:
        self._count += 1
        if result is not _NOTHING:
            self._done.append(result)
        return True

    def take(self) -> tuple[list[Any], int]:
        done, count = self._done, self._count
        self._done, self._count = [], 0
        return done, count


class _InputOrder:
    """Results in the order of their items: one that is early waits for those before it."""

    def __init__(self) -> None:
        self._early: dict[int, Any] = {}
        self._next = 0

    def add(self, number: int, result: Any) -> bool:
        self._early[number] = result
        return number == self._next

    def take(self) -> tuple[list[Any], int]:
        early, at = self._early, self._next
        done: list[Any] = []
        while at in early:
            result = early.pop(at)
            at += 1
            if result is not _NOTHING:
                done.append(result)
        count, self._next = at - self._next, at
        return done, count


class AsyncStage:
    """Runs an async operator; a unit is an item, or a batch of `map_batch`.

    At most `concurrency` calls are in flight, and at most twice as many units are held between taking
    them and passing their results on.
    """

    def __init__(
        self, op: Op, call: AsyncCall, faults: Faults, inbox: Channel, kernel: Kernel, outputs: Outputs
    ) -> None:
        self._batch = op.node.batch
        self._call = call
        self._faults = faults
        self._counters = faults.counters
        self._inbox = inbox
        self._kernel = kernel
        self._outputs = outputs
        self._concurrency = op.node.call.concurrency or (BATCH_CALLS if self._batch else CALLS)
        self._results = _InputOrder() if op.node.call.order == "input" else _AnyOrder()
        self._queue: deque[Any] = deque()
        self._idle: list[asyncio.Future[None]] = []
        self._workers = 0
        self._units = 0
        self._started = 0
        self._held = 0
        self._closed = False
        self._room = asyncio.Event()
        self._ready = asyncio.Event()

    async def run(self, group: asyncio.TaskGroup) -> None:
        """Work until the inbox ends and every result is passed on."""
        flusher = group.create_task(self._flush())
        while (units := await self._take()) is not None:
            self._held += len(units)
            self._queue.extend(units)
            self._wake(group)
        self._closed = True
        self._ready.set()
        for waiter in self._idle:
            if not waiter.done():
                waiter.set_result(None)
        await flusher
        self._outputs.close()

    async def _take(self) -> list[Any] | None:
        while self._held >= 2 * self._concurrency:
            self._room.clear()
            await self._room.wait()
        if self._batch:
            items = await collect(self._inbox, self._batch, self._counters)
            return None if items is None else [items]
        # Items wait in the channel, not here, so that its bound is the bound.
        return await collect(self._inbox, Batch(2 * self._concurrency - self._held), self._counters)

    def _wake(self, group: asyncio.TaskGroup) -> None:
        wanted = len(self._queue)
        while wanted and self._idle:
            waiter = self._idle.pop()
            if not waiter.done():
                waiter.set_result(None)
                wanted -= 1
        for _ in range(min(wanted, self._concurrency - self._workers)):
            self._workers += 1
            group.create_task(self._work())

    async def _work(self) -> None:
        queue, call, results, counters = self._queue, self._call, self._results, self._counters
        weigh = len if self._batch else _one
        loop = asyncio.get_running_loop()
        while True:
            if not queue:
                if self._closed:
                    return
                waiter = loop.create_future()
                self._idle.append(waiter)
                await waiter
                continue
            unit = queue.popleft()
            number, position, weight = self._units, self._started, weigh(unit)
            self._units += 1
            self._started += weight
            counters.in_flight += weight
            start = perf_counter_ns()
            try:
                result = await call(unit)
            except Exception as error:
                result = self._settle(unit, error, position)
            except asyncio.CancelledError as error:
                result = self._settle(unit, self._own(error), position)
            counters.busy += perf_counter_ns() - start
            counters.in_flight -= weight
            counters.items_in += weight
            # An ordered result that has to wait for earlier ones wakes nobody.
            if results.add(number, result):
                self._ready.set()

    def _own(self, error: asyncio.CancelledError) -> Exception:
        """A cancellation from inside the operator is its failure; one from outside goes on."""
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise error
        return RuntimeError("it was cancelled from within")

    def _settle(self, unit: Any, error: Exception, position: int) -> Any:
        for at, item in enumerate(unit if self._batch else (unit,)):
            self._faults.settle(item, error, position + at)
        return _NOTHING

    async def _flush(self) -> None:
        while not (self._closed and not self._held):
            await self._ready.wait()
            self._ready.clear()
            done, count = self._results.take()
            if self._batch:
                done = [result for results in done for result in results]
            self._counters.items_out += len(done)
            await self._outputs.send(self._kernel(done) if done else done)
            self._held -= count
            self._room.set()


def _one(_unit: Any) -> int:
    return 1
