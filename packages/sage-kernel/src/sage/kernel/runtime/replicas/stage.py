"""A stage of a finite run whose operators are on workers.

A free worker takes the next batch, so a slow one holds nobody up. Each has one batch at a time; batches begin
small and grow while they are done fast.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

from sage.kernel.compile import Op
from sage.kernel.options import Batch
from sage.kernel.runtime.chain import Chain
from sage.kernel.runtime.channel import Channel
from sage.kernel.runtime.columns import LAST, Control, part
from sage.kernel.runtime.kernels import Faults
from sage.kernel.runtime.replicas.account import enter
from sage.kernel.runtime.replicas.pool import Piece, Pool, Replica
from sage.kernel.runtime.replicas.scaling import Load, next_size
from sage.kernel.runtime.replicas.sequence import Sequence
from sage.kernel.runtime.stages import Outputs, collect

__all__ = ["ParallelStage"]

AHEAD: Final = 4
"""How many batches for each worker are held between taking them and passing their results on."""


class ParallelStage:
    """Takes batches of at most `limit` items to the workers and passes on what comes of them.

    `faults` are those of the operators on the workers, `chain` what is fused behind them.
    """

    def __init__(
        self, ops: list[Op], pool: Pool, faults: list[Faults], limit: int, chain: Chain, outputs: Outputs
    ) -> None:
        head = ops[0]
        assert head.parallel is not None, "the operators of a parallel stage are on workers"
        self._pool = pool
        self._faults = faults
        self._counters = faults[0].counters
        self._chain = chain
        self._outputs = outputs
        self._scale = head.node.provision.scale
        self._given = head.node.batch  # what the flow says; else what suits the workers
        self._limit = limit
        self._size = 1
        self._sequence = Sequence(ordered=head.parallel.order == "input")
        self._held = 0
        self._leaving = False
        self._room = asyncio.Event()

    async def run(self, inbox: Channel) -> None:
        """Work until the inbox ends and every result is passed on."""
        async with asyncio.TaskGroup() as helpers:
            helping = []
            if self._scale:
                counters = self._counters
                scaling = self._pool.keep_scaled(
                    self._scale, lambda: Load(inbox.size, counters.items_in, self._pool.working)
                )
                helping.append(helpers.create_task(scaling))
            async with asyncio.TaskGroup() as group:
                while True:
                    # A worker first, then a batch: so it waits in the channel, whose bound counts.
                    replica = await self._free()
                    items = await collect(inbox, self._batch(), self._counters)
                    if items is not None and not isinstance(items, Control):
                        group.create_task(self._work(replica, self._taken(items), items, inbox))
                        continue
                    await self._pool.give(replica)
                    if items is None:
                        break
                    self._sequence.message(items)
                    await self._leave()
            for helper in helping:
                helper.cancel()
        await self._outputs.send(self._chain.control(LAST))
        self._outputs.close()

    async def _free(self) -> Replica:
        while self._full():
            self._room.clear()
            await self._room.wait()
        return await self._pool.take()

    def _full(self) -> bool:
        return self._held >= AHEAD * max(1, len(self._pool))

    def _batch(self) -> Batch:
        return self._given or Batch(self._size)

    def _taken(self, items: Any) -> int:
        """Give a batch its place among batches and messages, at once; the position of its first item."""
        self._held += 1
        self._counters.in_flight += len(items)
        return self._sequence.take(len(items))

    async def _work(self, replica: Replica, start: int, items: Any, inbox: Channel) -> None:
        """One batch; and the next ones, as long as they are there and nobody waits for them."""
        while True:
            pieces = await self._pool.run(replica, items)
            busy = sum(tally[3] for piece in pieces for done in piece.done for tally in done.tallies)
            self._size = next_size(self._size, self._limit, len(items), busy)
            self._sequence.finish(start, [(piece.start, piece.end, (items, piece)) for piece in pieces])
            await self._leave()
            if not self._next_is_there(inbox):
                break
            more = await inbox.get(self._batch().size)  # which does not wait now
            assert more is not None and not isinstance(more, Control)  # noqa: PT018 - just looked at
            start, items = self._taken(more), more
        await self._pool.give(replica)

    def _next_is_there(self, inbox: Channel) -> bool:
        ready = inbox.entries and inbox.getter is None and not self._batch().wait
        return (
            bool(ready)
            and not isinstance(inbox.entries[0], Control)
            and self._pool.keeps
            and not self._full()
        )

    async def _leave(self) -> None:
        """Pass on what may leave; one task does so at a time, for the others as well."""
        if self._leaving:
            return
        self._leaving = True
        while (turn := self._sequence.leave()) is not None:
            if isinstance(turn, Control):
                await self._outputs.send(self._chain.control(turn))
                self._outputs.control(turn)
            else:
                start, (items, piece) = turn
                await self._pass_on(start, items, piece)
        self._leaving = False

    async def _pass_on(self, start: int, items: Any, piece: Piece) -> None:
        self._counters.in_flight -= piece.end - piece.start
        if piece.error is None:
            results = self._chain.run(enter(piece.done[0], self._faults, start))
        else:
            results = self._give_up(start, part(items, piece.start, piece.end), piece.error)
        await self._outputs.send(results)
        if piece.end == len(items):
            self._held -= 1
            self._room.set()

    def _give_up(self, start: int, items: Any, error: Exception) -> list[Any]:
        values = items if isinstance(items, list) else items.values
        for at, item in enumerate(values):
            self._faults[0].settle(item, error, start + at)
        self._counters.items_in += len(values)
        return []
