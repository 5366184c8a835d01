"""A flow of requests as a running service.

A request walks the stages in the task of its caller: one coroutine from entry to reply, so that cancelling
the caller cancels whatever call is in flight, and an error is the caller's own. Only `map_batch` brings
requests together, in a batch of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, AsyncExitStack, suppress
from dataclasses import replace
from functools import partial
from hashlib import blake2b
from time import perf_counter
from typing import Any

from sage.common.errors import ConflictError, OverloadedError, UnavailableError, UsageError
from sage.kernel.compile import Compiled
from sage.kernel.runtime.channel import Channel, Writer
from sage.kernel.runtime.engine import Engine, running
from sage.kernel.runtime.inbox import APPROVED, Decision, Inboxes, Parked
from sage.kernel.runtime.kernels import PARTS
from sage.kernel.runtime.ledger import Ledger
from sage.kernel.runtime.mutation import guarded
from sage.kernel.runtime.report import CheckpointError, RunReport, reports, spell
from sage.kernel.runtime.requests import NOTHING, Request
from sage.kernel.runtime.resources import begin_anew, commit
from sage.kernel.runtime.state import pickled, plain_bytes, unpickled
from sage.kernel.runtime.walk import ReplyError, Station, Walk, visit, wire
from sage.kernel.services import bound

__all__ = ["Job", "ReplyStream"]

PARTS_AHEAD = 16
LONGEST_ID = 512


class Job:
    """A flow that answers requests; made by `LocalEnvironment.submit`."""

    def __init__(self, plan: Compiled, limit: int, engine: Engine) -> None:
        self._plan = plan
        self._limit = limit
        self._engine = engine
        self._services = engine.services
        self._ledger = engine.ledger
        self._visit = engine.spans.visit(visit)
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
        self.taken_up = 0
        """How many requests that were not answered before it began it has taken up."""

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
            if engine.ledger is not None:
                await stack.enter_async_context(engine.ledger.opened())
            with bound(engine.services):
                await stack.enter_async_context(running(plan, engine, before))
                if engine.ledger is None:
                    await begin_anew(plan.ops)
                else:
                    await engine.ledger.recover()
                    helper = asyncio.create_task(engine.ledger.run())
                    stack.callback(helper.cancel)
            job._stack = stack.pop_all()
        if engine.ledger is not None:
            job._take_up(engine.ledger)
        return job

    async def request(self, item: Any, *, id: str = "") -> Any:
        """Send one item through the flow and return its reply.

        With checkpoints, who asks again with the same `id` gets the same reply, also after a crash; raises
        `ConflictError` if it is another item. Raises `OverloadedError` over the limit, `UnavailableError`
        when stopped, `ReplyError` when no reply comes out, and what an operator raised. Parts of streaming
        operators are dropped; see `stream`.
        """
        if self._ledger is not None:
            return await self._kept_request(self._ledger, item, id)
        if id:
            raise UsageError(
                f"flow {self._plan.name!r} keeps no requests by their ids, as it runs without checkpoints.",
                hint="LocalEnvironment(checkpoints=Checkpoints(folder)) keeps them.",
            )
        self._need_room()
        walk = self._enter()
        try:
            return await self._answer(item, walk)
        except asyncio.CancelledError:
            self._need_other(walk)
            raise
        finally:
            self._gone(walk)

    __call__ = request
    """A job is a service that the operators of other flows may call."""

    def stream(self, item: Any, *, id: str = "") -> ReplyStream:
        """`request`, with the partial results on the way: iterate, then `await stream.reply()`."""
        return ReplyStream(self, item, id)

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
        if self._ledger is not None:
            await self._ledger.durable()

    async def checkpoint(self) -> int:
        """Have a checkpoint take the place of the journal; gives its epoch, once that is durable."""
        if self._ledger is None:
            raise UsageError(
                f"flow {self._plan.name!r} runs without checkpoints: "
                "LocalEnvironment(checkpoints=Checkpoints(folder)) takes them."
            )
        return await self._ledger.checkpoint()

    def report(self) -> RunReport:
        """The counts since the start."""
        counters = reports(self._wired.counters.values())
        found = RunReport(self._plan.name, perf_counter() - self._started, self._cut, counters)
        if (kept := self._ledger) is None:
            return found
        return replace(found, resumed=kept.resumed, epoch=kept.epoch, warnings=kept.warnings)

    async def stop(self, *, drain: bool = True) -> None:
        """Take no more requests, wait for those in flight, commit the sinks, close.

        Without `drain` they are cut off; with checkpoints the next job that is started takes them up.
        """
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
        if self._ledger is not None:
            for request in self._ledger.table.open.values():
                self._cut_off(request)  # also one whose walk was cancelled before it began
        if self._state == "stopping":
            self._state = "stopped"
            with bound(self._services):
                async with self._stack:
                    if self._ledger is None:
                        await commit(self._plan.ops, {})
                    elif drain:
                        await self._ledger.checkpoint()

    def _need_room(self) -> None:
        if self._state != "running":
            raise UnavailableError(f"flow {self._plan.name!r} is {self._state} and takes no requests.")
        if len(self._live) >= self._limit:
            raise OverloadedError(
                f"flow {self._plan.name!r} has {self._limit} requests in flight, its limit.", retry_after=1.0
            )

    def _enter(self) -> Walk:
        """A request is under way in this task, until it is `_gone`."""
        walk = Walk(asyncio.current_task())
        self._live.add(walk)
        self._idle.clear()
        return walk

    def _gone(self, walk: Walk) -> None:
        self._live.discard(walk)
        if not self._live:
            self._idle.set()

    def _need_other(self, walk: Walk) -> None:
        """Only a cancellation of our own making becomes an error; the caller's own goes on."""
        if walk.killed and walk.task and walk.task.uncancel() == 0:
            raise self._stopped() from None

    def _stopped(self) -> UnavailableError:
        return UnavailableError(f"flow {self._plan.name!r} was stopped before it replied.")

    async def _answer(self, item: Any, walk: Walk) -> Any:
        self._wired.counters[0].items_out += 1
        if self._services:
            with bound(self._services):
                await self._visit(self._wired.entry, item, walk)
        else:
            await self._visit(self._wired.entry, item, walk)
        if walk.reply is NOTHING:
            raise self._no_reply()
        return walk.reply

    def _no_reply(self) -> ReplyError:
        return ReplyError(f"flow {self._plan.name!r} gave no reply: filtered, skipped or diverted.")

    # ---- with checkpoints ----------------------------------------------------------------------------------

    async def _kept_request(self, ledger: Ledger, item: Any, ident: str) -> Any:
        if type(ident) is not str or len(ident) > LONGEST_ID:
            raise UsageError(f"id={spell(ident, 60)}: valid is a text of up to {LONGEST_ID} characters.")
        data = pickled(item, lambda: f"a request of flow {self._plan.name!r} ({spell(item)})")
        digest = blake2b(plain_bytes(item), digest_size=16).digest() if ident else b""
        while (there := ledger.table.by_id.get(ident)) is not None:
            self._need_same(there.digest, digest, ident)
            if self._state == "stopped":
                raise self._stopped()
            there.over = there.over or asyncio.Event()
            await there.over.wait()
            await ledger.durable()
            if there.error is not None:
                raise there.error
            if there.reply is not NOTHING:
                return there.reply
            # Who asked first has cancelled it.
        if ident in ledger.table.replies:
            _, first, reply = ledger.table.replies[ident]
            self._need_same(first, digest, ident)
            await ledger.durable()
            if not reply:
                raise self._no_reply()
            return unpickled(reply, f"the reply to request {ident!r}")
        self._need_room()
        ledger.need_sound()
        walk = self._enter()
        try:
            return await self._serve(ledger, ledger.open(ident, digest, data), item, walk)
        except asyncio.CancelledError:
            self._need_other(walk)
            raise
        finally:
            self._gone(walk)

    async def _serve(self, ledger: Ledger, request: Request, item: Any, walk: Walk) -> Any:
        """Answer a request that is open, and end it, unless the job is cut off."""
        kept, token = None, ledger.begin(request)
        try:
            await ledger.durable()
            request.reply = await self._answer(item, walk)
            reply = request.reply
            kept = pickled(reply, lambda: f"a reply of flow {self._plan.name!r} ({spell(reply)})")
        except asyncio.CancelledError:
            if not walk.killed:
                ledger.end(request, None)
            else:
                self._cut_off(request)
            raise
        except Exception as error:
            request.reply, request.error = NOTHING, error
            # It went all its way, if to no reply; one that failed may be asked again.
            kept = b"" if isinstance(error, ReplyError) else None
        finally:
            ledger.leave(token)
        ledger.end(request, kept)
        await ledger.durable()
        if request.error is not None:
            raise request.error
        return request.reply

    def _cut_off(self, request: Request) -> None:
        """It stays for the next job, and whoever waits for it here is told so."""
        if request.over is not None and not request.over.is_set():
            request.error = self._stopped()
            request.over.set()

    def _need_same(self, first: bytes, digest: bytes, ident: str) -> None:
        if first != digest:
            raise ConflictError(
                f"flow {self._plan.name!r} was asked with id {ident!r} before, and for another item.",
                hint="An id is for one request: give this one another.",
            )

    def _take_up(self, ledger: Ledger) -> None:
        """Go on with what was not answered."""
        self.taken_up = len(ledger.table.open)
        for request in list(ledger.table.open.values()):
            self._spawn(partial(self._again, ledger, request))

    async def _again(self, ledger: Ledger, request: Request, walk: Walk) -> None:
        try:
            item = unpickled(request.item, f"a request of flow {self._plan.name!r}")
        except CheckpointError as error:
            request.error = error  # it stays: the next start may know its class again
            request.over = request.over or asyncio.Event()
            request.over.set()
            raise
        with suppress(ReplyError):  # it has none, and nobody waits for one
            await self._serve(ledger, request, item, walk)

    # ---- records whose request is gone ---------------------------------------------------------------------

    def _resume(self, behind: Station, decision: Decision) -> None:
        """A record was decided on: it walks on, and its reply goes nowhere."""
        self._spawn(partial(self._visit, behind, decision))

    def _spawn(self, work: Callable[[Walk], Coroutine[Any, Any, None]]) -> None:
        walk = Walk(None)
        self._live.add(walk)
        self._idle.clear()
        walk.task = asyncio.create_task(self._alone(work, walk))
        walk.task.add_done_callback(lambda _: self._gone(walk))  # also of one that never began

    async def _alone(self, work: Callable[[Walk], Coroutine[Any, Any, None]], walk: Walk) -> None:
        try:
            with bound(self._services):
                await work(walk)
        except Exception as error:
            from sage.common.log import get_logger  # 50 ms of imports, which most runs do without

            # What the error says quotes the record, and no log does that.
            get_logger(__name__).warning(
                "flow %s: a record whose request is gone failed: %s", self._plan.name, type(error).__name__
            )

    async def __aenter__(self) -> Job:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        await self.stop(drain=kind is None)


class ReplyStream:
    """The partial results of one request, then its reply.

    Leaving the iteration early cancels the request.
    """

    def __init__(self, job: Job, item: Any, ident: str) -> None:
        self._job = job
        self._id = ident
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
            return await self._job.request(self._item, id=self._id)
        finally:
            writer.close()
