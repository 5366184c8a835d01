"""Fairness between tenants: against a naive model, and as engine-seconds that each one gets."""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from math import floor
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from sage.middleware.control_plane.disciplines import QUANTUM_S, Accounts, Fair, Fifo
from sage.middleware.control_plane.records import Record
from sage.middleware.testing.policies import chat_job, waiting_record


def record(number: int, *, tenant: str = "t", model: str = "m", **fields: Any) -> Record:
    return waiting_record(chat_job(f"r{number}", tenant=tenant, model=model), number, **fields)


def drain(lane: Fair) -> list[int]:
    out = []
    while (head := lane.head(0.0)) is not None:
        lane.remove(head)
        out.append(head.sequence)
    return out


@dataclasses.dataclass
class NaiveTenant:
    used: float
    position: int


class FairMachine(RuleBasedStateMachine):
    """Two lanes of one model that share accounts, against dictionaries searched from end to end."""

    WEIGHTS = {"b": 2.0, "c": 0.5}

    def __init__(self) -> None:
        super().__init__()
        self.accounts = Accounts(self.WEIGHTS)
        self.lanes = [Fair(self.accounts, Fifo), Fair(self.accounts, Fifo)]
        self.waiting: list[list[Record]] = [[], []]
        self.tenants: dict[str, NaiveTenant] = {}
        self.running: list[Record] = []
        self.round = self.count = self.joined = 0

    def spend(self, tenant: str, seconds: float) -> None:
        self.tenants[tenant].used += seconds / self.WEIGHTS.get(tenant, 1.0)

    @rule(lane=st.integers(0, 1), tenant=st.sampled_from("abcd"), cost=st.sampled_from([0.01, 0.06, 0.7]))
    def push(self, lane: int, tenant: str, cost: float) -> None:
        self.count += 1
        new = record(self.count, tenant=tenant, cost=cost)
        idle = all(one.job.tenant != tenant for one in (*self.waiting[0], *self.waiting[1]))
        if idle:
            account = self.tenants.setdefault(tenant, NaiveTenant(0.0, 0))
            account.used = max(account.used, self.round * QUANTUM_S)
            account.position = self.joined
            self.joined += 1
        self.lanes[lane].push(new, 0.0)
        self.waiting[lane].append(new)

    @rule(lane=st.integers(0, 1))
    def dispatch(self, lane: int) -> None:
        head = self.lanes[lane].head(0.0)
        if head is None:
            return
        self.lanes[lane].remove(head)
        self.waiting[lane].remove(head)
        self.round = max(self.round, floor(self.tenants[head.job.tenant].used / QUANTUM_S))
        self.accounts.charge(head, head.cost)
        self.spend(head.job.tenant, head.cost)
        self.running.append(head)

    @rule(lane=st.integers(0, 1), data=st.data())
    def cancel(self, lane: int, data: st.DataObject) -> None:
        if self.waiting[lane]:
            one = data.draw(st.sampled_from(self.waiting[lane]))
            self.waiting[lane].remove(one)
            self.lanes[lane].remove(one)

    @rule(factor=st.sampled_from([0.0, 0.5, 1.0, 3.0]), data=st.data())
    @precondition(lambda self: self.running)
    def settle(self, factor: float, data: st.DataObject) -> None:
        one = data.draw(st.sampled_from(self.running))
        self.running.remove(one)
        seconds = one.cost * factor
        self.spend(one.job.tenant, seconds - one.charged)
        self.accounts.settle(one, seconds)
        assert one.charged == seconds

    @invariant()
    def heads_are_next_in_credit(self) -> None:
        for lane, waiting in zip(self.lanes, self.waiting, strict=True):
            assert len(lane) == len(waiting)
            assert lane.head(0.0) is min(waiting, key=self.order, default=None)

    def order(self, one: Record) -> tuple[int, int, int]:
        tenant = self.tenants[one.job.tenant]
        return (floor(tenant.used / QUANTUM_S), tenant.position, one.sequence)

    @invariant()
    def the_lanes_keys_agree_with_the_order(self) -> None:
        heads = [lane.head(0.0) for lane in self.lanes]
        if heads[0] is not None and heads[1] is not None:
            one, other = (lane.key(head, 0.0) for lane, head in zip(self.lanes, heads, strict=True) if head)
            assert (one < other) == (self.order(heads[0]) < self.order(heads[1]))


TestFairModel = FairMachine.TestCase
TestFairModel.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)


def serve_seconds(fair: Fair, accounts: Accounts, seconds: float) -> dict[str, float]:
    """Give the head the engine until so many engine-seconds are gone."""
    served: dict[str, float] = defaultdict(float)
    while seconds > 0 and (head := fair.head(0.0)) is not None:
        accounts.charge(head, head.cost)
        fair.remove(head)
        accounts.settle(head, head.cost)
        served[head.job.tenant] += head.cost
        seconds -= head.cost
    return served


def jain(shares: list[float]) -> float:
    return sum(shares) ** 2 / (len(shares) * sum(share * share for share in shares))


