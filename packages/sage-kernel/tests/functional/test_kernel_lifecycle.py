"""From start to end of a run: set up, committed, closed, stopped, interrupted and reported."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from sage.common.errors import NotFoundError
from sage.kernel import Batch, Flow, LocalEnvironment, OperatorError, Part, PlanError, RunReport


async def increase(x: int) -> int:
    return x + 1


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
            LocalEnvironment().run_sync(flow)
    else:
        LocalEnvironment().run_sync(flow)
    assert Model.log == ["setup", "close"]


def test_what_was_set_up_is_closed_when_a_later_setup_fails() -> None:
    class Unready(Model):
        def setup(self) -> None:
            raise OSError("no memory")

    Model.log.clear()
    flow = Flow("unready")
    flow.source([1]).map_batch(Model).map_batch(Unready, name="second").sink(print)
    with pytest.raises(OperatorError, match="setup of operator 'second' failed: OSError: no memory"):
        LocalEnvironment().run_sync(flow)
    assert Model.log == ["setup", "close"]


class Store:
    """A sink that keeps everything."""

    def __init__(self) -> None:
        self.items: list[Any] = []
        self.log: list[str] = []

    async def write(self, _epoch: int, items: Any) -> None:
        self.items.extend(items)

    async def commit(self, _epoch: int) -> None:
        self.log.append("commit")

    def close(self) -> None:
        self.log.append("close")


def test_a_sink_commits_only_after_success() -> None:
    for fails, log in ((False, ["commit", "close"]), (True, ["close"])):
        store, flow = Store(), Flow("store")
        whole = flow.source([1, 0, 2])
        (whole.map(lambda x: 1 // x) if fails else whole).sink(store)
        if fails:
            with pytest.raises(OperatorError):
                LocalEnvironment().run_sync(flow)
        else:
            LocalEnvironment().run_sync(flow)
            assert store.items == [1, 0, 2]
        assert store.log == log


def test_partial_results_are_passed_over_in_a_finite_run() -> None:
    async def parts(x: int) -> AsyncIterator[Part[str] | int]:
        yield Part("a")
        yield x * 2

    async def nothing(x: int) -> AsyncIterator[Part[str]]:
        yield Part("a")

    flow = Flow("parts")
    out: list[int] = []
    flow.source([1, 2]).map(parts, order="input").sink(out.append)
    LocalEnvironment().run_sync(flow)
    assert out == [2, 4]
    bad = Flow("none")
    bad.source([1]).map(nothing).sink(print)
    with pytest.raises(OperatorError, match="yielded 0 values that are no Part"):
        LocalEnvironment().run_sync(bad)


async def test_stop_drains_what_was_read(turns: Any) -> None:
    stop = asyncio.Event()
    out: list[int] = []

    async def endless() -> AsyncIterator[int]:
        for x in range(5):
            yield x
        await asyncio.Event().wait()

    def forever() -> Iterator[int]:
        x = 100
        while True:
            yield (x := x + 1)

    flow = Flow("drain")
    waiting = flow.source(endless).map(increase)
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
    flow.source(endless).map(increase).sink(out.append)
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
