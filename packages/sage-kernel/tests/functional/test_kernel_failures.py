"""Operators that fail: retried, skipped, diverted or named, and nothing goes on behind their back."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from sage.common.errors import OverloadedError, SageError
from sage.kernel import Failure, Flow, LocalEnvironment, OperatorError, Retry


async def increase(x: int) -> int:
    return x + 1


def brittle(x: int) -> int:
    if x % 5 == 0:
        raise ValueError(f"no {x}")
    return x


def pair(state: int, x: int) -> tuple[int, int]:
    return state, x


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
    flow = Flow("retry")
    out: list[int] = []
    bad: list[Failure[int]] = []
    fine, never = Flaky(2, TimeoutError("late")), Flaky(9, ConnectionError("gone"))
    stream = flow.source(range(3)).map(fine, retry=Retry(3, 0), name="fine")
    lost = stream.map(never, retry=Retry(4, 0), on_error="divert", name="never")
    lost.sink(out.append)
    lost.diverted.sink(bad.append)
    report = LocalEnvironment().run_sync(flow)
    assert (report["fine"].retries, report["fine"].items_out) == (6, 3)
    assert (report["never"].retries, report["never"].diverted, report["never"].items_out) == (9, 3, 0)
    assert out == []
    assert Failure(1, "never", "ConnectionError: gone", 4) in bad


def test_other_errors_are_not_retried() -> None:
    flow, never = Flow("once"), Flaky(9, ValueError("wrong"))
    flow.source([1]).map(never, retry=Retry(5, 0), on_error="skip").sink(print)
    assert LocalEnvironment().run_sync(flow)["Flaky"].skipped == 1
    assert never.calls[1] == 1


def test_a_timeout_is_a_failure_that_says_so() -> None:
    async def forever(_: int) -> int:
        await asyncio.Event().wait()
        return 0

    flow = Flow("late")
    bad: list[Failure[int]] = []
    stream = flow.source([0, 1]).map(forever, timeout=0.01, retry=Retry(2, 0), on_error="divert")
    stream.sink(print)
    stream.diverted.sink(bad.append)
    report = LocalEnvironment().run_sync(flow)
    assert {f.item for f in bad} == {0, 1}
    assert bad[0].error == "TimeoutError: no result within 0.01 s"
    assert (bad[0].attempts, report["forever"].retries) == (2, 2)


def test_skip_and_divert_counts_are_exact() -> None:
    flow = Flow("counts")
    bad: list[Failure[int]] = []
    source = flow.source(range(1, 21))
    source.map(brittle, on_error="skip", name="skips").sink(lambda x: None)
    kept = source.filter(brittle, on_error="divert", name="filters")
    kept.flatmap(lambda x: (1 / (x - 7), x), on_error="skip", name="flats").sink(lambda x: None)
    kept.diverted.sink(bad.append)
    report = LocalEnvironment(batch=7).run_sync(flow)
    assert (report["skips"].skipped, report["skips"].items_out) == (4, 16)
    assert (report["filters"].diverted, report["filters"].items_out) == (4, 16)
    assert (report["flats"].skipped, report["flats"].items_out) == (1, 30)
    assert [f.item for f in bad] == [5, 10, 15, 20]


def test_a_flatmap_that_fails_half_way_gives_nothing_of_that_record() -> None:
    def half(x: int) -> Iterator[int]:
        yield x
        yield 6 // x

    flow = Flow("half")
    out: list[int] = []
    flow.source([1, 0, 2]).flatmap(half, on_error="skip").sink(out.append)
    LocalEnvironment().run_sync(flow)
    assert out == [1, 6, 2, 3]


def test_stop_iteration_in_an_operator_is_an_error_and_loses_nothing() -> None:
    flow = Flow("next")
    out: list[int] = []
    flow.source([[1], [], [2], []]).map(lambda xs: next(iter(xs)), on_error="skip", name="first").sink(
        out.append
    )
    assert LocalEnvironment().run_sync(flow)["first"].skipped == 2
    assert out == [1, 2]


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda s: s.map(brittle, name="op"), r"operator 'op' failed on item 4 \(5\): ValueError: no 5"),
        (lambda s: s.map(increase, order="input").map(brittle, name="op"), r"'op' failed on item 3 \(5\)"),
        (lambda s: s.filter(brittle, name="op"), r"'op' failed on item 4 \(5\)"),
        (lambda s: s.flatmap(brittle, name="op"), r"'op' failed on item 0 \(1\): TypeError"),
        (lambda s: s.keyby(brittle).scan(int, pair, name="op"), r"'op' failed on item 4 \(5\)"),
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
        LocalEnvironment().run_sync(flow)
    assert caught.value.__cause__ is not None


async def test_an_async_failure_stops_all_the_rest(gate: Any) -> None:
    async def fails(x: int) -> Any:
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
        LocalEnvironment().run_sync(flow)


def test_a_sage_error_keeps_its_kind() -> None:
    async def busy(_: int) -> int:
        raise OverloadedError("full", retry_after=2.0)

    flow = Flow("kind")
    flow.source([1]).map(busy).sink(print)
    with pytest.raises(OverloadedError, match=r"operator 'busy' failed on item 0 \(1\): full") as caught:
        LocalEnvironment().run_sync(flow)
    assert caught.value.retry_after == 2.0


def test_an_item_whose_repr_fails_is_still_named() -> None:
    class Odd:
        def __repr__(self) -> str:
            raise RuntimeError

    flow = Flow("odd")
    flow.source([Odd()]).map(int).sink(print)  # type: ignore[arg-type]
    with pytest.raises(OperatorError, match="whose repr fails"):
        LocalEnvironment().run_sync(flow)


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
            LocalEnvironment().run_sync(flow)
