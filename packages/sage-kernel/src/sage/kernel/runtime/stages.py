"""The stages of a finite run: sources, clocks, fused kernels, batches, sinks. Async calls are in `calls`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from functools import partial
from itertools import islice
from time import perf_counter_ns
from typing import Any

from sage.kernel.compile import Op
from sage.kernel.options import Batch
from sage.kernel.ports import FIRST_EPOCH
from sage.kernel.runtime.chain import Chain
from sage.kernel.runtime.channel import Channel, Writer
from sage.kernel.runtime.columns import LAST, Control, Idle, Watermark, joined
from sage.kernel.runtime.columns import Batch as Records
from sage.kernel.runtime.kernels import Faults
from sage.kernel.runtime.report import Counters, operator_error, spell
from sage.kernel.runtime.timed import Clock

__all__ = ["Outputs", "Stop", "collect", "feed", "pump", "tell_time", "write"]

TURN_NS = 2_000_000
"""How long a source may keep the event loop, and how long one of its batches should take."""


class Stop:
    """A request to end the sources, or to hold them for a while, and let what was read drain."""

    def __init__(self) -> None:
        self.asked = False
        self.paused = False
        self._go = asyncio.Event()
        self._reading: set[asyncio.Task[Any]] = set()
        self._woken: set[asyncio.Task[Any]] = set()

    def ask(self) -> None:
        """Stop reading; a source that waits for its next record is woken."""
        self.asked = True
        self.resume()
        self._woken = set(self._reading)
        for task in self._woken:
            task.cancel()

    def pause(self) -> None:
        """Hold the sources, unless they are to stop; one that waits for its next record keeps it back."""
        if not self.asked:
            self.paused = True
            self._go.clear()

    def resume(self) -> None:
        """Let them go on."""
        self.paused = False
        self._go.set()

    async def resumed(self) -> None:
        """Return once nothing holds the sources."""
        while self.paused:
            await self._go.wait()

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
        self, outs: list[Writer], diverted: list[tuple[Faults, list[Writer]]], counters: Counters
    ) -> None:
        self._outs = outs
        self._diverted = diverted
        self._counters = counters
        self.any = bool(outs or diverted)

    async def send(self, items: Records) -> None:
        """Put a batch and what was diverted meanwhile; returns once there is room for all."""
        if items:
            for writer in self._outs:
                if not writer.try_put(items):
                    await self._wait(writer, items)
        for faults, writers in self._diverted:
            if faults.failures:
                failures: list[Any] = list(faults.take())
                for writer in writers:
                    if not writer.try_put(failures):
                        await self._wait(writer, failures)

    def control(self, message: Control) -> None:
        """Send a message behind all that was put; what is diverted has no event time, and needs none."""
        for writer in self._outs:
            writer.control(message)

    def close(self) -> None:
        """End the streams."""
        for writer in (*self._outs, *(w for _, writers in self._diverted for w in writers)):
            writer.close()

    async def _wait(self, writer: Writer, items: Records) -> None:
        start = perf_counter_ns()
        await writer.put(items)
        self._counters.wait += perf_counter_ns() - start


async def feed(op: Op, counters: Counters, stop: Stop, size: int, chain: Chain, outputs: Outputs) -> None:
    """Read a source to its end, through the fused kernel, into the outputs."""
    source = op.fn() if callable(op.fn) and not hasattr(op.fn, "__iter__") else op.fn
    if hasattr(source, "read") and not hasattr(source, "__iter__"):
        source = _records(source.read(None))
    if hasattr(source, "__aiter__"):
        await _feed_async(op.node.name, aiter(source), counters, stop, chain, outputs)
    elif hasattr(source, "__iter__"):
        await _feed_sync(op.node.name, iter(source), counters, stop, size, chain, outputs)
    else:
        error = TypeError(f"{spell(source)} cannot be iterated; a list or a generator can")
        raise operator_error(f"source {op.node.name!r}", error)
    outputs.close()


def _records(pairs: Any) -> Any:
    """What a `Replayable` reads, without the positions."""
    if hasattr(pairs, "__aiter__"):
        return (record async for _, record in pairs)
    return (record for _, record in pairs)


async def _feed_sync(
    name: str,
    source: Iterator[Any],
    counters: Counters,
    stop: Stop,
    limit: int,
    chain: Chain,
    outputs: Outputs,
) -> None:
    # Batches begin small and grow while they come fast, so that the first records of a slow source
    # are not held back, and no more is read ahead than the channels hold.
    size, turn = 1, perf_counter_ns()
    while not stop.asked:
        if stop.paused:
            await stop.resumed()
            continue
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
        items = chain.run(items)
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
    name: str, source: AsyncIterator[Any], counters: Counters, stop: Stop, chain: Chain, outputs: Outputs
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
        if stop.paused:
            await stop.resumed()
        counters.wait += perf_counter_ns() - start
        counters.items_out += 1
        await outputs.send(chain.run([item]))


async def pump(inbox: Channel, batch: Batch, chain: Chain, outputs: Outputs, counters: Counters) -> None:
    """Take batches from a channel, through a chain, into the outputs, until the channel ends."""
    while (items := await collect(inbox, batch, counters)) is not None:
        if isinstance(items, Control):
            await outputs.send(chain.control(items))
            outputs.control(items)
        else:
            await outputs.send(chain.run(items))
    await outputs.send(chain.control(LAST))
    outputs.close()


async def tell_time(
    clock: Clock, inbox: Channel, batch: Batch, chain: Chain, outputs: Outputs, counters: Counters
) -> None:
    """Give records their event times, and tell those behind how far the stream has come."""
    told = float("-inf")
    while (items := await _patiently(clock.idle, inbox, batch, counters)) is not None:
        if isinstance(items, Control):
            outputs.control(items)
            told = float("-inf") if type(items) is Idle else told  # the next batch ends it
            continue
        start = perf_counter_ns()
        assert isinstance(items, list), "records before a clock have no times"
        timed = clock.run(items)
        counters.busy += perf_counter_ns() - start
        counters.items_in += len(items)
        counters.items_out += len(timed)
        await outputs.send(chain.run(timed))
        if clock.watermark > told:
            told = clock.watermark
            await outputs.send(chain.control(Watermark(told)))
            outputs.control(Watermark(told))
    await outputs.send(chain.control(LAST))
    outputs.close()


async def _patiently(
    idle: float, inbox: Channel, batch: Batch, counters: Counters
) -> Records | Control | None:
    """The next batch or message; `Idle` when there was none for so many seconds, 0 = however long."""
    if not idle or inbox.entries:
        return await collect(inbox, batch, counters)
    try:
        async with asyncio.timeout(idle):
            return await collect(inbox, batch, counters)
    except TimeoutError:
        return Idle()


async def collect(inbox: Channel, batch: Batch, counters: Counters) -> Records | Control | None:
    """A message; or what is queued, up to `batch.size`; with a wait, more until full or that is over."""
    start = perf_counter_ns()
    items = await inbox.get(batch.size)
    if batch.wait and items is not None and not isinstance(items, Control) and len(items) < batch.size:
        parts = [items]
        try:
            async with asyncio.timeout(batch.wait):
                while (room := batch.size - sum(map(len, parts))) > 0:
                    more = await inbox.get(room)
                    if more is None:
                        break
                    if isinstance(more, Control):
                        inbox.unget(more)
                        break
                    parts.append(more)
        except TimeoutError:
            pass
        items = joined(parts)
    counters.wait += perf_counter_ns() - start
    return items


async def write(op: Op, inbox: Channel, batch: Batch, counters: Counters) -> None:
    """Give batches to a `Sink`, or items one after the other to an async function."""
    sink = op.fn
    put = partial(sink.write, FIRST_EPOCH) if hasattr(sink, "write") else _one_by_one(sink)
    while (items := await collect(inbox, batch, counters)) is not None:
        if isinstance(items, Control):
            continue
        items = items if isinstance(items, list) else items.values
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
