"""The stages of a finite run that are neither source nor sink nor async: clocks, kernels, batches."""

from __future__ import annotations

import asyncio
from time import perf_counter_ns

from sage.kernel.options import Batch
from sage.kernel.runtime.channel import Channel
from sage.kernel.runtime.columns import LAST, Barrier, Control, Idle, Watermark, joined
from sage.kernel.runtime.columns import Batch as Records
from sage.kernel.runtime.participant import Participant
from sage.kernel.runtime.report import Counters
from sage.kernel.runtime.timed import Clock

__all__ = ["collect", "pump", "tell_time"]


async def pump(participant: Participant, batch: Batch, counters: Counters) -> None:
    """Take batches from a channel, through a chain, into the outputs, until the channel ends."""
    inbox, chain, outputs = participant.inbox, participant.chain, participant.outputs
    while (items := await collect(inbox, batch, counters)) is not None:
        if not isinstance(items, Control):
            await outputs.send(chain.run(items))
        elif isinstance(items, Barrier):
            await participant.take(items)
        else:
            await outputs.send(chain.control(items))
            outputs.control(items)
    await outputs.send(chain.control(LAST))
    outputs.close()


async def tell_time(clock: Clock, participant: Participant, batch: Batch, counters: Counters) -> None:
    """Give records their event times, and tell those behind how far the stream has come."""
    inbox, chain, outputs = participant.inbox, participant.chain, participant.outputs
    told = float("-inf")
    if participant.restored is not None:
        clock.latest, told = participant.restored
    while (items := await _patiently(clock.idle, inbox, batch, counters)) is not None:
        if isinstance(items, Barrier):
            await participant.take(items, (clock.latest, told))
            continue
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
