"""The end of a finite run: a `Sink` with the epochs of its records, or an async function."""

from __future__ import annotations

import asyncio
import json
from time import perf_counter_ns
from typing import Any

from sage.kernel.compile import Op
from sage.kernel.options import Batch
from sage.kernel.ports import FIRST_EPOCH
from sage.kernel.runtime.columns import Barrier, Control
from sage.kernel.runtime.participant import Participant
from sage.kernel.runtime.report import CheckpointError, Counters, operator_error, spell
from sage.kernel.runtime.resources import call
from sage.kernel.runtime.stages import collect

__all__ = ["SinkEnd", "write"]


class SinkEnd:
    """What a sink node writes to. Its calls come one at a time, whoever makes them."""

    def __init__(self, op: Op) -> None:
        self.name = op.node.name
        self.transactional = hasattr(op.fn, "prepare")
        self.epoch = FIRST_EPOCH
        self._op = op
        self._lock = asyncio.Lock()
        self._is_sink = hasattr(op.fn, "write")

    async def write(self, items: list[Any]) -> int:
        """Write items of the present epoch, which it gives: no other has begun when this returns."""
        if not self._is_sink:
            for item in items:
                await self._op.fn(item)
            return self.epoch
        async with self._lock:
            await self._op.fn.write(self.epoch, items)
            return self.epoch

    async def prepare(self, epoch: int) -> Any:
        """End an epoch; gives what the sink wants to be told again."""
        async with self._lock:
            prepared = await call(self._op, "prepare", epoch) if self.transactional else None
            self.epoch = epoch + 1
        try:
            return json.loads(json.dumps(prepared, allow_nan=False))
        except (TypeError, ValueError) as error:
            raise CheckpointError(
                f"sink {self.name!r} prepared {spell(prepared)}, which is no plain data (JSON): {error}."
            ) from error

    async def commit(self, epoch: int) -> None:
        """The checkpoint that ends this epoch is durable."""
        async with self._lock:
            await call(self._op, "commit", epoch)

    async def recover(self, epoch: int, prepared: Any) -> None:
        """Go on from the checkpoint of `epoch`."""
        self.epoch = epoch + 1
        if self.transactional:
            await call(self._op, "recover", epoch, prepared)


async def write(end: SinkEnd, participant: Participant, batch: Batch, counters: Counters) -> None:
    """Give batches to a `Sink`, or items one after the other to an async function."""
    inbox = participant.inbox
    while (items := await collect(inbox, batch, counters)) is not None:
        if isinstance(items, Control):
            if isinstance(items, Barrier):
                await participant.take(items, prepared=await end.prepare(items.epoch))
            continue
        items = items if isinstance(items, list) else items.values
        start = perf_counter_ns()
        counters.in_flight = len(items)
        try:
            await end.write(items)
        except Exception as error:
            first = counters.items_in
            where = (
                f"sink {end.name!r} failed on items {first}-{first + len(items) - 1} "
                f"(the first is {spell(items[0])})"
            )
            raise operator_error(where, error) from error
        counters.in_flight = 0
        counters.items_in += len(items)
        counters.busy += perf_counter_ns() - start
