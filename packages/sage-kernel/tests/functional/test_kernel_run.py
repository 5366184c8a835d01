"""A started run in the hands of its caller: waited for, looked at, paused, stopped, cut off."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from sage.common.errors import UnavailableError, UsageError
from sage.kernel import Flow, LocalEnvironment, OperatorError


def endless() -> Iterator[int]:
    x = 0
    while True:
        yield (x := x + 1)


async def test_a_run_is_waited_for_and_looked_at(gate: Any) -> None:
    flow, out = Flow("handle"), list[int]()
    flow.source([1, 2]).map(gate, order="input").sink(out.append)
    run = await LocalEnvironment().start(flow)
    await gate.until(2)
    assert (run.state, run.flow) == ("running", "handle")
    assert [(one.name, one.in_flight) for one in run.reports()][1] == ("Gate", 2)
    gate.open(1)
    gate.open(2)
    report = await run.wait()
    assert run.state == "done"
    assert out == [1, 2]
    assert report.operators == run.reports()
    assert await run.wait() is report


async def test_a_paused_run_reads_nothing_until_it_is_resumed(turns: Any) -> None:
    flow, out, read = Flow("pause"), list[int](), asyncio.Queue[int]()

    async def waiting() -> AsyncIterator[int]:
        while (x := await read.get()) >= 0:
            yield x

    flow.source(endless).merge(flow.source(waiting)).sink(out.append)
    run = await LocalEnvironment(batch=2).start(flow)
    await turns()
    await run.pause()
    states = [run.state]
    await turns()
    read.put_nowait(0)
    seen = len(out)
    await turns()
    assert len(out) == seen > 0
    await run.resume()
    await turns()
    assert len(out) > seen
    assert 0 in out
    await run.pause()
    await run.stop()  # a paused run stops, too
    assert (await run.wait()).interrupted
    assert [*states, run.state] == ["paused", "done"]


async def test_stopping_drains_or_cuts_off(gate: Any) -> None:
    for drain in (True, False):
        flow, out = Flow("stop"), list[int]()
        flow.source([1]).map(gate).sink(out.append)
        run = await LocalEnvironment().start(flow)
        await gate.until(1)
        stopping = asyncio.create_task(run.stop(drain=drain))
        await asyncio.sleep(0)
        assert run.state == "stopping"
        if drain:
            gate.open(1)
            await stopping
            assert (out, run.state) == ([1], "done")
        else:
            await stopping
            assert (out, run.state, gate.cancelled) == ([], "failed", [1])
            with pytest.raises(UnavailableError, match="the run of flow 'stop' was cut off"):
                await run.wait()
        await run.stop()  # once more does nothing


async def test_an_error_is_raised_by_wait_as_often_as_it_is_asked() -> None:
    flow = Flow("error")
    flow.source([0]).map(lambda x: 1 // x, name="divide").sink(print)
    run = await LocalEnvironment().start(flow)
    for _ in range(2):
        with pytest.raises(OperatorError, match="'divide' failed on item 0"):
            await run.wait()
    assert run.state == "failed"
    for call in (run.pause(), run.resume(), run.checkpoint()):
        with pytest.raises(UnavailableError, match="the run of flow 'error': it is failed"):
            await call


async def test_cancelling_a_wait_leaves_the_run_alone(gate: Any, turns: Any) -> None:
    flow, out = Flow("wait"), list[int]()
    flow.source([1]).map(gate).sink(out.append)
    run = await LocalEnvironment().start(flow)
    waiting = asyncio.create_task(run.wait())
    await gate.until(1)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert run.state == "running"
    gate.open(1)
    await run.wait()
    assert out == [1]


async def test_a_run_without_checkpoints_says_so() -> None:
    flow = Flow("none")
    flow.source(endless).sink(lambda x: None)
    run = await LocalEnvironment().start(flow)
    with pytest.raises(UsageError, match="flow 'none' runs without checkpoints"):
        await run.checkpoint()
    await run.stop()
