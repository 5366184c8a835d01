"""SIMULATED clusters in virtual time: nodes that fail and come back, jobs that end, under every policy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from heapq import heappop, heappush
from random import Random

import pytest

from sage.kernel.scheduler import (
    Change,
    InfeasibleError,
    Node,
    Placement,
    Policy,
    Queue,
    Snapshot,
    Unit,
    available_policies,
    load_policy,
    select,
)
from sage.kernel.testing.cluster import synthetic_nodes, synthetic_units
from sage.kernel.testing.placement import check_capacity


@dataclass
class World:
    """A queue, a clock, and how long units run; a unit that is withdrawn starts from its beginning."""

    queue: Queue
    seed: int = 0
    now: float = 0.0
    started: dict[str, float] = field(default_factory=dict)  # when each unit last started
    ended: dict[str, float] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)
    withdrawn: int = 0
    _ends: list[tuple[float, str, float]] = field(default_factory=list)  # when, which unit, started when

    def __post_init__(self) -> None:
        self.random = Random(self.seed)  # noqa: S311  (not a secret)

    def note(self, changes: Sequence[Change]) -> None:
        for change in changes:
            name = change.unit.id
            if isinstance(change, Placement):
                assert name not in self.started, f"{name} was started twice"
                self.started[name] = self.now
                heappush(self._ends, (self.now + self.random.expovariate(1 / 300), name, self.now))
            else:
                del self.started[name]
                self.withdrawn += 1

    def submit(self, units: Sequence[Unit]) -> None:
        try:
            self.note(self.queue.submit(*units))
        except InfeasibleError:
            self.refused.append(units[0].id)

    def run_until(self, time: float) -> None:
        """Let units end until then."""
        while self._ends and self._ends[0][0] <= time:
            self.now, unit, since = heappop(self._ends)
            if self.started.get(unit) == since:  # else it was withdrawn meanwhile
                del self.started[unit]
                self.ended[unit] = self.now
                self.note(self.queue.release(unit))
        self.now = time

    def run_out(self) -> None:
        """Until nothing runs any more."""
        while self._ends:
            self.run_until(self._ends[0][0])


def jobs(count: int, *, seed: int = 0, gpus: float = 0.2) -> Iterator[list[Unit]]:
    """One in five is a group of up to six."""
    random = Random(seed)  # noqa: S311  (not a secret)
    for unit in synthetic_units(count, seed=seed, gpus=gpus):
        size = random.randrange(2, 7) if random.random() < 0.2 else 1
        if size == 1:
            yield [unit]
        else:
            yield [
                replace(unit, id=f"{unit.id}.{n}", group=unit.id, spread=unit.id if n % 2 else "")
                for n in range(size)
            ]


@pytest.mark.parametrize("policy", available_policies())
def test_a_crowded_cluster_that_loses_nodes_finishes_everything(policy: str) -> None:
    """Nodes fail and come back while much waits; in the end each job ran, and the cluster is as new."""
    nodes = synthetic_nodes(12, seed=4)
    world = World(Queue(load_policy(policy), nodes))
    random = Random(5)  # noqa: S311  (not a secret)
    submitted: list[Unit] = []
    for number, units in enumerate(jobs(500)):
        world.run_until(units[0].arrival)
        world.submit(units)
        submitted += units
        if number % 25 == 0:
            node = random.choice(nodes)
            world.note(world.queue.node_down(node.name))
            check_capacity(world.queue.snapshot)
            world.run_until(world.now + 0.3)
            world.note(world.queue.node_up(node))
        if number % 50 == 0:
            check_capacity(world.queue.snapshot)
            held = Counter(one.unit.group or one.unit.id for one in world.queue.placed.values())
            assert not set(held) & set(world.queue.waiting)
    assert world.withdrawn > 20
    assert world.queue.waiting
    world.run_out()
    assert world.queue.waiting == {}
    assert world.queue.snapshot == Snapshot(nodes)
    refused = {name.partition(".")[0] for name in world.refused}
    assert {unit.id for unit in submitted if unit.id.partition(".")[0] not in refused} == set(world.ended)


def test_thousands_of_nodes() -> None:
    """What comes fits, so that nothing waits, and a zone that is lost moves to the others at once."""
    nodes = synthetic_nodes(5000)
    world = World(Queue(load_policy("spread"), nodes))
    for units in jobs(3000):
        world.submit(units)
    assert world.queue.waiting == {}
    running = len(world.queue.placed)
    lost = [node.name for node in nodes if node.labels["zone"] == "a"][:100]
    on_lost = sum(one.node in lost for one in world.queue.placed.values())
    for name in lost:
        world.note(world.queue.node_down(name))
    assert world.withdrawn >= on_lost > 0
    assert len(world.queue.placed) == running
    assert not any(one.node in lost for one in world.queue.placed.values())
    check_capacity(world.queue.snapshot)


def test_a_seed_is_a_run() -> None:
    def run() -> dict[str, float]:
        world = World(Queue(load_policy("pack"), synthetic_nodes(8, seed=4)))
        for units in jobs(200, seed=3):
            world.run_until(units[0].arrival)
            world.submit(units)
        world.run_out()
        return world.ended

    assert run() == run()


def overload(policy: Policy, *, low: int) -> World:
    """Units come twice as fast as they can be run, one in `low` of them with low priority."""
    world = World(Queue(policy, [Node(f"n{n}", 10) for n in range(5)]))
    for number in range(1500):
        world.run_until(3.0 * number)
        world.submit([Unit(f"u{number}", priority=0 if number % low == 0 else 2, arrival=3.0 * number)])
    return world


def test_urgent_work_waits_less_and_the_rest_is_not_forgotten() -> None:
    """Under twice the load that fits: what is low is passed, and only by what came soon after it."""
    world = overload(load_policy("priority"), low=5)
    started = {int(name[1:]) for name in (*world.started, *world.ended)}
    first_waiting = min(int(name[1:]) for name in world.queue.waiting)
    assert len(world.queue.waiting) > 300
    # Two priorities are worth 120 s, which is 40 arrivals.
    assert first_waiting < max(started) <= first_waiting + 40


def gpus_of(policy: str) -> tuple[float, int]:
    """The part of the GPUs in use and the number of refused units, when all were asked for."""
    snapshot = Snapshot(synthetic_nodes(200, seed=1))
    capacity, asked, refused = sum(len(state.devices) for state in snapshot), 0.0, 0
    for unit in synthetic_units(5000, seed=2, gpus=0.6, zoned=0.0):
        asked += unit.resources.gpu
        if asked > capacity:
            break
        decision = select(snapshot, unit, load_policy(policy))
        if isinstance(decision, Placement):
            snapshot = snapshot.place(decision)
        else:
            refused += 1
    free = sum(device.share for state in snapshot for device in state.devices)
    return 1 - free / (1000 * capacity), refused


def test_the_gpu_aware_policy_serves_most_of_what_is_asked_of_gpus() -> None:
    """Spread leaves no node with eight whole devices; keeping them together serves nearly all."""
    aware, spread = gpus_of("gpu_fragment_aware"), gpus_of("spread")
    assert aware[0] > 0.95
    assert aware[0] > spread[0] + 0.1
    assert aware[1] < spread[1]
