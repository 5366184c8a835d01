"""The conformance suite of placement policies: subclass it in a test module with a fixture `policy`."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from sage.kernel.scheduler import (
    Node,
    Placement,
    Policy,
    Queue,
    Resources,
    Snapshot,
    Unit,
    Wait,
    explain,
    load_policy,
    select,
)
from sage.kernel.scheduler.state import State, missing
from sage.kernel.testing.cluster import synthetic_nodes, synthetic_units

__all__ = ["PlacementSuite", "check_capacity", "packed"]

_GIB = 1 << 30
_GOOD = Node("m", 4, 16 * _GIB, (8 * _GIB, 8 * _GIB), {"zone": "a"})
_LACKING = [
    replace(_GOOD, cpus=1),
    replace(_GOOD, memory=_GIB),
    replace(_GOOD, gpus=(8 * _GIB,)),
    replace(_GOOD, gpus=(8 * _GIB, 2 * _GIB)),
    replace(_GOOD, labels={"zone": "b"}),
    replace(_GOOD, labels={}),
    replace(_GOOD, alive=False),
]
_DEMAND = Resources(cpu=2, gpu=2, memory="4GiB", gpu_memory="8GiB", labels={"zone": "a"})


def packed(snapshot: Snapshot, *units: Unit) -> Snapshot:
    """The snapshot with these units placed by `pack`, in turn; each has to fit."""
    for unit in units:
        decision = select(snapshot, unit, load_policy("pack"))
        assert isinstance(decision, Placement), decision
        snapshot = snapshot.place(decision)
    return snapshot


def check_capacity(snapshot: Snapshot) -> None:
    """Counted anew from the placements: no node gives more than it has; the rest is what it calls free."""
    for state in snapshot:
        node, taken = state.node, [placement.unit.resources for placement in state.placed.values()]
        cpu = round(1000 * node.cpus) - sum(round(1000 * one.cpu) for one in taken)
        memory = node.memory - sum(one.memory for one in taken)
        assert (state.cpu, state.memory) == (cpu, memory), node.name
        assert min(cpu, memory) >= 0, node.name
        assert list(state.devices) == _devices_left(state), node.name
        for one in taken:
            assert set(one.labels) <= set(node.labels.items()), node.name


def _devices_left(state: State) -> list[tuple[int, int]]:
    left = [(1000, memory) for memory in state.node.gpus]
    for placement in state.placed.values():
        wanted = placement.unit.resources
        whole = int(wanted.gpu) if wanted.gpu >= 1 else 0
        assert len(set(placement.devices)) == (whole or (1 if wanted.gpu else 0)), placement
        for number in placement.devices:
            total = state.node.gpus[number]
            share = 1000 if whole else round(1000 * wanted.gpu)
            used = total if whole else wanted.gpu_memory or total * share // 1000
            left[number] = (left[number][0] - share, left[number][1] - used)
            assert min(left[number]) >= 0, placement
            assert wanted.gpu_memory <= total, placement
    return left


def _place_all(snapshot: Snapshot, units: list[Unit], policy: Policy) -> tuple[Snapshot, list[Placement]]:
    placements = []
    for unit in units:
        decision = select(snapshot, unit, policy)
        if isinstance(decision, Placement):
            snapshot = snapshot.place(decision)
            placements.append(decision)
    return snapshot, placements


class PlacementSuite:
    """What every placement policy keeps to. The fixture `policy` makes one."""

    def test_it_has_a_name_and_a_bound(self, policy: Policy) -> None:
        """The name under which it is found, and how often a job may be overtaken."""
        assert policy.name
        assert policy.name == policy.name.lower()
        assert policy.overtaking >= 0

    @pytest.mark.parametrize("place", range(3))
    def test_it_takes_the_only_node_that_fits(self, policy: Policy, place: int) -> None:
        """Wherever its name stands, whatever the others lack; and it says why."""
        names = [f"{'anz'[place]}{number}" for number in range(len(_LACKING))]
        others = [replace(node, name=name) for node, name in zip(_LACKING, names, strict=True)]
        decision = select(Snapshot([*others, _GOOD]), Unit("u", _DEMAND), policy)
        assert isinstance(decision, Placement)
        assert (decision.node, decision.devices) == ("m", (0, 1))
        assert policy.name in decision.reason
        assert isinstance(select(Snapshot(others), Unit("u", _DEMAND), policy), Wait)

    @pytest.mark.parametrize("seed", range(3))
    def test_demands_never_exceed_what_there_is(self, policy: Policy, seed: int) -> None:
        """In a cluster that is filled until little fits."""
        snapshot, units = Snapshot(synthetic_nodes(12, seed=seed)), synthetic_units(400, seed=seed, gpus=0.5)
        filled, placements = _place_all(snapshot, units, policy)
        assert 20 < len(placements) < len(units)
        check_capacity(filled)
        for placement in placements:
            filled = filled.release(placement)
        assert filled == snapshot

    def test_it_waits_only_where_nothing_fits(self, policy: Policy) -> None:
        """A node with room is always found."""
        snapshot = Snapshot(synthetic_nodes(12))
        for unit in synthetic_units(400, gpus=0.5):
            fits = [state for state in snapshot if not missing(state, unit.resources.need)]
            decision = select(snapshot, unit, policy)
            assert isinstance(decision, Placement) == bool(fits)
            snapshot = snapshot.place(decision) if isinstance(decision, Placement) else snapshot

    def test_it_takes_what_its_scores_rank_first(self, policy: Policy) -> None:
        """What it finds without a look at all nodes is what a look at all finds, in the same order."""
        snapshot = Snapshot(synthetic_nodes(40))
        names = [state.node.name for state in snapshot]
        for number, unit in enumerate(synthetic_units(300, gpus=0.5)):
            unit = replace(unit, near=(names[number % 40], names[(7 * number) % 40], "unknown"))
            explained = [one.node for one in explain(snapshot, unit, policy).nodes if one.fits]
            assert [state.node.name for state in policy.candidates(snapshot, unit)] == explained
            decision = select(snapshot, unit, policy)
            if isinstance(decision, Placement):
                assert decision.node == explained[0]
                snapshot = snapshot.place(decision)

    def test_equal_input_gives_equal_output(self, policy: Policy) -> None:
        """However the snapshot came about, in whatever order its nodes were named."""
        nodes, units = synthetic_nodes(20), synthetic_units(150, gpus=0.5)
        one, placements = _place_all(Snapshot(nodes), units, policy)
        other = Snapshot(nodes[::-1])
        for placement in reversed(placements):
            other = other.place(placement)
        assert one == other
        for unit in synthetic_units(50, seed=1, gpus=0.5):
            unit = replace(unit, id=f"x{unit.id}")
            assert select(one, unit, policy) == select(other, unit, policy)

    def test_units_of_one_spread_key_go_apart(self, policy: Policy) -> None:
        """As long as there are nodes without one."""
        snapshot, units = Snapshot(synthetic_nodes(9)), [Unit(f"r{n}", spread="r") for n in range(18)]
        _, placements = _place_all(snapshot, units, policy)
        assert set(Counter(one.node for one in placements[:9]).values()) == {1}
        assert set(Counter(one.node for one in placements).values()) == {2}

    def test_nothing_starves(self, policy: Policy) -> None:
        """A job that needs all nodes starts, though small ones of higher priority come without end."""
        queue = Queue(policy, [Node(f"n{number}", 4) for number in range(3)])
        running: list[str] = []

        def note(changes: object) -> None:
            assert isinstance(changes, tuple)
            running.extend(one.unit.id for one in changes if isinstance(one, Placement))

        for number in range(12):
            note(queue.submit(Unit(f"s{number}", priority=1, arrival=float(number))))
        whole = [Unit(f"w{n}", Resources(4), 0, 12.0, group="whole") for n in range(3)]
        note(queue.submit(*whole))
        for number in range(13, 2000):
            note(queue.submit(Unit(f"s{number}", priority=1, arrival=float(number))))
            if "w0" in running:
                break
            note(queue.release(running.pop(0)))
        assert set(running) == {"w0", "w1", "w2"}
        check_capacity(queue.snapshot)
