"""Runs the core on the event loop: gives it events, and carries out what it decides."""

from __future__ import annotations

import asyncio
import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Final

from sage.common.clock import Clock
from sage.middleware.control_plane.core import Core
from sage.middleware.control_plane.tickets import Part, Ticket
from sage.middleware.control_plane.trace import TraceWriter
from sage.middleware.control_plane.types import (
    Action,
    Arrived,
    Cancel,
    Dispatch,
    Event,
    Progress,
    Reject,
    RestartEngine,
    StartEngine,
    StopEngine,
    Tick,
)
from sage.middleware.control_plane.upstream import Upstreams, refusal
from sage.middleware.engines.port import Engine
from sage.middleware.engines.untasked import native_steps

__all__ = ["EngineAction", "Runner"]

log: Final = logging.getLogger("sage.middleware.control_plane")

SHORTEST_S: Final = 0.001  # no timer of the loop is finer: shorter ones come too early, again and again
PULSE_S: Final = 1.0  # between two reports of which attempts have had bytes

EngineAction = StartEngine | StopEngine | RestartEngine


class Runner(ABC):
    """A core, the tickets of its requests, and the upstream calls that it asks for.

    `on_engine_action` is called when engines are to be started, stopped or restarted; whoever runs the
    engines sets it.
    """

    __slots__ = (
        "_clock",
        "_core",
        "_engines",
        "_pulse",
        "_tickets",
        "_timer",
        "_timer_due",
        "_trace",
        "_upstreams",
        "on_engine_action",
    )

    def __init__(self, core: Core, clock: Clock, trace: TraceWriter | None) -> None:
        self._core = core
        self._clock = clock
        self._engines: dict[str, Engine] = {}
        self._tickets: dict[str, Ticket] = {}
        settle = partial(native_steps().settle_call, self)
        self._upstreams = Upstreams(clock, self._handle, core.is_live, core.books.met, self._parted, settle)
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due = math.inf
        self._pulse: asyncio.TimerHandle | None = None
        self.on_engine_action: Callable[[EngineAction], None] | None = None
        self._trace = trace

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
        if self._core.wakes_before(self._timer_due):
            self._arm()

    def _dispatch(self, action: Dispatch) -> None:
        engine = self._engines[action.engine]
        tickets = self._tickets
        parts = [Part(tickets[one.id], one.start, one.stop) for one in action.slices]
        self._upstreams.dispatch(action, engine, parts)
        if self._pulse is None:
            self._start_pulse()

    def _start_pulse(self) -> None:
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

    def _arm(self) -> None:
        """Have the timer go off when the core asks for it, if that is sooner."""
        due = self._core.next_wake()
        if due is None or due >= self._timer_due:
            return
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
            self._start_pulse()
            moved = self._upstreams.moved()
            if moved:
                self._handle(Progress(self._clock.now(), moved))

    @abstractmethod
    def _parted(self, ticket: Ticket) -> None:
        """A ticket that no task serves is without its call."""
