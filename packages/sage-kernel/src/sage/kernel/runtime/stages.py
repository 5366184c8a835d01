"""The stages of a finite run: sources, fused kernels, batches and sinks. Async calls are in `calls`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from itertools import islice
from time import perf_counter_ns
from typing import Any

from sage.kernel.compile import Op
from sage.kernel.options import Batch
from sage.kernel.runtime.channel import Channel
from sage.kernel.runtime.kernels import Faults, Kernel
from sage.kernel.runtime.report import Counters, operator_error, spell

__all__ = ["Outputs", "Stop", "collect", "feed", "pump", "write"]

TURN_NS = 2_000_000
"""How long a source may keep the event loop, and how long one of its batches should take."""


class Stop:
    """A request to end the sources and let what was read drain."""

    def __init__(self) -> None:
        self.asked = False
        self._reading: set[asyncio.Task[Any]] = set()
        self._woken: set[asyncio.Task[Any]] = set()

    def ask(self) -> None:
        """Stop reading; a source that waits for its next record is woken."""
        self.asked = True
        self._woken = set(self._reading)
        for task in self._woken:
            task.cancel()

    async def next_of(self, source: AsyncIterator[Any]) -> Any:
        """The next record; raises StopAsyncIteration at the end or when asked to stop."""
        task = asyncio.current_task()
        if self.asked or task is None:
            raise StopAsyncIteration
        self._reading.add(task)
        try:
            return await anext(source)
        except asyncio.CancelledError:
            # Our own cancellation is the end of the source; one from outside goes on.
            if task in self._woken and task.uncancel() == 0:
                raise StopAsyncIteration from None
            raise
        finally:
            self._reading.discard(task)


class Outputs:
    """The channels that a stage writes to, its own and those of its diverted items."""

    def __init__(
        self, outs: list[Channel], diverted: list[tuple[Faults, list[Channel]]], counters: Counters
    ) -> None:
        self._outs = outs
        self._diverted = diverted
        self._counters = counters
        self.any = bool(outs or diverted)

    async def send(self, items: list[Any]) -> None:
        """Put a batch and what was diverted meanwhile; returns once there is room for all."""
        if items:
            for channel in self._outs:
                if not channel.try_put(items):
                    await self._wait(channel, items)
        for faults, channels in self._diverted:
            if faults.failures:
                failures: list[Any] = list(faults.take())
                for channel in channels:
                    if not channel.try_put(failures):
                        await self._wait(channel, failures)

    def close(self) -> None:
        """End the streams."""
        for channel in (*self._outs, *(c for _, channels in self._diverted for c in channels)):
            channel.close()

    async def _wait(self, channel: Channel, items: list[Any]) -> None:
        start = perf_counter_ns()
        await channel.put(items)
        self._counters.wait += perf_counter_ns() - start


async def feed(op: Op, counters: Counters, stop: Stop, size: int, kernel: Kernel, outputs: Outputs) -> None:
    """Read a source to its end, through the fused kernel, into the outputs."""
    source = op.fn() if callable(op.fn) and not hasattr(op.fn, "__iter__") else op.fn
    if hasattr(source, "__aiter__"):
        await _feed_async(op.node.name, aiter(source), counters, stop, kernel, outputs)
    elif hasattr(source, "__iter__"):
        await _feed_sync(op.node.name, iter(source), counters, stop, size, kernel, outputs)
    else:
        error = TypeError(f"{spell(source)} cannot be iterated; a list or a generator can")
        raise operator_error(f"source {op.node.name!r}", error)
    outputs.close()


async def _feed_sync(
    name: str,
    source: Iterator[Any],
    counters: Counters,
    stop: Stop,
    limit: int,
    kernel: Kernel,
    outputs: Outputs,
) -> None:
    # Batches begin small and grow while they come fast, so that the first records of a slow source
    # are not held back, and no more is read ahead than the channels hold.
    size, turn = 1, perf_counter_ns()
    while not stop.asked:
        start = perf_counter_ns()
        try:
            items = list(islice(source, size))
        except Exception as error:
            where = f"source {name!r} failed after {counters.items_out} items or more"
            raise operator_error(where, error) from error
        now = perf_counter_ns()
        counters.busy += now - start
        if not items:
            return
        counters.items_out += len(items)
        items = kernel(items)
        if outputs.any:
            await outputs.send(items)
        if size < limit and now - start < TURN_NS:
            size = min(limit, 2 * size)
        elif now - start >= TURN_NS:
            size = max(1, size // 2)
        if now - turn > TURN_NS:
            await asyncio.sleep(0)
            turn = perf_counter_ns()


async def _feed_async(
    name: str, source: AsyncIterator[Any], counters: Counters, stop: Stop, kernel: Kernel, outputs: Outputs
) -> None:
    while True:
        start = perf_counter_ns()
        try:
            item = await stop.next_of(source)
        except StopAsyncIteration:
            return
        except Exception as error:
            where = f"source {name!r} failed after {counters.items_out} items"
            raise operator_error(where, error) from error
        counters.wait += perf_counter_ns() - start
        counters.items_out += 1
        await outputs.send(kernel([item]))


async def pump(inbox: Channel, batch: Batch, kernel: Kernel, outputs: Outputs, counters: Counters) -> None:
    """Take batches from a channel, through a kernel, into the outputs, until the channel ends."""
    while (items := await collect(inbox, batch, counters)) is not None:
        await outputs.send(kernel(items))
    outputs.close()


async def collect(inbox: Channel, batch: Batch, counters: Counters) -> list[Any] | None:
    """What is queued, up to `batch.size`; with a wait, more until that is full or the wait is over."""
    start = perf_counter_ns()
    items = await inbox.get(batch.size)
    if items is not None and batch.wait and len(items) < batch.size:
        items = list(items)
        try:
            async with asyncio.timeout(batch.wait):
                while len(items) < batch.size:
                    more = await inbox.get(batch.size - len(items))
                    if more is None:
                        break
                    items += more
        except TimeoutError:
            pass
    counters.wait += perf_counter_ns() - start
    return items


async def write(op: Op, inbox: Channel, batch: Batch, counters: Counters) -> None:
    """Give batches to a `Sink`, or items one after the other to an async function."""
    sink = op.fn
    put: Callable[[list[Any]], Awaitable[Any]] = sink.write if hasattr(sink, "write") else _one_by_one(sink)
    while (items := await collect(inbox, batch, counters)) is not None:
        start = perf_counter_ns()
        counters.in_flight = len(items)
        try:
            await put(items)
        except Exception as error:
            first = counters.items_in
            where = (
                f"sink {op.node.name!r} failed on items {first}-{first + len(items) - 1} "
                f"(the first is {spell(items[0])})"
            )
            raise operator_error(where, error) from error
        counters.in_flight = 0
        counters.items_in += len(items)
        counters.busy += perf_counter_ns() - start


def _one_by_one(fn: Callable[[Any], Awaitable[Any]]) -> Callable[[list[Any]], Awaitable[None]]:
    async def put(items: list[Any]) -> None:
        for item in items:
            await fn(item)

    return put
