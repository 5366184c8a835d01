"""The index against a sorted list, and that it stays small and prunes without losing anything."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sage.kernel.scheduler import Node, Placement, Resources, Snapshot, Unit, load_policy, select
from sage.kernel.scheduler.index import Index, by_name
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
        index = index.changed(old, new)
        assert list(before) == listed
        if new is not None:
            known[number] = new
            assert index.find(by_cpu(new)) is new
        if old is not None and (new is None or by_cpu(new) != by_cpu(old)):
            assert index.find(by_cpu(old)) is None
    expected = sorted(known.values(), key=by_cpu)
    assert list(index) == expected
    assert len(index) == len(expected)
    assert list(index.walk(need)) == [one for one in expected if not missing(one, need)]
    tops = tuple(map(max, zip(*(one[:4] for one in expected), strict=True)))
    assert index.tops() == (tops or None)


def test_an_index_of_states_at_once_is_that_of_one_after_another() -> None:
    states = [state(number, 1 + number % 5) for number in range(500)]
    grown = Index(by_name)
    for one in states:
        grown = grown.changed(None, one)
    assert list(grown) == list(Index(by_name, states[::-1])) == states


def test_chunks_stay_few_while_states_move_about() -> None:
    random = Random(1)  # noqa: S311  (not a secret)
    states = [state(number, 5) for number in range(1000)]
    index = Index(by_cpu, states)
    for _ in range(20_000):
        at = random.randrange(1000)
        moved = states[at]._replace(cpu=random.randrange(8000))
        index, states[at] = index.changed(states[at], moved), moved
    assert list(index) == sorted(states, key=by_cpu)
    assert len(index._chunks) < 60


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
