"""What textbooks say of the policies, on one slot against brute force and under a core."""

from __future__ import annotations

from collections import Counter
from itertools import permutations

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from sage.middleware.control_plane.core import Core
from sage.middleware.control_plane.options import CoreOptions, Limits
from sage.middleware.control_plane.policy import PolicyOptions, load_policy
from sage.middleware.control_plane.records import Record
from sage.middleware.control_plane.types import Arrived, Dispatch, EngineUp, Event, Finished
from sage.middleware.engines.port import Usage
from sage.middleware.testing.policies import chat_job, chat_spec, embed_job, embed_spec, serve, waiting_record

JOBS = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 30)), min_size=1, max_size=6)  # cost, due


def in_order(policy: str, jobs: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The jobs as one slot serves them, all of them there at the start."""
    lane = load_policy(policy).discipline()
    for number, (cost, due) in enumerate(jobs):
        lane.push(waiting_record(chat_job(str(number)), number, cost=cost, due=due), 0.0)
    out = []
    while (head := lane.head(0.0)) is not None:
        lane.remove(head)
        out.append(jobs[head.sequence])
    return out


def latest(jobs: tuple[tuple[int, int], ...] | list[tuple[int, int]]) -> int:
    """By how much the worst one is late; below zero when all are early."""
    now, worst = 0, -100
    for cost, due in jobs:
        now += cost
        worst = max(worst, now - due)
    return worst


def total_wait(jobs: tuple[tuple[int, int], ...] | list[tuple[int, int]]) -> int:
    now = total = 0
    for cost, _ in jobs:
        total += now
        now += cost
    return total


@given(jobs=JOBS)
@settings(max_examples=60, deadline=None)
def test_edf_is_never_later_than_the_best_order(jobs: list[tuple[int, int]]) -> None:
    """Jackson's rule: no order makes the greatest lateness smaller, so it meets all goals if one can."""
    assert latest(in_order("edf", jobs)) == min(map(latest, permutations(jobs)))


@given(jobs=JOBS)
@settings(max_examples=60, deadline=None)
def test_sjf_has_the_shortest_mean_wait(jobs: list[tuple[int, int]]) -> None:
    assert total_wait(in_order("sjf", jobs)) == min(map(total_wait, permutations(jobs)))


@pytest.mark.parametrize("finish_at_once", [True, False])
@pytest.mark.parametrize("policy", ["least_load", "round_robin", "slo", "edf"])
def test_equal_requests_are_spread_evenly_over_equal_idle_engines(policy: str, finish_at_once: bool) -> None:
    core = Core(load_policy(policy))
    for index in range(4):
        core.handle(EngineUp(0.0, chat_spec(f"e{index}", max_running=10)))
    placed: Counter[str] = Counter()
    for number in range(40):
        (action,) = core.handle(Arrived(number / 10, chat_job(f"r{number}")))
        assert isinstance(action, Dispatch)
        placed[action.engine] += 1
        if finish_at_once:
            core.handle(Finished(number / 10, action.attempt, Usage()))
    assert placed == {"e0": 10, "e1": 10, "e2": 10, "e3": 10}


def overloaded(
    policy: str, offered: dict[str, int], options: PolicyOptions | None = None
) -> dict[str, float]:
    """Calls of each tenant from second 5 to 25 of one slot that gives 10 a second; `offered` is a second."""
    limits = Limits(queue_max_requests=100_000, queue_max_wait_s=1000.0)
    core = Core(load_policy(policy, options), CoreOptions(limits, history=100_000))
    core.handle(EngineUp(0.0, embed_spec("e0")))
    events: list[Event] = []
    for tenant, rate in offered.items():
        events += [
            Arrived(number / rate, embed_job(f"{tenant}{number}", tenant=tenant))
            for number in range(25 * rate)
        ]
    dispatched = serve(core, events, lambda _: 0.1)
    served = dict.fromkeys(offered, 0.0)
    for action in dispatched:
        record = core.record(action.slices[0].id)
        assert record is not None
        if 5.0 <= dispatched_at(record) < 25.0:
            served[record.job.tenant] += 1
    return served


def dispatched_at(record: Record) -> float:
    assert record.dispatched is not None
    return record.dispatched


def jain(shares: list[float]) -> float:
    """Jain's fairness index: 1 = all equal, 1/n = one has everything."""
    return sum(shares) ** 2 / (len(shares) * sum(share * share for share in shares))


def test_fair_gives_no_more_to_a_tenant_that_offers_ten_times_as_much() -> None:
    offered = {"greedy": 30, "a": 3, "b": 3, "c": 3}
    assert jain(list(overloaded("fair", offered).values())) >= 0.95
    assert jain(list(overloaded("fifo", offered).values())) < 0.6


def test_fair_gives_by_weight() -> None:
    served = overloaded("fair", {"a": 10, "b": 10}, PolicyOptions(weights={"a": 3.0}))
    assert served["a"] / served["b"] == pytest.approx(3.0, rel=0.1)


def test_fair_leaves_nothing_idle_for_who_does_not_come() -> None:
    """What one tenant does not use, the other one gets."""
    served = overloaded("fair", {"a": 30, "b": 1})
    assert served["b"] == pytest.approx(20, abs=1)
    assert served["a"] == pytest.approx(180, abs=2)
