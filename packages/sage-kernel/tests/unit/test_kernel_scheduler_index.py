"""The index against a sorted list, and that it stays small and prunes without losing anything."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sage.kernel.scheduler import (
    Node,
    Placement,
    Policy,
    Resources,
    Snapshot,
    Unit,
    available_policies,
    load_policy,
    select,
)
from sage.kernel.scheduler.index import Index, by_name
from sage.kernel.scheduler.roster import Roster
from sage.kernel.scheduler.state import State, empty, missing
from sage.kernel.testing.cluster import synthetic_nodes, synthetic_units


def by_cpu(state: State) -> tuple[int, str]:
    return (state.cpu, state.node.name)


def state(number: int, cpu: int) -> State:
    return empty(Node(f"n{number:03}", cpu, memory=cpu % 7, gpus=(1,) * (cpu % 3)))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 300), st.integers(0, 9)), max_size=600), st.integers(0, 12))
def test_it_is_a_sorted_list(steps: list[tuple[int, int]], cpu: int) -> None:
    """`cpu` 0 takes the state out, all else sets it; old indexes stay as they were."""
    known: dict[int, State] = {}
    index = Index(by_cpu)
    need = Resources(cpu, gpu=1, memory=3).need
    for number, wanted in steps:
        old, new = known.pop(number, None), state(number, wanted) if wanted else None
        before, listed = index, list(index)
        fitting = [one for one in listed if not missing(one, need)]
        assert list(index.walk(need)) == fitting  # and what it noted is no lie after the change
        index = index.changed([(old, new)])
        assert list(before) == listed
        assert list(before.walk(need)) == fitting
        if new is not None:
            known[number] = new
    expected = sorted(known.values(), key=by_cpu)
    assert list(index) == expected
    assert list(index.walk(need)) == [one for one in expected if not missing(one, need)]
    tops = tuple(map(max, zip(*(one[:4] for one in expected), strict=True)))
    assert index.tops() == (tops or None)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 200), st.integers(0, 3)), max_size=300))
def test_a_roster_is_a_dictionary_in_the_order_of_names(steps: list[tuple[int, int]]) -> None:
    known: dict[str, State] = {}
    roster = Roster()
    for number, cpu in steps:
        name = f"n{number:03}"
        old, new = known.pop(name, None), state(number, cpu) if cpu else None
        before, listed = roster, list(roster)
        roster = roster.changed(old, new)
        known |= {name: new} if new is not None else {}
        assert (roster.get(name), name in roster) == (new, new is not None)
        assert list(before) == listed
    assert list(roster) == [known[name] for name in sorted(known)]
    assert len(roster) == len(known)


def test_an_index_of_states_at_once_is_that_of_one_after_another() -> None:
    states = [state(number, 1 + number % 5) for number in range(500)]
    grown = Index(by_name)
    for one in states:
        grown = grown.changed([(None, one)])
    assert list(grown) == list(Index(by_name, states[::-1])) == states


def test_chunks_stay_few_while_states_move_about_and_go() -> None:
    random = Random(1)  # noqa: S311  (not a secret)
    states = [state(number, 5) for number in range(1000)]
    index = Index(by_cpu, states)
    for _ in range(20_000):
        at = random.randrange(1000)
        moved = states[at]._replace(cpu=random.randrange(8000))
        index, states[at] = index.changed([(states[at], moved)]), moved
    assert list(index) == sorted(states, key=by_cpu)
    assert len(index._chunks) < 60
    for number, one in enumerate(states[:-1], 1):
        index = index.changed([(one, None)])
        if not number % 100:
            assert list(index) == sorted(states[number:], key=by_cpu)
    assert (len(index._chunks), list(index)) == (1, states[-1:])


ACTS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 39)), max_size=80)


@settings(max_examples=15, deadline=None)
@given(ACTS, st.integers(0, 5))
@pytest.mark.parametrize("name", available_policies())
def test_what_is_found_in_order_is_what_a_look_at_all_nodes_finds(
    name: str, acts: list[tuple[int, int]], seed: int
) -> None:
    """Whatever is placed, released, closed, gone and back, also from a snapshot that is not the newest."""
    policy, nodes = load_policy(name), synthetic_nodes(40, seed=seed)
    snapshot, placed, older = Snapshot(nodes), list[Placement](), list[Snapshot]()
    units = synthetic_units(2 * len(acts) + 2, seed=seed, gpus=0.5, zoned=0.3)
    for number, (act, at) in enumerate(acts):
        unit = replace(units[2 * number], near=(nodes[at].name, nodes[number % 40].name))
        check_order(policy, snapshot, unit)
        older.append(snapshot)
        if act == 0 and nodes[at].name in snapshot:
            snapshot = snapshot.close([nodes[at].name], "is kept" if number % 2 else "")
        elif act == 1 and nodes[at].name in snapshot:
            lost = snapshot[nodes[at].name].placed
            placed = [one for one in placed if one.unit.id not in lost]
            snapshot = snapshot.leave(nodes[at].name)
        elif act == 1:
            snapshot = snapshot.join(nodes[at])
        elif act == 2 and placed:
            snapshot = snapshot.release(placed.pop(at % len(placed)))
        elif isinstance(decision := select(snapshot, unit, policy), Placement):
            snapshot = snapshot.place(decision)
            placed.append(decision)
    for old in older[:: max(1, len(older) // 5)]:
        check_order(policy, old, units[-1])


def check_order(policy: Policy, snapshot: Snapshot, unit: Unit) -> None:
    fitting = [state for state in snapshot if not missing(state, unit.resources.need)]
    ranked = sorted(fitting, key=lambda state: (policy.score(state, unit), state.node.name))
    assert list(policy.candidates(snapshot, unit)) == ranked
    decision = select(snapshot, unit, policy)
    assert (decision.node if isinstance(decision, Placement) else None) == (
        ranked[0].node.name if ranked else None
    )


def test_an_order_that_nobody_asks_for_is_behind_but_not_far() -> None:
    snapshot, pack = Snapshot(synthetic_nodes(300)), load_policy("pack")
    for unit in synthetic_units(1000, zoned=0.02):
        decision = select(snapshot, unit, pack)
        assert isinstance(decision, Placement)
        snapshot = snapshot.place(decision)
        assert all(order.changes < 64 for order in snapshot._orders.values())
    check_order(pack, snapshot, Unit("late", Resources(labels={"zone": "a"})))


@pytest.mark.parametrize("policy", ["pack", "spread", "gpu_fragment_aware"])
def test_a_large_cluster_fills_and_empties_exactly(policy: str) -> None:
    """SIMULATED: 5,000 nodes, with labels; what was released in any order leaves no trace."""
    empty_cluster = Snapshot(synthetic_nodes(5000))
    snapshot, made = empty_cluster, load_policy(policy)
    placed = []
    for unit in synthetic_units(3000, gpus=0.3):
        decision = select(snapshot, unit, made)
        assert isinstance(decision, Placement)
        snapshot = snapshot.place(decision)
        placed.append(decision)
    assert len(snapshot.placed) == 3000
    Random(2).shuffle(placed)  # noqa: S311  (not a secret)
    for placement in placed:
        snapshot = snapshot.release(placement)
    assert snapshot == empty_cluster
    assert snapshot.newest == 0


def test_an_order_nobody_asks_for_any_more_is_dropped() -> None:
    snapshot, pack = Snapshot(synthetic_nodes(30)), load_policy("pack")
    for number in range(60):
        select(snapshot, Unit("u", Resources(labels={"rack": str(number)})), pack)
    assert len(snapshot._orders) <= 16


def test_labels_that_many_nodes_have_share_the_order_of_all() -> None:
    nodes = [
        replace(node, labels={**node.labels, "rack": f"r{at // 10}"})
        for at, node in enumerate(synthetic_nodes(300))
    ]
    snapshot, pack = Snapshot(nodes), load_policy("pack")
    for key, value in (("zone", "a"), ("zone", "b"), ("rack", "r7")):
        for cpu in (1, 1000):
            demand = Resources(cpu, labels={key: value})
            check_order(pack, snapshot, Unit("u", demand))
            most = max(state.cpu for state in snapshot if state.node.labels[key] == value)
            found = snapshot.most_free(demand.need.labels)
            assert found is not None
            assert found[0] == most
    assert [labels for _, labels in snapshot._orders] == [(), (("rack", "r7"),)]
    assert snapshot.most_free((("zone", "z"),)) is None
