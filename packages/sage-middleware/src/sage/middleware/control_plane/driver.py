"""The live control plane: runs the core on the event loop and carries out what it decides."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Iterable
from typing import Any, Final, Literal

from sage.common.api import Decision, EngineStatus, QueueStatus
from sage.common.clock import Clock
from sage.common.config import ControlPlaneConfig
from sage.common.errors import ConflictError, SageError, TimedOutError, UnavailableError
from sage.common.telemetry import Bound, RequestClass
from sage.middleware.control_plane.asides import ASIDES, Asides
from sage.middleware.control_plane.core import Core
from sage.middleware.control_plane.jitter import Jitter
from sage.middleware.control_plane.options import CoreOptions, policy_options
from sage.middleware.control_plane.policy import load_policy
from sage.middleware.control_plane.records import Record
from sage.middleware.control_plane.reports import decision_of, engine_status, queue_status
from sage.middleware.control_plane.tickets import Part, Ticket
from sage.middleware.control_plane.trace import Goals, PolicyChanged, TraceWriter
from sage.middleware.control_plane.types import (
    Action,
    Arrived,
    Cancel,
    Cancelled,
    Dispatch,
    EngineAdded,
    EngineChanged,
    EngineDown,
    EngineRemoved,
    EngineUp,
    Event,
    GaveUp,
    Job,
    Progress,
    Reject,
    RestartEngine,
    StartEngine,
    StopEngine,
    Tick,
)
from sage.middleware.control_plane.upstream import Upstreams, refusal
from sage.middleware.engines.port import Call, Engine, EngineSpec, Sink, Usage

__all__ = ["ControlPlane", "EngineAction"]

log: Final = logging.getLogger("sage.middleware.control_plane")

SHORTEST_S: Final = 0.001  # no timer of the loop is finer: shorter ones come too early, again and again
PULSE_S: Final = 1.0  # between two reports of which attempts have had bytes
BACK_S: Final = 5.0  # after which a server that shuts down may be there again

EngineAction = StartEngine | StopEngine | RestartEngine


class ControlPlane:
    """Queues requests, places them on engines and passes the answers on.

    All methods belong to one event loop. Between a decision of the core and its accounting nothing awaits.
    `on_engine_action` is called when engines are to be started, stopped or restarted; whoever runs the
    engines sets it.
    """

    def __init__(self, config: ControlPlaneConfig, clock: Clock, *, core: Core | None = None) -> None:
        """`core` replaces the one that `config` describes. Raises ConfigError for an unknown policy."""
        self._policy_options = policy_options(config)
        self._core = core or Core(load_policy(config.policy, self._policy_options), CoreOptions.of(config))
        self._clock = clock
        self._epoch = clock.wall() - clock.now()
        self._engines: dict[str, Engine] = {}
        self._tickets: dict[str, Ticket] = {}
        self._upstreams = Upstreams(clock, self._handle, self._core.is_live, self._core.books.met)
        self._asides = Asides(self._goodbye)
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due = math.inf
        self._pulse: asyncio.TimerHandle | None = None
        self._closing = False
        self._jitter = Jitter(0)  # not the core's: what a trace replays has drawn that one's
        self._idle = asyncio.Event()
        self.on_engine_action: Callable[[EngineAction], None] | None = None
        self._trace = None if config.trace is None else TraceWriter(config.trace)
        if self._trace is not None:
            self._trace.record(PolicyChanged(clock.now(), self.policy), ())
            self._trace.record(Goals(clock.now(), self._policy_options.slos), ())

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

    def replace_engine(self, engine: Engine) -> None:
        """Another connection takes the place of the engine of that name; what runs on the old one goes on."""
        self._engines.pop(engine.spec.name, None)
        self.add_engine(engine)

    def change_engine(self, spec: EngineSpec) -> None:
        """An engine is described anew and goes on as it is: other slots, another size of its cache."""
        self._handle(EngineChanged(self._clock.now(), spec))

    def engine_down(self, name: str, reason: str, *, crashed: bool = False) -> None:
        """A known engine may not be sent work; what runs there goes on until it ends or breaks.

        `crashed`: its process ended by itself.
        """
        self._handle(EngineDown(self._clock.now(), name, reason, crashed))

    def engine_leaves(self, name: str, reason: str) -> None:
        """As `engine_down`, of an engine that is made anew: what waits for it waits for that."""
        self._handle(EngineDown(self._clock.now(), name, reason, returning=True))

    def remove_engine(self, name: str) -> None:
        """Forget an engine; what runs there may end. Whoever made it closes it."""
        self._engines.pop(name, None)
        self._handle(EngineRemoved(self._clock.now(), name))

    def know_names(self, names: Iterable[str]) -> None:
        """Names that stand for models: whoever asks for a model that there is not is told of them too."""
        self._core.engines.names = frozenset(names)

    # ---- requests ------------------------------------------------------------------------------------

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
        if self._closing:
            raise self._goodbye()
        if job.id in self._tickets:
            raise ConflictError(f"A request with the id {job.id!r} is in flight already.")
        self._core.check(job)
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
            if self._core.is_live(job.id):  # the client went away, or something unforeseen was raised
                self._handle(Cancelled(self._clock.now(), job.id))
            ticket.close()
            if used is not None and record is not None and record.usage is not None:
                used(record.usage)
            if ended is not None and record is not None:
                ended(record)
            del self._tickets[job.id]
            if not self._tickets:
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

    # ---- the core ------------------------------------------------------------------------------------

    def _handle(self, event: Event) -> None:
        """Let the core decide, and carry it out. What that took for a newcomer is our own overhead."""
        actions = self._core.handle(event)
        # Without an action, and with nothing in the queues, no timer can have become due sooner.
        if actions or self._timer is None or self._core.waiting or self._trace is not None:
            self._carry_out(event, actions)
        if type(event) is Arrived:
            self._core.books.overhead.add(self._clock.now() - event.at)

    def _carry_out(self, event: Event, actions: list[Action]) -> None:
        if self._trace is not None:
            self._trace.record(event, actions)
        for action in actions:
            if type(action) is Dispatch:
                self._dispatch(action)
            elif isinstance(action, Cancel):
                self._upstreams.cancel(action.attempt)
            elif isinstance(action, Reject):
                ticket = self._tickets[action.id]
                ticket.error = refusal(action, ticket)
                ticket.wake()
            else:
                self._change_engines(action)
        due = self._core.next_wake() if self._core.wakes_before(self._timer_due) else None
        if due is not None and due < self._timer_due:
            self._set_timer(due)

    def _dispatch(self, action: Dispatch) -> None:
        engine = self._engines[action.engine]
        tickets = self._tickets
        parts = [Part(tickets[one.id], one.start, one.stop) for one in action.slices]
        self._upstreams.dispatch(action, engine, parts)
        if self._pulse is None:
            self._pulse = asyncio.get_running_loop().call_later(PULSE_S, self._report_progress)

    def _change_engines(self, action: Action) -> None:
        """Pass on what is about processes; a fault there must not stop what is about requests."""
        if not isinstance(action, EngineAction):
            raise TypeError(f"no driver knows the action {action!r}")
        if self.on_engine_action is None:
            log.warning("nobody here starts or stops engines; left undone: %s", action)
            return
        try:
            self.on_engine_action(action)
        except Exception:
            log.exception("failed: %s", action)

    def _set_timer(self, due: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        delay = max(SHORTEST_S, due - self._clock.now())
        self._timer_due = due
        self._timer = asyncio.get_running_loop().call_later(delay, self._tick)

    def _tick(self) -> None:
        self._timer, self._timer_due = None, math.inf
        self._handle(Tick(self._clock.now()))

    def _report_progress(self) -> None:
        self._pulse = None
        if self._upstreams:
            self._pulse = asyncio.get_running_loop().call_later(PULSE_S, self._report_progress)
            moved = self._upstreams.moved()
            if moved:
                self._handle(Progress(self._clock.now(), moved))

    # ---- what it tells -------------------------------------------------------------------------------

    @property
    def core(self) -> Core:
        """The core that decides: its books, its records. Read it, never change it."""
        return self._core

    @property
    def policy(self) -> str:
        """Name of the policy in force."""
        return self._core.policy.name

    def set_policy(self, name: str) -> None:
        """Change the policy; what waits is placed by the new one. Raises ConfigError for an unknown name."""
        policy = load_policy(name, self._policy_options)
        now = self._clock.now()
        self._carry_out(PolicyChanged(now, name), self._core.set_policy(policy, now))

    def reconfigure(self, config: ControlPlaneConfig, options: CoreOptions, policy: str) -> None:
        """Apply another configuration, with `policy` in force; `options` are the core's, made from it.

        Raises ConfigError for an unknown policy, and changes nothing then.
        """
        chosen = policy_options(config)
        same = (policy, chosen) == (self.policy, self._policy_options)
        fresh = None if same else load_policy(policy, chosen)
        now = self._clock.now()
        self._policy_options = chosen
        actions = self._core.reconfigure(options, fresh, now)
        if self._trace is not None:
            self._trace.record(Goals(now, chosen.slos), ())
        self._carry_out(PolicyChanged(now, policy), actions)

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

    # ---- the end -------------------------------------------------------------------------------------

    def _goodbye(self) -> UnavailableError:
        return UnavailableError("The server is shutting down.", retry_after=self._jitter.spread(BACK_S))

    async def close(self, drain_s: float) -> None:
        """Refuse new requests, let the others end for `drain_s` seconds, then end them with an error."""
        self._closing = True
        if self._tickets:
            self._idle.clear()
            try:
                await asyncio.wait_for(self._idle.wait(), drain_s)
            except TimeoutError:
                for ticket in list(self._tickets.values()):
                    self._abort(ticket, self._goodbye())
                await self._idle.wait()
        self._asides.close()
        await self._upstreams.close()
        for timer in (self._timer, self._pulse):
            if timer is not None:
                timer.cancel()
        if self._trace is not None:
            await asyncio.to_thread(self._trace.close)
