"""Gates: records wait for a decision, in the task of their request, or beside the stream of a finite run."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from itertools import count
from time import perf_counter_ns
from typing import Any

from sage.common.errors import OverloadedError
from sage.kernel.compile import Op
from sage.kernel.options import Batch
from sage.kernel.plan import Gate
from sage.kernel.runtime.columns import LAST, Barrier, Columns, Control, Watermark
from sage.kernel.runtime.columns import Batch as Records
from sage.kernel.runtime.engine import Engine
from sage.kernel.runtime.inbox import Decision, Inbox, Place, RejectedError
from sage.kernel.runtime.kernels import ChosenError, Faults
from sage.kernel.runtime.ledger import Kept
from sage.kernel.runtime.participant import Participant
from sage.kernel.runtime.requests import Note
from sage.kernel.runtime.stages import collect
from sage.kernel.runtime.state import unpickled

__all__ = ["GateCall", "GateStage"]

FULL_FOR = 1.0
"""Seconds after which a request that found an inbox full may ask again."""


class GateCall:
    """A gate as a request, or a record in a loop, comes to it: a call that lasts until the decision.

    `orphaned` gets the decisions on records whose request is gone, those that were restored.
    """

    def __init__(self, op: Op, engine: Engine) -> None:
        self._spec: Gate = op.fn
        self._on_error = op.node.call.on_error
        self._room = asyncio.Semaphore(self._spec.limit) if engine.waits else None
        self._waiting: dict[str, tuple[asyncio.Future[Decision], Callable[[Decision], None]]] = {}
        self._kept = Kept(op.node.name, engine.ledger) if engine.ledger else None
        self.inbox = Inbox(self._spec, engine.clock, self._decided)
        self.orphaned: Callable[[Decision], None] | None = None
        engine.inboxes.add(self._spec.inbox, self.inbox)

    async def __call__(self, item: Any) -> Any:
        """The item, or what was decided to send on in its place."""
        if self._spec.when is not None and not self._spec.when(item):
            return item
        if self._room is not None:
            async with self._room:
                return await self._parked(self.inbox.park(item), lambda _: None)
        if self._kept is not None:
            return await self._kept_decision(self._kept, item)
        self._need_room(item)
        return await self._parked(self.inbox.park(item), lambda _: None)

    async def outcome(self, decision: Decision) -> Any:
        """What goes on after a decision; raises what a rejected record fails with."""
        if decision.rejected is not None:
            raise ChosenError(decision.place.item, decision.rejected, self._on_error)
        return decision.value

    def _need_room(self, item: Any) -> None:
        if self.inbox.full:
            text = f"inbox {self._spec.inbox!r} holds {self._spec.limit} undecided records, its limit."
            raise ChosenError(item, OverloadedError(text, retry_after=FULL_FOR), "fail")

    async def _kept_decision(self, kept: Kept, item: Any) -> Any:
        """The decision that was made before a crash, or the one on a record that waits as it did before."""
        digest = kept.digest(item)
        if (data := kept.find(digest)) is None:
            self._need_room(item)
            ident = self.inbox.park(item)
            parked = (ident, self.inbox.states[ident].since)
            kept.note(Note(kept.operator, digest, kept.pickled(item, parked)))
        else:
            ident, since = unpickled(data, f"the place of {kept.what(item)}")
            if (data := kept.find(ident.encode())) is not None:
                value, why = unpickled(data, f"the decision on {kept.what(item)}")
                rejected = RejectedError(why) if why else None
                return await self.outcome(Decision(Place(item, since, 0), value, rejected))
            self.inbox.park_again(ident, item, since)
        return await self._parked(ident, _noting(kept, ident))

    async def _parked(self, ident: str, noting: Callable[[Decision], None]) -> Any:
        waiter = asyncio.get_running_loop().create_future()
        self._waiting[ident] = (waiter, noting)
        try:
            return await self.outcome(await waiter)
        finally:
            del self._waiting[ident]
            self.inbox.leave(ident)

    def _decided(self, ident: str, decision: Decision) -> None:
        waiter, noting = self._waiting.get(ident, (None, None))
        if waiter is not None and not waiter.done():  # else its request was cancelled a moment ago
            if noting is not None:
                noting(decision)
            waiter.set_result(decision)
        elif waiter is None and self.orphaned is not None:
            self.inbox.leave(ident)
            self.orphaned(decision)


def _noting(kept: Kept, ident: str) -> Callable[[Decision], None]:
    """What keeps the decision on the record that the present request has parked."""
    note = kept.later()

    def decided(decision: Decision) -> None:
        why = decision.rejected.message if decision.rejected else ""
        what = (None if why else decision.value, why)
        note(Note(kept.operator, ident.encode(), kept.pickled(decision.place.item, what)))

    return decided


class GateStage:
    """A gate of a finite run: what is decided on joins the stream where the stream then is.

    A parked record is state and no unit in flight, so a barrier passes it. The watermark stays at its time.
    """

    def __init__(self, op: Op, faults: Faults, participant: Participant, engine: Engine) -> None:
        self._when: Callable[[Any], object] | None = op.fn.when
        self._timed = op.timed
        self._faults = faults
        self._participant = participant
        self._source = participant.inbox
        self._chain = participant.chain
        self._outputs = participant.outputs
        self._outside: deque[tuple[Any, float, int]] = deque()  # before a full inbox: record, time, position
        self._decisions: deque[tuple[str, Decision]] = deque()
        self._decision = asyncio.Event()
        self._moved = asyncio.Event()  # something has left, or a barrier has come
        self._sending = asyncio.Lock()  # one batch or message at a time goes out
        self._watermark = self._told = float("-inf")
        self.inbox = Inbox(op.fn, engine.clock, self._decided)
        engine.inboxes.add(op.fn.inbox, self.inbox)
        participant.chain.stateful.append((op.node.name, self.inbox))
        participant.on_front = self._moved.set
        participant.begin = self._begin

    async def run(self, group: asyncio.TaskGroup, batch: Batch) -> None:
        """Work until the stream has ended and everything that was parked is decided on."""
        if self._participant.restored is not None:
            outside, self._watermark, self._told = self._participant.restored
            self._outside.extend(outside)
        sender = group.create_task(self._send_decided())
        while (records := await self._next(batch)) is not None:
            if isinstance(records, Control):
                await self._control(records)
            else:
                await self._records(records)
        async with self._sending:
            sender.cancel()
            await self._outputs.send(self._chain.control(LAST))
            self._outputs.close()

    def _begin(self, barrier: Barrier) -> None:
        """See `Participant`."""
        self._source.inject(barrier)
        self._moved.set()

    def _decided(self, ident: str, decision: Decision) -> None:
        self._decisions.append((ident, decision))
        self._decision.set()

    async def _send_decided(self) -> None:
        while True:
            await self._decision.wait()
            self._decision.clear()
            async with self._sending:
                await self._flush()
            self._moved.set()

    async def _next(self, batch: Batch) -> Records | Control | None:
        """What comes next, nothing where there is room again for what came before; None at the end."""
        source = self._source
        while True:
            if self._outside and not self.inbox.full:
                return []
            if source.barred or not (self._outside or (source.ended and not source.entries)):
                records = await collect(source, batch, self._faults.counters)
                if records is not None:
                    return records
            elif not self._outside and not self.inbox.states:
                return None
            else:
                self._moved.clear()
                await self._moved.wait()

    async def _records(self, records: Records) -> None:
        values = records if isinstance(records, list) else records.values
        times = [0.0] * len(values) if isinstance(records, list) else records.times
        counters = self._faults.counters
        self._outside.extend(zip(values, times, count(counters.items_in), strict=False))
        counters.items_in += len(values)
        passed, start = Columns([], []), perf_counter_ns()
        while self._outside:
            value, time, position = self._outside[0]
            try:
                parks = self._when is None or self._when(value)
                if parks and self.inbox.full:
                    break
            except Exception as error:
                self._faults.settle(value, error, position)
            else:
                if parks:
                    self.inbox.park(value, position, time)
                else:
                    passed.values.append(value)
                    passed.times.append(time)
            self._outside.popleft()
        counters.in_flight = len(self.inbox.states) + len(self._outside)
        counters.busy += perf_counter_ns() - start
        async with self._sending:
            await self._send(passed)

    async def _control(self, message: Control) -> None:
        async with self._sending:
            await self._flush()
            if isinstance(message, Barrier):
                await self._participant.take(message, (list(self._outside), self._watermark, self._told))
            elif isinstance(message, Watermark):
                self._watermark = message.time
                await self._advance()
            else:
                await self._outputs.send(self._chain.control(message))
                self._outputs.control(message)

    async def _flush(self) -> None:
        """Send what is decided, and the watermark that it held back."""
        out = Columns([], [])
        while self._decisions:
            ident, (place, value, rejected) = self._decisions.popleft()
            self.inbox.leave(ident)
            if rejected is not None:
                self._faults.settle(place.item, rejected, place.position)
            else:
                out.values.append(value)
                out.times.append(place.time)
        self._faults.counters.in_flight = len(self.inbox.states) + len(self._outside)
        await self._send(out)
        await self._advance()

    async def _send(self, records: Columns) -> None:
        self._faults.counters.items_out += len(records)
        await self._outputs.send(self._chain.run(records if self._timed else records.values))

    async def _advance(self) -> None:
        held = [place.time for place in self.inbox.states.values()] + [time for _, time, _ in self._outside]
        time = min([self._watermark, *held])
        if self._timed and time > self._told:
            self._told = time
            await self._outputs.send(self._chain.control(Watermark(time)))
            self._outputs.control(Watermark(time))
