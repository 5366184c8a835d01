"""What is said of a decision: why one waits, what can never run, and what each node lacks."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sage.kernel.scheduler import (
    InfeasibleError,
    Node,
    Resources,
    Snapshot,
    Unit,
    Wait,
    explain,
    load_policy,
    require,
    select,
)
from sage.kernel.scheduler.sizes import format_bytes
from sage.kernel.testing.placement import packed

GIB = 1 << 30
PACK = load_policy("pack")


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
    used = packed(Snapshot([node]), Unit("t", Resources(0, 0.6)))
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
    used = packed(Snapshot([Node("a", 4, gpus=(GIB,))]), Unit("t", Resources(0, 0.6)))
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
    snapshot = packed(Snapshot(nodes), Unit("t", Resources(1)))
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
    snapshot = packed(Snapshot([Node("a", 4)]), Unit("t", Resources(2)))
    found = explain(snapshot, Unit("u", Resources(**demand)), PACK)
    assert found.verdict == verdict
    assert words in found.text()
