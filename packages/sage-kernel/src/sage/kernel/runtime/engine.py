"""What the operators of one run share, and what is opened for them and closed behind them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from sage.common.clock import Clock, SystemClock
from sage.kernel.compile import Compiled
from sage.kernel.runtime.batcher import Batcher
from sage.kernel.runtime.inbox import Inboxes
from sage.kernel.runtime.resources import opened
from sage.kernel.runtime.results import ResultFile

__all__ = ["Engine", "running"]


@dataclass(slots=True)
class Engine:
    """The surroundings of a run of `flow`. `waits`: a record waits at a full inbox, and is not refused."""

    flow: str
    clock: Clock = field(default_factory=SystemClock)
    inboxes: Inboxes = field(default_factory=Inboxes)
    waits: bool = False
    batchers: list[Batcher] = field(default_factory=list)
    files: list[ResultFile] = field(default_factory=list)
    services: dict[str, Any] = field(default_factory=dict)


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
        for batcher in engine.batchers:
            stack.push_async_callback(batcher.close)
        stack.callback(engine.inboxes.close)
        yield
