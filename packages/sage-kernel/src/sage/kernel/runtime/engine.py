"""What the operators of one run share, and what is opened for them and closed behind them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sage.common.clock import Clock, SystemClock
from sage.kernel.compile import Compiled
from sage.kernel.runtime.batcher import Batcher
from sage.kernel.runtime.inbox import Inboxes
from sage.kernel.runtime.ledger import Ledger
from sage.kernel.runtime.mutation import Shares
from sage.kernel.runtime.replicas.entrance import Entrance
from sage.kernel.runtime.replicas.opening import opened_pools
from sage.kernel.runtime.replicas.pool import Pool
from sage.kernel.runtime.resources import opened
from sage.kernel.runtime.results import ResultFile
from sage.kernel.runtime.spans import Spans

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

    from sage.kernel.scheduler import Node

__all__ = ["Engine", "Surroundings", "running"]


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What an environment gives to all that runs in it, the flows behind services too.

    `machine`: what operators with `resources` find, None = look. `debug`: look after shared records.
    `tracer`: what is told of it all, None = nothing.
    """

    clock: Clock = field(default_factory=SystemClock)
    machine: Node | None = None
    debug: bool = False
    tracer: Tracer | None = None


@dataclass(slots=True)
class Engine:
    """The parts of a run of `flow`. `waits`: a record waits at a full inbox, and is not refused."""

    flow: str
    around: Surroundings = field(default_factory=Surroundings)
    inboxes: Inboxes = field(default_factory=Inboxes)
    waits: bool = False
    batchers: list[Batcher] = field(default_factory=list)
    entrances: list[Entrance] = field(default_factory=list)
    files: list[ResultFile] = field(default_factory=list)
    pools: dict[str, Pool] = field(default_factory=dict)
    """The workers of each stage that has some, by the name of its first operator, once they are there."""
    services: dict[str, Any] = field(default_factory=dict)
    shares: Shares | None = None
    ledger: Ledger | None = None
    """What keeps the requests of a job that has checkpoints."""
    spans: Spans = field(default_factory=Spans)

    def __post_init__(self) -> None:
        if self.around.debug:
            self.shares = Shares()
        self.inboxes.kept |= self.ledger is not None
        if self.around.tracer is not None:
            from sage.kernel.runtime.tracing import TracedSpans  # needs OpenTelemetry, as the tracer did

            self.spans = TracedSpans(self.around.tracer, self.flow)

    @property
    def clock(self) -> Clock:
        """What time is told by."""
        return self.around.clock


@asynccontextmanager
async def running(
    plan: Compiled, engine: Engine, before: AbstractAsyncContextManager[None] | None = None
) -> AsyncIterator[None]:
    """Open files, set operators up; at the end cancel what is under way, and close all of it.

    `before` is entered first and left last.
    """
    async with AsyncExitStack() as stack:
        if before is not None:
            await stack.enter_async_context(before)
        for file in engine.files:
            await file.open()
            stack.push_async_callback(file.close)
        await stack.enter_async_context(opened(plan.all_ops))
        engine.pools.update(await stack.enter_async_context(opened_pools(plan, engine.around.machine)))
        for entrance in engine.entrances:
            stack.push_async_callback(_ended, asyncio.create_task(entrance.keep_scaled()))
        for batcher in engine.batchers:
            stack.push_async_callback(batcher.close)
        stack.callback(engine.inboxes.close)
        yield


async def _ended(task: asyncio.Task[None]) -> None:
    """Cancel a helper; raises what it had failed with."""
    task.cancel()
    try:
        await task
    except asyncio.CancelledError:
        if not task.cancelled():
            raise
