"""A flow of requests as a running service.

A request walks the stages in the task of its caller: one coroutine from entry to reply, so that cancelling
the caller cancels whatever call is in flight, and an error is the caller's own. Only `map_batch` brings
requests together, in a batch of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from functools import partial
from time import perf_counter
from typing import Any

from sage.common.errors import OverloadedError, UnavailableError, UsageError
from sage.kernel.compile import Compiled
from sage.kernel.runtime.channel import Channel, Writer
from sage.kernel.runtime.engine import Engine, running
from sage.kernel.runtime.inbox import APPROVED, Decision, Inboxes, Parked
from sage.kernel.runtime.kernels import PARTS
from sage.kernel.runtime.mutation import guarded
from sage.kernel.runtime.report import RunReport, reports
from sage.kernel.runtime.resources import begin_anew, commit
from sage.kernel.runtime.walk import NOTHING, ReplyError, Station, Walk, visit, wire
from sage.kernel.services import bound

__all__ = ["Job", "ReplyStream"]

PARTS_AHEAD = 16


class Job:
    """A flow that answers requests; made by `LocalEnvironment.submit`."""

    def __init__(self, plan: Compiled, limit: int, engine: Engine) -> None:
        self._plan = plan
        self._limit = limit
        self._engine = engine
        self._services = engine.services
        self._wired = wire(plan, engine)
        for gate, behind in self._wired.gates:
            gate.orphaned = partial(self._resume, behind)
        self._live: set[Walk] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._state = "running"
        self._cut = False
        self._stack = AsyncExitStack()
        self._started = perf_counter()

    @classmethod
    async def start(
        cls,
        plan: Compiled,
        limit: int,
        engine: Engine,
        before: AbstractAsyncContextManager[None] | None = None,
    ) -> Job:
        """Set everything up, behind `before`, and begin to take requests."""
        plan = guarded(plan, engine.shares) if engine.shares else plan
        job = cls(plan, limit, engine)
        async with AsyncExitStack() as stack:
            with bound(engine.services):
                await stack.enter_async_context(running(plan, engine, before))
                await begin_anew(plan.ops)
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
        walk = Walk(asyncio.current_task())
        self._live.add(walk)
        self._idle.clear()
        try:
            self._wired.counters[0].items_out += 1
            if self._services:
                with bound(self._services):
                    await visit(self._wired.entry, item, walk)
            else:
                await visit(self._wired.entry, item, walk)
        except asyncio.CancelledError:
            # Only a cancellation of our own making becomes an error; the caller's own goes on.
            if walk.killed and walk.task and walk.task.uncancel() == 0:
                raise UnavailableError(f"flow {self._plan.name!r} was stopped before it replied.") from None
            raise
        finally:
            self._live.discard(walk)
            if not self._live:
                self._idle.set()
        if walk.reply is NOTHING:
            raise ReplyError(f"flow {self._plan.name!r} gave no reply: filtered, skipped or diverted.")
        return walk.reply

    __call__ = request
    """A job is a service that the operators of other flows may call."""

    def stream(self, item: Any) -> ReplyStream:
        """`request`, with the partial results on the way: iterate, then `await stream.reply()`."""
        return ReplyStream(self, item)

    @property
    def inboxes(self) -> Inboxes:
        """Where its gates keep what waits for a decision."""
        return self._engine.inboxes

    def parked(self, inbox: str) -> list[Parked]:
        """What waits in an inbox for a decision, the longest first."""
        return self.inboxes.parked(inbox)

    async def resolve(self, inbox: str, item_id: str, value: Any = APPROVED) -> None:
        """Decide on a parked record: it goes on as it is, or as `value`; with `Reject(reason)` it fails.

        Raises `NotFoundError` for an inbox or record that is not there.
        """
        self.inboxes.resolve(inbox, item_id, value)

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
            with bound(self._services):
                async with self._stack:
                    await commit(self._plan.ops, {})

    def _resume(self, behind: Station, decision: Decision) -> None:
        """A record was decided on whose request is gone: it walks on, and its reply goes nowhere."""
        mine = Walk(None)
        self._live.add(mine)
        self._idle.clear()
        mine.task = asyncio.create_task(self._go_on(behind, decision, mine))

    async def _go_on(self, behind: Station, decision: Decision, mine: Walk) -> None:
        try:
            with bound(self._services):
                await visit(behind, decision, mine)
        except Exception as error:
            from sage.common.log import get_logger  # 50 ms of imports, which most runs do without

            # What the error says quotes the record, and no log does that.
            name = type(error).__name__
            get_logger(__name__).warning(
                "flow %s: a record failed behind its gate: %s", self._plan.name, name
            )
        finally:
            self._live.discard(mine)
            if not self._live:
                self._idle.set()

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
        self._reply: Any = NOTHING

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
        if self._reply is NOTHING:
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
