"""Finite runs keep their records: nothing lost, nothing doubled, nothing unbounded, nothing hanging."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from sage.kernel import Batch, Flow, LocalEnvironment


async def hop(x: int) -> int:
    for _ in range(x % 3):
        await asyncio.sleep(0)
    return x + 1


def brittle(x: int) -> int:
    if x % 5 == 0:
        raise ValueError(f"no {x}")
    return x


async def double_all(xs: Any) -> list[int]:
    await asyncio.sleep(0)
    return [x * 2 for x in xs]


def total(state: int, x: int) -> tuple[int, tuple[int, int]]:
    return state + 1, (x, state)


# Each step: how the flow does it, and what it does to a list.
STEPS: dict[str, tuple[Callable[[Any], Any], Callable[[list[int]], list[int]]]] = {
    "map": (lambda s: s.map(lambda x: x * 3), lambda xs: [x * 3 for x in xs]),
    "filter": (lambda s: s.filter(lambda x: x % 2), lambda xs: [x for x in xs if x % 2]),
    "flatmap": (
        lambda s: s.flatmap(lambda x: [x] * (x % 3)),
        lambda xs: [x for x in xs for _ in range(x % 3)],
    ),
    "async": (lambda s: s.map(hop, concurrency=3, order="input"), lambda xs: [x + 1 for x in xs]),
    "skip": (lambda s: s.map(brittle, on_error="skip"), lambda xs: [x for x in xs if x % 5]),
    "batch": (
        lambda s: s.map_batch(lambda xs: [x - 1 for x in xs], Batch(4)),
        lambda xs: [x - 1 for x in xs],
    ),
    "abatch": (
        lambda s: s.map_batch(double_all, Batch(3), concurrency=2, order="input"),
        lambda xs: [x * 2 for x in xs],
    ),
}
ANY = {
    "any": (lambda s: s.map(hop, concurrency=4), lambda xs: [x + 1 for x in xs]),
    "merge": (lambda s: s.merge(s.map(lambda x: -x)), lambda xs: [*xs, *(-x for x in xs)]),
}


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.integers(-20, 20), max_size=80),
    st.lists(st.sampled_from(sorted(STEPS)), max_size=6),
    st.integers(1, 9),
    st.integers(1, 9),
)
def test_chains_equal_the_list_they_stand_for(
    xs: list[int], steps: list[str], batch: int, capacity: int
) -> None:
    flow, expected = Flow("chain"), list(xs)
    out: list[int] = []
    stream = flow.source(xs)
    for step in steps:
        stream, expected = STEPS[step][0](stream), STEPS[step][1](expected)
    stream.sink(out.append)
    LocalEnvironment(batch=batch, capacity=capacity).run_sync(flow)
    assert out == expected


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.integers(-20, 20), max_size=60),
    st.lists(st.sampled_from(sorted(STEPS | ANY)), max_size=5),
    st.integers(1, 5),
    st.integers(1, 5),
)
def test_graphs_keep_every_record_once(xs: list[int], steps: list[str], batch: int, capacity: int) -> None:
    flow, expected = Flow("graph"), list(xs)
    out: list[int] = []
    side: list[int] = []
    stream = flow.source(x for x in xs)
    for step in steps:
        stream, expected = (STEPS | ANY)[step][0](stream), (STEPS | ANY)[step][1](expected)
    stream.sink(out.append)
    stream.map(hop).sink(side.append)
    LocalEnvironment(batch=batch, capacity=capacity).run_sync(flow)
    assert Counter(out) == Counter(expected)
    assert Counter(side) == Counter(x + 1 for x in expected)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from([0, "", None, False, 1, "a", ()]), max_size=60), st.integers(1, 7))
def test_falsy_records_and_keys_are_records_and_keys(xs: list[Any], batch: int) -> None:
    flow = Flow("falsy")
    out: list[Any] = []
    flow.source(xs).keyby(repr).scan(int, total).sink(out.append)
    keyed = flow.source(xs, name="same").keyby(lambda x: x or 0).scan(lambda: None, lambda s, x: (x, s))
    keyed.sink(out.append)
    LocalEnvironment(batch=batch).run_sync(flow)
    seen: Counter[str] = Counter()
    expected = []
    for x in xs:
        expected.append((x, seen[repr(x)]))
        seen[repr(x)] += 1
    assert [o for o in out if isinstance(o, tuple) and len(o) == 2] == expected
    assert len(out) == 2 * len(xs)


async def test_input_order_is_kept_whatever_ends_first(gate: Any, turns: Any) -> None:
    flow = Flow("order")
    out: list[int] = []
    flow.source([1, 2, 3]).map(gate, concurrency=3, order="input").sink(out.append)
    task = asyncio.create_task(LocalEnvironment().run(flow))
    await gate.until(3)
    for item, so_far in ((3, []), (2, []), (1, [1, 2, 3])):
        gate.open(item)
        await turns()
        assert out == so_far
    await task


async def test_any_order_passes_on_what_is_done(gate: Any, turns: Any) -> None:
    flow = Flow("any")
    out: list[int] = []
    flow.source([1, 2, 3]).map(gate).sink(out.append)
    task = asyncio.create_task(LocalEnvironment().run(flow))
    await gate.until(3)
    for item in (3, 1, 2):
        gate.open(item)
        await turns()
    assert out == [3, 1, 2]
    await task


async def test_calls_in_flight_stay_within_concurrency(gate: Any) -> None:
    flow = Flow("bound")
    flow.source(range(30)).map(gate, concurrency=4).sink(lambda x: None)
    task = asyncio.create_task(LocalEnvironment().run(flow))
    while not task.done():
        for item in list(gate.waiting):
            gate.open(item)
        await asyncio.sleep(0)
    assert gate.most == 4
    assert (await task)["Gate"].items_out == 30


async def test_a_stalled_sink_holds_the_source_back(turns: Any) -> None:
    read: list[int] = []
    release = asyncio.Event()

    def numbers() -> Iterator[int]:
        for x in range(10_000):
            read.append(x)
            yield x

    async def stalled(_: int) -> None:
        await release.wait()

    flow = Flow("stall")
    flow.source(numbers).map(lambda x: x).map(hop, concurrency=2).sink(stalled)
    task = asyncio.create_task(LocalEnvironment(batch=8, capacity=16).run(flow))
    await turns(500)
    # Two channels, the window of the async operator, one batch at each end.
    assert len(read) <= 2 * 16 + 4 * 2 + 3 * 8
    release.set()
    assert (await task)["stalled"].items_in == 10_000


async def test_a_slow_branch_and_a_fast_one_end_together(gate: Any, turns: Any) -> None:
    flow = Flow("branches")
    out: list[int] = []
    slow, fast = flow.source([1]), flow.source([10, 20])
    slow.map(gate).merge(fast).sink(out.append)
    task = asyncio.create_task(LocalEnvironment().run(flow))
    await gate.until(1)
    await turns()
    assert out == [10, 20]
    assert not task.done()
    gate.open(1)
    await task
    assert out == [10, 20, 1]


def test_empty_sources_end() -> None:
    flow = Flow("empty")
    out: list[int] = []
    flow.source([]).map(hop).merge(flow.source(iter(()))).map_batch(list, Batch(5, wait=60)).sink(out.append)
    report = LocalEnvironment().run_sync(flow)
    assert out == []
    assert [o.items_in for o in report.operators] == [0] * len(report.operators)


async def test_a_batch_that_waits_is_sent_when_full_or_at_the_end() -> None:
    sizes: list[int] = []

    def note(xs: Any) -> Any:
        sizes.append(len(xs))
        return xs

    async def trickle() -> AsyncIterator[int]:
        for x in range(10):
            await asyncio.sleep(0)
            yield x

    flow = Flow("batches")
    flow.source(trickle).map_batch(note, Batch(4, wait=60)).sink(lambda x: None)
    async with asyncio.timeout(10):
        await LocalEnvironment().run(flow)
    assert sizes == [4, 4, 2]


async def test_a_batch_does_not_wait_longer_than_it_says(turns: Any) -> None:
    more, got = asyncio.Event(), asyncio.Event()

    async def two() -> AsyncIterator[int]:
        yield 1
        await more.wait()
        yield 2

    flow = Flow("wait")
    flow.source(two()).map_batch(list, Batch(4, wait=0.001)).sink(lambda x: got.set())
    async with asyncio.timeout(10):
        task = asyncio.create_task(LocalEnvironment().run(flow))
        await got.wait()
        more.set()
        assert (await task)["list"].items_out == 2
