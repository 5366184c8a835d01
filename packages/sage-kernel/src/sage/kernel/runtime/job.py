"""A flow of requests as a running service.

A request walks the stages in the task of its caller: one coroutine from entry to reply, so that cancelling
the caller cancels whatever call is in flight, and an error is the caller's own. Only `map_batch` brings
requests together, in a batch of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import partial
from time import perf_counter, perf_counter_ns
from typing import TYPE_CHECKING, Any, Protocol

from sage.common.errors import OverloadedError, SageError, UnavailableError, UsageError
from sage.kernel.compile import Compiled, Op, Stage
from sage.kernel.options import Batch
from sage.kernel.ports import FIRST_EPOCH
from sage.kernel.runtime.batcher import Batcher
from sage.kernel.runtime.calls import BATCH_CALLS, CALLS
from sage.kernel.runtime.chain import Chain, step_of
from sage.kernel.runtime.channel import Channel, Writer
from sage.kernel.runtime.kernels import PARTS, AsyncCall, Faults, Kernel, call_of, check_length
from sage.kernel.runtime.mutation import Shares, guarded
from sage.kernel.runtime.replicas.entrance import Entrance
from sage.kernel.runtime.replicas.opening import opened_pools
from sage.kernel.runtime.replicas.pool import Pool
from sage.kernel.runtime.report import Counters, RunReport, reports
from sage.kernel.runtime.resources import begin_anew, commit, opened

if TYPE_CHECKING:
    from sage.kernel.scheduler import Node

__all__ = ["Job", "ReplyError", "ReplyStream"]

_NOTHING: Any = object()
PARTS_AHEAD = 16


class ReplyError(SageError):
    """A request ended without its one reply: it was filtered out, skipped or diverted, or answered twice."""

    code = "no_reply"


@dataclass(slots=True, eq=False)
class _Walk:
    """One request under way, in the task of its caller."""

    task: asyncio.Task[Any] | None
    reply: Any = _NOTHING
    killed: bool = False


class _Head(Protocol):
    """What an item waits for before it goes through a station's kernel."""

    async def __call__(self, item: Any, /) -> list[Any]: ...


@dataclass(slots=True)
class _Station:
    """A stage as a request sees it."""

    kernel: Kernel
    outs: list[_Station]
    diverted: list[tuple[Faults, list[_Station]]]
    head: _Head | None = None
    reply: Counters | None = None


@dataclass(slots=True)
class _Wired:
    """Everything a plan becomes: where requests enter, what is counted and what must be closed."""

    entry: _Station
    counters: dict[int, Counters]
    batchers: list[Batcher] = field(default_factory=list)
    entrances: list[Entrance] = field(default_factory=list)


class Job:
    """A flow that answers requests; made by `LocalEnvironment.submit`."""

    def __init__(
        self, plan: Compiled, limit: int, pools: dict[int, Pool], shares: Shares | None = None
    ) -> None:
        self._plan = plan
        self._limit = limit
        self._wired = _wire(plan, pools, shares)
        self._live: set[_Walk] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._state = "running"
        self._cut = False
        self._stack = AsyncExitStack()
        self._started = perf_counter()

    @classmethod
    async def start(
        cls, plan: Compiled, limit: int, machine: Node | None = None, shares: Shares | None = None
    ) -> Job:
        """Set everything up and begin to take requests.

        `machine`: what operators with `resources` find; `shares`: who looks after records that are shared.
        """
        plan = guarded(plan, shares) if shares else plan
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(opened(plan.ops))
            await begin_anew(plan.ops)
            pools = await stack.enter_async_context(opened_pools(plan, machine))
            job = cls(plan, limit, pools, shares)
            for entrance in job._wired.entrances:
                scaling = asyncio.create_task(entrance.keep_scaled())
                stack.push_async_callback(_ended, scaling)
            job._stack = stack.pop_all()
            return job

    async def request(self, item: Any) -> Any:
        """Send one item through the flow and return its reply.

        Raises `OverloadedError` over the limit, `UnavailableError` when stopped, `ReplyError` when no reply
        comes out, and what an operator raised. Parts of streaming operators are dropped; see `stream`.
        """
        if self._state != "running":
            raise UnavailableError(f"flow {self._plan.name!r} is {self._state} and takes no requests.")
        if len(self._live) >= self._limit:
            raise OverloadedError(
                f"flow {self._plan.name!r} has {self._limit} requests in flight, its limit.", retry_after=1.0
            )
        walk = _Walk(asyncio.current_task())
        self._live.add(walk)
        self._idle.clear()
        try:
            self._wired.counters[0].items_out += 1
            await _visit(self._wired.entry, item, walk)
        except asyncio.CancelledError:
            # Only a cancellation of our own making becomes an error; the caller's own goes on.
            if walk.killed and walk.task and walk.task.uncancel() == 0:
                raise UnavailableError(f"flow {self._plan.name!r} was stopped before it replied.") from None
            raise
        finally:
            self._live.discard(walk)
            if not self._live:
                self._idle.set()
        if walk.reply is _NOTHING:
            raise ReplyError(f"flow {self._plan.name!r} gave no reply: filtered, skipped or diverted.")
        return walk.reply

    def stream(self, item: Any) -> ReplyStream:
        """`request`, with the partial results on the way: iterate, then `await stream.reply()`."""
        return ReplyStream(self, item)

    def report(self) -> RunReport:
        """The counts since the start."""
        counters = reports(self._wired.counters.values())
        return RunReport(self._plan.name, perf_counter() - self._started, self._cut, counters)

    async def stop(self, *, drain: bool = True) -> None:
        """Take no more requests, wait for those in flight (or cancel them), commit the sinks, close."""
        if self._state == "stopped":
            return
        self._state = "stopping"
        if not drain:
            self._cut = bool(self._live)
            for walk in self._live:
                walk.killed = True
                if walk.task:
                    walk.task.cancel()
        await self._idle.wait()
        if self._state == "stopping":
            self._state = "stopped"
            async with self._stack:
                for batcher in self._wired.batchers:
                    await batcher.close()
                await commit(self._plan.ops, {})

    async def __aenter__(self) -> Job:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        await self.stop(drain=kind is None)


