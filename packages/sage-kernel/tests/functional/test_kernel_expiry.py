"""Keyed state with a time to live: forgotten by event time or by the clock, without a sweep."""

from __future__ import annotations

import asyncio
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sage.common.testing import VirtualClock
from sage.kernel import Flow, Job, LocalEnvironment, PlanError, Registry, flow_schema, parse_yaml, use
from sage.kernel.compile import Op, compile_plan
from sage.kernel.plan import Fold
from sage.kernel.runtime.columns import Columns, Watermark
from sage.kernel.runtime.expiry import ExpiringFold
from sage.kernel.runtime.kernels import Faults
from sage.kernel.runtime.report import Counters

HERE = __name__
Visit = tuple[str, float]


def count(state: int, item: Any) -> tuple[int, tuple[Any, int]]:
    return state + 1, (item, state + 1)


def user(visit: Visit) -> str:
    return visit[0]


def at(visit: Visit) -> float:
    return visit[1]


def counted(ttl: float) -> Flow:
    flow = Flow("visits")
    flow.reply(flow.requests(str).keyby(str).scan(int, count, ttl=ttl).map(lambda pair: pair[1]))
    return flow


async def test_the_clock_forgets_what_was_not_touched() -> None:
    clock = VirtualClock()
    async with await LocalEnvironment(clock=clock).submit(counted(10)) as job:

        async def told(job: Job, name: str, ahead: float = 0.0) -> int:
            clock.advance(ahead)
            found: int = await job.request(name)
            return found

        assert [await told(job, "ann"), await told(job, "bob"), await told(job, "ann", 9)] == [1, 1, 2]
        assert [await told(job, "ann", 9), await told(job, "bob")] == [3, 1]
        assert [await told(job, "ann", 10), await told(job, "bob", 9.5)] == [1, 1]


def fold_of(ttl: float, clock: VirtualClock) -> ExpiringFold:
    flow = Flow("one")
    flow.source([1]).keyby(user).scan(int, count, ttl=ttl).sink(print)  # type: ignore[arg-type]
    op: Op = compile_plan(flow.plan, Registry(entry_points=False)).ops[1]
    return ExpiringFold(op.fn, Faults(op, Counters("one", "scan")), clock)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 40)), max_size=60),
    st.integers(1, 15),
    st.integers(0, 12),
    st.integers(1, 7),
)
def test_by_event_time_a_gap_begins_anew_however_it_is_batched(
    visits: list[tuple[str, int]], ttl: int, lateness: int, batch: int
) -> None:
    """The oracle looks at every record alone. Those behind the watermark are left out: it may forget them."""
    timely, latest = [], float("-inf")
    for name, second in visits:
        if second >= latest - lateness:
            timely.append((name, float(second)))
        latest = max(latest, second)
    expected, held = [], dict[str, tuple[int, float]]()
    for name, time in timely:
        state, last = held.get(name, (0, float("-inf")))
        state, last = (0, time) if time >= last + ttl else (state, max(last, time))
        held[name] = (state + 1, last)
        expected.append(((name, time), state + 1))
    flow = Flow("visits")
    out: list[Any] = []
    timed = flow.source(timely).event_time(at, lateness=lateness)
    timed.keyby(user).scan(int, count, ttl=ttl).sink(out.append)
    LocalEnvironment(batch=batch).run_sync(flow)
    assert out == expected


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.lists(st.integers(0, 5), max_size=5), st.integers(0, 9)), max_size=40),
    st.integers(1, 20),
)
def test_memory_holds_what_is_live_and_nothing_else(steps: list[tuple[list[int], int]], ttl: int) -> None:
    clock = VirtualClock(wall=0.0)
    fold = fold_of(ttl, clock)
    touched: dict[str, float] = {}
    for names, ahead in steps:
        clock.advance(ahead)
        fold.run([(str(name), 0.0) for name in names])
        touched |= dict.fromkeys(map(str, names), clock.wall())
        live = {name for name, last in touched.items() if clock.wall() < last + ttl}
        assert set(fold.states) == live
        assert len(fold._timers) == len(fold.states)


def test_a_watermark_frees_memory_and_a_checkpoint_goes_on() -> None:
    fold = fold_of(10, VirtualClock())
    fold.begin([], None)
    fold.run_timed(Columns([("a", 0.0), ("b", 5.0), ("a", 8.0)], [0.0, 5.0, 8.0]))
    assert fold.states == {"a": (2, 8.0), "b": (1, 5.0)}
    assert fold.dirty == {"a", "b"}
    kept = dict(fold.states)
    fold.dirty.clear()
    assert len(fold.control(Watermark(15.0))) == 0
    assert fold.states == {"a": (2, 8.0)}
    assert fold.dirty == {"b"}
    again = fold_of(10, VirtualClock())
    again.begin(kept.items(), None)
    again.control(Watermark(15.0))
    assert again.states == fold.states
    again.run_timed(Columns([("a", 17.9)], [17.9]))
    assert again.states == {"a": (3, 17.9)}


def test_a_failed_step_leaves_no_timer_behind() -> None:
    fold = fold_of(10, VirtualClock())
    broken = ExpiringFold(Fold(user, int, lambda s, x: 1 // 0, 10.0), fold._faults, VirtualClock())
    with pytest.raises(Exception, match=r"operator 'count' failed on item 0 .*ZeroDivisionError"):
        broken.run([("a", 0.0)])
    assert (broken.states, broken._timers) == ({}, [])


def test_a_ttl_is_checked_and_survives_the_round_trip() -> None:
    flow = Flow("bad")
    flow.source([1]).keyby(str).scan(int, count, ttl=-1).sink(print)
    with pytest.raises(PlanError, match="'count' has ttl=-1: it is at least 0 seconds"):
        flow.check()
    good = Flow("good")
    visits = good.source([("a", 1.0)], name="visits")
    visits.keyby(at).scan(int, count, ttl=2.5, name="op").sink(use("stdout"), name="out")
    data = good.to_dict()
    assert data["steps"][1]["scan"]["ttl"] == 2.5
    jsonschema.validate(data, flow_schema())
    assert Flow.from_dict(data, allow=(f"{HERE}:*", "builtins:int")).to_dict() == data
    scan = f'{{scan: {{key: "{HERE}:at", init: "builtins:int", step: "{HERE}:count", ttl: long}}}}'
    with pytest.raises(PlanError, match="ttl is 'long', not a number of seconds"):
        parse_yaml(f"{{name: x, steps: [{{source: lines}}, {scan}]}}", allow=(f"{HERE}:*", "builtins:int"))


def test_state_without_a_ttl_is_kept() -> None:
    clock = VirtualClock()

    async def main() -> None:
        async with await LocalEnvironment(clock=clock).submit(counted(0)) as job:
            assert await job.request("ann") == 1
            clock.advance(1e9)
            assert await job.request("ann") == 2

    asyncio.run(main())
