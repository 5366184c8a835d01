"""Finite runs: nothing lost, nothing doubled, nothing unbounded, nothing hanging."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sage.common.errors import NotFoundError, OverloadedError, SageError
from sage.kernel import (
    Batch,
    Failure,
    Flow,
    LocalEnvironment,
    OperatorError,
    Part,
    PlanError,
    Retry,
    RunReport,
)


def run(flow: Flow, **options: Any) -> RunReport:
    async def main() -> RunReport:
        async with asyncio.timeout(20):
            return await LocalEnvironment(**options).run(flow)

    return asyncio.run(main())


async def hop(x: int) -> int:
    for _ in range(x % 3):
        await asyncio.sleep(0)
    return x + 1


def brittle(x: int) -> int:
    if x % 5 == 0:
        raise ValueError(f"no {x}")
    return x


async def brittle_batch(xs: Any) -> list[int]:
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
        lambda s: s.map_batch(brittle_batch, Batch(3), concurrency=2, order="input"),
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
    flow, out, expected = Flow("chain"), [], list(xs)
    stream = flow.source(xs)
    for step in steps:
        stream, expected = STEPS[step][0](stream), STEPS[step][1](expected)
    stream.sink(out.append)
    run(flow, batch=batch, capacity=capacity)
    assert out == expected


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.integers(-20, 20), max_size=60),
    st.lists(st.sampled_from(sorted(STEPS | ANY)), max_size=5),
    st.integers(1, 5),
    st.integers(1, 5),
)
def test_graphs_keep_every_record_once(xs: list[int], steps: list[str], batch: int, capacity: int) -> None:
    flow, out, expected = Flow("graph"), [], list(xs)
    side: list[int] = []
    stream = flow.source(x for x in xs)
    for step in steps:
        stream, expected = (STEPS | ANY)[step][0](stream), (STEPS | ANY)[step][1](expected)
    stream.sink(out.append)
    stream.map(hop).sink(side.append)
    run(flow, batch=batch, capacity=capacity)
    assert Counter(out) == Counter(expected)
    assert Counter(side) == Counter(x + 1 for x in expected)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from([0, "", None, False, 1, "a", ()]), max_size=60), st.integers(1, 7))
def test_falsy_records_and_keys_are_records_and_keys(xs: list[Any], batch: int) -> None:
    flow, out = Flow("falsy"), []
    flow.source(xs).keyby(repr).scan(int, total).sink(out.append)
    keyed = flow.source(xs, name="same").keyby(lambda x: x or 0).scan(lambda: None, lambda s, x: (x, s))
    keyed.sink(out.append)
    run(flow, batch=batch)
    seen: Counter[str] = Counter()
    expected = []
    for x in xs:
        expected.append((x, seen[repr(x)]))
        seen[repr(x)] += 1
    assert [o for o in out if isinstance(o, tuple) and len(o) == 2] == expected
    assert len(out) == 2 * len(xs)


async def test_input_order_is_kept_whatever_ends_first(gate: Any, turns: Any) -> None:
    flow, out = Flow("order"), []
    flow.source([1, 2, 3]).map(gate, concurrency=3, order="input").sink(out.append)
    task = asyncio.create_task(LocalEnvironment().run(flow))
    await gate.until(3)
    for item, so_far in ((3, []), (2, []), (1, [1, 2, 3])):
        gate.open(item)
        await turns()
        assert out == so_far
    await task


async def test_any_order_passes_on_what_is_done(gate: Any, turns: Any) -> None:
    flow, out = Flow("any"), []
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
    flow, out = Flow("branches"), []
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
    flow, out = Flow("empty"), []
    flow.source([]).map(hop).merge(flow.source(iter(()))).map_batch(list, Batch(5, wait=60)).sink(out.append)
    report = run(flow)
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


class Flaky:
    """Fails the first `times` calls for each item."""

    def __init__(self, times: int, error: Exception) -> None:
        self.times, self.error = times, error
        self.calls: Counter[int] = Counter()

    async def __call__(self, x: int) -> int:
        self.calls[x] += 1
        if self.calls[x] <= self.times:
            raise self.error
        return x


def test_retries_are_counted_and_end() -> None:
    flow, out, bad = Flow("retry"), [], []
    fine, never = Flaky(2, TimeoutError("late")), Flaky(9, ConnectionError("gone"))
    stream = flow.source(range(3)).map(fine, retry=Retry(3, 0), name="fine")
    lost = stream.map(never, retry=Retry(4, 0), on_error="divert", name="never")
    lost.sink(out.append)
    lost.diverted.sink(bad.append)
    report = run(flow)
    assert (report["fine"].retries, report["fine"].items_out) == (6, 3)
    assert (report["never"].retries, report["never"].diverted, report["never"].items_out) == (9, 3, 0)
    assert out == []
    assert Failure(1, "never", "ConnectionError: gone", 4) in bad


def test_other_errors_are_not_retried() -> None:
    flow, never = Flow("once"), Flaky(9, ValueError("wrong"))
    flow.source([1]).map(never, retry=Retry(5, 0), on_error="skip").sink(print)
    assert run(flow)["Flaky"].skipped == 1
    assert never.calls[1] == 1


def test_a_timeout_is_a_failure_that_says_so() -> None:
    async def forever(_: int) -> int:
        await asyncio.Event().wait()
        return 0

    flow, bad = Flow("late"), []
    stream = flow.source([0, 1]).map(forever, timeout=0.01, retry=Retry(2, 0), on_error="divert")
    stream.sink(print)
    stream.diverted.sink(bad.append)
    report = run(flow)
    assert {f.item for f in bad} == {0, 1}
    assert bad[0].error == "TimeoutError: no result within 0.01 s"
    assert (bad[0].attempts, report["forever"].retries) == (2, 2)


def test_skip_and_divert_counts_are_exact() -> None:
    flow, bad = Flow("counts"), []
    source = flow.source(range(1, 21))
    source.map(brittle, on_error="skip", name="skips").sink(lambda x: None)
    kept = source.filter(brittle, on_error="divert", name="filters")
    kept.flatmap(lambda x: (1 / (x - 7), x), on_error="skip", name="flats").sink(lambda x: None)
    kept.diverted.sink(bad.append)
    report = run(flow, batch=7)
    assert (report["skips"].skipped, report["skips"].items_out) == (4, 16)
    assert (report["filters"].diverted, report["filters"].items_out) == (4, 16)
    assert (report["flats"].skipped, report["flats"].items_out) == (1, 30)
    assert [f.item for f in bad] == [5, 10, 15, 20]


def test_a_flatmap_that_fails_half_way_gives_nothing_of_that_record() -> None:
    def half(x: int) -> Iterator[int]:
        yield x
        yield 6 // x

    flow, out = Flow("half"), []
    flow.source([1, 0, 2]).flatmap(half, on_error="skip").sink(out.append)
    run(flow)
    assert out == [1, 6, 2, 3]


def test_stop_iteration_in_an_operator_is_an_error_and_loses_nothing() -> None:
    flow, out = Flow("next"), []
    flow.source([[1], [], [2], []]).map(lambda xs: next(iter(xs)), on_error="skip", name="first").sink(
        out.append
    )
    assert run(flow)["first"].skipped == 2
    assert out == [1, 2]


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda s: s.map(brittle, name="op"), r"operator 'op' failed on item 4 \(5\): ValueError: no 5"),
        (lambda s: s.map(hop, order="input").map(brittle, name="op"), r"'op' failed on item 3 \(5\)"),
        (lambda s: s.filter(brittle, name="op"), r"'op' failed on item 4 \(5\)"),
        (lambda s: s.flatmap(brittle, name="op"), r"'op' failed on item 0 \(1\): TypeError"),
        (lambda s: s.keyby(brittle).scan(int, total, name="op"), r"'op' failed on item 4 \(5\)"),
        (
            lambda s: s.map_batch(lambda xs: xs[1:], name="op"),
            r"'op' failed on item 0 .* 63 results for a batch of 64",
        ),
    ],
)
def test_a_failure_names_operator_position_and_item(build: Callable[[Any], Any], said: str) -> None:
    flow = Flow("fails")
    build(flow.source(range(1, 100))).sink(lambda x: None)
    with pytest.raises(OperatorError, match=said) as caught:
        run(flow)
    assert caught.value.__cause__ is not None


async def test_an_async_failure_stops_all_the_rest(gate: Any) -> None:
    async def fails(x: int) -> int:
        if x == 2:
            raise RuntimeError("boom")
        return await gate(x)

    flow = Flow("stops")
    flow.source(range(5)).map(fails, name="op").sink(print)
    async with asyncio.timeout(5):
        with pytest.raises(OperatorError, match=r"'op' failed on item 2 \(2\): RuntimeError: boom"):
            await LocalEnvironment().run(flow)
    assert gate.waiting == {}


def test_a_cancellation_from_within_is_a_failure_and_does_not_hang() -> None:
    async def cancels(x: int) -> int:
        raise asyncio.CancelledError

    flow = Flow("cancelled")
    flow.source([1]).map(cancels).sink(print)
    with pytest.raises(OperatorError, match="cancelled from within"):
        run(flow)


def test_a_sage_error_keeps_its_kind() -> None:
    async def busy(_: int) -> int:
        raise OverloadedError("full", retry_after=2.0)

    flow = Flow("kind")
    flow.source([1]).map(busy).sink(print)
    with pytest.raises(OverloadedError, match=r"operator 'busy' failed on item 0 \(1\): full") as caught:
        run(flow)
    assert caught.value.retry_after == 2.0


def test_an_item_whose_repr_fails_is_still_named() -> None:
    class Odd:
        def __repr__(self) -> str:
            raise RuntimeError

    flow = Flow("odd")
    flow.source([Odd()]).map(int).sink(print)  # type: ignore[call-overload]
    with pytest.raises(OperatorError, match="whose repr fails"):
        run(flow)


def test_source_and_sink_failures_are_named() -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise OSError("disk")

    async def async_broken() -> AsyncIterator[int]:
        yield 1
        raise OSError("net")

    async def refuses(_: int) -> None:
        raise OSError("full")

    for source, sink, said in (
        (broken, print, "source 'in' failed after 1 items or more: OSError: disk"),
        (async_broken, lambda x: None, "source 'in' failed after 1 items: OSError: net"),
        ([7], refuses, r"sink 'out' failed on items 0-0 \(the first is 7\): OSError: full"),
        ([7], lambda x: 1 / 0, r"operator 'out' failed on item 0 \(7\): ZeroDivisionError"),
        (lambda: 3, print, "source 'in': TypeError: 3 cannot be iterated"),
    ):
        flow = Flow("ends")
        flow.source(source, name="in").sink(sink, name="out")  # type: ignore[arg-type]
        with pytest.raises(SageError, match=said):
            run(flow)


class Model:
    """Notes what happens to it."""

    log: list[str] = []

    def setup(self) -> None:
        self.log.append("setup")

    def __call__(self, xs: Any) -> Any:
        if 13 in xs:
            raise ValueError("unlucky")
        return [x * 2 for x in xs]

    async def close(self) -> None:
        self.log.append("close")


@pytest.mark.parametrize("xs", [range(5), range(20), []])
def test_a_model_is_set_up_and_closed_once(xs: Any) -> None:
    Model.log.clear()
    flow = Flow("model")
    flow.source(xs).map_batch(Model, Batch(4)).sink(lambda x: None)
    if 13 in xs:
        with pytest.raises(OperatorError, match="unlucky"):
            run(flow)
    else:
        run(flow)
    assert Model.log == ["setup", "close"]


def test_what_was_set_up_is_closed_when_a_later_setup_fails() -> None:
    class Unready(Model):
        def setup(self) -> None:
            raise OSError("no memory")

    Model.log.clear()
    flow = Flow("unready")
    flow.source([1]).map_batch(Model).map_batch(Unready, name="second").sink(print)
    with pytest.raises(OperatorError, match="setup of operator 'second' failed: OSError: no memory"):
        run(flow)
    assert Model.log == ["setup", "close"]


class Store:
    """A sink that keeps everything."""

    def __init__(self) -> None:
        self.items: list[Any] = []
        self.log: list[str] = []

    async def write(self, items: Any) -> None:
        self.items.extend(items)

    async def commit(self) -> None:
        self.log.append("commit")

    def close(self) -> None:
        self.log.append("close")


def test_a_sink_commits_only_after_success() -> None:
    for fails, log in ((False, ["commit", "close"]), (True, ["close"])):
        store, flow = Store(), Flow("store")
        flow.source([1, 0, 2]).map(lambda x, fails=fails: 1 // x if fails else x).sink(store)
        if fails:
            with pytest.raises(OperatorError):
                run(flow)
        else:
            run(flow)
            assert store.items == [1, 0, 2]
        assert store.log == log


def test_partial_results_are_passed_over_in_a_finite_run() -> None:
    async def parts(x: int) -> AsyncIterator[Part[str] | int]:
        yield Part("a")
        yield x * 2

    async def nothing(x: int) -> AsyncIterator[Part[str]]:
        yield Part("a")

    flow, out = Flow("parts"), []
    flow.source([1, 2]).map(parts, order="input").sink(out.append)
    run(flow)
    assert out == [2, 4]
    bad = Flow("none")
    bad.source([1]).map(nothing).sink(print)
    with pytest.raises(OperatorError, match="yielded 0 values that are no Part"):
        run(bad)


async def test_stop_drains_what_was_read(turns: Any) -> None:
    stop, out = asyncio.Event(), []

    async def endless() -> AsyncIterator[int]:
        for x in range(5):
            yield x
        await asyncio.Event().wait()

    def forever() -> Iterator[int]:
        x = 100
        while True:
            yield (x := x + 1)

    flow = Flow("drain")
    waiting = flow.source(endless).map(hop)
    waiting.merge(flow.source(forever())).sink(out.append)
    task = asyncio.create_task(LocalEnvironment(batch=2).run(flow, stop=stop))
    await turns()
    stop.set()
    async with asyncio.timeout(5):
        report = await task
    assert report.interrupted
    assert {1, 2, 3, 4, 5} <= set(out)
    assert report["append"].items_in == len(out) == report["source"].items_out + report["source-2"].items_out


async def test_cancelling_a_run_cancels_its_calls(gate: Any) -> None:
    flow = Flow("cancel")
    flow.source([1, 2]).map(gate).sink(print)
    task = asyncio.create_task(LocalEnvironment().run(flow))
    await gate.until(2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert sorted(gate.cancelled) == [1, 2]


def test_ctrl_c_drains() -> None:
    out: list[int] = []

    async def endless() -> AsyncIterator[int]:
        yield 1
        os.kill(os.getpid(), signal.SIGINT)
        await asyncio.Event().wait()

    flow = Flow("interrupt")
    flow.source(endless).map(hop).sink(out.append)
    report = LocalEnvironment().run_sync(flow)
    assert report.interrupted
    assert out == [2]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_run_sync_works_outside_the_main_thread() -> None:
    reports: list[RunReport] = []
    flow = Flow("thread")
    flow.source([1]).sink(lambda x: None)
    thread = threading.Thread(target=lambda: reports.append(LocalEnvironment().run_sync(flow)))
    thread.start()
    thread.join(10)
    assert reports[0]["source"].items_out == 1


async def test_progress_is_shown_while_it_runs_and_at_the_end() -> None:
    seen: list[int] = []
    enough = asyncio.Event()

    def show(operators: Any) -> None:
        seen.append(operators[0].items_out)
        enough.set()

    async def slow() -> AsyncIterator[int]:
        yield 1
        await enough.wait()
        yield 2

    flow = Flow("progress")
    flow.source(slow).sink(lambda x: None)
    async with asyncio.timeout(5):
        await LocalEnvironment(on_progress=show).run(flow)
    assert seen == [1, 2]


async def test_a_progress_hook_that_fails_stops_the_run() -> None:
    def show(_: Any) -> None:
        raise RuntimeError("terminal gone")

    flow = Flow("progress")
    flow.source(lambda: waits()).sink(print)

    async def waits() -> AsyncIterator[int]:
        await asyncio.Event().wait()
        yield 1

    async with asyncio.timeout(5):
        with pytest.raises(RuntimeError, match="terminal gone"):
            await LocalEnvironment(on_progress=show).run(flow)


async def test_a_report_is_plain_data_and_knows_its_operators() -> None:
    flow = Flow("report")
    flow.source([1]).sink(lambda x: None, name="out")
    report = await LocalEnvironment().run(flow)
    assert report.to_dict()["operators"][1]["items_in"] == 1
    with pytest.raises(NotFoundError, match="there are: source, out"):
        report["in"]


async def test_a_service_is_not_run_and_a_run_is_not_submitted() -> None:
    service, finite = Flow("svc"), Flow("fin")
    service.reply(service.requests(int))
    finite.source([1]).sink(print)
    with pytest.raises(PlanError, match="start it with submit"):
        await LocalEnvironment().run(service)
    with pytest.raises(PlanError, match="run it with run"):
        await LocalEnvironment().submit(finite)
