"""Every shipped placement policy passes the conformance suite, and does what its name says."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import ClassVar

import pytest

from sage.common.errors import ConfigError
from sage.kernel.scheduler import (
    Node,
    Placement,
    Policy,
    Queue,
    Resources,
    Snapshot,
    Unit,
    available_policies,
    load_policy,
    select,
)
from sage.kernel.scheduler.policies import Priority
from sage.kernel.testing.placement import PlacementSuite

GIB = 1 << 30
GPUS = (80 * GIB,) * 8


class TestShippedPolicies(PlacementSuite):
    @pytest.fixture(params=available_policies())
    def policy(self, request: pytest.FixtureRequest) -> Policy:
        return load_policy(request.param)


def fill(policy: str, nodes: list[Node], *units: Unit) -> list[str]:
    """The nodes that the units go to, in turn."""
    snapshot, found = Snapshot(nodes), []
    for unit in units:
        decision = select(snapshot, unit, load_policy(policy))
        assert isinstance(decision, Placement), decision
        snapshot = snapshot.place(decision)
        found.append(decision.node)
    return found


def some(count: int, **demand: float) -> list[Unit]:
    return [Unit(f"u{number}", Resources(**demand)) for number in range(count)]  # type: ignore[arg-type]


NODES = [Node(name, 4) for name in ("a", "b", "c")]


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("fifo", "aaaabb"),
        ("pack", "aaaabb"),
        ("priority", "aaaabb"),
        ("spread", "abcabc"),
        ("round_robin", "abcabc"),
        ("locality", "abcabc"),
    ],
)
def test_equal_units_on_equal_nodes(policy: str, expected: str) -> None:
    assert "".join(fill(policy, NODES, *some(6))) == expected


def test_pack_prefers_the_fullest_and_fifo_the_first() -> None:
    units = [Unit("large", Resources(3)), Unit("middle", Resources(2)), *some(1)]
    assert fill("fifo", NODES, *units) == ["a", "b", "a"]
    assert fill("pack", [Node("a", 8), Node("b", 4)], Unit("m", Resources(5)), *units[:2]) == ["a", "a", "b"]


def test_spread_goes_by_load_and_round_robin_by_turn() -> None:
    units = [Unit("large", Resources(3)), *some(4)]
    assert fill("spread", NODES[:2], *units) == ["a", "b", "b", "b", "a"]
    assert fill("round_robin", NODES[:2], *units) == ["a", "b", "a", "b", "b"]


def test_round_robin_passes_over_what_has_no_room() -> None:
    nodes = [Node("a", 4), Node("b", 4, labels={"disk": "nvme"}), Node("c", 4, labels={"disk": "nvme"})]
    units = [Unit(f"u{n}", Resources(1, labels={"disk": "nvme"})) for n in range(4)]
    assert fill("round_robin", nodes, *units, *some(1)) == ["b", "c", "b", "c", "a"]


def test_load_is_that_of_what_is_used_most_of() -> None:
    nodes = [Node("a", 10, 10 * GIB), Node("b", 10, 10 * GIB)]
    heavy, light = Unit("heavy", Resources(1, memory="8GiB")), Unit("light", Resources(5, memory="1GiB"))
    assert fill("spread", nodes, heavy, light, *some(1)) == ["a", "b", "b"]


def test_locality_follows_the_data_and_spreads_otherwise() -> None:
    units = [Unit(f"u{n}", Resources(2), near=("c", "b")) for n in range(6)]
    assert fill("locality", NODES, *units) == ["c", "c", "b", "b", "a", "a"]


def test_units_without_a_gpu_leave_gpu_nodes_alone() -> None:
    nodes = [Node("a", 4, gpus=GPUS), Node("b", 4)]
    assert fill("gpu_fragment_aware", nodes, *some(5, cpu=1)) == ["b", "b", "b", "b", "a"]


def test_whole_devices_come_from_where_just_as_many_are_free() -> None:
    nodes = [Node("a", 64, gpus=GPUS), Node("b", 64, gpus=GPUS[:4]), Node("c", 64, gpus=GPUS[:2])]
    units = [Unit(f"g{n}", Resources(1, gpu=n)) for n in (2, 4, 8)]
    assert fill("gpu_fragment_aware", nodes, *units) == ["c", "b", "a"]


def test_shares_fill_a_device_in_use_before_they_open_another() -> None:
    nodes = [Node("a", 64, gpus=GPUS[:1]), Node("b", 64, gpus=GPUS[:2])]
    units = [Unit("big", Resources(1, gpu=2)), *some(3, cpu=1, gpu=0.25)]
    assert fill("gpu_fragment_aware", nodes, *units) == ["b", "a", "a", "a"]
    first, second = Snapshot(nodes), Snapshot(nodes)
    for policy, snapshot in (("spread", first), ("gpu_fragment_aware", second)):
        for unit in some(2, cpu=1, gpu=0.5):
            decision = select(snapshot, unit, load_policy(policy))
            assert isinstance(decision, Placement)
            snapshot = snapshot.place(decision)
        assert sum(state.whole for state in snapshot) == (1 if policy == "spread" else 2)


def test_priorities_go_first_and_age() -> None:
    queue = Queue(Priority(aging=10.0), [Node("a", 1)])
    queue.submit(Unit("running"))
    queue.submit(Unit("low", arrival=0.0))
    queue.submit(Unit("high", priority=1, arrival=9.0))
    queue.submit(Unit("late", priority=1, arrival=11.0))
    assert list(queue.waiting) == ["high", "low", "late"]


def test_a_low_priority_waits_no_longer_than_its_age_allows() -> None:
    """One slot that higher priorities always ask for: those that come within aging x 5 go first, no more."""
    queue = Queue(Priority(aging=10.0), [Node("a", 1)])
    queue.submit(Unit("u-1", priority=5, arrival=-1.0))
    queue.submit(Unit("low", arrival=0.0))
    order, running = [], "u-1"
    for second in range(1, 100):
        queue.submit(Unit(f"u{second}", priority=5, arrival=float(second)))
        (started,) = queue.release(running)
        running = started.unit.id
        order.append(running)
        if running == "low":
            break
    assert order.index("low") == 49


def test_an_unknown_policy_names_those_that_exist() -> None:
    with pytest.raises(ConfigError, match=r"no placement policy named 'best'; there are fifo, gpu_fragment"):
        load_policy("best")


def test_a_policy_of_another_package_is_known_by_its_entry_point(tmp_path: Path) -> None:
    """An installation that has one, in a process of its own."""
    info = tmp_path / "tight-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tight\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[sage.placement]\ntight = tight:Tight\n")
    (tmp_path / "tight.py").write_text(
        "from sage.kernel.scheduler.policies import Pack\n\nclass Tight(Pack):\n    name = 'tight'\n"
    )
    code = (
        "from sage.kernel.scheduler import available_policies, load_policy\n"
        "assert 'tight' in available_policies() and load_policy('tight').name == 'tight'"
    )
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_policy_of_ones_own_is_a_key_and_a_name() -> None:
    from sage.kernel.scheduler.policies import Ordered
    from sage.kernel.scheduler.state import State

    def by_memory(state: State) -> tuple[int, str]:
        return (state.memory, state.node.name)

    class TightMemory(Ordered):
        name: ClassVar[str] = "tight_memory"
        key = by_memory
        why = "the node with the least memory that does"

    nodes = [Node("a", 4, 3 * GIB), Node("b", 4, 2 * GIB), Node("c", 4, 8 * GIB)]
    decision = select(Snapshot(nodes), Unit("u", Resources(1, memory="2GiB")), TightMemory())
    assert isinstance(decision, Placement)
    assert decision.node == "b"
    assert decision.reason.startswith("tight_memory: the node with the least memory")


def test_counts_stay_even_in_turn() -> None:
    counts = Counter(fill("round_robin", [Node(f"n{n}", 10) for n in range(7)], *some(63)))
    assert set(counts.values()) == {9}
