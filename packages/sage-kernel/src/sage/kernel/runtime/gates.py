"""Gates: records wait for a decision, in the task of their request, or beside the stream of a finite run."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from time import perf_counter_ns
from typing import Any

from sage.common.errors import OverloadedError
from sage.kernel.compile import Op
from sage.kernel.options import Batch
from sage.kernel.plan import Gate
from sage.kernel.runtime.chain import Chain
from sage.kernel.runtime.channel import Channel
from sage.kernel.runtime.columns import LAST, Columns, Control, Watermark
from sage.kernel.runtime.columns import Batch as Records
from sage.kernel.runtime.engine import Engine
from sage.kernel.runtime.inbox import Decision, Inbox
from sage.kernel.runtime.kernels import ChosenError, Faults
from sage.kernel.runtime.stages import Outputs, collect

__all__ = ["GateCall", "GateStage"]

FULL_FOR = 1.0
"""Seconds after which a request that found an inbox full may ask again."""


class GateCall:
    """A gate as a request, or a record in a loop, comes to it: a call that lasts until the decision.

    `orphaned` gets the decisions on records whose request is gone, those that a checkpoint brought back.
    """

    def __init__(self, op: Op, engine: Engine) -> None:
        self._spec: Gate = op.fn
        self._on_error = op.node.call.on_error
        self._room = asyncio.Semaphore(self._spec.limit) if engine.waits else None
        self._waiting: dict[str, asyncio.Future[Decision]] = {}
        self.inbox = Inbox(self._spec.inbox, self._spec, engine.clock, self._decided)
        self.orphaned: Callable[[Decision], None] | None = None
        engine.inboxes.add(self._spec.inbox, self.inbox)

    async def __call__(self, item: Any) -> Any:
        """The item, or what was decided to send on in its place."""
        if self._spec.when is not None and not self._spec.when(item):
            return item
        if self._room is not None:
            async with self._room:
                return await self._decision(item)
        if self.inbox.full:
            text = f"inbox {self._spec.inbox!r} holds {self._spec.limit} undecided records, its limit."
            raise ChosenError(item, OverloadedError(text, retry_after=FULL_FOR), "fail")
        return await self._decision(item)

    async def outcome(self, decision: Decision) -> Any:
        """What goes on after a decision; raises what a rejected record fails with."""
        if decision.rejected is not None:
            raise ChosenError(decision.place.item, decision.rejected, self._on_error)
        return decision.value

    async def _decision(self, item: Any) -> Any:
        ident = self.inbox.park(item)
        waiter = self._waiting[ident] = asyncio.get_running_loop().create_future()
        try:
            return await self.outcome(await waiter)
        finally:
            del self._waiting[ident]
            self.inbox.leave(ident)

    def _decided(self, ident: str, decision: Decision) -> None:
        waiter = self._waiting.get(ident)
        if waiter is None and self.orphaned is not None:
            self.orphaned(decision)
        elif waiter is not None and not waiter.done():
            waiter.set_result(decision)


class GateStage:
    """A gate of a finite run: what is decided on joins the stream where the stream then is.

    A parked record is state and no unit in flight, so barriers pass it. The watermark stays at its time.
    """

    def __init__(self, op: Op, faults: Faults, chain: Chain, outputs: Outputs, engine: Engine) -> None:
        self._when: Callable[[Any], object] | None = op.fn.when
        self._timed = op.timed
        self._faults = faults
        self._chain = chain
        self._outputs = outputs
        self._decisions: deque[Decision] = deque()
        self._decision = asyncio.Event()
        self._moved = asyncio.Condition()  # records have left the inbox
        self._sending = asyncio.Lock()  # one batch or message at a time goes out
        self._watermark = self._told = float("-inf")
        self.inbox = Inbox(op.fn.inbox, op.fn, engine.clock, self._decided)
        engine.inboxes.add(op.fn.inbox, self.inbox)

    async def run(self, group: asyncio.TaskGroup, source: Channel, batch: Batch) -> None:
        """Work until the stream has ended and everything that was parked is decided on."""
        sender = group.create_task(self._send_decided())
        while (records := await collect(source, batch, self._faults.counters)) is not None:
            if isinstance(records, Control):
                await self._control(records)
            else:
                await self._records(records)
        await self._until(lambda: not self.inbox.states and not self._decisions)
        async with self._sending:
            sender.cancel()
            await self._outputs.send(self._chain.control(LAST))
            self._outputs.close()

    def _decided(self, _: str, decision: Decision) -> None:
        self._decisions.append(decision)
        self._decision.set()

    async def _until(self, reached: Callable[[], bool]) -> None:
        async with self._moved:
            await self._moved.wait_for(reached)

    async def _send_decided(self) -> None:
        while True:
            await self._decision.wait()
            self._decision.clear()
            async with self._sending:
                await self._flush()
            async with self._moved:
                self._moved.notify_all()

    async def _records(self, records: Records) -> None:
        values = records if isinstance(records, list) else records.values
        times = [0.0] * len(values) if isinstance(records, list) else records.times
        passed = Columns([], [])
        counters = self._faults.counters
        for value, time in zip(values, times, strict=True):
            position, start = counters.items_in, perf_counter_ns()
            counters.items_in += 1
            try:
                parks = self._when is None or self._when(value)
            except Exception as error:
                self._faults.settle(value, error, position)
                continue
            finally:
                counters.busy += perf_counter_ns() - start
            if not parks:
                passed.values.append(value)
                passed.times.append(time)
                continue
            if self.inbox.full:
                async with self._sending:
                    await self._send(passed)
                passed = Columns([], [])
                await self._until(lambda: not self.inbox.full)
            self.inbox.park(value, position, time)
            counters.in_flight = len(self.inbox.states)
        async with self._sending:
            await self._send(passed)

    async def _control(self, message: Control) -> None:
        async with self._sending:
            await self._flush()
            if isinstance(message, Watermark):
                self._watermark = message.time
                await self._advance()
            else:
                await self._outputs.send(self._chain.control(message))
                self._outputs.control(message)

    async def _flush(self) -> None:
        """Send what is decided, and the watermark that it held back."""
        out = Columns([], [])
        while self._decisions:
            place, value, rejected = self._decisions.popleft()
            if rejected is not None:
                self._faults.settle(place.item, rejected, place.position)
            else:
                out.values.append(value)
                out.times.append(place.time)
        self._faults.counters.in_flight = len(self.inbox.states)
        await self._send(out)
        await self._advance()

    async def _send(self, records: Columns) -> None:
        self._faults.counters.items_out += len(records)
        await self._outputs.send(self._chain.run(records if self._timed else records.values))

    async def _advance(self) -> None:
        held = min((place.time for place in self.inbox.states.values()), default=self._watermark)
        time = min(held, self._watermark)
        if self._timed and time > self._told:
            self._told = time
            await self._outputs.send(self._chain.control(Watermark(time)))
            self._outputs.control(Watermark(time))
