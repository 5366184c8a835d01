"""Workers beside the other verbs: in loops, behind services, next to caches and gates."""

from __future__ import annotations

import asyncio
import os
import threading
from typing import Any

import kernel_worker_ops as ops
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sage.kernel import (
    Cache,
    Flow,
    LocalEnvironment,
    OperatorError,
    Parallel,
    PlanError,
    Resources,
    Scale,
    Stream,
    call_service,
    parse_yaml,
    use,
)
from sage.kernel.scheduler import InfeasibleError, Node

THREADS = Parallel(2, "thread")
store = call_service("store")


class Store:
    """A service whose calls are sync; it keeps who called."""

    def __init__(self) -> None:
        self.callers: set[str] = set()

    def size(self, text: str) -> int:
        self.callers.add(threading.current_thread().name)
        return len(text)


size = call_service("store", Store.size)


def measured(text: str) -> int:
    return size(text)


def big(x: int) -> bool:
    return x >= 20


def on_two(stream: Stream[int]) -> Stream[int]:
    return stream.map(ops.increase, parallelism=THREADS, name="add").map(ops.increase, name="again")


def rounds(body: Any, records: list[int]) -> tuple[Flow, list[int]]:
    flow, got = Flow("rounds"), list[int]()
    flow.source(records).iterate(body, until=big, max_rounds=30, order="input", name="loop").sink(got.append)
    return flow, got


