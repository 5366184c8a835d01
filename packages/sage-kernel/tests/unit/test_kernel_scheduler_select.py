"""One unit and one group: devices, capacity, and that placing and releasing cancel out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sage.common.errors import ConflictError, NotFoundError, UsageError
from sage.kernel.scheduler import (
    InfeasibleError,
    Node,
    Placement,
    Resources,
    Snapshot,
    Unit,
    Wait,
    available_policies,
    explain,
    load_policy,
    require,
    select,
    select_group,
)
from sage.kernel.testing.placement import check_capacity, packed

GIB = 1 << 30
PACK = load_policy("pack")


def devices(snapshot: Snapshot, **demand: Any) -> tuple[int, ...] | None:
    decision = select(snapshot, Unit("probe", Resources(**demand)), PACK)
    return decision.devices if isinstance(decision, Placement) else None


def test_tenths_of_a_core_add_up() -> None:
    full = packed(Snapshot([Node("a", 1)]), *(Unit(f"u{n}", Resources(0.1)) for n in range(10)))
    assert full["a"].cpu == 0
    assert isinstance(select(full, Unit("more", Resources(0.001)), PACK), Wait)


# ---- devices ---------------------------------------------------------------------------------------


def test_a_share_takes_the_device_that_it_leaves_least_of() -> None:
    halves = Unit("h1", Resources(0, 0.5)), Unit("h2", Resources(0, 0.75))
    used = packed(Snapshot([Node("a", 4, gpus=(GIB, GIB, GIB))]), *halves)
    assert devices(used, gpu=0.25) == (1,)
    assert devices(used, gpu=0.5) == (0,)
    assert devices(used, gpu=0.6) == (2,)
    assert devices(used, gpu=1) == (2,)
    assert devices(used, gpu=2) is None


def test_shares_of_one_device_never_exceed_it() -> None:
    full = packed(
        Snapshot([Node("a", 4, gpus=(GIB,))]), *(Unit(f"u{n}", Resources(0, 0.25)) for n in range(4))
    )
    assert full["a"].devices == ((0, 0),)
    assert devices(full, cpu=0, gpu=0.001) is None


def test_memory_of_a_device_is_kept_too() -> None:
    snapshot = Snapshot([Node("a", 4, gpus=(8 * GIB, 24 * GIB))])
    assert devices(snapshot, gpu=1, gpu_memory="8GiB") == (0,)
    assert devices(snapshot, gpu=1, gpu_memory="9GiB") == (1,)
    assert devices(snapshot, gpu=2, gpu_memory="9GiB") is None
    used = packed(snapshot, Unit("u", Resources(0, 0.1, gpu_memory="20GiB")))
    assert used["a"].devices == ((1000, 8 * GIB), (900, 4 * GIB))
    assert devices(used, gpu=0.1, gpu_memory="6GiB") == (0,)
    assert devices(used, gpu=0.9) == (0,)  # its share of the memory of device 1 is gone


def test_a_whole_device_of_a_node_is_one_that_nobody_uses() -> None:
    used = packed(Snapshot([Node("a", 4, gpus=(GIB, GIB))]), Unit("u", Resources(0, 0.001)))
    assert devices(used, gpu=1) == (1,)
    assert devices(used, gpu=2) is None


# ---- the snapshot ----------------------------------------------------------------------------------


def test_what_cannot_be_placed_is_refused() -> None:
    snapshot = Snapshot([Node("a", 2, gpus=(GIB,))])
    there = Placement(Unit("u", Resources(1, 1)), "a", (0,))
    with pytest.raises(ConflictError, match=r"'big' does not fit on node 'a': it lacks cpu 3 \(has 2\)"):
        snapshot.place(Placement(Unit("big", Resources(3)), "a"))
    for numbers in ((), (1,), (-1,), (0, 0)):
        with pytest.raises(ConflictError, match="lacks other devices than"):
            snapshot.place(replace(there, devices=numbers))
    with pytest.raises(NotFoundError, match="no node 'b' among the 1 known"):
        snapshot.place(replace(there, node="b"))
    with pytest.raises(NotFoundError, match="'u' is not on node 'a'"):
        snapshot.release(there)
    with pytest.raises(ConflictError, match="'u' is on node 'a' already"):
        snapshot.place(there).place(there)
    with pytest.raises(UsageError, match="Two nodes are named 'a'"):
        Snapshot([Node("a", 1), Node("a", 2)])


def test_nodes_join_leave_and_close() -> None:
    snapshot = packed(Snapshot([Node("a", 2)]), Unit("u", Resources(2)))
    grown = snapshot.join(Node("b", 2))
    assert [state.node.name for state in grown] == ["a", "b"]
    assert grown.leave("b") == snapshot
    assert grown.emptied() == Snapshot([Node("b", 2), Node("a", 2)])
    assert grown.only(["b"]) == Snapshot([Node("b", 2)])
    closed = grown.close(["b"], "is kept")
    assert select(closed, Unit("v"), PACK) == Wait("no node has free cpu 1 (most: 0)")
    assert closed.close(["b"], "") == grown
    assert select(snapshot.close(["a"], "is kept"), Unit("v"), PACK) == Wait("no node is open")
    assert "a" in snapshot
    assert "b" not in snapshot


DEMANDS = st.builds(
    Resources,
    cpu=st.sampled_from([0.0, 0.1, 0.25, 1, 2, 3]),
    gpu=st.sampled_from([0.0, 0.0, 0.1, 0.25, 0.5, 0.7, 1, 2]),
    memory=st.sampled_from([0, 1, 300, 1000]),
    labels=st.sampled_from([{}, {}, {"zone": "a"}, {"zone": "a", "disk": "ssd"}]),
)
NODES = st.lists(
    st.tuples(
        st.sampled_from([0.5, 2.0, 4.0]),
        st.sampled_from([0, 1000, 2000]),
        st.lists(st.sampled_from([1000, 7]), max_size=3).map(tuple),
        st.sampled_from([{}, {"zone": "a"}, {"zone": "a", "disk": "ssd"}, {"zone": "b"}]),
        st.sampled_from([True, True, True, False]),
    ),
    min_size=1,
    max_size=6,
).map(lambda rows: [Node(f"n{number}", *row) for number, row in enumerate(rows)])
POLICIES = st.sampled_from(available_policies()).map(load_policy)


@settings(max_examples=150, deadline=None)
@given(NODES, st.lists(st.tuples(DEMANDS, st.integers(0, 3)), max_size=30), POLICIES)
def test_any_sequence_keeps_within_capacity_and_can_be_undone(
    nodes: list[Node], steps: list[tuple[Resources, int]], policy: Any
) -> None:
    """Units come, and now and then a placed one goes; at each point all is as if only the rest had come."""
    snapshot, placed = Snapshot(nodes), list[Placement]()
    for number, (demand, leave) in enumerate(steps):
        unit = Unit(f"u{number}", demand, near=("n2", "n0"), spread="s" if number % 3 else "")
        decision = select(snapshot, unit, policy)
        assert decision == select(snapshot, unit, policy)
        assert isinstance(decision, Placement) != (explain(snapshot, unit, policy).verdict != "place")
        if isinstance(decision, Placement):
            before, snapshot = snapshot, snapshot.place(decision)
            assert snapshot.release(decision) == before
            placed.append(decision)
        if leave == 0 and placed:
            snapshot = snapshot.release(placed.pop(number % len(placed)))
        check_capacity(snapshot)
    rebuilt = Snapshot(nodes)
    for placement in placed:
        rebuilt = rebuilt.place(placement)
    assert rebuilt == snapshot
    assert rebuilt.newest == snapshot.newest == max((one.number for one in placed), default=0)
    assert dict(snapshot.placed) == {one.unit.id: one for one in placed}


@settings(max_examples=100, deadline=None)
@given(NODES, st.lists(DEMANDS, min_size=1, max_size=6), POLICIES)
def test_a_group_is_placed_whole_or_not_at_all(
    nodes: list[Node], demands: list[Resources], policy: Any
) -> None:
    snapshot = Snapshot(nodes)
    units = [Unit(f"u{number}", demand, group="g") for number, demand in enumerate(demands)]
    try:
        require(snapshot, units, policy)
    except InfeasibleError:
        assert isinstance(select_group(snapshot, units, policy), Wait)
        return
    found = select_group(snapshot, units, policy)
    assert not isinstance(found, Wait)
    assert [one.unit for one in found] == units
    for placement in sorted(found, key=lambda one: one.number):
        snapshot = snapshot.place(placement)
    check_capacity(snapshot)


def test_a_group_is_packed_where_the_policy_leaves_no_room() -> None:
    """Spread would put the two halves apart and leave no node for the whole."""
    nodes = [Node("a", 4), Node("b", 4)]
    units = [Unit(f"h{n}", Resources(1), group="g") for n in range(4)] + [Unit("w", Resources(4), group="g")]
    found = select_group(Snapshot(nodes), units, load_policy("spread"))
    assert not isinstance(found, Wait)
    assert {one.unit.id for one in found if one.node == "b"} in ({"w"}, {"h0", "h1", "h2", "h3"})
