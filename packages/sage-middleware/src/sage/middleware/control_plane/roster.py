"""The life of engines: they come, crash, hang, are drained and go."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from sage.middleware.control_plane.engine_table import EngineLoad, EngineTable
from sage.middleware.control_plane.records import Record
from sage.middleware.control_plane.types import (
    Action,
    EngineAdded,
    EngineChanged,
    EngineDown,
    EngineRemoved,
    EngineUp,
    Event,
    RestartEngine,
    StopEngine,
)

__all__ = ["Roster"]

BLAME_S: Final = 2.0  # a connection may break this long before its process is known to be dead


class Roster:
    """Keeps the engine table up to date. What must be done about a change comes back as actions.

    `on_restart` is told of an engine whose process is new, or gone: what it had cached is lost.
    """

    __slots__ = ("_engines", "_faults", "_handlers", "_leaving", "_on_restart", "next_probe")

    def __init__(self, engines: EngineTable, on_restart: Callable[[EngineLoad], None]) -> None:
        self._engines = engines
        self._on_restart = on_restart
        self.next_probe: float | None = None  # when the next ejection ends
        self._faults: list[tuple[float, EngineLoad, Record]] = []  # that a crash may explain
        self._leaving: set[str] = set()  # engines that are stopped once they are idle
        self._handlers: dict[type[Event], Callable[[Any], list[Action]]] = {
            EngineAdded: self._added,
            EngineChanged: self._changed,
            EngineUp: self._up,
            EngineDown: self._down,
            EngineRemoved: self._removed,
        }

    @property
    def events(self) -> tuple[type[Event], ...]:
        """What `handle` takes."""
        return tuple(self._handlers)

    def handle(self, event: Event) -> list[Action]:
        """An engine changed."""
        return self._handlers[type(event)](event)

    def _added(self, event: EngineAdded) -> list[Action]:
        self._engines.add(event.spec).set_state("starting", "")
        return []

    def _changed(self, event: EngineChanged) -> list[Action]:
        self._engines.add(event.spec)
        return []

    def _up(self, event: EngineUp) -> list[Action]:
        load = self._engines.add(event.spec)
        load.returning = False
        load.set_state("ready", "")
        load.restarted()
        load.breaker.success()
        load.silence.sign(event.at)
        load.changed_health()
        self._leaving.discard(load.name)
        self._on_restart(load)
        return []

    def _down(self, event: EngineDown) -> list[Action]:
        load = self._engines.get(event.name)
        if load is None:
            return []
        load.returning = event.returning
        if event.crashed:
            self._blame(load, event.at)
        if load.state != "draining":
            load.set_state("failed", event.reason)
            self._engines.version += 1
            self._on_restart(load)
        return []

    def _removed(self, event: EngineRemoved) -> list[Action]:
        load = self._engines.get(event.name)
        if load is None:
            return []
        self._leaving.discard(load.name)
        load.returning = False
        load.set_state("draining", f"removed; {load.running} requests still run")
        self._engines.version += 1
        return self.idle(load)

    def drain(self, name: str, reason: str) -> list[Action]:
        """Send an engine no more work, and stop it when the last of it has ended."""
        load = self._engines[name]
        load.set_state("draining", reason)
        self._engines.version += 1
        self._leaving.add(name)
        return self.idle(load)

    def idle(self, load: EngineLoad) -> list[Action]:
        """If an engine that is to go has nothing left to do, let it go. Called whenever an attempt ends."""
        if load.state != "draining" or load.running:
            return []
        if load.name in self._leaving:
            return [StopEngine(load.name, load.detail)]
        self._engines.forget(load)
        self._on_restart(load)
        return []

    # ---- health ----------------------------------------------------------------------------------------

    def fault(self, load: EngineLoad, record: Record, now: float) -> None:
        """A request failed there by the engine's fault: a crash may turn out to be the cause."""
        self._faults.append((now, load, record))

    def health_changed(self, now: float) -> None:
        """Who may be sent work has to be found out again, now and at the next probe."""
        self.next_probe = self._engines.next_probe(now)
        self._engines.version += 1

    def probe(self, now: float) -> None:
        """Let an engine whose ejection has ended show that it is well."""
        if self.next_probe is not None and now >= self.next_probe:
            self.health_changed(now)

    def look(self, now: float) -> tuple[list[EngineLoad], list[Action]]:
        """Notice engines that have work and nothing to say: those that hang for good. About once a second."""
        self._faults = [entry for entry in self._faults if now - entry[0] <= BLAME_S]
        hung: list[EngineLoad] = []
        actions: list[Action] = []
        for load in self._engines:
            if not load.running or load.spec.composed:
                continue
            before = load.silence.degraded
            allowed = max(attempt.silence for attempt in load.attempts.values())
            hangs = load.silence.look(now, allowed)
            if load.silence.degraded != before:
                self._engines.version += 1
            if hangs:
                hung.append(load)
                silent = now - load.silence.since
                self.eject(load, now)
                if load.spec.managed and load.state == "ready":
                    reason = f"{load.running} requests run there and none has moved for {silent:.0f} s"
                    actions.append(RestartEngine(load.name, reason))
        return hung, actions

    def alive(self, load: EngineLoad, now: float, *, served: bool = False) -> None:
        """An engine gave a sign of life, or an answer. One that was passed over may be sent work again."""
        silence = load.silence
        recovers = silence.degraded
        silence.since, silence.degraded = now, False
        if served and load.breaker.faults:
            recovers = recovers or load.breaker.tripped
            load.breaker.success()
        if recovers:
            load.changed_health()
            self.health_changed(now)

    def eject(self, load: EngineLoad, now: float) -> None:
        """It fell silent: it gets nothing more until a single request has shown that it is well."""
        load.breaker.eject(now)
        load.silence.sign(now)  # judged anew, by what it is sent then
        load.changed_health()
        self.health_changed(now)

    def _blame(self, load: EngineLoad, now: float) -> None:
        """Its process ended by itself: count that for what ran there, and for what broke off just before."""
        suspects = [record for attempt in load.attempts.values() for record, _, _, _ in attempt.slices]
        suspects += [record for at, one, record in self._faults if one is load and now - at <= BLAME_S]
        for record in {id(record): record for record in suspects}.values():
            record.crashes += 1
        self._faults = [entry for entry in self._faults if entry[1] is not load]
