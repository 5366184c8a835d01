"""The requests of the live control plane: taken in, served with or without a task, ended once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any, Final, Literal

from sage.common.clock import Clock
from sage.common.errors import ConflictError, SageError, TimedOutError, UnavailableError
from sage.common.telemetry import Bound
from sage.middleware.control_plane.asides import ASIDES, Asides
from sage.middleware.control_plane.core import Core
from sage.middleware.control_plane.jitter import Jitter
from sage.middleware.control_plane.records import Record
from sage.middleware.control_plane.runner import Runner
from sage.middleware.control_plane.tickets import Ticket
from sage.middleware.control_plane.trace import TraceWriter
from sage.middleware.control_plane.types import Arrived, Cancelled, GaveUp, Job
from sage.middleware.engines.port import Call, Engine, Sink, Usage, WholeSink
from sage.middleware.engines.untasked import native_steps

__all__ = ["Desk"]

BACK_S: Final = 5.0  # after which a server that shuts down may be there again


class Desk(Runner):
    """Takes requests in, and passes their answers on.

    Between a decision of the core and its accounting nothing awaits.
    """

    __slots__ = ("_asides", "_begin", "_closing", "_idle", "_jitter")

    def __init__(self, core: Core, clock: Clock, trace: TraceWriter | None) -> None:
        super().__init__(core, clock, trace)
        self._asides = Asides(self._goodbye)
        self._begin: Callable[..., Ticket | None] = native_steps().begin_call
        self._closing = False
        self._jitter = Jitter(0)  # not the core's: what a trace replays has drawn that one's
        self._idle = asyncio.Event()

    async def submit(
        self,
        job: Job,
        call: Call,
        sink: Sink,
        *,
        deadline: float | None = None,
        used: Callable[[Usage], None] | None = None,
        task: asyncio.Task[Any] | None = None,
        ended: Callable[[Record], None] | None = None,
    ) -> Literal["done", "failed"]:
        """Serve one request into `sink`; `decision` tells more about it, unless it is an aside (see there).

        `deadline`: seconds from now by which the answer must be complete, if that of `job.parent` is not
        nearer. `used` is told at the end what engines have counted for it, `ended` the whole record. `task`
        is the awaiting one, if the caller has it at hand: finding it takes time. Cancelling that means that
        the client has gone: what only it wanted is given up at once. Raises SageError while nothing has
        reached the sink: NotFoundError (model), BadRequestError, OverloadedError, UnavailableError,
        EngineError, TimedOutError. Once a stream has begun, a fault is an SSE error event in it without
        `[DONE]`, and `failed` is returned.
        """
        self._let_in(job)
        if call.route in ASIDES:
            await self._serve_aside(job, call, sink, deadline)
            return "done"
        ticket = self._tickets[job.id] = Ticket.of(job, call, sink, task or asyncio.current_task())
        now = self._clock.now()
        alarm = record = None
        try:
            self._handle(Arrived(now, job, None if deadline is None else now + deadline))
            if used is not None or ended is not None:
                record = self._core.record(job.id)  # now: later ones may push it out of the history
            if deadline is not None or job.parent:
                alarm = self._set_alarm(ticket)
            if ticket.own is not None:  # sent at once, as most are
                await self._upstreams.run(ticket.own)
            return ticket.outcome or await self._serve(ticket)
        finally:
            if alarm is not None:
                alarm.cancel()
            self._leave(ticket)
            if used is not None and record is not None and record.usage is not None:
                used(record.usage)
            if ended is not None and record is not None:
                ended(record)

    def begin(
        self, job: Job, call: Call, sink: WholeSink, over: Callable[[BaseException | None], None]
    ) -> Ticket:
        """As `submit`, where no task awaits it: for vectors or a whole text, without deadline.

        `over` is called once, after this has returned, with None or what `submit` would raise; it raises
        nothing. `record` of the ticket is that of the request, and `cancel` says that its client has gone.
        """
        begun = self._begin(self, job, call, sink, over)
        if begun is not None:
            return begun
        self._let_in(job)
        ticket = self._tickets[job.id] = Ticket.of(job, call, sink, None)
        ticket.told = over
        self._handle(Arrived(self._clock.now(), job, None))
        ticket.record = self._core.record(job.id)
        if ticket.own is not None:
            self._parted(ticket)
        else:
            self._wait(ticket)
            if ticket.over:
                ticket.wake()
        return ticket

    def _let_in(self, job: Job) -> None:
        """Raise what is wrong with a newcomer whatever the load."""
        if self._closing:
            raise self._goodbye()
        if job.id in self._tickets:
            raise ConflictError(f"A request with the id {job.id!r} is in flight already.")
        self._core.check(job)

    def cancel(self, ticket: Ticket) -> None:
        """Give up what was begun. It is over at once, or in the loop's next turn."""
        if ticket.task is not None:
            ticket.task.cancel()
        elif not ticket.closed:
            ticket.closed = True
            self._finish(ticket, asyncio.CancelledError())

    def _parted(self, ticket: Ticket) -> None:
        """It has its answer or its error, or is sent, or waits for what is decided about it."""
        if ticket.closed or ticket.task is not None:
            return
        if ticket.answer is not None and ticket.outcome is None:
            try:
                ticket.write("application/json", ticket.answer)
            except Exception as fault:  # of its sink: whoever asked is told, as by a task
                self._finish(ticket, fault)
                return
        if ticket.outcome is not None or ticket.error is not None:
            self._finish(ticket, ticket.error if ticket.outcome is None else None)
        elif ticket.own is None:
            self._wait(ticket)
        elif not self._upstreams.begin(ticket.own):
            self._tasked(ticket)

    def _wait(self, ticket: Ticket) -> None:
        """Look at it again when it is woken, in the loop's next turn."""
        ticket.waiter = asyncio.get_running_loop().create_future()
        ticket.waiter.add_done_callback(partial(self._woken, ticket))

    def _woken(self, ticket: Ticket, _: asyncio.Future[None]) -> None:
        """What it waited for has come."""
        ticket.waiter = None
        self._parted(ticket)

    def _tasked(self, ticket: Ticket) -> None:
        """A task does from here on what is still to be done."""
        ticket.task = asyncio.get_running_loop().create_task(self._serve(ticket))
        if ticket.own is not None:
            ticket.own.task = ticket.task
        ticket.task.add_done_callback(partial(self._served, ticket))

    def _served(self, ticket: Ticket, task: asyncio.Task[Any]) -> None:
        self._finish(ticket, asyncio.CancelledError() if task.cancelled() else task.exception())

    def _finish(self, ticket: Ticket, error: BaseException | None) -> None:
        told, ticket.told = ticket.told, None
        self._leave(ticket)
        if told is not None:
            told(error)

    def _leave(self, ticket: Ticket) -> None:
        """It is over, or what is left of it ends now."""
        ident = ticket.job.id
        if self._core.is_live(ident):  # the client went away, or something unforeseen was raised
            self._handle(Cancelled(self._clock.now(), ident))
        ticket.close()
        del self._tickets[ident]
        if self._closing and not self._tickets:
            self._idle.set()

    async def _serve_aside(self, job: Job, call: Call, sink: Sink, deadline: float | None) -> None:
        try:
            await self._asides.serve(call, sink, self._able(job), deadline)
        except SageError as error:
            self._core.books.met(error)
            raise

    def _able(self, job: Job) -> list[Engine]:
        """The engines that may be sent it, the least busy first."""
        loads = self._core.engines.candidates(job, self._clock.now())
        return [self._engines[load.name] for load in sorted(loads, key=lambda load: load.running)]

    async def _serve(self, ticket: Ticket) -> Literal["done", "failed"]:
        """Do what is decided about a request until it has ended; the only one that raises to its caller."""
        while ticket.outcome is None:
            if ticket.own is not None:
                await self._upstreams.run(ticket.own)
            elif ticket.answer is not None:
                ticket.sink.head(200, "application/json")
                ticket.sink.data(ticket.answer)
                ticket.sink.end()
                ticket.outcome = "done"
            elif ticket.error is not None:
                if ticket.relay is None:
                    raise ticket.error
                ticket.relay.fail(ticket.error)
                ticket.outcome = "failed"
            else:
                ticket.waiter = asyncio.get_running_loop().create_future()
                try:
                    await ticket.waiter
                finally:
                    ticket.waiter = None
        return ticket.outcome

    def _set_alarm(self, ticket: Ticket) -> asyncio.TimerHandle | None:
        """End it at its deadline, which may be that of the chain that it belongs to."""
        record = self._core.record(ticket.job.id)
        if record is None or record.deadline is None:
            return None
        allowed = record.deadline - record.arrived
        delay = record.deadline - self._clock.now()
        return asyncio.get_running_loop().call_later(delay, self._too_late, ticket, allowed)

    def _too_late(self, ticket: Ticket, allowed: float) -> None:
        words = f"The answer was not complete within its deadline of {allowed:g} s."
        error = TimedOutError(words, bound=Bound.DEADLINE)
        self._core.books.met(error)
        self._abort(ticket, error)

    def _abort(self, ticket: Ticket, error: SageError) -> None:
        """End a request from our side, in whatever window it is."""
        if self._core.is_live(ticket.job.id):
            ticket.error = error
            self._handle(GaveUp(self._clock.now(), ticket.job.id, str(error)))
            ticket.wake()

    def _goodbye(self) -> UnavailableError:
        return UnavailableError("The server is shutting down.", retry_after=self._jitter.spread(BACK_S))
