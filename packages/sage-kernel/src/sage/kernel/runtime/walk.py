"""Walking the stages of a plan with one record, in the task of whoever waits for it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from time import perf_counter_ns
from typing import Any, Final

from sage.common.errors import SageError
from sage.kernel.compile import Compiled, Op, Stage
from sage.kernel.options import Batch
from sage.kernel.ports import FIRST_EPOCH
from sage.kernel.runtime.batcher import Batcher
from sage.kernel.runtime.calls import BATCH_CALLS, CALLS
from sage.kernel.runtime.chain import Chain, step_of
from sage.kernel.runtime.kernels import AsyncCall, Faults, Kernel, call_of, check_length
from sage.kernel.runtime.report import Counters

__all__ = ["NOTHING", "ReplyError", "Station", "Walk", "Wired", "visit", "wire"]

NOTHING: Final[Any] = object()
"""What stands for a reply that is not there yet."""


class ReplyError(SageError):
    """A request ended without its one reply: it was filtered out, skipped or diverted, or answered twice."""

    code = "no_reply"


@dataclass(slots=True, eq=False)
class Walk:
    """One request under way, in the task of its caller."""

    task: asyncio.Task[Any] | None
    reply: Any = NOTHING
    killed: bool = False


@dataclass(slots=True)
class Station:
    """A stage as a request sees it."""

    kernel: Kernel
    outs: list[Station]
    diverted: list[tuple[Faults, list[Station]]]
    call: AsyncCall | None = None
    faults: Faults | None = None
    room: asyncio.Semaphore | None = None
    reply: Counters | None = None


@dataclass(slots=True)
class Wired:
    """Everything a plan becomes: where requests enter, what is counted and what must be closed."""

    entry: Station
    counters: dict[int, Counters]
    batchers: list[Batcher] = field(default_factory=list)


async def visit(station: Station, item: Any, walk: Walk) -> None:
    """Go from station to station, branch by branch; the reply is in `walk` then, if there is one."""
    while True:
        items = [item] if station.call is None else await _call(station, item)
        if items:
            items = station.kernel(items)
        # Everything is taken before anything is awaited: the failures of other requests come in then.
        failures = [(f, out) for faults, outs in station.diverted for f in faults.take() for out in outs]
        for failure, out in failures:
            await visit(out, failure, walk)
        if station.reply is not None:
            _answer(station.reply, items, walk)
            return
        if len(items) != 1 or len(station.outs) != 1:
            break
        station, item = station.outs[0], items[0]
    for result in items:
        for out in station.outs:
            await visit(out, result, walk)


async def _call(station: Station, item: Any) -> list[Any]:
    call, faults, room = station.call, station.faults, station.room
    assert call is not None and faults is not None and room is not None  # noqa: PT018
    counters = faults.counters
    async with room:
        position, start = counters.items_in, perf_counter_ns()
        counters.items_in += 1
        counters.in_flight += 1
        try:
            result = await call(item)
        except Exception as error:
            faults.settle(item, error, position)
            return []
        finally:
            counters.in_flight -= 1
            counters.busy += perf_counter_ns() - start
    counters.items_out += 1
    return [result]


def _answer(counters: Counters, items: list[Any], walk: Walk) -> None:
    for item in items:
        if walk.reply is not NOTHING:
            raise ReplyError("two replies came out for one request: one of its branches may reply.")
        walk.reply = item
        counters.items_in += 1


def wire(plan: Compiled) -> Wired:
    """The stations of a plan that begins with requests."""
    counters = {op.index: Counters(op.node.name, op.node.verb) for op in plan.ops if op.node.verb != "merge"}
    faults = {i: Faults(plan.ops[i], found) for i, found in counters.items()}
    batchers: list[Batcher] = []
    stations: dict[int, Station] = {}
    # A stage follows those that feed it, so its readers are there when it is made.
    for i in reversed(range(len(plan.stages))):
        stage = plan.stages[i]
        outs = [stations[edge.stage] for edge in stage.outs]
        diverted = [
            (faults[op], [stations[edge.stage] for edge in readers]) for op, readers in stage.diverted.items()
        ]
        stations[i] = station = Station(_fused(stage, faults), outs, diverted)
        if stage.fused and stage.fused[-1].node.verb == "reply":
            station.reply = counters[stage.fused[-1].index]
        if stage.head is not None:
            _give_head(station, stage.head, faults[stage.head.index], batchers)
    return Wired(stations[0], counters, batchers)


def _fused(stage: Stage, faults: dict[int, Faults]) -> Kernel:
    ops = [op for op in stage.fused if op.node.verb != "reply"]
    return Chain([step_of(op, faults[op.index]) for op in ops]).run


def _give_head(station: Station, op: Op, faults: Faults, batchers: list[Batcher]) -> None:
    given = op.node.call.concurrency
    station.faults = faults
    if op.node.verb == "map_batch":
        call = call_of(op, faults.counters) if op.mode == "async" else _whole_sync(op)
        batchers.append(Batcher(call, op.node.batch or Batch(), given or BATCH_CALLS))
        station.call = batchers[-1]
        # The batcher bounds the calls; the items that wait for it are bounded by the job's limit.
        station.room = _Unbounded()
    else:
        station.call = _written(op) if hasattr(op.fn, "write") else call_of(op, faults.counters)
        station.room = asyncio.Semaphore(given or CALLS)


def _whole_sync(op: Op) -> AsyncCall:
    async def call(items: list[Any]) -> list[Any]:
        return check_length(op.fn(items), items)

    return call


def _written(op: Op) -> AsyncCall:
    async def call(item: Any) -> None:
        await op.fn.write(FIRST_EPOCH, [item])

    return call


class _Unbounded(asyncio.Semaphore):
    """A semaphore that always has room."""

    def locked(self) -> bool:
        return False

    async def acquire(self) -> bool:  # type: ignore[override] # typeshed says Literal[True]
        return True

    def release(self) -> None:
        return None
