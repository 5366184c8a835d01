"""The queue disciplines against naive lists: order, removal anywhere, coming back."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from sage.middleware.control_plane.disciplines import Accounts, Fair, Fifo, Keyed, Ranked
from sage.middleware.control_plane.policy import Discipline
from sage.middleware.control_plane.records import Record
from sage.middleware.testing.policies import chat_job, embed_job, waiting_record


def record(number: int, *, tenant: str = "t", model: str = "m", **fields: Any) -> Record:
    return waiting_record(chat_job(f"r{number}", tenant=tenant, model=model), number, **fields)


def by_cost(one: Record) -> float:
    return one.cost


def by_rank(one: Record) -> int:
    return int(one.job.tenant)


def drain(lane: Discipline) -> list[int]:
    out = []
    while (head := lane.head(0.0)) is not None:
        lane.remove(head)
        out.append(head.sequence)
    return out


class ListMachine(RuleBasedStateMachine):
    """A discipline and a plain list that is searched for the smallest key each time."""

    def make(self) -> Discipline:
        return Keyed(by_cost)

    def order(self, one: Record) -> tuple[Any, ...]:
        return (one.cost, one.sequence)

    def __init__(self) -> None:
        super().__init__()
        self.lane = self.make()
        self.waiting: list[Record] = []
        self.gone: list[Record] = []
        self.count = 0

    @rule(cost=st.sampled_from([0.1, 0.2, 0.3, 5.0]), rank=st.sampled_from("012"))
    def push(self, cost: float, rank: str) -> None:
        self.count += 1
        new = record(self.count, tenant=rank, cost=cost)
        self.lane.push(new, 0.0)
        self.waiting.append(new)

    @rule(data=st.data())
    @precondition(lambda self: self.waiting)
    def remove_any(self, data: st.DataObject) -> None:
        one = data.draw(st.sampled_from(self.waiting))
        self.waiting.remove(one)
        self.gone.append(one)
        self.lane.remove(one)

    @rule(data=st.data())
    @precondition(lambda self: self.waiting)
    def end_without_removal(self, data: st.DataObject) -> None:
        one = data.draw(st.sampled_from(self.waiting))
        self.waiting.remove(one)
        one.outcome = "cancelled"

    @rule(data=st.data(), cost=st.sampled_from([0.1, 0.3, 5.0]))
    @precondition(lambda self: self.gone)
    def come_back(self, data: st.DataObject, cost: float) -> None:
        one = data.draw(st.sampled_from(self.gone))
        one.cost = cost  # what is left of it costs something else
        self.gone.remove(one)
        self.waiting.append(one)
        self.lane.push(one, 0.0)

    @rule(data=st.data())
    @precondition(lambda self: self.gone)
    def remove_what_is_gone(self, data: st.DataObject) -> None:
        self.lane.remove(data.draw(st.sampled_from(self.gone)))

    @rule()
    @precondition(lambda self: self.waiting)
    def take_the_head(self) -> None:
        head = self.lane.head(0.0)
        assert head is not None
        self.waiting.remove(head)
        self.gone.append(head)
        self.lane.remove(head)

    @invariant()
    def the_head_is_the_smallest(self) -> None:
        expected = min(self.waiting, key=self.order, default=None)
        assert self.lane.head(0.0) is expected
        assert len(self.lane) >= len(self.waiting)  # ended ones are dropped when they come up

    def teardown(self) -> None:
        expected = [one.sequence for one in sorted(self.waiting, key=self.order)]
        assert drain(self.lane) == expected
        assert len(self.lane) == 0


class RankedMachine(ListMachine):
    def make(self) -> Discipline:
        return Ranked(by_rank, lambda: Keyed(by_cost))

    def order(self, one: Record) -> tuple[Any, ...]:
        return (by_rank(one), one.cost, one.sequence)


class FifoMachine(ListMachine):
    def make(self) -> Discipline:
        return Fifo()

    def order(self, one: Record) -> tuple[Any, ...]:
        return (one.sequence,)


QUICK = settings(max_examples=40, stateful_step_count=30, deadline=None)
TestKeyed = ListMachine.TestCase
TestRanked = RankedMachine.TestCase
TestFifo = FifoMachine.TestCase
TestKeyed.settings = TestRanked.settings = TestFifo.settings = QUICK


def test_a_tenant_whose_requests_ended_comes_back() -> None:
    """Nobody took them out, so the queue finds out by itself."""
    fair = Fair(Accounts({}), Fifo)
    gone = record(1)
    fair.push(gone, 0.0)
    gone.outcome = "cancelled"
    assert fair.head(0.0) is None
    assert len(fair) == 0
    fair.push(record(2), 0.0)
    assert drain(fair) == [2]


def test_a_request_with_units_left_stays_while_it_runs() -> None:
    lane = Fifo()
    bulk = waiting_record(embed_job("bulk", texts=20), 1)
    lane.push(bulk, 0.0)
    bulk.outcome, bulk.taken = "running", 8
    assert lane.head(0.0) is bulk
    bulk.taken = 20
    assert lane.head(0.0) is None
    assert len(lane) == 0
    bulk.returned += ((0, 8, 1),)
    lane.push(bulk, 0.0)
    assert lane.head(0.0) is bulk


def test_one_that_is_pushed_twice_waits_once() -> None:
    for lane in (Fifo(), Fair(Accounts({}), Fifo), Ranked(lambda _: 0, Fifo)):
        one = record(1)
        lane.push(one, 0.0)
        lane.push(one, 0.0)
        assert len(lane) == 1
        assert drain(lane) == [1]


def test_heaps_do_not_grow_with_what_left_long_ago() -> None:
    """What is cancelled deep in the queue is tidied up, though it never comes to the top."""
    lane = Keyed(by_cost)
    lane.push(record(0, cost=0.0), 0.0)
    for number in range(1, 5000):
        one = record(number, cost=1.0)
        lane.push(one, 0.0)
        lane.remove(one)
    assert len(lane._heap) < 200
