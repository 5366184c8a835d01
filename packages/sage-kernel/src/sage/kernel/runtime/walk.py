"""Walking the stages of a plan with one record, in the task of whoever waits for it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from functools import partial
from time import perf_counter_ns
from typing import Any, Protocol

from sage.common.errors import SageError
from sage.kernel.compile import Compiled, Op, Stage
from sage.kernel.options import Batch
from sage.kernel.ports import FIRST_EPOCH
from sage.kernel.runtime.batcher import Batcher
from sage.kernel.runtime.calls import BATCH_CALLS, CALLS
from sage.kernel.runtime.chain import step_of
from sage.kernel.runtime.engine import Engine
from sage.kernel.runtime.gates import GateCall
from sage.kernel.runtime.kernels import AsyncCall, ChosenError, Faults, Kernel, call_of, check_length
from sage.kernel.runtime.replicas.entrance import Entrance
from sage.kernel.runtime.report import Counters
from sage.kernel.runtime.requests import NOTHING
from sage.kernel.runtime.results import ResultFile, cached, namespace_of

__all__ = [
    "ReplyError",
    "RoundsError",
    "Station",
    "Walk",
    "Wired",
    "as_stage",
    "item_call",
    "visit",
    "wire",
]


class ReplyError(SageError):
    """A request ended without its one reply: it was filtered out, skipped or diverted, or answered twice."""

    code = "no_reply"


class RoundsError(SageError):
    """A record went round its loop as often as it may and was not done."""

    code = "rounds_exceeded"


@dataclass(slots=True, eq=False)
class Walk:
    """One request under way, in the task of its caller."""

    task: asyncio.Task[Any] | None
    reply: Any = NOTHING
    killed: bool = False


class Head(Protocol):
    """What an item waits for before it goes through a station's kernel."""

    async def __call__(self, item: Any, /) -> list[Any]: ...


@dataclass(slots=True)
class Station:
    """A stage as a request sees it."""

    kernel: Kernel
    outs: list[Station]
    diverted: list[tuple[Faults, list[Station]]]
    head: Head | None = None
    reply: Counters | None = None


@dataclass(slots=True)
class Wired:
    """Everything a plan becomes: where requests enter, and what is counted."""

    entry: Station
    counters: dict[int, Counters]
    gates: list[tuple[GateCall, Station]]
    """Each with where a record goes on when it is decided on and its request is gone."""


async def visit(station: Station, item: Any, walk: Walk) -> None:
    """Go from station to station, branch by branch; the reply is in `walk` then, if there is one."""
    while True:
        items = [item] if station.head is None else await station.head(item)
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


async def _call(call: AsyncCall, faults: Faults, room: asyncio.Semaphore, item: Any) -> list[Any]:
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


def wire(plan: Compiled, engine: Engine) -> Wired:
    """The stations of a plan that begins with requests."""
    counters = {op.index: Counters(op.node.name, op.node.verb) for op in plan.ops if op.node.verb != "merge"}
    faults = {i: Faults(plan.ops[i], found) for i, found in counters.items()}
    gates: list[tuple[GateCall, Station]] = []
    stations: dict[int, Station] = {}
    # A stage follows those that feed it, so its readers are there when it is made.
    for i in reversed(range(len(plan.stages))):
        stage = plan.stages[i]
        outs = [stations[edge.stage] for edge in stage.outs]
        diverted = [
            (faults[op], [stations[edge.stage] for edge in readers]) for op, readers in stage.diverted.items()
        ]
        kernel = _fused(stage, faults, engine)
        if engine.shares and len(outs) > 1:
            kernel = engine.shares.remembering(kernel, stage.ops[-1].node.name if stage.ops else stage.name)
        stations[i] = station = Station(kernel, outs, diverted)
        if stage.fused and stage.fused[-1].node.verb == "reply":
            station.reply = counters[stage.fused[-1].index]
        if stage.on_workers:
            station.head = engine.spans.head(stage.on_workers[0].node.name, _entrance(stage, faults, engine))
        elif stage.head is not None:
            mine, room = faults[stage.head.index], _room(stage.head)
            call = _head_call(stage.head, mine.counters, engine)
            wrap = partial(engine.spans.head, stage.head.node.name)
            station.head = wrap(partial(_call, call, mine, room))
            if isinstance(call, GateCall):
                gates.append((call, replace(station, head=wrap(partial(_call, call.outcome, mine, room)))))
    return Wired(stations[0], counters, gates)


def _fused(stage: Stage, faults: dict[int, Faults], engine: Engine) -> Kernel:
    behind = stage.fused[max(0, len(stage.on_workers) - 1) :]
    ops = [op for op in behind if op.node.verb != "reply"]
    steps = [step_of(op, faults[op.index], engine.clock) for op in ops]
    return engine.spans.kernel([engine.ledger.step(step) for step in steps] if engine.ledger else steps)


