"""A stage of a finite run whose operators are on workers.

A free worker takes the next batch, so a slow one holds nobody up. Each has one batch at a time; batches begin
small and grow while they are done fast. What is with the workers when a barrier passes is part of the
checkpoint, and is done again by a run that goes on from it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from sage.kernel.compile import Op
from sage.kernel.options import Batch
from sage.kernel.runtime.columns import LAST, Barrier, Control, part
from sage.kernel.runtime.kernels import Faults
from sage.kernel.runtime.participant import Participant
from sage.kernel.runtime.replicas.account import enter
from sage.kernel.runtime.replicas.pool import Piece, Pool, Replica
from sage.kernel.runtime.replicas.scaling import Load, next_size
from sage.kernel.runtime.replicas.sequence import Sequence
from sage.kernel.runtime.stages import collect
from sage.kernel.runtime.state import pickled_batch, unpickled

__all__ = ["ParallelStage"]

AHEAD: Final = 4
"""How many batches for each worker are held between taking them and passing their results on."""


class ParallelStage:
    """Takes batches of at most `limit` items to the workers and passes on what comes of them.

    `head` is the first of the operators on the workers, `faults` are those of all.
    """

    def __init__(
        self, head: Op, pool: Pool, faults: list[Faults], limit: int, participant: Participant
    ) -> None:
        assert head.parallel is not None, "the operators of a parallel stage are on workers"
        self._pool = pool
        self._faults = faults
        self._counters = faults[0].counters
        self._participant = participant
        self._inbox = participant.inbox
        self._chain = participant.chain
        self._outputs = participant.outputs
        self._scale = head.node.provision.scale
        self._given = head.node.batch  # what the flow says; else what suits the workers
        self._limit = limit
        self._size = 1
        self._sequence = Sequence(ordered=head.parallel.order == "input", first=self._counters.items_in)
        self._again: deque[Any] = deque()  # what the checkpoint held, until it is taken
        self._open: dict[int, Any] = {}  # what is taken and has not left, by the position of its first item
        self._held = 0
        self._leaving = False
        self._barring = False
        self._closed = self._over = False
        self._changed = asyncio.Event()
        pool.on_free = participant.on_front = self._changed.set
        participant.begin = self.begin

    async def run(self, group: asyncio.TaskGroup) -> None:
        """Work until the inbox ends and every result is passed on."""
        what = f"an item of operator {self._counters.name!r}"
        self._again.extend(unpickled(data, what) for data in self._participant.restored or ())
        scaling = group.create_task(self._keep_scaled())
        async with asyncio.TaskGroup() as works:
            await self._take_all(works)
            self._closed = True
        # Where a barrier came between the last results, those behind it leave now.
        await self._until(lambda: not (self._barring or self._leaving or self._holds()))
        self._over = True
        scaling.cancel()
        await self._outputs.send(self._chain.control(LAST))
        self._outputs.close()

    async def _take_all(self, works: asyncio.TaskGroup) -> None:
        while True:
            # A worker first, then a batch: so it waits in the channel, whose bound counts.
            replica = await self._free()
            if replica is not None and self._again:
                items = self._again.popleft()
            else:
                items = await collect(self._inbox, self._batch(), self._counters)
            if replica is not None and items is not None and not isinstance(items, Control):
                works.create_task(self._work(replica, self._taken(items), items))
                continue
            if replica is not None:
                await self._pool.give(replica)
            if items is None:
                return
            if isinstance(items, Barrier) and items.drains and self._again:
                self._again.append(items)  # behind what it is to drain
            elif isinstance(items, Barrier):
                await self._let_pass(items)
            else:
                assert isinstance(items, Control), "no worker was taken because a barrier is next"
                self._sequence.message(items)
            await self._leave()

    async def _free(self) -> Replica | None:
        """A worker, once one is free and not too much is held; None where a barrier is to be taken."""
        while not self._inbox.barred:
            if not self._full() and (replica := self._pool.take_now()):
                return replica
            self._changed.clear()
            await self._changed.wait()
        return None

    def _full(self) -> bool:
        return self._held >= AHEAD * max(1, len(self._pool))

    def _holds(self) -> bool:
        return bool(self._open or self._sequence.messages)

    def _batch(self) -> Batch:
        return self._given or Batch(self._size)

    def _taken(self, items: Any) -> int:
        """Give a batch its place among batches and messages, at once; the position of its first item."""
        self._held += 1
        self._counters.in_flight += len(items)
        start = self._sequence.take(len(items))
        self._open[start] = items
        return start

    async def _work(self, replica: Replica, start: int, items: Any) -> None:
        """One batch; and the next ones, as long as they are there and nobody waits for them."""
        while True:
            pieces = await self._pool.run(replica, items)
            busy = sum(tally[3] for piece in pieces for done in piece.done for tally in done.tallies)
            self._size = next_size(self._size, self._limit, len(items), busy)
            self._sequence.finish(start, [(piece.start, piece.end, piece) for piece in pieces])
            await self._leave()
            if not self._next_is_there():
                break
            more = await self._inbox.get(self._batch().size)  # which does not wait now
            assert more is not None and not isinstance(more, Control)  # noqa: PT018 - just looked at
            start, items = self._taken(more), more
        await self._pool.give(replica)

    def _next_is_there(self) -> bool:
        inbox = self._inbox
        if not inbox.entries or inbox.getter is not None or isinstance(inbox.entries[0], Control):
            return False
        return self._pool.keeps and not (self._full() or self._again or self._barring or self._batch().wait)

    async def _leave(self) -> None:
        """Pass on what may leave; one task does so at a time, for the others as well."""
        if self._leaving:
            return
        self._leaving = True
        while not self._barring and (turn := self._sequence.leave()) is not None:
            if isinstance(turn, Control):
                await self._outputs.send(self._chain.control(turn))
                self._outputs.control(turn)
            else:
                await self._pass_on(*turn)
        self._leaving = False
        self._changed.set()

    async def _pass_on(self, at: int, piece: Piece) -> None:
        items, count = self._open.pop(at), piece.end - piece.start
        self._counters.in_flight -= count
        if piece.error is None:
            results = self._chain.run(enter(piece.done[0], self._faults, at))
        else:
            results = self._give_up(at, part(items, 0, count), piece.error)
        if count < len(items):
            self._open[at + count] = part(items, count, None)
        else:
            self._held -= 1
        await self._outputs.send(results)

    def _give_up(self, start: int, items: Any, error: Exception) -> list[Any]:
        values = items if isinstance(items, list) else items.values
        for at, item in enumerate(values):
            self._faults[0].settle(item, error, start + at)
        self._counters.items_in += len(values)
        return []

    async def _keep_scaled(self) -> None:
        if self._scale is not None:
            await self._pool.keep_scaled(self._scale, self._load)

    def _load(self) -> Load:
        return Load(self._inbox.size, self._counters.items_in, self._pool.working)

    async def _until(self, there: Callable[[], bool]) -> None:
        while not there():
            self._changed.clear()
            await self._changed.wait()

    # ---- checkpoints -----------------------------------------------------------------------------------

    def begin(self, barrier: Barrier) -> None:
        """See `Participant`."""
        if not self._closed:
            self._inbox.inject(barrier)
            return
        self._inbox.mark(barrier)
        if not self._over:
            self._barring = True
            self._participant.spawn(self._let_pass(barrier))

    async def _let_pass(self, barrier: Barrier) -> None:
        """Between two results, or behind all of them: what has not left then is the state, as inputs."""
        self._barring = not barrier.drains
        try:
            if barrier.drains:
                await self._until(lambda: not self._holds())
            await self._until(lambda: not self._leaving)
            self._barring = True
            await self._participant.take(barrier, self._state())
        finally:
            self._barring = False
            self._changed.set()
        if self._closed:
            await self._leave()

    def _state(self) -> list[bytes]:
        """Batches and messages in their order."""
        messages, held = deque(self._sequence.messages), list[Any]()
        for at, items in sorted(self._open.items()):
            while messages and messages[0][0] <= at:
                held.append(messages.popleft()[1])
            held.append(items)
        held += [message for _, message in messages]
        return [pickled_batch(one, self._counters.name) for one in (*held, *self._again)]