@settings(max_examples=10, deadline=None)
@given(st.lists(st.integers(-20, 40), max_size=30))
def test_the_body_of_a_loop_may_have_workers(records: list[int]) -> None:
    flow, got = rounds(on_two, records)
    report = LocalEnvironment().run_sync(flow)
    expected = [x + 2 * max(1, (21 - x) // 2) for x in records]
    assert got == expected
    turns = sum((after - before) // 2 for before, after in zip(records, expected, strict=True))
    assert report["loop/add"].items_out == report["loop/again"].items_in == turns


def test_a_loop_round_processes() -> None:
    flow, got = rounds(lambda s: s.map(ops.increase, parallelism=2, name="add"), [17, 18])
    assert LocalEnvironment().run_sync(flow)["loop/add"].cpu > 0
    assert got == [20, 20]


def test_two_loops_and_a_stage_have_workers_of_their_own() -> None:
    flow, got = Flow("several"), list[int]()
    stream = flow.source([1]).map(ops.increase, parallelism=THREADS)
    for name in ("first", "second"):
        stream = stream.iterate(on_two, until=bool, max_rounds=1, name=name)
    stream.sink(got.append)
    report = LocalEnvironment().run_sync(flow)
    assert got == [6]
    assert [report[f"{name}/add"].items_in for name in ("first", "second")] == [1, 1]


def test_workers_of_a_loop_count_among_what_a_flow_takes_of_the_machine() -> None:
    flow, _ = rounds(lambda s: s.map(ops.increase, parallelism=2, resources=Resources(gpu=1)), [1])
    with pytest.raises(InfeasibleError, match="gpu"):
        LocalEnvironment(machine=Node("small", cpus=4)).run_sync(flow)


def test_what_is_wrong_in_a_loop_is_said_of_its_workers_too() -> None:
    flow, _ = rounds(lambda s: s.map(lambda x: x, parallelism=2, name="here"), [1])
    with pytest.raises(PlanError, match="'here' runs in processes"):
        flow.check()


async def test_requests_go_round_a_loop_on_workers_and_stop_with_their_job() -> None:
    flow = Flow("asks")
    stream = flow.requests(int).iterate(on_two, until=big, max_rounds=30, name="loop")
    flow.reply(stream.map(ops.increase, parallelism=THREADS, scale=Scale(1, 2), name="last"))
    before = threading.active_count()
    async with await LocalEnvironment().submit(flow) as job:
        assert await asyncio.gather(*(job.request(x) for x in range(8))) == [21, 22] * 4
        assert threading.active_count() > before
    assert job.report()["loop/add"].items_in == sum((21 - x) // 2 for x in range(8))


def test_threads_call_the_services_of_their_run() -> None:
    env, made, got = LocalEnvironment(), Store(), list[int]()
    env.register_service("store", lambda: made)
    flow = Flow("measures")
    flow.source(["a", "bcd"]).map(measured, parallelism=THREADS).sink(got.append)
    env.run_sync(flow)
    assert got == [1, 3]
    assert made.callers == {"sage-worker"}


async def test_requests_on_threads_call_services_too() -> None:
    env = LocalEnvironment()
    env.register_service("store", Store)
    flow = Flow("measures")
    flow.reply(flow.requests(str).map(measured, parallelism=THREADS))
    async with await env.submit(flow) as job:
        assert await job.request("word") == 4


@pytest.mark.parametrize("call", [measured, size])
def test_processes_have_no_services(call: Any) -> None:
    flow = Flow("measures")
    flow.source(["a"]).map(call, parallelism=2, name="far").sink(print)
    with pytest.raises(PlanError, match=r"'far' runs in processes, where there are no services.*'store'"):
        flow.check()


@pytest.mark.parametrize("fn", [store, use("service", name="store")])
def test_a_service_that_may_answer_later_is_awaited_and_not_worked_on(fn: Any) -> None:
    env = LocalEnvironment()
    env.register_service("store", lambda: len)
    flow = Flow("measures")
    flow.source(["a"]).map(fn, parallelism=THREADS, name="asks").sink(print)
    with pytest.raises(PlanError, match="'asks' is asynchronous and needs no workers"):
        env.check(flow)


def test_a_flow_behind_a_service_may_have_workers() -> None:
    inner = Flow("inner")
    inner.reply(inner.requests(int).map(ops.process_of, parallelism=1))
    env, got = LocalEnvironment(), list[int]()
    env.register_service("store", inner)
    flow = Flow("outer")
    flow.source([1]).map(store).sink(got.append)
    env.run_sync(flow)
    assert got[0] != os.getpid()


def test_a_cache_keeps_no_results_of_workers() -> None:
    flow = Flow("kept")
    flow.source([1]).map(ops.increase, cache=Cache(), parallelism=2, name="both").sink(print)
    with pytest.raises(PlanError, match="take cache= or parallelism="):
        flow.check()
    text = "name: kept\nsteps:\n  - source: {use: items, with: {values: [1]}}\n"
    step = "  - map: {use: nothing, cache: {size: 5}, parallelism: 2}\n  - sink: stdout\n"
    with pytest.raises(PlanError, match="take cache= or parallelism="):
        parse_yaml(text + step).check()


def test_a_cache_and_a_gate_stand_behind_workers() -> None:
    flow, got = Flow("line"), list[int]()
    stream = flow.source([1, 1, 2]).map(ops.increase, parallelism=THREADS, name="first")
    stream = stream.map(ops.increase, cache=Cache(), name="kept")
    stream.gate("desk", when=lambda _: False, timeout=5).map(ops.increase, parallelism=THREADS).sink(
        got.append
    )
    report = LocalEnvironment().run_sync(flow)
    assert got == [4, 4, 5]
    assert (report["first"].items_in, report["kept"].misses) == (3, 2)


def test_the_debug_mode_looks_into_loops() -> None:
    def spoil(doc: dict[str, int]) -> dict[str, int]:
        doc["n"] += 1
        return doc

    flow = Flow("spoilt")
    docs = flow.source([{"n": 1}], name="docs")
    docs.iterate(lambda s: s.map(spoil, name="spoiler"), until=bool, max_rounds=2, name="loop").sink(print)
    docs.map(len).sink(print)
    with pytest.raises(OperatorError, match=r"'loop/spoiler' failed.*change a copy of it"):
        LocalEnvironment(debug=True).run_sync(flow)
