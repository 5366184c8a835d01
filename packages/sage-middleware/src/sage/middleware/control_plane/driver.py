"""The live control plane: runs the core on the event loop, one coroutine per request."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import Final

from sage.common.api import Decision, EngineStatus, QueueStatus
from sage.common.clock import Clock
from sage.common.config import ControlPlaneConfig
from sage.common.errors import (
    ConflictError,
    EngineError,
    OverloadedError,
    SageError,
    TimedOutError,
    UnavailableError,
)
from sage.common.telemetry import RequestClass
from sage.middleware.control_plane.core import Core, Limits
from sage.middleware.control_plane.policy import load_policy
from sage.middleware.control_plane.relay import Relay
from sage.middleware.control_plane.reports import decision_of, engine_status, queue_status
from sage.middleware.control_plane.types import (
    Arrived,
    Cancelled,
    Dispatch,
    EngineAdded,
    EngineDown,
    EngineRemoved,
    EngineUp,
    Event,
    Failed,
    Finished,
    FirstByte,
    Job,
    Reject,
    Tick,
)
from sage.middleware.engines.port import Call, Engine, EngineSpec, Sink

__all__ = ["ControlPlane"]

log: Final = logging.getLogger("sage.middleware.control_plane")


@dataclass(slots=True, eq=False)
class _Ticket:
    """The driver's side of a request that has not ended."""

    id: str
    task: asyncio.Task[object] | None
    action: Dispatch | Reject | None = None  # what the core decided and `submit` has not carried out yet
    engine: Engine | None = None  # of that Dispatch; held here, as an engine may be removed meanwhile
    waiter: asyncio.Future[None] | None = None
    aborted: SageError | None = None  # we ended it, not the client
    fault: SageError | None = None  # of the last attempt