def _entrance(stage: Stage, faults: dict[int, Faults], engine: Engine) -> Entrance:
    ops = stage.on_workers
    entrance = Entrance(ops[0], engine.pools, [faults[op.index] for op in ops])
    engine.entrances.append(entrance)
    engine.batchers.append(entrance.batcher)
    return entrance


def _head_call(op: Op, counters: Counters, engine: Engine) -> AsyncCall:
    written = op.node.verb == "sink" and hasattr(op.fn, "write")
    if written and engine.ledger:
        return engine.ledger.sink(op)
    return _written(op) if written else item_call(op, counters, engine)


def _room(op: Op) -> asyncio.Semaphore:
    given = op.node.call.concurrency
    # A batcher, a loop and a gate have bounds of their own; what waits there is bounded by the job's limit.
    bounds_itself = op.node.verb in ("map_batch", "gate") or (op.node.verb == "iterate" and not given)
    return _Unbounded() if bounds_itself else asyncio.Semaphore(given or CALLS)


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


def item_call(op: Op, counters: Counters, engine: Engine) -> AsyncCall:
    """The call of an operator for one item, whatever it is made of."""
    call = _item_call(op, counters, engine)
    # What is asked in a loop is kept call by call, and a gate keeps what was decided itself.
    kept = op.mode != "sync" and op.node.verb not in ("gate", "iterate")
    return engine.ledger.call(op.node.name, call) if engine.ledger and kept else call


def _item_call(op: Op, counters: Counters, engine: Engine) -> AsyncCall:
    if op.node.verb == "gate":
        return GateCall(op, engine)
    if op.node.verb == "iterate":
        call = call_of(replace(op, fn=_rounds(op, counters, engine)), counters)
    elif op.node.verb == "map_batch":
        whole = call_of(op, counters) if op.mode == "async" else _whole_sync(op)
        call = Batcher(whole, op.node.batch or Batch(), op.node.call.concurrency or BATCH_CALLS)
        engine.batchers.append(call)
    else:
        call = call_of(op, counters) if op.mode != "sync" else _each_sync(op)
    cache = op.node.call.cache
    if cache is None:
        return call
    file = ResultFile(cache, engine.clock, namespace_of(engine.flow, op)) if cache.path else None
    if file is not None:
        engine.files.append(file)
    return cached(call, cache, counters, engine.clock, file)


def by_item(op: Op) -> bool:
    """Whether a finite run, too, calls the operator with `item_call`."""
    return op.node.verb == "iterate" or op.node.call.cache is not None


def as_stage(op: Op) -> Op:
    """The operator as a stage of a finite run calls `item_call`: item by item, so many at once."""
    node, given = op.node, op.node.call.concurrency
    if node.verb == "iterate" and op.body is not None:
        inside = [CALLS, *(inner.node.call.concurrency or 0 for inner in op.body.all_ops)]
        return replace(op, node=replace(node, call=replace(node.call, concurrency=given or max(inside))))
    if node.batch is not None:
        given = node.batch.size * (given or BATCH_CALLS)
    order = node.call.order or ("input" if op.mode == "sync" else None)
    call = replace(node.call, concurrency=given, order=order)
    return replace(op, node=replace(node, batch=None, call=call))


def _whole_sync(op: Op) -> AsyncCall:
    async def call(items: list[Any]) -> list[Any]:
        return check_length(op.fn(items), items)

    return call


def _each_sync(op: Op) -> AsyncCall:
    async def call(item: Any) -> Any:
        return op.fn(item)

    return call


def _rounds(op: Op, counters: Counters, engine: Engine) -> AsyncCall:
    """Goes round the body of a loop with a record, until it is done or was round often enough."""
    spec, until = op.node.fn, op.fn.until
    wired = wire(op.fn.body, engine)
    ends = (op.fn.body.ops[0].index, op.fn.body.ops[-1].index)  # where a record enters and leaves
    counters.inner += [found for index, found in wired.counters.items() if index not in ends]

    async def call(item: Any) -> Any:
        walk = Walk(None)
        for _ in range(spec.max_rounds):
            walk.reply = NOTHING
            await visit(wired.entry, item, walk)
            if walk.reply is NOTHING:
                raise ChosenError(item, ReplyError("its body gave nothing back"), "skip")
            item = walk.reply
            if until(item):
                return item
        if spec.on_rounds == "emit":
            return item
        error = RoundsError(f"it was not done after {spec.max_rounds} rounds, its limit")
        raise ChosenError(item, error, spec.on_rounds)

    return call
