"""Async operators of a finite run: long-lived workers, a bounded window, results in either order.

A result keeps the event time of its record. A watermark waits for the results of all records before it. A
barrier does not: what is in flight is part of the checkpoint, and is called again by a run that goes on from
it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from time import perf_counter_ns
from typing import Any

from sage.kernel.compile import Op
from sage.kernel.options import Batch
from sage.kernel.runtime.columns import LAST, Barrier, Columns, Control, joined
from sage.kernel.runtime.kernels import AsyncCall, Faults
from sage.kernel.runtime.paid import Paid
from sage.kernel.runtime.participant import Participant
from sage.kernel.runtime.stages import collect
from sage.kernel.runtime.state import pickled_batch, unpickled

__all__ = ["BATCH_CALLS", "CALLS", "AsyncStage"]

CALLS = 64
BATCH_CALLS = 8
AHEAD = 4
_NOTHING: Any = object()
_MISSING: Any = object()


class _Signal:
    """Wakes one sleeper; `sleeping` is None while there is none, so that a busy loop can ask for nothing."""

    __slots__ = ("sleeping",)

    def __init__(self) -> None:
        self.sleeping: asyncio.Future[None] | None = None

    async def wait(self) -> None:
        self.sleeping = asyncio.get_running_loop().create_future()
        await self.sleeping

    def wake(self) -> None:
        sleeper, self.sleeping = self.sleeping, None
        if sleeper is not None and not sleeper.done():
            sleeper.set_result(None)


class AsyncStage:
    """Runs an async operator; a unit is an item, or a batch of `map_batch`.

    At most `concurrency` calls are in flight, and at most `AHEAD` times as many units are held between taking
    them and passing their results on. With checkpoints on, `paid` has the results of calls.
    """

    def __init__(
        self, op: Op, call: AsyncCall, faults: Faults, participant: Participant, paid: Paid | None
    ) -> None:
        self._batch = op.node.batch
        self._timed = op.timed
        self._participant = participant
        self._paid = paid
        if paid is not None:
            call = paid.batch(call) if self._batch else paid.each(call)
        self._call = _with_times(call, batches=op.node.batch is not None) if op.timed else call
        self._faults = faults
        self._counters = faults.counters
        self._inbox = participant.inbox
        self._chain = participant.chain
        self._outputs = participant.outputs
        self._concurrency = op.node.call.concurrency or (BATCH_CALLS if self._batch else CALLS)
        self._ordered = op.node.call.order == "input"
        self._queue: deque[Any] = deque()
        self._idle: list[asyncio.Future[None]] = []
        self._workers = 0
        self._started = 0
        self._taken = 0
        # Units that are called, by number, the oldest first; in input order until they are passed on.
        self._open: dict[int, Any] = {}
        self._messages: deque[tuple[int, Control]] = deque()  # each behind so many units
        self._offsets: dict[int, int] = {}  # of a batch that is held: the position of its first item
        self._done: list[Any] = []
        self._early: dict[int, Any] = {}
        self._next = 0
        self._held = 0
        self._closed = False
        self._shift = 0  # what is to be added to a number, to have the position of its item
        self._positions: dict[int, int] = {}  # of units that were in flight at the last checkpoint
        self._barrier: Barrier | None = None
        self._passed = _Signal()
        self._room = _Signal()
        self._ready = _Signal()
        participant.begin = self.begin
        participant.on_front = self._room.wake

    async def run(self, group: asyncio.TaskGroup) -> None:
        """Work until the inbox ends and every result is passed on."""
        if self._participant.restored is not None:
            self._restore(*self._participant.restored)
            self._wake(group)
        flusher = group.create_task(self._flush())
        while (units := await self._take()) is not None:
            self._held += len(units)
            self._taken += len(units)
            self._queue.extend(units)
            self._wake(group)
        self._closed = True
        self._ready.wake()
        for waiter in self._idle:
            if not waiter.done():
                waiter.set_result(None)
        await flusher
        await self._outputs.send(self._chain.control(LAST))
        self._outputs.close()

    async def _take(self) -> list[Any] | None:
        most = AHEAD * self._concurrency
        while self._held >= most and not self._inbox.barred:
            await self._room.wait()
        # Items wait in the channel, not here, so that its bound is the bound.
        batch = self._batch or Batch(max(1, most - self._held))
        items = await collect(self._inbox, batch, self._counters)
        if items is None:
            return None
        if isinstance(items, Barrier):
            # Nothing more is taken until it has passed, so that all that is held came before it.
            self._barrier = items
            self._ready.wake()
            await self._passed.wait()
            return []
        if isinstance(items, Control):
            self._messages.append((self._taken, items))
            self._ready.wake()
            return []
        if self._batch:
            self._offsets[self._taken] = self._counters.items_in
        self._counters.items_in += len(items)
        self._counters.in_flight += len(items)
        if self._batch:
            return [items]
        return items if isinstance(items, list) else list(zip(items.values, items.times, strict=True))

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
        # What is read for every item is a local name: a lookup here costs as much as the bookkeeping.
        queue, call, clock = self._queue, self._call, perf_counter_ns
        early, finish, ready, counters = self._early, self._done.append, self._ready, self._counters
        in_flight, ordered = self._open, self._ordered
        kept = self._paid is not None or (self._timed and not ordered)
        dropped = kept and not ordered
        offsets, batches = self._offsets, self._batch is not None
        while queue or await self._more():
            if not queue:
                continue
            unit = queue.popleft()
            number = self._started
            self._started = number + 1
            if kept:
                in_flight[number] = unit
            start = clock()
            try:
                result = await call(unit)
            except Exception as error:
                result = self._settle(unit, error, number)
            except asyncio.CancelledError as error:
                result = self._settle(unit, _own(error), number)
            counters.busy += clock() - start
            if batches:
                del offsets[number]
            if dropped:
                del in_flight[number]
            if not ordered:
                finish(result)
            else:
                early[number] = result
                if number != self._next:
                    continue
            if ready.sleeping is not None:
                ready.wake()

    async def _more(self) -> bool:
        if self._closed:
            return False
        waiter = asyncio.get_running_loop().create_future()
        self._idle.append(waiter)
        await waiter
        return True

    def _settle(self, unit: Any, error: Exception, number: int) -> Any:
        first = self._offsets[number] if self._batch else self._position(number)
        for at, item in enumerate(self._items(unit)):
            self._faults.settle(item, error, first + at)
        return _NOTHING

    def _position(self, number: int) -> int:
        return self._positions.get(number, number + self._shift)

    def _items(self, unit: Any) -> list[Any]:
        if self._batch:
            return unit.values if self._timed else unit  # type: ignore[no-any-return]
        return [unit[0] if self._timed else unit]

    async def _flush(self) -> None:
        while self._held or self._messages or not self._closed:
            done = self._finished()
            # What is done is in `done`: all calls before the oldest that is in flight.
            oldest = self._next if self._ordered else next(iter(self._open), self._started)
            if done:
                await self._pass_on(done)
            elif self._barrier is not None and self._may_pass(self._barrier):
                await self._let_pass(self._barrier)
            elif not (self._messages and self._messages[0][0] <= oldest):
                await self._ready.wait()
                continue
            while self._messages and self._messages[0][0] <= oldest:
                message = self._messages.popleft()[1]
                await self._outputs.send(self._chain.control(message))
                self._outputs.control(message)

    # ---- checkpoints -----------------------------------------------------------------------------------

    def begin(self, barrier: Barrier) -> None:
        """See `Participant`."""
        if self._closed:
            self._inbox.mark(barrier)
            self._barrier = barrier
            self._ready.wake()
        else:
            self._inbox.inject(barrier)

    def _may_pass(self, barrier: Barrier) -> bool:
        return not barrier.drains or not (self._held or self._messages)

    async def _let_pass(self, barrier: Barrier) -> None:
        """All that is done is passed on: what is held now, as inputs, is the state."""
        if self._outputs.behind:
            await self._outputs.send([])  # and then look again whether more is done
            return
        self._barrier = None
        assert self._paid is not None, "a barrier comes only where there are checkpoints"
        self._paid.turn(barrier.epoch + 1)
        await self._participant.take(barrier, self._state())
        self._passed.wake()

    def _state(self) -> tuple[Any, ...]:
        """Units as (position, unit, and their result if it is here), and messages, each behind so many."""
        queued = enumerate(self._queue, self._started)
        units, numbers = [], []
        for number, unit in (*self._open.items(), *queued):
            result = self._early.get(number, _MISSING)
            if result is _NOTHING:
                continue  # it failed, and that is settled
            known = () if result is _MISSING else (self._items(result),)
            position = self._offsets.get(number, 0) if self._batch else self._position(number)
            numbers.append(number)
            units.append((position, pickled_batch([unit], self._counters.name), known))
        messages = [(sum(number < at for number in numbers), one) for at, one in self._messages]
        return units, messages

    def _restore(self, units: list[tuple[int, bytes, tuple[Any, ...]]], messages: list[Any]) -> None:
        assert self._paid is not None, "a state comes from a checkpoint"
        for number, (position, data, known) in enumerate(units):
            [unit] = unpickled(data, f"an item of operator {self._counters.name!r}")
            (self._offsets if self._batch else self._positions)[number] = position
            for results in known:
                for item, result in zip(self._items(unit), results, strict=True):
                    self._paid.preset(item, result)
            self._queue.append(unit)
        self._taken = self._held = len(units)
        self._shift = self._counters.items_in - len(units)
        self._messages.extend(messages)

    async def _pass_on(self, done: list[Any]) -> None:
        counters = self._counters
        results: Any = [result for result in done if result is not _NOTHING]
        if self._batch:
            results = joined(results) if results else []
        elif self._timed:
            results = Columns([value for value, _ in results], [time for _, time in results])
        counters.items_out += len(results)
        counters.in_flight = counters.items_in - counters.items_out - counters.skipped - counters.diverted
        await self._outputs.send(self._chain.run(results))
        self._held -= len(done)
        self._room.wake()

    def _finished(self) -> list[Any]:
        if not self._ordered:
            done = self._done[:]
            self._done.clear()
            return done
        early, first = self._early, self._next
        while self._next in early:
            self._open.pop(self._next, None)
            self._next += 1
        return [early.pop(at) for at in range(first, self._next)]


def _with_times(call: AsyncCall, *, batches: bool) -> AsyncCall:
    """The call for records with times: a unit is a (record, time) pair, or columns."""

    async def one(unit: tuple[Any, float]) -> tuple[Any, float]:
        return await call(unit[0]), unit[1]

    async def many(unit: Columns) -> Columns:
        return Columns(await call(unit.values), unit.times)

    return many if batches else one


def _own(error: asyncio.CancelledError) -> Exception:
    """A cancellation from inside the operator is its failure; one from outside goes on."""
    task = asyncio.current_task()
    if task is None or task.cancelling():
        raise error
    return RuntimeError("it was cancelled from within")