class ControlPlane:
    """Queues requests, places them on engines and passes the answers on.

    All methods belong to one event loop. Between a decision of the core and its accounting nothing awaits.
    """

    def __init__(self, config: ControlPlaneConfig, clock: Clock) -> None:
        """Raises ConfigError for a policy that does not exist."""
        limits = Limits(config.queue_max_requests, config.queue_max_bytes, config.queue_max_wait_s)
        self._core = Core(load_policy(config.policy), limits, config.decision_history)
        self._clock = clock
        self._epoch = clock.wall() - clock.now()
        self._engines: dict[str, Engine] = {}
        self._tickets: dict[str, _Ticket] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due = 0.0
        self._closing = False
        self._idle = asyncio.Event()

    # ---- engines -------------------------------------------------------------------------------------

    def announce(self, spec: EngineSpec) -> None:
        """An engine is on its way: its model exists, and is answered with 503 until `add_engine`."""
        self._handle(EngineAdded(self._clock.now(), spec))

    def add_engine(self, engine: Engine) -> None:
        """An engine can serve: for the first time, or again after `engine_down`.

        Raises ConflictError when another engine has that name.
        """
        spec = engine.spec
        if self._engines.get(spec.name, engine) is not engine:
            raise ConflictError(
                f"There is an engine named {spec.name!r} already.", hint="Give each a name of its own."
            )
        self._engines[spec.name] = engine
        self._handle(EngineUp(self._clock.now(), spec))

    def engine_down(self, name: str, reason: str) -> None:
        """A known engine may not be sent work; what runs there goes on until it ends or breaks."""
        self._handle(EngineDown(self._clock.now(), name, reason))

    def remove_engine(self, name: str) -> None:
        """Forget an engine; what runs there may end. Whoever made it closes it."""
        self._engines.pop(name, None)
        self._handle(EngineRemoved(self._clock.now(), name))

    # ---- requests ------------------------------------------------------------------------------------

    async def submit(self, job: Job, call: Call, sink: Sink, *, deadline: float | None = None) -> Decision:
        """Serve one request into `sink` and return what was decided about it.

        `deadline`: seconds from now by which the answer must be complete. Cancelling the awaiting task means
        that the client has gone: the engine's work is given up at once. Raises SageError while nothing has
        reached the sink: NotFoundError (model), BadRequestError, OverloadedError, UnavailableError,
        EngineError, TimedOutError. Once a stream has begun, a fault is an SSE error event in it without
        `[DONE]`, and the decision's outcome is `failed`.
        """
        if self._closing:
            raise UnavailableError("The server is shutting down.", retry_after=5.0)
        if job.id in self._tickets:
            raise ConflictError(f"A request with the id {job.id!r} is in flight already.")
        self._core.check(job)
        now = self._clock.now()
        until = None if deadline is None else now + deadline
        ticket = self._tickets[job.id] = _Ticket(job.id, asyncio.current_task())
        alarm = None
        if deadline is not None:
            error = TimedOutError(f"The answer was not complete within its deadline of {deadline:g} s.")
            alarm = asyncio.get_running_loop().call_later(deadline, self._abort, ticket, error)
        try:
            self._handle(Arrived(now, job, until))
            return await self._serve(ticket, call, sink)
        finally:
            if alarm is not None:
                alarm.cancel()
            if self._core.is_live(job.id):  # the client went away, or something unforeseen was raised
                self._handle(Cancelled(self._clock.now(), job.id))
            del self._tickets[job.id]
            if not self._tickets:
                self._idle.set()

    async def _serve(self, ticket: _Ticket, call: Call, sink: Sink) -> Decision:
        while True:
            relay = Relay(sink, stream=call.stream, on_first_byte=lambda: self._first_byte(ticket))
            try:
                engine = await self._placed(ticket)
                await self._attempt(ticket, engine, call, relay)
            except asyncio.CancelledError:
                error = _own_abort(ticket)
                if error is None:
                    raise
                self._handle(Failed(self._clock.now(), ticket.id, str(error), retryable=False, fault=False))
                if not relay.committed:
                    raise error from None
                relay.fail(error)
            if ticket.fault is None or relay.committed:
                return self._decision(ticket.id)

    async def _placed(self, ticket: _Ticket) -> Engine:
        """The engine that the core chose, as soon as it has; raises what it refused with."""
        if ticket.action is None:
            ticket.waiter = asyncio.get_running_loop().create_future()
            await ticket.waiter
        action, ticket.action = ticket.action, None
        if isinstance(action, Reject):
            raise _refusal(action, ticket.fault)
        if ticket.engine is None:
            raise RuntimeError(f"{ticket.id}: woken without a decision")
        return ticket.engine

    async def _attempt(self, ticket: _Ticket, engine: Engine, call: Call, relay: Relay) -> None:
        """Send it once and account for its end. Raises the engine's 4xx; a fault stays in `ticket.fault`."""
        ticket.fault = None
        try:
            usage = await engine.send(call, relay)
            if not relay.ended:
                raise EngineError(f"The engine {engine.spec.name!r} returned without ending its answer.")
        except Exception as exc:
            error = _as_error(exc, engine)
            fault = error.status >= 500 or error.status == 429
            retryable = fault and not relay.committed
            if not fault and not relay.committed:
                self._handle(Failed(self._clock.now(), ticket.id, str(error), retryable=False, fault=False))
                raise error from exc
            ticket.fault = error
            self._handle(Failed(self._clock.now(), ticket.id, str(error), retryable=retryable, fault=fault))
            if relay.committed:
                relay.fail(error)
        else:
            self._handle(Finished(self._clock.now(), ticket.id, usage))

    def _first_byte(self, ticket: _Ticket) -> None:
        self._handle(FirstByte(self._clock.now(), ticket.id))

    def _abort(self, ticket: _Ticket, error: SageError) -> None:
        """End a request from our side, in whatever window it is."""
        if ticket.aborted is None and ticket.task is not None:
            ticket.aborted = error
            ticket.task.cancel()

    # ---- the core ------------------------------------------------------------------------------------

    def _handle(self, event: Event) -> None:
        """Let the core decide and hand each decision to the request that it is about."""
        for action in self._core.handle(event):
            ticket = self._tickets[action.id]
            ticket.action = action
            if isinstance(action, Dispatch):
                ticket.engine = self._engines[action.engine]
            if ticket.waiter is not None and not ticket.waiter.done():
                ticket.waiter.set_result(None)
        due = self._core.next_expiry()
        if due is not None and (self._timer is None or due < self._timer_due):
            self._set_timer(due)

    def _set_timer(self, due: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        delay = max(0.0, due - self._clock.now())
        self._timer_due = due
        self._timer = asyncio.get_running_loop().call_later(delay, self._tick)

    def _tick(self) -> None:
        self._timer = None
        self._handle(Tick(self._clock.now()))

    # ---- what it tells -------------------------------------------------------------------------------

    @property
    def policy(self) -> str:
        """Name of the policy in force."""
        return self._core.policy.name

    def set_policy(self, name: str) -> None:
        """Change the policy; what waits is placed by the new one. Raises ConfigError for an unknown name."""
        self._core.policy = load_policy(name)
        self._handle(Tick(self._clock.now()))

    def models(self) -> list[str]:
        """Ids of the models that an engine serves now."""
        return sorted({load.spec.model for load in self._core.engines if load.state == "ready"})

    def decisions(self, limit: int = 100) -> list[Decision]:
        """The newest decisions, newest first."""
        return [decision_of(record, self._epoch) for record in self._core.records(limit)]

    def decision(self, ident: str) -> Decision | None:
        """The decision about one request, while it is remembered."""
        record = self._core.record(ident)
        return None if record is None else decision_of(record, self._epoch)

    def queues(self) -> list[QueueStatus]:
        """Each class's queue."""
        now = self._clock.now()
        return [
            queue_status(one, self._core.counts(one), self._core.oldest(one), now) for one in RequestClass
        ]

    def engines(self) -> list[EngineStatus]:
        """Each engine as the core sees it; the pool knows its process."""
        now = self._clock.now()
        return [engine_status(load, now) for load in self._core.engines]

    def _decision(self, ident: str) -> Decision:
        decision = self.decision(ident)
        if decision is None:  # impossible but for a history of size zero, which the configuration forbids
            raise RuntimeError(f"no record of {ident}")
        return decision

    async def close(self, drain_s: float) -> None:
        """Refuse new requests, let the others end for `drain_s` seconds, then end them with an error."""
        self._closing = True
        if self._tickets:
            self._idle.clear()
            try:
                await asyncio.wait_for(self._idle.wait(), drain_s)
            except TimeoutError:
                for ticket in list(self._tickets.values()):
                    self._abort(ticket, UnavailableError("The server is shutting down.", retry_after=5.0))
                await self._idle.wait()
        if self._timer is not None:
            self._timer.cancel()


def _own_abort(ticket: _Ticket) -> SageError | None:
    """The error with which we aborted this task; None when the client went away."""
    if ticket.aborted is None or ticket.task is None or ticket.task.uncancel() > 0:
        return None
    return ticket.aborted


def _refusal(action: Reject, fault: SageError | None) -> SageError:
    if action.status == 429:
        return OverloadedError(f"Refused: {action.reason}.", retry_after=action.retry_after)
    if action.status == 503:
        return UnavailableError(f"Refused: {action.reason}.", retry_after=action.retry_after)
    return fault or EngineError(f"Failed: {action.reason}.")


def _as_error(exc: Exception, engine: Engine) -> SageError:
    if isinstance(exc, SageError):
        return exc
    log.error("engine %s failed unexpectedly", engine.spec.name, exc_info=exc)
    return EngineError(f"The engine {engine.spec.name!r} failed unexpectedly ({type(exc).__name__}).")
