"""Caches: equal records cost one call, failures cost again, and nothing grows without bound."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sage.common.errors import SageError, UsageError
from sage.common.testing import VirtualClock
from sage.kernel import Batch, Cache, Failure, Flow, LocalEnvironment, OperatorError, Registry, Window, use
from sage.kernel.runtime.results import _NOTHING, Results

DAY = 86400.0


class Counting:
    """Doubles numbers and counts how often it was asked for each."""

    def __init__(self) -> None:
        self.calls: Counter[Any] = Counter()

    def one(self, x: int) -> int:
        self.calls[x] += 1
        return x * 2

    async def slowly(self, x: int) -> int:
        self.calls[x] += 1
        await asyncio.sleep(0)
        return x * 2

    def many(self, xs: Any) -> list[int]:
        return [self.one(x) for x in xs]

    async def many_slowly(self, xs: Any) -> list[int]:
        await asyncio.sleep(0)
        return self.many(xs)


async def doubled(xs: list[int], fn: Any, *, env: LocalEnvironment | None = None, **options: Any) -> Any:
    """Run the numbers through a cached map; gives what came out and the report of the map."""
    flow = Flow("cached")
    out: list[Any] = []
    stream = flow.source(xs)
    many = "many" in getattr(fn, "__name__", "")
    made = (
        stream.map_batch(fn, Batch(4), name="op", **options) if many else stream.map(fn, name="op", **options)
    )
    made.sink(out.append)
    report = await (env or LocalEnvironment(batch=8)).run(flow)
    return out, report["op"]


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.integers(0, 9), max_size=60),
    st.sampled_from(["one", "slowly", "many", "many_slowly"]),
    st.booleans(),
)
def test_each_input_is_computed_once_whoever_asks(xs: list[int], method: str, ordered: bool) -> None:
    counting = Counting()
    options: dict[str, Any] = {"order": "input"} if ordered and method.endswith("slowly") else {}
    out, report = asyncio.run(doubled(xs, getattr(counting, method), cache=Cache(), **options))
    assert Counter(out) == Counter(x * 2 for x in xs)
    if options or not method.endswith("slowly"):
        assert out == [x * 2 for x in xs]
    assert counting.calls == Counter(set(xs))
    assert (report.misses, report.hits) == (len(set(xs)), len(xs) - len(set(xs)))
    assert report.in_flight == 0


async def test_equal_inputs_in_flight_are_one_call(gate: Any, turns: Any) -> None:
    flow = Flow("flight")
    flow.reply(flow.requests(str).map(gate, cache=Cache(), concurrency=9, name="op"))
    async with await LocalEnvironment().submit(flow) as job:
        tasks = [asyncio.create_task(job.request(x)) for x in ("a", "a", "b", "a")]
        await gate.until(2)
        await turns()
        assert sorted(gate.waiting) == ["a", "b"]
        for x in ("a", "b"):
            gate.open(x)
        assert await asyncio.gather(*tasks) == ["a", "a", "b", "a"]
        assert (job.report()["op"].misses, job.report()["op"].hits) == (2, 2)


async def test_who_made_the_call_may_be_cancelled(gate: Any, turns: Any) -> None:
    flow = Flow("flight")
    flow.reply(flow.requests(str).map(gate, cache=Cache()))
    async with await LocalEnvironment().submit(flow) as job:
        tasks = [asyncio.create_task(job.request("a")) for _ in range(3)]
        await gate.until(1)
        tasks[1].cancel()
        tasks[0].cancel()
        await turns()
        assert gate.cancelled == ["a"]
        gate.open("a")  # the call of the third
        assert await tasks[2] == "a"


async def test_failures_are_shared_in_flight_and_not_kept(gate: Any, turns: Any) -> None:
    calls: list[int] = []

    async def brittle(x: int) -> int:
        calls.append(x)
        await gate(len(calls))
        if len(calls) == 1:
            raise ValueError("no")
        return x

    flow = Flow("fails")
    flow.reply(flow.requests(int).map(brittle, cache=Cache(), name="op"))
    async with await LocalEnvironment().submit(flow) as job:
        tasks = [asyncio.create_task(job.request(7)) for _ in range(2)]
        await gate.until(1)
        await turns()
        gate.open(1)
        for error in await asyncio.gather(*tasks, return_exceptions=True):
            assert isinstance(error, OperatorError)
            assert "ValueError: no" in str(error)
        again = asyncio.create_task(job.request(7))
        await gate.until(1)
        gate.open(2)
        assert await again == 7
        assert await job.request(7) == 7
    assert calls == [7, 7]


async def test_a_batch_that_fails_leaves_what_is_kept_alone() -> None:
    def many(xs: Any) -> list[int]:
        if 3 in xs:
            raise ValueError("three")
        return [x * 2 for x in xs]

    flow = Flow("batch")
    out: list[int] = []
    lost: list[Failure[int]] = []
    stream = flow.source([1, 2, 3, 1, 2]).map_batch(many, Batch(1), cache=Cache(), on_error="divert")
    stream.sink(out.append)
    stream.diverted.sink(lost.append)
    await LocalEnvironment().run(flow)
    assert (out, [failure.item for failure in lost]) == ([2, 4, 2, 4], [3])


async def test_a_result_is_good_for_its_time() -> None:
    clock, counting = VirtualClock(), Counting()
    flow = Flow("timed")
    flow.reply(flow.requests(int).map(counting.slowly, cache=Cache(ttl=10)))
    async with await LocalEnvironment(clock=clock).submit(flow) as job:
        for ahead, calls in ((0, 1), (9.5, 1), (0.5, 2), (9.5, 2)):
            clock.advance(ahead)
            assert await job.request(1) == 2
            assert counting.calls[1] == calls


async def test_a_key_says_what_counts() -> None:
    @dataclass(frozen=True)
    class Ask:
        user: str
        question: str

    def answer(ask: Ask) -> str:
        return f"{ask.user}: {ask.question}"

    asks = [Ask("ann", "why"), Ask("bob", "why"), Ask("bob", "how")]
    out, report = await doubled(asks, answer, cache=Cache(key=lambda ask: ask.question))  # type: ignore[arg-type]
    assert out == ["ann: why", "ann: why", "bob: how"]
    assert (report.misses, report.hits) == (2, 1)


async def test_what_cannot_be_told_from_others_needs_a_key() -> None:
    async def run(**options: Any) -> Any:
        return await doubled([lambda: 1], lambda fn: fn(), cache=Cache(**options))  # type: ignore[list-item]

    with pytest.raises(UsageError, match=r"operator 'op' failed on item 0 .* cannot be pickled") as caught:
        await run()
    assert "Cache(key=...)" in str(caught.value)
    out, _ = await run(key=lambda fn: 1)
    assert out == [1]


def test_memory_is_bounded_by_items_and_by_bytes() -> None:
    clock = VirtualClock()
    results = Results(Cache(size=3), clock)
    for key in "abc":
        results.put(key, key)
    assert results.get("a") == "a"
    results.put("d", "d")
    assert results.get("b") is _NOTHING
    assert [results.get(key) for key in "acd"] == ["a", "c", "d"]
    heavy = Results(Cache(bytes=5000), clock)
    heavy.put("a", "x" * 3000)
    heavy.put("b", ["x" * 3000])
    assert heavy.get("a") is _NOTHING
    heavy.put("huge", {"text": "x" * 9000})
    assert heavy.get("huge") is _NOTHING
    assert heavy.get("b") == ["x" * 3000]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(0, 400), st.integers(0, 3)), max_size=60))
def test_what_is_kept_is_the_last_that_was_put_and_within_bounds(steps: list[tuple[str, int, int]]) -> None:
    clock = VirtualClock()
    results = Results(Cache(ttl=5, size=4, bytes=1000), clock)
    model: dict[str, tuple[str, float]] = {}
    for key, length, ahead in steps:
        clock.advance(ahead)
        found = results.get(key)
        if found is not _NOTHING:
            value, until = model[key]
            assert (found, until > clock.now()) == (value, True)
        results.put(key, "x" * length)
        model[key] = ("x" * length, clock.now() + 5)
        held = [k for k in model if results.get(k) is not _NOTHING]
        assert len(held) <= 4
        assert sum(len(model[k][0]) for k in held) <= 1000


async def test_results_outlive_the_run_in_a_file(tmp_path: Path) -> None:
    clock, counting, path = VirtualClock(), Counting(), str(tmp_path / "results.db")
    env = LocalEnvironment(clock=clock)
    for fn in (counting.slowly, counting.one):
        for calls in (1, 1):
            cache = Cache(ttl=DAY, path=path)
            out, report = await doubled([1, 2, 1], fn, env=env, cache=cache)
            assert Counter(out) == Counter([2, 4, 2])
            assert set(counting.calls.values()) == {calls}
            assert report.misses + report.hits == 3
        counting.calls.clear()
    clock.advance(DAY)
    await doubled([1], counting.one, env=env, cache=Cache(ttl=DAY, path=path))
    assert counting.calls == {1: 1}


async def test_other_parameters_are_other_results(tmp_path: Path) -> None:
    registry = Registry(entry_points=False)
    registry.register("times", lambda factor: lambda x: x * factor)
    cache = Cache(ttl=DAY, path=str(tmp_path / "results.db"))
    found = []
    for factor in (2, 3, 2):
        env = LocalEnvironment(registry=registry)
        out, report = await doubled([5], use("times", factor=factor), env=env, cache=cache)
        found.append((out, report.hits))
    assert found == [([10], 0), ([15], 0), ([10], 1)]


async def test_what_is_written_to_a_file_comes_back_as_it_was(tmp_path: Path) -> None:
    cache = Cache(ttl=DAY, path=str(tmp_path / "results.db"))

    async def itself(x: Any) -> Any:
        return x

    plain: list[Any] = [{"a": [1, 2.5, None, True, "é"]}, 10**30, ""]
    others: list[Any] = [(1, 2), {1: 2}, b"x", {3}, object()]
    for value in plain:
        for hits in (0, 1):
            out, report = await doubled([value], itself, cache=cache)
            assert (out, report.hits) == ([value], hits)
    for value in others:
        with pytest.raises(UsageError, match=rf"a result, a {type(value).__name__}, cannot be .*results.db"):
            await doubled([value], itself, cache=cache)

    lost = Cache(ttl=DAY, path=str(tmp_path / "file" / "results.db"))
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(SageError, match="file"):
        await doubled([1], Counting().one, cache=lost)


def test_a_record_with_a_cached_result_keeps_its_own_time() -> None:
    flow, counting = Flow("timed"), Counting()
    panes: list[tuple[float, int]] = []
    timed = (
        flow.source([1, 15, 31]).event_time(float).map(lambda x: x % 2).map(counting.slowly, cache=Cache())
    )
    counts = timed.keyby(lambda x: x).window(Window(10)).reduce(int, lambda n, x: n + 1)
    counts.sink(lambda pane: panes.append((pane.start, pane.value)))
    LocalEnvironment().run_sync(flow)
    assert panes == [(0, 1), (10, 1), (30, 1)]
    assert counting.calls == {1: 1}
