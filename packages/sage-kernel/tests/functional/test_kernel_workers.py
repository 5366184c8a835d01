"""Operators on workers: the same results, counts and errors as on the event loop, whatever the kind."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kernel_worker_ops as ops
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sage.common.errors import OverloadedError
from sage.kernel import (
    Batch,
    Failure,
    Flow,
    LocalEnvironment,
    OperatorError,
    Parallel,
    Registry,
    RunReport,
    Scale,
    Stream,
    Window,
    use,
)

KINDS = ("process", "thread")
Build = Callable[[Stream[Any], "Parallel | None"], Stream[Any]]


def ran(build: Build, items: Any, parallel: Parallel | None, **options: Any) -> tuple[list[Any], RunReport]:
    flow, out = Flow("work"), list[Any]()
    build(flow.source(items), parallel).sink(out.append)
    return out, LocalEnvironment(**options).run_sync(flow)


def chain(stream: Stream[Any], parallel: Parallel | None) -> Stream[Any]:
    grown = stream.map(ops.increase, parallelism=parallel).filter(ops.odd, parallelism=parallel)
    fine = grown.map(ops.brittle, on_error="skip", parallelism=parallel, name="brittle")
    return fine.flatmap(ops.twice, parallelism=parallel).map(ops.increase)


def counts(report: RunReport) -> list[tuple[Any, ...]]:
    return [(o.name, o.items_in, o.items_out, o.skipped, o.diverted, o.in_flight) for o in report.operators]


@pytest.mark.parametrize("kind", KINDS)
def test_results_order_and_counts_are_those_of_the_event_loop(kind: Any) -> None:
    plain, there = ran(chain, range(5000), None)
    out, here = ran(chain, range(5000), Parallel(3, kind))
    assert out == plain
    assert counts(here) == counts(there)
    assert here["increase"].cpu > 0
    as_they_come, _ = ran(chain, range(5000), Parallel(3, kind, order="any"))
    assert Counter(as_they_come) == Counter(plain)


@settings(max_examples=40)
@given(
    steps=st.lists(st.sampled_from(["map", "filter", "brittle", "flatmap", "batch", "loop"]), max_size=6),
    n=st.integers(1, 3),
    order=st.sampled_from(["input", "any"]),
    items=st.lists(st.integers(-20, 20), max_size=80),
)
def test_any_chain_on_threads_is_the_chain_on_the_event_loop(
    steps: list[str], n: int, order: Any, items: list[int]
) -> None:
    def build(stream: Stream[Any], parallel: Parallel | None) -> Stream[Any]:
        added: dict[str, Callable[[Stream[Any]], Stream[Any]]] = {
            "map": lambda s: s.map(ops.increase, parallelism=parallel),
            "filter": lambda s: s.filter(ops.odd, parallelism=parallel),
            "brittle": lambda s: s.map(ops.brittle, on_error="skip", parallelism=parallel),
            "flatmap": lambda s: s.flatmap(ops.twice, parallelism=parallel),
            "batch": lambda s: s.map_batch(list, Batch(5), parallelism=parallel),
            "loop": lambda s: s.map(ops.increase),
        }
        for step in steps:
            stream = added[step](stream)
        return stream

    plain, there = ran(build, items, None, batch=7)
    out, here = ran(build, items, Parallel(n, "thread", order), batch=7, capacity=20)
    assert Counter(out) == Counter(plain)
    assert counts(here) == counts(there)
    assert order == "any" or out == plain


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_names_operator_item_and_position(kind: Any) -> None:
    def build(stream: Stream[Any], parallel: Parallel | None) -> Stream[Any]:
        return stream.filter(ops.odd, parallelism=parallel).map(ops.brittle, parallelism=parallel)

    with pytest.raises(
        OperatorError, match=r"operator 'brittle' failed on item 3 \(7\): ValueError: no 7"
    ) as e:
        ran(build, range(1000), Parallel(2, kind))
    assert isinstance(e.value.__cause__, ValueError)
    with pytest.raises(
        OverloadedError, match=r"operator 'overloaded' failed on item 0 \(5\): 5 is one"
    ) as full:
        ran(lambda s, p: s.map(ops.overloaded, parallelism=p), [5], Parallel(2, kind))
    assert full.value.retry_after == 3.0


def test_the_traceback_of_a_worker_and_an_error_that_cannot_be_pickled_are_told() -> None:
    with pytest.raises(OperatorError, match="OddError: 4 and 4") as caught:
        ran(lambda s, p: s.map(ops.oddly, parallelism=p), [4], Parallel(1))
    assert caught.value.__cause__ is not None
    with pytest.raises(OperatorError) as caught:
        ran(lambda s, p: s.map(ops.brittle, parallelism=p), [7], Parallel(1))
    assert caught.value.__cause__ is not None
    assert "kernel_worker_ops.py" in caught.value.__cause__.__notes__[0]


@pytest.mark.parametrize("kind", KINDS)
def test_what_fails_is_diverted_with_its_item(kind: Any) -> None:
    flow, out, bad = Flow("divert"), list[int](), list[Failure[int]]()
    parallel = Parallel(2, kind)
    grown = flow.source(range(200)).map(ops.increase, parallelism=parallel)
    fine = grown.map(ops.brittle, on_error="divert", parallelism=parallel)
    fine.sink(out.append)
    fine.diverted.sink(bad.append)
    LocalEnvironment().run_sync(flow)
    assert bad == [Failure(x, "brittle", f"ValueError: no {x}", 1) for x in range(7, 201, 7)]
    assert out == [x for x in range(1, 201) if x % 7]


@pytest.mark.parametrize("kind", KINDS)
def test_a_class_is_made_set_up_and_closed_once_per_worker(
    kind: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "log"
    monkeypatch.setenv("KERNEL_TEST_LOG", str(log))

    def build(stream: Stream[Any], parallel: Parallel | None) -> Stream[Any]:
        return stream.map_batch(ops.Logged, Batch(8), parallelism=parallel)

    out, _ = ran(build, range(50), Parallel(3, kind))
    assert out == list(range(1, 51))
    assert Counter(log.read_text().split()) == {"setup": 3, "close": 3}
    log.unlink()
    with pytest.raises(OperatorError, match=r"'Logged' failed on item 96 \(96\): ValueError: a hundred"):
        ran(build, range(200), Parallel(3, kind))
    assert Counter(log.read_text().split()) == {"setup": 3, "close": 3}
    with pytest.raises(OperatorError, match="setup of operator 'BadSetup' failed: OSError: no such device"):
        ran(lambda s, p: s.map_batch(ops.BadSetup, parallelism=p), range(5), Parallel(2, kind))


def test_threads_share_an_object_and_take_closures() -> None:
    class Shared:
        def __init__(self) -> None:
            self.life: list[str] = []

        def setup(self) -> None:
            self.life.append("setup")

        def __call__(self, x: int) -> int:
            return x + offset

        def close(self) -> None:
            self.life.append("close")

    offset, shared = 3, Shared()
    out, _ = ran(lambda s, p: s.map(shared, parallelism=p), range(100), Parallel(3, "thread"))
    assert out == list(range(3, 103))
    assert shared.life == ["setup", "close"]


def test_large_records_come_through_whole() -> None:
    numpy = pytest.importorskip("numpy")
    items = [numpy.full((size,), size, dtype="float32") for size in (1, 3, 100_000, 5, 40_000)]
    out, _ = ran(lambda s, p: s.map_batch(list, Batch(2), parallelism=p), items, Parallel(2))
    assert all((a == b).all() and a.flags.writeable for a, b in zip(items, out, strict=True))
    texts = [letter * 300_000 for letter in "abcdef"]
    assert ran(lambda s, p: s.map_batch(list, parallelism=p), texts, Parallel(2))[0] == texts


def test_event_times_pass_through_workers() -> None:
    def panes(parallel: Parallel | None) -> list[Any]:
        flow, found = Flow("times"), list[Any]()
        timed = flow.source(range(3000)).event_time(float)
        kept = timed.filter(ops.odd, parallelism=parallel).flatmap(ops.twice, parallelism=parallel)
        keyed = kept.keyby(lambda x: x % 5)
        keyed.window(Window(100)).reduce(int, lambda state, x: state + x).sink(found.append)
        LocalEnvironment().run_sync(flow)
        return found

    assert panes(Parallel(2)) == panes(None) == panes(Parallel(3, "thread"))
    as_they_come = panes(Parallel(3, "thread", order="any"))
    assert Counter(as_they_come) == Counter(panes(None))


def test_what_cannot_be_pickled_fails_by_itself() -> None:
    flow, out, bad = Flow("unsendable"), list[Any](), list[Failure[Any]]()
    fine = flow.source([1, print, lambda: 2, 3]).map(ops.process_of, on_error="divert", parallelism=2)
    fine.sink(out.append)
    fine.diverted.sink(bad.append)
    LocalEnvironment().run_sync(flow)
    assert len(out) == 3
    assert len(bad) == 1
    assert "pickle" in bad[0].error
    out, report = ran(
        lambda s, p: s.map(ops.as_function, on_error="skip", parallelism=p), range(10), Parallel(1)
    )
    assert out == [1, 3, 5, 7, 9]
    assert (report["as_function"].items_out, report["as_function"].skipped) == (5, 5)
    with pytest.raises(OperatorError, match="operator 'as_function' failed on item 1"):
        ran(lambda s, p: s.map(ops.as_function, parallelism=p), [1, 2, 3], Parallel(1))


def test_a_worker_process_imports_no_event_loop_for_plain_calls() -> None:
    names = ["asyncio", "ssl", "random", "sage.kernel.compile"]
    out, _ = ran(lambda s, p: s.map(ops.loaded, parallelism=p), names, Parallel(1))
    assert out == [False, False, False, True]


def test_named_operators_are_made_by_each_worker() -> None:
    registry = Registry(entry_points=False)
    registry.register("scale", ops.with_factor)
    flow, out = Flow("named"), list[int]()
    flow.source([1, 2]).map(use("scale", factor=5), parallelism=1).sink(out.append)
    LocalEnvironment(registry=registry).run_sync(flow)
    assert out == [5, 10]


def test_work_goes_on_beside_a_worker_that_is_slow(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    flow, out = Flow("skew"), list[int]()
    stream = flow.source(range(200)).map(ops.Waits(pipe), parallelism=Parallel(2, order="any"))
    stream.sink(out.append)
    LocalEnvironment().run_sync(flow)
    assert sorted(out) == list(range(200))
    assert out.index(0) > out.index(1)


def test_a_worker_is_added_while_records_queue(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    flow, out = Flow("scale"), list[int]()
    alone, scale = Parallel(1, order="any"), Scale(1, 2, target_wait=0.01)
    # Item 0 waits for what only another worker can do.
    flow.source(range(200)).map(ops.Waits(pipe), parallelism=alone, scale=scale).sink(out.append)
    LocalEnvironment().run_sync(flow)
    assert sorted(out) == list(range(200))