class ReplyStream:
    """The partial results of one request, then its reply.

    Leaving the iteration early cancels the request.
    """

    def __init__(self, job: Job, item: Any) -> None:
        self._job = job
        self._item = item
        self._begun = False
        self._reply: Any = _NOTHING

    async def __aiter__(self) -> AsyncGenerator[Any, None]:
        if self._begun:
            raise UsageError("A ReplyStream is iterated once; make another with job.stream(item).")
        self._begun = True
        channel = Channel(PARTS_AHEAD)
        task = asyncio.create_task(self._walk(channel.writer()))
        try:
            while isinstance(parts := await channel.get(), list):
                for part in parts:
                    yield part
            self._reply = await task
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait({task})

    async def reply(self) -> Any:
        """The reply; parts that were not read until now are dropped."""
        if not self._begun:
            async for _ in self:
                pass
        if self._reply is _NOTHING:
            raise ReplyError("The stream was left before its end, so there is no reply.")
        return self._reply

    async def _walk(self, writer: Writer) -> Any:
        async def send(part: Any) -> None:
            await writer.put([part])

        PARTS.set(send)
        try:
            return await self._job.request(self._item)
        finally:
            writer.close()


async def _ended(task: asyncio.Task[None]) -> None:
    """Cancel a helper; raises what it had failed with."""
    task.cancel()
    try:
        await task
    except asyncio.CancelledError:
        if not task.cancelled():
            raise


async def _visit(station: _Station, item: Any, walk: _Walk) -> None:
    while True:
        items = [item] if station.head is None else await station.head(item)
        if items:
            items = station.kernel(items)
        # Everything is taken before anything is awaited: the failures of other requests come in then.
        failures = [(f, out) for faults, outs in station.diverted for f in faults.take() for out in outs]
        for failure, out in failures:
            await _visit(out, failure, walk)
        if station.reply is not None:
            _answer(station.reply, items, walk)
            return
        if len(items) != 1 or len(station.outs) != 1:
            break
        station, item = station.outs[0], items[0]
    for result in items:
        for out in station.outs:
            await _visit(out, result, walk)


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


def _answer(counters: Counters, items: list[Any], walk: _Walk) -> None:
    for item in items:
        if walk.reply is not _NOTHING:
            raise ReplyError("two replies came out for one request: one of its branches may reply.")
        walk.reply = item
        counters.items_in += 1


def _wire(plan: Compiled, pools: dict[int, Pool], shares: Shares | None) -> _Wired:
    counters = {op.index: Counters(op.node.name, op.node.verb) for op in plan.ops if op.node.verb != "merge"}
    faults = {i: Faults(plan.ops[i], found) for i, found in counters.items()}
    batchers: list[Batcher] = []
    entrances: list[Entrance] = []
    stations: dict[int, _Station] = {}
    # A stage follows those that feed it, so its readers are there when it is made.
    for i in reversed(range(len(plan.stages))):
        stage = plan.stages[i]
        outs = [stations[edge.stage] for edge in stage.outs]
        diverted = [
            (faults[op], [stations[edge.stage] for edge in readers]) for op, readers in stage.diverted.items()
        ]
        kernel = _fused(stage, faults)
        if shares and len(outs) > 1:
            kernel = shares.remembering(kernel, stage.ops[-1].node.name if stage.ops else stage.name)
        stations[i] = station = _Station(kernel, outs, diverted)
        if stage.fused and stage.fused[-1].node.verb == "reply":
            station.reply = counters[stage.fused[-1].index]
        if stage.head is not None:
            station.head = _head(stage, faults, pools, batchers, entrances)
    return _Wired(stations[0], counters, batchers, entrances)


def _fused(stage: Stage, faults: dict[int, Faults]) -> Kernel:
    behind = stage.fused[max(0, len(stage.on_workers) - 1) :]
    ops = [op for op in behind if op.node.verb != "reply"]
    return Chain([step_of(op, faults[op.index]) for op in ops]).run


def _head(
    stage: Stage,
    faults: dict[int, Faults],
    pools: dict[int, Pool],
    batchers: list[Batcher],
    entrances: list[Entrance],
) -> _Head:
    op = stage.ops[0]
    mine, given = faults[op.index], op.node.call.concurrency
    if stage.on_workers:
        entrances.append(Entrance(op, pools[op.index], [faults[one.index] for one in stage.on_workers]))
        batchers.append(entrances[-1].batcher)
        return entrances[-1]
    if op.node.verb == "map_batch":
        call = call_of(op, mine.counters) if op.mode == "async" else _whole_sync(op)
        batchers.append(Batcher(call, op.node.batch or Batch(), given or BATCH_CALLS))
        # The batcher bounds the calls; the items that wait for it are bounded by the job's limit.
        return partial(_call, batchers[-1], mine, _Unbounded())
    written = _written(op) if hasattr(op.fn, "write") else call_of(op, mine.counters)
    return partial(_call, written, mine, asyncio.Semaphore(given or CALLS))


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
