"""What must hold after each step of a simulated run, whatever the policy, the load and the faults."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from typing import Final

from sage.common.telemetry import RequestClass
from sage.middleware.control_plane.core import Core
from sage.middleware.control_plane.lanes import PATIENCE, PATIENT
from sage.middleware.control_plane.records import Record
from sage.middleware.control_plane.types import (
    Action,
    Cancel,
    Dispatch,
    EngineAdded,
    EngineDown,
    EngineRemoved,
    EngineUp,
    Event,
    Failed,
    Finished,
    Reject,
)

__all__ = ["Checker", "InvariantError"]

SLACK_S: Final = 1e-6  # of sums of floats


class InvariantError(AssertionError):
    """An invariant does not hold: which, when, in which step and with which seed."""


class Checker:
    """Keeps its own books of what was sent and what ended, and compares them with the core's."""

    def __init__(self, core: Core, max_wait: float) -> None:
        self._core = core
        self._max_wait = max_wait
        self._unbounded = core.policy.traits.unbounded
        self._up: set[str] = set()
        self._open: dict[int, str] = {}  # attempt to engine
        self._running: Counter[str] = Counter()
        self._ended: set[str] = set()

    def saw(self, event: Event, actions: Iterable[Action]) -> None:
        """An event and what the core made of it. Raises InvariantError."""
        if isinstance(event, Finished | Failed):
            self._close(event.attempt)
        elif isinstance(event, EngineUp):
            self._up.add(event.spec.name)
        elif isinstance(event, EngineAdded):
            self._up.discard(event.spec.name)
        elif isinstance(event, EngineDown | EngineRemoved):
            self._up.discard(event.name)
        for action in actions:
            if isinstance(action, Dispatch):
                self._dispatched(action, event.at)
            elif isinstance(action, Cancel):
                if action.attempt not in self._open:
                    raise InvariantError(f"attempt {action.attempt} is cancelled, which does not run")
                self._close(action.attempt)
            elif isinstance(action, Reject) and action.id in self._ended:
                raise InvariantError(f"{action.id} is rejected after its end")

    def ended(self, record: Record) -> None:
        """A request reached its end."""
        ident = record.job.id
        if ident in self._ended:
            raise InvariantError(f"{ident} ended twice, now as {record.outcome}")
        self._ended.add(ident)
        if record.outcome in ("waiting", "running"):
            raise InvariantError(f"{ident} ended as {record.outcome}")
        if record.outcome == "done" and record.left:
            raise InvariantError(f"{ident} is done, and {record.left} of its {record.units} units are not")
        if self._core.is_live(ident):
            raise InvariantError(f"{ident} is {record.outcome} and still live")

    def after(self, live: Collection[Record], now: float) -> None:
        """What must hold between two steps. `live`: the requests that have not ended, as the driver knows."""
        for load in self._core.engines:
            name, running = load.name, load.running
            if running != self._running.get(name, 0):
                ours = self._running.get(name, 0)
                raise InvariantError(f"{name} has {running} slots taken, the driver {ours}")
            if running < 0 or (running > load.max_running and not self._unbounded):
                raise InvariantError(f"{name} has {running} of {load.max_running} slots taken")
            if load.outstanding_tokens < 0 or (not running and load.outstanding_tokens):
                raise InvariantError(f"{name} has {load.outstanding_tokens} tokens outstanding")
        if len(live) != self._core.live:
            raise InvariantError(f"the core has {self._core.live} live requests, the driver {len(live)}")
        oldest = now - self._max_wait - SLACK_S
        for record in live:
            if record.running:  # what runs is not starved
                continue
            if record.taken == record.units and not record.returned:
                raise InvariantError(f"{record.job.id} neither waits nor runs")
            if record.queued < oldest and record.outcome == "waiting":
                self._late(record, now)

    def at_end(self) -> None:
        """When every request has ended nothing may be left."""
        if self._core.live or self._open:
            left = f"{self._core.live} requests and {len(self._open)} attempts"
            raise InvariantError(f"{left} are left at the end")
        for load in self._core.engines:
            if load.running:
                raise InvariantError(f"{load.name} has {load.running} slots taken at the end")
        for request_class in RequestClass:
            counts = self._core.counts(request_class)
            if counts.waiting or counts.waiting_bytes:
                raise InvariantError(f"{counts.waiting} requests of {request_class} wait at the end")

    def _dispatched(self, action: Dispatch, now: float) -> None:
        name = action.engine
        load = self._core.engines.get(name)
        if name not in self._up or load is None or load.state != "ready":
            state = load.state if load else "unknown"
            raise InvariantError(f"attempt {action.attempt} was sent to {name}, which is {state}")
        if load.breaker.open(now) and load.breaker.dead:
            raise InvariantError(f"attempt {action.attempt} was sent to {name}, which is ejected")
        if action.attempt in self._open:
            raise InvariantError(f"attempt {action.attempt} was sent twice")
        self._open[action.attempt] = name
        self._running[name] += 1
        for piece in action.slices:
            if piece.id in self._ended:
                raise InvariantError(f"{piece.id} was sent to {name} after its end")

    def _close(self, attempt: int) -> None:
        name = self._open.pop(attempt, None)
        if name is not None:
            self._running[name] -= 1

    def _late(self, record: Record, now: float) -> None:
        waited, ident = now - record.queued, record.job.id
        if record.job.request_class not in PATIENT or waited > self._max_wait * PATIENCE + SLACK_S:
            raise InvariantError(f"{ident} has waited {waited:.3f} s, the bound is {self._max_wait:.3f} s")
