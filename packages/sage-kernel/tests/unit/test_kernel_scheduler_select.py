"""One unit: demands, devices, what is said of them, and that placing and releasing cancel out."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
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
    node_of,
    require,
    select,
    select_group,
)
from sage.kernel.scheduler.sizes import format_bytes, parse_bytes
from sage.kernel.testing.placement import check_capacity
from sage.platform import nodes as platform_nodes

GIB = 1 << 30
PACK = load_policy("pack")


def put(snapshot: Snapshot, *units: Unit) -> Snapshot:
    for unit in units:
        decision = select(snapshot, unit, PACK)
        assert isinstance(decision, Placement), decision
        snapshot = snapshot.place(decision)
    return snapshot


def devices(snapshot: Snapshot, **demand: Any) -> tuple[int, ...] | None:
    decision = select(snapshot, Unit("probe", Resources(**demand)), PACK)
    return decision.devices if isinstance(decision, Placement) else None


# ---- demands ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "count"),
    [
        (0, 0),
        (7, 7),
        ("512", 512),
        ("8GiB", 8 * GIB),
        ("1.5 KiB", 1536),
        ("2GB", 2 * 10**9),
        (" 3 MB ", 3000000),
    ],
)
def test_sizes(text: int | str, count: int) -> None:
    assert parse_bytes(text) == count


@pytest.mark.parametrize("text", ["", "8 gib", "-1", "1e3", "GiB", -1, True, 1.5, None, "\uff18"])
def test_what_is_no_size(text: Any) -> None:
    with pytest.raises(
        UsageError, match=r"the size is .*; valid is a number of bytes or a text such as '8GiB'"
    ):
        parse_bytes(text)


@given(st.integers(0, 1 << 50))
def test_a_size_shown_is_nearly_the_size(count: int) -> None:
    assert parse_bytes(format_bytes(count)) == pytest.approx(count, rel=0.006)


@pytest.mark.parametrize(
    ("demand", "problem"),
    [
        ({"cpu": -1}, "cpu is -1; valid are cores from 0"),
        ({"cpu": 0.0005}, "cpu is 0.0005"),
        ({"cpu": float("nan")}, "cpu is nan"),
        ({"gpu": 1.5}, "gpu is 1.5; valid are whole devices, or a share of one from 0 to 1"),
        ({"gpu": -0.5}, "gpu is -0.5"),
        ({"gpu_memory": "1GiB"}, "gpu_memory is 1073741824 where gpu is 0"),
        ({"memory": "much"}, "Resources.memory is 'much'"),
        ({"cpu": -1, "gpu": 2.5}, "cpu is -1.*; gpu is 2.5"),
    ],
)
def test_a_demand_that_makes_no_sense(demand: dict[str, Any], problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        Resources(**demand)


def test_equal_demands_are_equal() -> None:
    one, other = Resources(1, labels={"a": "1", "b": "2"}), Resources(1.0, labels=(("b", "2"), ("a", "1")))
    assert one == other
    assert hash(one) == hash(other)
    assert replace(one, memory=GIB) == Resources(memory="1GiB", labels={"b": "2", "a": "1"})


@pytest.mark.parametrize(
    "bad", [{"name": ""}, {"cpus": -1}, {"cpus": 0.0001}, {"memory": -1}, {"gpus": (-1,)}]
)
def test_a_node_that_makes_no_sense(bad: dict[str, Any]) -> None:
    given: dict[str, Any] = {"name": "a", "cpus": 1, **bad}
    with pytest.raises(UsageError, match=r"valid is a name, cores in steps of 0\.001"):
        Node(**given)


@pytest.mark.parametrize("bad", [{"id": ""}, {"arrival": float("nan")}, {"arrival": float("inf")}])
def test_a_unit_that_makes_no_sense(bad: dict[str, Any]) -> None:
    given: dict[str, Any] = {"id": "u", **bad}
    with pytest.raises(UsageError, match="valid is an id and a finite number"):
        Unit(**given)


def test_tenths_of_a_core_add_up() -> None:
    full = put(Snapshot([Node("a", 1)]), *(Unit(f"u{n}", Resources(0.1)) for n in range(10)))
    assert full["a"].cpu == 0
    assert isinstance(select(full, Unit("more", Resources(0.001)), PACK), Wait)


def test_this_machine_is_a_node(tmp_path: Path) -> None:
    found = platform_nodes.inventory(tmp_path, labels={"zone": "a"})
    node = node_of("here", found, reserve=1 * GIB)
    assert node.cpus == len(found.cpus)
    assert node.memory == max(0, found.memory_total - GIB)
    assert (node.labels["zone"], node.labels["os"]) == ("a", "linux")
    gpus = (platform_nodes.Gpu(1, "y", 24, 20), platform_nodes.Gpu(0, "x", 80, 1))
    assert node_of("here", replace(found, gpus=gpus)).gpus == (80, 24)


# ---- devices ---------------------------------------------------------------------------------------


def test_a_share_takes_the_device_that_it_leaves_least_of() -> None:
    halves = Unit("h1", Resources(0, 0.5)), Unit("h2", Resources(0, 0.75))
    used = put(Snapshot([Node("a", 4, gpus=(GIB, GIB, GIB))]), *halves)
    assert devices(used, gpu=0.25) == (1,)
    assert devices(used, gpu=0.5) == (0,)
    assert devices(used, gpu=0.6) == (2,)
    assert devices(used, gpu=1) == (2,)
    assert devices(used, gpu=2) is None


def test_shares_of_one_device_never_exceed_it() -> None:
    full = put(Snapshot([Node("a", 4, gpus=(GIB,))]), *(Unit(f"u{n}", Resources(0, 0.25)) for n in range(4)))
    assert full["a"].devices == ((0, 0),)
    assert devices(full, cpu=0, gpu=0.001) is None


def test_memory_of_a_device_is_kept_too() -> None:
    snapshot = Snapshot([Node("a", 4, gpus=(8 * GIB, 24 * GIB))])
    assert devices(snapshot, gpu=1, gpu_memory="8GiB") == (0,)
    assert devices(snapshot, gpu=1, gpu_memory="9GiB") == (1,)
    assert devices(snapshot, gpu=2, gpu_memory="9GiB") is None
    used = put(snapshot, Unit("u", Resources(0, 0.1, gpu_memory="20GiB")))
    assert used["a"].devices == ((1000, 8 * GIB), (900, 4 * GIB))
    assert devices(used, gpu=0.1, gpu_memory="6GiB") == (0,)
    assert devices(used, gpu=0.9) == (0,)  # its share of the memory of device 1 is gone


def test_a_whole_device_of_a_node_is_one_that_nobody_uses() -> None:
    used = put(Snapshot([Node("a", 4, gpus=(GIB, GIB))]), Unit("u", Resources(0, 0.001)))
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
    snapshot = put(Snapshot([Node("a", 2)]), Unit("u", Resources(2)))
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


# ---- words -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("demand", "reason"),
    [
        ({"cpu": 3}, "no node has free cpu 3 (most: 2)"),
        ({"cpu": 3, "memory": "4GiB"}, "no node has free cpu 3 (most: 2) and memory 4GiB (most: 2GiB)"),
        ({"gpu": 2}, "no node has free gpu 2 (most: 1)"),
        ({"cpu": 2, "gpu": 1}, "no node has free at once cpu 2 and gpu 1"),
        ({"labels": {"zone": "b"}}, "no node with zone=b is open"),
        ({"cpu": 2, "labels": {"zone": "a"}}, "no node with zone=a has free cpu 2 (most: 1)"),
        ({"gpu": 1, "gpu_memory": "9GiB"}, "no node has free at once cpu 1 and gpu 1 and gpu_memory 9GiB"),
    ],
)
def test_why_it_waits(demand: dict[str, Any], reason: str) -> None:
    nodes = [Node("a", 1, 2 * GIB, (8 * GIB,), {"zone": "a"}), Node("b", 2, GIB)]
    assert select(Snapshot(nodes), Unit("u", Resources(**demand)), PACK) == Wait(reason)


def test_what_can_never_run_says_what_is_missing_where() -> None:
    nodes = [Node(f"c{n}", 4, 8 * GIB, labels={"zone": "a"}) for n in range(2)]
    nodes += [Node(f"g{n}", 2, 8 * GIB, (GIB,), {"zone": "b"}) for n in range(3)]
    nodes.append(Node("z", 64, 64 * GIB, (GIB,) * 8, {"zone": "a"}, alive=False))
    with pytest.raises(InfeasibleError) as caught:
        require(Snapshot(nodes), [Unit("u", Resources(4, 1, labels={"zone": "a"}))], PACK)
    assert str(caught.value) == (
        "Unit 'u' fits no node, even an empty one: 3 nodes lack cpu and label zone=a; 2 nodes lack gpu; 1 "
        "node is not alive; nearest is 'c0': gpu 1 (has 0). Ask for less, run fewer replicas, or add nodes."
    )
    assert (caught.value.status, caught.value.exit_code, caught.value.code) == (400, 2, "infeasible")
    with pytest.raises(InfeasibleError, match="there are no nodes"):
        require(Snapshot(), [Unit("u")], PACK)


def test_sizes_that_differ_never_look_alike() -> None:
    snapshot = Snapshot([Node("a", 4, 8 * GIB, (8 * GIB,))])
    unit = Unit("u", Resources(1, 1, 8 * GIB + 1, 8 * GIB + 1))
    found = explain(snapshot, unit, PACK).nodes[0].missing
    sizes = (f"{8 * GIB + 1}B", f"{8 * GIB}B")
    assert [one[:3] for one in found] == [("memory", *sizes), ("gpu_memory", *sizes)]
    assert select(snapshot, unit, PACK) == Wait(f"no node has free memory {sizes[0]} (most: {sizes[1]})")
    assert format_bytes(1023 * 1024) == "1023KiB"


@pytest.mark.parametrize(
    ("demand", "found"),
    [
        ({"cpu": 2.5}, [("cpu", "2.5", "2", 0.8)]),
        ({"memory": "4GiB"}, [("memory", "4GiB", "1GiB", 0.25)]),
        ({"gpu": 4}, [("gpu", "4", "1", 0.25)]),
        ({"gpu": 1, "gpu_memory": "8GiB"}, [("gpu_memory", "8GiB", "4GiB", 0.5)]),
        ({"gpu": 0.5, "gpu_memory": "8GiB"}, [("gpu_memory", "8GiB", "4GiB", 0.5)]),
        ({"labels": {"zone": "b", "disk": "ssd"}}, [("label disk", "ssd", "none"), ("label zone", "b", "a")]),
        ({"cpu": 4, "gpu": 2}, [("cpu", "4", "2", 0.5), ("gpu", "2", "1", 0.5)]),
    ],
)
def test_what_a_node_lacks(demand: dict[str, Any], found: list[tuple[Any, ...]]) -> None:
    """All of it, with what was wanted, what is there and which part that is."""
    node = Node("a", 2, GIB, (4 * GIB, 4 * GIB), {"zone": "a"})
    used = put(Snapshot([node]), Unit("t", Resources(0, 0.6)))
    report = explain(used, Unit("u", Resources(**demand)), PACK).nodes[0]
    assert not report.fits
    assert [one[: len(expected)] for one, expected in zip(report.missing, found, strict=True)] == found


def test_a_closed_node_says_why_in_an_explanation() -> None:
    nodes = [Node("a", 2), Node("b", 2, alive=False), Node("c", 2, alive=False)]
    found = explain(Snapshot(nodes).close(["a"], "is kept for 'j'"), Unit("u"), PACK)
    assert found.verdict == "wait"
    assert found.reason.startswith(
        "no node is open: 2 nodes are not alive; 1 node is kept for 'j'; nearest is"
    )


def test_few_of_many_kinds_are_told() -> None:
    nodes = [Node(f"n{n}", 4, labels={"rack": "r", f"only{n}": "x"}) for n in range(7)]
    demands = [Unit("u", Resources(5, labels={f"only{n}": "x" for n in range(7)}))]
    with pytest.raises(InfeasibleError, match="; 2 nodes lack other things; nearest is 'n0'"):
        require(Snapshot(nodes), demands, PACK)


def test_a_share_of_too_full_a_device_is_told_by_its_size() -> None:
    used = put(Snapshot([Node("a", 4, gpus=(GIB,))]), Unit("t", Resources(0, 0.6)))
    found = explain(used, Unit("u", Resources(0, 0.5)), PACK)
    assert [tuple(one) for one in found.nodes[0].missing] == [("gpu", "0.5", "0.4", 0.8)]
    assert "no node has free gpu 0.5 (most: 0.4)" in found.reason


def test_thousands_of_nodes_are_told_in_a_line() -> None:
    nodes = [Node(f"n{n:04}", 1 + n % 3, labels={"rack": str(n % 7)}) for n in range(3000)]
    with pytest.raises(InfeasibleError) as caught:
        require(Snapshot(nodes), [Unit("u", Resources(4, 1, "1GiB"))], PACK)
    message = str(caught.value)
    assert "3000 nodes lack cpu and memory and gpu; nearest is 'n0002': cpu 4 (has 3)" in message
    assert len(message) < 300


def test_thirteen_operators_on_ten_slots_are_told_at_once() -> None:
    units = [Unit(f"op{n}", group="job") for n in range(13)]
    with pytest.raises(
        InfeasibleError,
        match="The 13 units of 'job' cannot run together: they want cpu 13; 2 nodes have 10",
    ):
        require(Snapshot([Node("a", 6), Node("b", 4)]), units, PACK)


def test_units_that_fit_one_by_one_and_not_together() -> None:
    units = [Unit(f"u{n}", Resources(3), group="g") for n in range(2)]
    with pytest.raises(
        InfeasibleError, match="each fits a node, but no way was found to place all on the 3 nodes"
    ):
        require(Snapshot([Node("a", 4), Node("b", 2), Node("c", 2)]), units, PACK)


def test_an_explanation_in_words_and_as_data() -> None:
    nodes = [Node("a", 4), Node("b", 1), Node("c", 4, labels={"zone": "x"})]
    snapshot = put(Snapshot(nodes), Unit("t", Resources(1)))
    found = explain(snapshot, Unit("u", Resources(2)), PACK)
    assert (found.verdict, found.node) == ("place", "a") if snapshot["a"].placed else ("place", "c")
    assert [(one.node, one.fits) for one in found.nodes][-1] == ("b", False)
    assert json.loads(json.dumps(found.to_dict()))["nodes"][-1]["missing"]
    text = found.text(2)
    assert text.splitlines()[0].startswith(f"u: place {found.node} (pack: the fullest node that has room")
    assert text.splitlines()[-1] == "  … and 1 more nodes"


@pytest.mark.parametrize(
    ("demand", "verdict", "words"),
    [
        ({"cpu": 3}, "wait", "3 (most: 2): 1 node lacks cpu; nearest is 'a': cpu 3 (has 2)"),
        ({"cpu": 5}, "infeasible", "Unit 'u' fits no node, even an empty one: 1 node lacks cpu"),
    ],
)
def test_an_explanation_tells_later_from_never(demand: dict[str, Any], verdict: str, words: str) -> None:
    snapshot = put(Snapshot([Node("a", 4)]), Unit("t", Resources(2)))
    found = explain(snapshot, Unit("u", Resources(**demand)), PACK)
    assert found.verdict == verdict
    assert words in found.text()
