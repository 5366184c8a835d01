"""A core under a test's thumb: engines and requests by short words, attempts found by what they carry."""

from __future__ import annotations

from typing import Any

from sage.common.telemetry import RequestClass
from sage.middleware.control_plane.core import Core
from sage.middleware.control_plane.options import CoreOptions, Limits
from sage.middleware.control_plane.policy import Policy, PolicyOptions, load_policy
from sage.middleware.control_plane.records import Record
from sage.middleware.control_plane.types import (
    Action,
    Arrived,
    Cancel,
    Cancelled,
    Dispatch,
    EngineUp,
    Event,
    Failed,
    Finished,
    FirstByte,
    Job,
    Reject,
    Tick,
)
from sage.middleware.engines.port import EngineSpec, Usage

__all__ = ["CoreBench"]


class CoreBench:
    """Drives a core. `at` is its time; what it did last is in `actions`, what runs in `running`."""

    def __init__(
        self,
        policy: str | Policy = "least_load",
        *specs: EngineSpec,
        options: CoreOptions | None = None,
        **limits: Any,
    ) -> None:
        self.at = 0.0
        chosen = load_policy(policy, PolicyOptions(exploration=0.0)) if isinstance(policy, str) else policy
        self.core = Core(chosen, options or CoreOptions(Limits(**limits)))
        self.actions: list[Action] = []
        self.running: dict[int, Dispatch] = {}
        self.rejected: dict[str, Reject] = {}
        for spec in specs:
            self.feed(EngineUp(self.at, spec))

    def feed(self, event: Event) -> list[Action]:
        """Hand an event over and keep account of what it led to."""
        return self.note(self.core.handle(event))

    def note(self, actions: list[Action]) -> list[Action]:
        """Keep account of actions."""
        self.actions = actions
        for action in actions:
            if isinstance(action, Dispatch):
                self.running[action.attempt] = action
            elif isinstance(action, Reject):
                self.rejected[action.id] = action
            elif isinstance(action, Cancel):
                del self.running[action.attempt]
        return actions

    # ---- requests ------------------------------------------------------------------------------------

    def arrive(self, job: Job, *, within: float | None = None) -> list[Action]:
        """A request comes; `within`: seconds to its hard deadline."""
        return self.feed(Arrived(self.at, job, None if within is None else self.at + within))

    def attempt(self, ident: str) -> int:
        """The newest attempt that carries some of a request."""
        return max(
            number for number, one in self.running.items() if any(part.id == ident for part in one.slices)
        )

    def engine(self, ident: str) -> str:
        """Where it runs."""
        return self.running[self.attempt(ident)].engine

    def begin(self, ident: str) -> list[Action]:
        """Its first byte comes."""
        return self.feed(FirstByte(self.at, self.attempt(ident)))

    def finish(self, ident: str, usage: Usage | None = None) -> list[Action]:
        """The newest attempt with some of it is answered."""
        number = self.attempt(ident)
        del self.running[number]
        return self.feed(Finished(self.at, number, usage or Usage()))

    def fail(
        self, ident: str, *, retryable: bool = True, fault: bool = True, refused: bool = False
    ) -> list[Action]:
        """The newest attempt with some of it fails."""
        number = self.attempt(ident)
        del self.running[number]
        return self.feed(Failed(self.at, number, "it broke", retryable, fault, refused))

    def cancel(self, ident: str) -> list[Action]:
        """Its client goes away."""
        return self.feed(Cancelled(self.at, ident))

    # ---- time and state ------------------------------------------------------------------------------

    def wait(self, seconds: float) -> list[Action]:
        """Time passes, with a tick whenever the core wants one; all actions of that time."""
        until = self.at + seconds
        actions: list[Action] = []
        while (wake := self.core.next_wake()) is not None and wake <= until:
            self.at = max(self.at, wake)
            actions += self.feed(Tick(self.at))
        self.at = until
        return actions

    def record(self, ident: str) -> Record:
        """The record of a request."""
        record = self.core.record(ident)
        assert record is not None, f"no record of {ident}"
        return record

    def outcome(self, ident: str) -> str:
        """How it stands or ended."""
        return self.record(ident).outcome

    def waiting(self, request_class: RequestClass = RequestClass.CHAT) -> int:
        """How many of a class wait."""
        return self.core.counts(request_class).waiting