@given(costs=st.lists(st.floats(0.005, 0.5), min_size=5, max_size=5))
@settings(max_examples=10, deadline=None)
def test_a_tenant_that_offers_ten_times_as_much_gets_no_more(costs: list[float]) -> None:
    accounts = Accounts({})
    fair = Fair(accounts, Fifo)
    number = 0
    for tenant, cost in zip("abcde", costs, strict=True):
        for _ in range(int((10 if tenant == "a" else 1) * 20 / cost)):
            number += 1
            fair.push(record(number, tenant=tenant, cost=cost), 0.0)
    served = serve_seconds(fair, accounts, 60.0)
    assert jain([served[tenant] for tenant in "abcde"]) >= 0.95


@given(weights=st.lists(st.sampled_from([0.25, 0.5, 1.0, 2.0, 4.0]), min_size=3, max_size=3))
@settings(max_examples=10, deadline=None)
def test_weights_are_honoured(weights: list[float]) -> None:
    accounts = Accounts(dict(zip("abc", weights, strict=True)))
    fair = Fair(accounts, Fifo)
    for number in range(6000):
        fair.push(record(number, tenant="abc"[number % 3], cost=0.05), 0.0)
    served = serve_seconds(fair, accounts, 60.0)
    shares = [served[tenant] / weight for tenant, weight in zip("abc", weights, strict=True)]
    assert max(shares) / min(shares) < 1.05


def test_an_idle_tenant_banks_no_credit() -> None:
    accounts = Accounts({})
    fair = Fair(accounts, Fifo)
    for number in range(1000):
        fair.push(record(number, tenant="busy", cost=0.1), 0.0)
    serve_seconds(fair, accounts, 50.0)
    for number in range(1000, 2000):
        fair.push(record(number, tenant="late", cost=0.1), 0.0)
    served = serve_seconds(fair, accounts, 10.0)
    assert served["late"] == pytest.approx(served["busy"], abs=0.3)


def test_leaving_for_a_moment_gives_no_credit_either() -> None:
    """A tenant that never has more than one request waiting gets its share, not more."""
    accounts = Accounts({})
    fair = Fair(accounts, Fifo)
    for number in range(1000):
        fair.push(record(number, tenant="many", cost=0.03), 0.0)
    served: Counter[str] = Counter()
    for number in range(1000, 1600):
        if all(head.job.tenant != "one" for head in [fair.head(0.0)] if head):
            fair.push(record(number, tenant="one", cost=0.03), 0.0)
        head = fair.head(0.0)
        assert head is not None
        accounts.charge(head, head.cost)
        fair.remove(head)
        served[head.job.tenant] += 1
    assert served["one"] <= 330


def test_debts_stay_while_a_tenant_is_idle() -> None:
    accounts = Accounts({})
    fair = Fair(accounts, Fifo)
    fair.push(record(0, tenant="b"), 0.0)
    fair.push(record(1, tenant="a"), 0.0)
    expensive = record(2, tenant="a", cost=3.0)
    accounts.charge(expensive, 3.0)
    fair.push(record(3, tenant="a", cost=0.1), 0.0)
    assert drain(fair) == [0, 1, 3]
    fair.push(record(4, tenant="a"), 0.0)
    fair.push(record(5, tenant="b"), 0.0)
    assert drain(fair) == [5, 4]


def test_what_was_overcharged_is_paid_back() -> None:
    accounts = Accounts({})
    fair = Fair(accounts, Fifo)
    for number in range(4):
        fair.push(record(number, tenant="ab"[number % 2], cost=1.0), 0.0)
    first = fair.head(0.0)
    assert first is not None
    fair.remove(first)
    accounts.charge(first, 1.0)
    assert accounts.used("m", "a") == 1.0
    head = fair.head(0.0)
    assert head is not None
    assert head.job.tenant == "b"
    accounts.settle(first, 0.01)
    head = fair.head(0.0)
    assert head is not None
    assert head.job.tenant == "a"
    assert accounts.used("m", "a") == pytest.approx(0.01)


def test_each_model_has_rounds_of_its_own() -> None:
    """What a tenant used of one model's engines does not set it back at another's."""
    accounts = Accounts({})
    heavy = record(1, tenant="a", model="large")
    accounts.charge(heavy, 100.0)
    fair = Fair(accounts, Fifo)
    fair.push(record(2, tenant="a", model="small"), 0.0)
    fair.push(record(3, tenant="b", model="small"), 0.0)
    assert drain(fair) == [2, 3]
    assert accounts.used("large", "a") == 100.0


def test_accounts_of_idle_tenants_are_forgotten() -> None:
    accounts = Accounts({})
    fair = Fair(accounts, Fifo)
    for number in range(5000):
        fair.push(record(number, tenant=f"t{number}", cost=0.04), 0.0)
        serve_seconds(fair, accounts, 1.0)
    assert len(accounts._accounts) < 300


def test_accounts_of_tenants_that_wait_are_not_forgotten() -> None:
    accounts = Accounts({})
    fair = Fair(accounts, Fifo)
    fair.push(record(1, tenant="patient"), 0.0)
    for number in range(2, 500):
        accounts.charge(record(number, tenant=f"t{number}"), 0.01)
    assert drain(fair) == [1]
    assert len(fair) == 0
