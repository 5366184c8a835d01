"""What holds for the autoscaler under any load: a small world that does what it says, second by second."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

from hypothesis import given, settings
from hypothesis import strategies as st

from sage.common.api import EngineState
from sage.middleware.control_plane.autoscale import (
    AutoscaleOptions,
    Autoscaler,
    Demand,
    DrainEngine,
    Replica,
    Template,
)

OPTIONS = AutoscaleOptions(start_after_s=3, cool_down_s=20, move_after_s=5, sleep_after_s=40)
CORES = 3

Load = Literal["none", "some", "full", "late", "shed"]
KINDS: list[Load] = ["none", "some", "full", "late", "shed"]
Loads = st.lists(st.tuples(st.sampled_from(KINDS), st.integers(1, 50)), min_size=1, max_size=20).map(
    lambda runs: [load for load, seconds in runs for _ in range(seconds)]
)


@dataclass
class World:
    """One template's engines: they take `start_s` to start, fail when told so, and drain in two seconds."""

    template: Template
    start_s: int = 4
    alive: dict[str, EngineState] = field(default_factory=dict)
    due: dict[str, float] = field(default_factory=dict)
    idle_since: float | None = 0.0

    def demand(self, load: Load, now: float) -> Demand:
        running = {"none": 0, "some": 1, "full": 8, "late": 8, "shed": 8}[load]
        self.idle_since = None if running else (now if self.idle_since is None else self.idle_since)
        replicas = tuple(
            Replica(name, state, running if state == "ready" else 0, 8) for name, state in self.alive.items()
        )
        late = load == "late"
        return Demand(
            self.template.name,
            replicas,
            queued=5 if late else 0,
            attainment=0.5 if late else 1.0,
            shed=int(load == "shed"),
            idle_since=self.idle_since,
        )

    def start(self, name: str, now: float) -> None:
        assert self.alive.get(name) in (None, "stopped", "failed"), f"{name} runs already"
        self.alive[name] = "starting"
        self.due[name] = now + self.start_s

    def drain(self, name: str, now: float) -> None:
        assert self.alive[name] == "ready"
        self.alive[name] = "draining"
        self.due[name] = now + 2

    def step(self, now: float, *, fails: bool) -> None:
        for name, due in list(self.due.items()):
            if now < due:
                continue
            del self.due[name]
            if self.alive[name] == "starting":
                self.alive[name] = "failed" if fails else "ready"
            else:
                self.alive.pop(name)

    def count(self, *states: EngineState) -> int:
        return sum(state in states for state in self.alive.values())


def play(
    worlds: list[World], loads: list[list[Load]], fails: frozenset[int] = frozenset()
) -> list[tuple[float, str, str]]:
    """Each load for one second; returns every change as time, kind and template. Checks the bounds."""
    scaler = Autoscaler([one.template for one in worlds], {"cpu": CORES}, OPTIONS)
    of = {name: one for one in worlds for name in one.template.names()}
    for one in worlds:
        for name in list(one.template.names())[: one.template.min_replicas]:
            one.alive[name] = "ready"
    changes: list[tuple[float, str, str]] = []
    for second in range(max(map(len, loads))):
        now = float(second)
        demands = []
        for one, load in zip(worlds, loads, strict=True):
            one.step(now, fails=second in fails)
            demands.append(one.demand(load[second % len(load)], now))
        for intent in scaler.decide(demands, now):
            world = of[intent.name]
            drains = isinstance(intent, DrainEngine)
            (world.drain if drains else world.start)(intent.name, now)
            changes.append((now, "drain" if drains else "start", world.template.name))
        for one in worlds:
            processes = one.count("starting", "ready", "degraded", "draining")
            assert processes <= one.template.max_replicas
            assert one.count("starting") <= 1
            if not fails:
                assert one.count("ready", "starting") >= one.template.min_replicas
        shared = [one for one in worlds if one.template.group == "cpu"]
        assert sum(len(one.alive) for one in shared) <= CORES
    return changes


