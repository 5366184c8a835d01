"""The core's invariants, whatever the order of events."""

from __future__ import annotations

from collections import Counter
from typing import Any

import hypothesis.strategies as st
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from sage.common.telemetry import RequestClass
from sage.middleware.control_plane.core import Core, Limits
from sage.middleware.control_plane.policy import load_policy
from sage.middleware.control_plane.types import (
    Arrived,
    Cancelled,
    Dispatch,
    EngineAdded,
    EngineDown,
    EngineRemoved,
    EngineUp,
    Failed,
    Finished,
    FirstByte,
    Tick,
)
from sage.middleware.engines.port import Usage
from sage.middleware.testing.policies import chat_job, chat_spec


class CoreMachine(RuleBasedStateMachine):
    """Any order of events: a model of what the driver may send, and what must hold after each."""

    def __init__(self) -> None:
        super().__init__()
        self.core = Core(load_policy("least_load"), Limits(3, 1000, 5.0), 10_000)
        self.now = 0.0
        self.count = 0
        self.up: set[str] = set()
        self.capacity: dict[str, int] = {}
        self.running: dict[str, str] = {}
        self.waiting: set[str] = set()
        self.ended: Counter[str] = Counter()

    def feed(self, event: Any) -> None:
        for action in self.core.handle(event):
            assert action.id in self.waiting
            self.waiting.discard(action.id)
            if isinstance(action, Dispatch):
                assert action.engine in self.up
                self.running[action.id] = action.engine
            else:
                self.ended[action.id] += 1

    @rule(index=st.integers(0, 3), slots=st.integers(1, 3))
    def engine_up(self, index: int, slots: int) -> None:
        name = f"e{index}"
        self.up.add(name)
        self.capacity.setdefault(name, slots)
        self.feed(EngineUp(self.now, chat_spec(name, model=f"m{index % 2}", max_running=self.capacity[name])))

    @rule(index=st.integers(0, 3), how=st.sampled_from(["down", "removed", "added"]))
    def engine_goes(self, index: int, how: str) -> None:
        name = f"e{index}"
        self.up.discard(name)
        if how == "down":
            self.feed(EngineDown(self.now, name, "test"))
        elif how == "removed":
            self.feed(EngineRemoved(self.now, name))
        elif name in self.capacity:
            spec = chat_spec(name, model=f"m{index % 2}", max_running=self.capacity[name])
            self.feed(EngineAdded(self.now, spec))

    @rule(model=st.integers(0, 1), tokens=st.integers(1, 5000), patience=st.none() | st.floats(0.01, 9.0))
    def arrive(self, model: int, tokens: int, patience: float | None) -> None:
        self.count += 1
        ident = f"r{self.count}"
        self.waiting.add(ident)
        deadline = None if patience is None else self.now + patience
        self.feed(Arrived(self.now, chat_job(ident, model=f"m{model}", tokens=tokens), deadline))

    @precondition(lambda self: self.running)
    @rule(data=st.data(), how=st.sampled_from(["done", "retry", "broken", "refused", "gone", "byte"]))
    def progress(self, data: st.DataObject, how: str) -> None:
        ident = data.draw(st.sampled_from(sorted(self.running)))
        if how == "byte":
            self.feed(FirstByte(self.now, ident))
            return
        del self.running[ident]
        if how == "retry":
            self.waiting.add(ident)
            self.feed(Failed(self.now, ident, "test", True, True))
            return
        self.ended[ident] += 1
        if how == "done":
            self.feed(Finished(self.now, ident, Usage(1, 1)))
        elif how == "gone":
            self.feed(Cancelled(self.now, ident))
        else:
            self.feed(Failed(self.now, ident, "test", False, how == "broken"))

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def leave_queue(self, data: st.DataObject) -> None:
        ident = data.draw(st.sampled_from(sorted(self.waiting)))
        self.waiting.discard(ident)
        self.ended[ident] += 1
        self.feed(Cancelled(self.now, ident))

    @rule(seconds=st.floats(0.0, 20.0))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.feed(Tick(self.now))

    @invariant()
    def slots_are_within_bounds_and_add_up(self) -> None:
        placed = Counter(self.running.values())
        for load in self.core.engines:
            assert 0 <= load.running <= load.max_running
            assert load.running == placed[load.name]
            assert load.outstanding_tokens >= 0
            assert load.running or not load.outstanding_tokens

    @invariant()
    def each_request_has_at_most_one_end_and_none_is_lost(self) -> None:
        assert all(times == 1 for times in self.ended.values())
        assert len(self.ended) + len(self.running) + len(self.waiting) == self.count
        assert self.core.live == len(self.running) + len(self.waiting)
        assert self.core.counts(RequestClass.CHAT).waiting == len(self.waiting)

    @invariant()
    def nothing_waits_beyond_its_bounds(self) -> None:
        expiry = self.core.next_expiry()
        assert expiry is None or expiry > self.now
        assert (expiry is None) == (not self.waiting)

    @invariant()
    def nothing_waits_beside_an_idle_engine(self) -> None:
        for ident in self.waiting:
            record = self.core.record(ident)
            assert record is not None
            assert not any(load.free for load in self.core.engines.candidates(record.job, self.now))


TestCoreMachine = CoreMachine.TestCase
TestCoreMachine.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
