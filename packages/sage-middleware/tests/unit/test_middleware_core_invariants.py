"""The core's invariants, whatever the order of events, under simple policies and the one with everything."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from msgspec import structs

from sage.common.config import ControlPlaneConfig
from sage.common.telemetry import RequestClass
from sage.middleware.control_plane.core import Core
from sage.middleware.control_plane.options import CoreOptions, Limits, policy_options
from sage.middleware.control_plane.policy import load_policy
from sage.middleware.control_plane.types import (
    Action,
    Arrived,
    Cancel,
    Cancelled,
    Dispatch,
    EngineAdded,
    EngineDown,
    EngineRemoved,
    EngineUp,
    Failed,
    Finished,
    FirstByte,
    GaveUp,
    Progress,
    Reject,
    RestartEngine,
    Slice,
    Tick,
)
from sage.middleware.engines.port import EngineSpec, Usage
from sage.middleware.testing.policies import chat_job, chat_spec, embed_job, embed_spec

OPTIONS = policy_options(ControlPlaneConfig())


class CoreMachine(RuleBasedStateMachine):
    """Any order of events: a model of what the driver may send, and what must hold after each."""

    policy = "least_load"

    def __init__(self) -> None:
        super().__init__()
        limits = Limits(8, 100_000, 5.0)
        self.core = Core(load_policy(self.policy, OPTIONS), CoreOptions(limits, history=10_000))
        self.now = 0.0
        self.count = 0
        self.up: set[str] = set()
        self.specs: dict[str, EngineSpec] = {
            "e0": chat_spec("e0", max_running=1),
            "e1": chat_spec("e1", max_running=3),
            "e2": embed_spec("e2", max_running=3),
            "e3": embed_spec("e3", max_running=2),
        }
        self.running: dict[int, Dispatch] = {}
        self.missing: dict[str, set[int]] = {}  # units without an answer, of requests that live
        self.ended: Counter[str] = Counter()
        for index in range(4):
            self.engine_up(index)

    # ---- what the driver does ------------------------------------------------------------------------

    def feed(self, event: Any) -> None:
        self.obey(self.core.handle(event))

    def obey(self, actions: list[Action]) -> None:
        for action in actions:
            if isinstance(action, Dispatch):
                self.sent(action)
            elif isinstance(action, Reject):
                self.end(action.id)
            elif isinstance(action, Cancel):
                del self.running[action.attempt]
            else:
                assert isinstance(action, RestartEngine)

    def sent(self, action: Dispatch) -> None:
        assert action.engine in self.up
        assert action.attempt not in self.running
        assert action.slices
        for part in action.slices:
            wanted = set(range(part.start, part.stop))
            assert wanted
            assert wanted <= self.missing[part.id], "sent though it has ended or is answered"
            if not action.hedge:
                assert not wanted & self.in_flight(part.id), "sent twice without being a hedge"
        self.running[action.attempt] = action

    def in_flight(self, ident: str) -> set[int]:
        parts = [part for one in self.running.values() for part in one.slices if part.id == ident]
        return {unit for part in parts for unit in range(part.start, part.stop)}

    def end(self, ident: str) -> None:
        del self.missing[ident]
        self.ended[ident] += 1

    # ---- what may happen -----------------------------------------------------------------------------

    @rule(index=st.integers(0, 3))
    def engine_up(self, index: int) -> None:
        name = f"e{index}"
        self.up.add(name)
        self.feed(EngineUp(self.now, self.specs[name]))

    @rule(index=st.integers(0, 11), how=st.sampled_from(["down", "crash", "removed", "added"]))
    def engine_goes(self, index: int, how: str) -> None:
        if index > 3:  # most of the time they stay, or little would ever run
            return
        name = f"e{index}"
        self.up.discard(name)
        if how == "removed":
            self.feed(EngineRemoved(self.now, name))
        elif how != "added":
            self.feed(EngineDown(self.now, name, "test", crashed=how == "crash"))
        else:
            self.feed(EngineAdded(self.now, self.specs[name]))

    @rule(
        size=st.integers(1, 5000),
        patience=st.none() | st.floats(0.01, 9.0),
        texts=st.sampled_from([0, 0, 1, 1, 4, 20, 900]),
        tenant=st.sampled_from("ab"),
        hedgeable=st.booleans(),
        count=st.integers(1, 6),
    )
    def arrive(
        self, size: int, patience: float | None, texts: int, tenant: str, hedgeable: bool, count: int
    ) -> None:
        deadline = None if patience is None else self.now + patience
        for _ in range(count):
            self.count += 1
            ident = f"r{self.count}"
            job = chat_job(ident, tokens=size, tenant=tenant)
            if texts:
                job = embed_job(ident, texts=texts, tenant=tenant)
            self.missing[ident] = set(range(texts or 1))
            self.feed(
                Arrived(self.now, structs.replace(job, hedgeable=hedgeable, stream=hedgeable), deadline)
            )

    @precondition(lambda self: self.running)
    @rule(data=st.data(), how=st.sampled_from(["done", "retry", "broken", "refused", "byte", "alive"]))
    def progress(self, data: st.DataObject, how: str) -> None:
        number = data.draw(st.sampled_from(sorted(self.running)))
        if how == "byte":
            self.feed(FirstByte(self.now, number))
            return
        if how == "alive":
            self.feed(Progress(self.now, (number,)))
            return
        action = self.running.pop(number)
        if how == "done":
            for part in action.slices:
                self.answer(part)
            self.feed(Finished(self.now, number, Usage(10, 10)))
        elif how == "retry":
            self.feed(Failed(self.now, number, "test", retryable=True, fault=True))
        else:
            for part in action.slices:
                twins = [one for one in self.running.values() if part in one.slices]
                if part.id in self.missing and not twins:
                    self.end(part.id)
            self.feed(Failed(self.now, number, "test", retryable=False, fault=how == "broken"))

    def answer(self, part: Slice) -> None:
        missing = self.missing.get(part.id)
        if missing is not None:
            missing -= set(range(part.start, part.stop))
            if not missing:
                self.end(part.id)

    @precondition(lambda self: self.missing)
    @rule(data=st.data(), by=st.sampled_from(["client", "us"]))
    def leave(self, data: st.DataObject, by: str) -> None:
        ident = data.draw(st.sampled_from(sorted(self.missing)))
        self.end(ident)
        self.feed(Cancelled(self.now, ident) if by == "client" else GaveUp(self.now, ident, "test"))

    @rule(seconds=st.floats(0.0, 1.0) | st.floats(0.0, 40.0))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.feed(Tick(self.now))

    @rule(name=st.sampled_from(["fifo", "hybrid", "fair", "slo", "siloed"]))
    def another_policy(self, name: str) -> None:
        if self.policy == "switching":
            self.obey(self.core.set_policy(load_policy(name, OPTIONS), self.now))

    # ---- what must hold ------------------------------------------------------------------------------

    @invariant()
    def slots_are_within_bounds_and_add_up(self) -> None:
        placed = Counter(one.engine for one in self.running.values())
        for load in self.core.engines:
            assert load.running == placed[load.name]
            if self.policy != "switching":  # one policy there does not care for slots
                assert 0 <= load.running <= load.max_running
            assert load.outstanding_tokens >= 0
            assert load.prefill_tokens >= 0
            assert load.running or not (load.outstanding_tokens or load.prefill_tokens)

    @invariant()
    def each_request_has_at_most_one_end_and_none_is_lost(self) -> None:
        assert all(times == 1 for times in self.ended.values())
        assert len(self.ended) + len(self.missing) == self.count
        assert self.core.live == len(self.missing)
        assert all(self.core.is_live(ident) for ident in self.missing)

    @invariant()
    def what_is_not_in_flight_waits(self) -> None:
        waiting = 0
        for ident, missing in self.missing.items():
            record = self.core.record(ident)
            assert record is not None
            assert record.waiting_units == len(missing - self.in_flight(ident))
            untouched = len(missing) == record.units and not self.in_flight(ident)
            assert (record.outcome == "waiting") == untouched
            waiting += record.waiting_units > 0
        assert sum(self.core.counts(one).waiting for one in RequestClass) == waiting

    @invariant()
    def whatever_waits_has_a_time_to_be_looked_at(self) -> None:
        wake = self.core.next_wake()
        if any(self.core.counts(one).waiting for one in RequestClass):
            assert wake is not None
        if wake is not None:
            assert self.core.wakes_before(math.nextafter(wake, math.inf))


class HybridMachine(CoreMachine):
    """With batches, cuts, hedges, prefixes and sheds."""

    policy = "hybrid"


class SwitchingMachine(CoreMachine):
    """Policies change while requests run."""

    policy = "switching"

    def __init__(self) -> None:
        self.policy = "fifo"
        super().__init__()
        self.policy = "switching"


@pytest.mark.parametrize("machine", [CoreMachine, HybridMachine, SwitchingMachine])
def test_the_invariants_hold(machine: type[CoreMachine]) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=60,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )


def test_an_engine_falls_silent_that_has_two_parts_of_one_request() -> None:
    """The loss of one ends the request, and with it the other."""
    machine = HybridMachine()
    machine.engine_goes(how="down", index=2)
    machine.arrive(count=1, hedgeable=False, patience=None, size=1, tenant="a", texts=900)
    machine.time_passes(seconds=30.0)
    machine.engine_up(index=0)
    machine.engine_up(index=0)
    machine.time_passes(seconds=31.0)
    machine.teardown()