@st.composite
def templates(draw: st.DrawFn) -> Template:
    low = draw(st.integers(0, 2))
    high = draw(st.integers(max(low, 1), 4))
    return Template("one", "m", draw(st.sampled_from(["generate", "embed"])), low, high, "own", 1)


@given(templates(), Loads, st.frozensets(st.integers(0, 299), max_size=40))
@settings(max_examples=60, deadline=None)
def test_never_above_the_maximum_and_one_start_at_a_time(
    template: Template, load: list[Load], fails: frozenset[int]
) -> None:
    play([World(template)], [load], fails | {-1})


@given(templates(), Loads)
@settings(max_examples=60, deadline=None)
def test_no_flapping_whatever_the_load(template: Template, load: list[Load]) -> None:
    changes = play([World(template)], [load])
    drains = [at for at, kind, _ in changes if kind == "drain"]
    for earlier, later in pairwise(drains):
        assert later - earlier >= OPTIONS.cool_down_s
    for begin, _, _ in changes:
        window = [kind for at, kind, _ in changes if begin <= at < begin + OPTIONS.cool_down_s]
        assert window.count("drain") <= 1
        assert window.count("start") <= template.max_replicas - template.min_replicas + 1


@given(st.integers(1, 30), st.integers(2, 4))
@settings(max_examples=60, deadline=None)
def test_pressure_that_stays_starts_all_that_may_be(start_s: int, high: int) -> None:
    world = World(Template("one", "m", "generate", 1, high, "own", 1), start_s)
    changes = play([world], [["late"] * (high * (start_s + 6))])
    assert [kind for _, kind, _ in changes] == ["start"] * (high - 1)
    assert world.count("ready") == high


@given(st.integers(1, 60))
@settings(max_examples=20, deadline=None)
def test_the_start_time_is_learned(start_s: int) -> None:
    template = Template("one", "m", "generate", 0, 1, start_s=500.0)
    world = World(template, start_s)
    scaler = Autoscaler([template], {}, OPTIONS)
    assert scaler.wake_s("one", 0.0) == 500.0
    now = 0.0
    for _ in range(12):  # woken, used, left alone
        for load in [KINDS[3]] * (start_s + 3) + [KINDS[0]] * 100:
            world.step(now, fails=False)
            for intent in scaler.decide([world.demand(load, now)], now):
                (world.drain if isinstance(intent, DrainEngine) else world.start)(intent.name, now)
            now += 1.0
        assert world.alive == {}
    assert start_s <= scaler.wake_s("one", now) <= 1.1 * start_s + 1.0
    assert scaler.retry_after("one", now + 2 * start_s + 1, now) is None
    assert scaler.retry_after("one", now + start_s / 2, now) == scaler.wake_s("one", now)


@given(Loads, Loads)
@settings(max_examples=40, deadline=None)
def test_templates_that_share_cores_take_no_more_than_there_are(left: list[Load], right: list[Load]) -> None:
    worlds = [
        World(Template("llm", "m", "generate", 1, 3, "cpu", 1)),
        World(Template("embed", "e", "embed", 1, 3, "cpu", 1)),
    ]
    play(worlds, [left, right])


def test_capacity_goes_to_the_one_and_comes_back() -> None:
    worlds = [
        World(Template("llm", "m", "generate", 1, 2, "cpu", 1)),
        World(Template("embed", "e", "embed", 1, 2, "cpu", 1)),
    ]
    llm_first = [KINDS[3]] * 60 + [KINDS[0]] * 100
    embed_then = [KINDS[0]] * 60 + [KINDS[3]] * 100
    changes = play(worlds, [llm_first, embed_then])
    assert [(kind, who) for _, kind, who in changes] == [
        ("start", "llm"),
        ("drain", "llm"),
        ("start", "embed"),
    ]
    (_, moved, begun) = (at for at, _, _ in changes)
    assert moved - 60 <= OPTIONS.cool_down_s  # an idle one need not cool down as long as a surplus
    assert begun - moved <= 3
