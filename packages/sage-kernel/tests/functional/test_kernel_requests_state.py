"""Flows of requests with checkpoints: state, sinks and gates, of which each request is part once."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from kernel_served import Calls, cut, numbered, service, submit

from sage.common.errors import OverloadedError, UsageError
from sage.common.testing import VirtualClock
from sage.kernel import (
    Flow,
    Job,
    OperatorError,
    Reject,
    RejectedError,
)
from sage.kernel.testing.sinks import EpochFiles


async def test_state_is_changed_once_for_each_request(tmp_path: Path) -> None:
    last = Calls(("b", 1), ("a", 2))
    flow = service(lambda s: s.keyby(lambda x: "key").scan(int, numbered).map(last))
    job = await submit(tmp_path, flow)
    assert await job.request("a", id="1") == ("a", 0)
    await job.checkpoint()
    asking = [asyncio.create_task(job.request("b", id="2"))]
    while ("b", 1) not in last.made:  # noqa: ASYNC110 - turns of the loop, no time
        await asyncio.sleep(0)
    asking.append(asyncio.create_task(job.request("a", id="3")))
    while ("a", 2) not in last.made:  # noqa: ASYNC110 - turns of the loop, no time
        await asyncio.sleep(0)
    assert await job.request("c", id="4") == ("c", 3)  # behind what is not answered
    await cut(job, *asking)

    last.stuck.clear()
    async with await submit(tmp_path, flow) as job:
        assert await job.request("d") == ("d", 4)
        assert await job.request("a", id="3") == ("a", 2)
        assert await job.request("b", id="2") == ("b", 1)
        assert await job.request("c", id="4") == ("c", 3)
    async with await submit(tmp_path, flow) as job:
        assert await job.request("e") == ("e", 5)


async def test_kept_state_goes_on_and_is_forgotten_in_time(tmp_path: Path) -> None:
    clock = VirtualClock()
    flow = service(lambda s: s.keyby(lambda x: x[0]).scan(int, numbered, ttl=10))
    async with await submit(tmp_path, flow, clock=clock) as job:
        assert [await job.request(x) for x in ("aa", "b")] == [("aa", 0), ("b", 0)]
    clock.advance(6)
    job = await submit(tmp_path, flow, clock=clock)
    assert await job.request("a") == ("a", 1)
    await job.stop(drain=False)
    clock.advance(6)
    async with await submit(tmp_path, flow, clock=clock) as job:
        assert [await job.request(x) for x in ("a", "b")] == [("a", 2), ("b", 0)]


async def test_a_step_that_fails_changes_no_state(tmp_path: Path) -> None:
    def step(count: int, x: int) -> tuple[int, int]:
        if x < 0:
            raise ValueError("below zero")
        return count + 1, count

    flow = service(lambda s: s.keyby(lambda x: 0).scan(int, step))
    async with await submit(tmp_path, flow) as job:
        assert await job.request(1) == 0
        with pytest.raises(OperatorError, match="below zero"):
            await job.request(-1)
    async with await submit(tmp_path, flow) as job:
        assert await job.request(1) == 1


@pytest.mark.parametrize("checkpoint", [False, True])
async def test_a_transactional_sink_has_each_request_once(tmp_path: Path, checkpoint: bool) -> None:
    last = Calls(2)
    out = tmp_path / "out"

    def build() -> Flow:
        flow = Flow("service")
        asks = flow.requests(int)
        asks.sink(EpochFiles(out), name="out")
        flow.reply(asks.map(last))
        return flow

    job = await submit(tmp_path, build())
    assert await job.request(1) == 1
    asking = asyncio.create_task(job.request(2))
    await last.reached.wait()
    if checkpoint:
        assert await job.checkpoint() == 1
        assert EpochFiles.records(out) == [1, 2]
    await cut(job, asking)
    assert EpochFiles.records(out) == ([1, 2] if checkpoint else [])
    last.stuck.clear()
    async with await submit(tmp_path, build()) as job:
        assert await job.request(3) == 3
    assert sorted(EpochFiles.records(out)) == [1, 2, 3]


async def test_other_sinks_are_not_written_again_once_that_is_kept(tmp_path: Path) -> None:
    last = Calls(1)
    written: list[int] = []

    async def write(x: int) -> None:
        written.append(x)

    flow = Flow("service")
    asks = flow.requests(int)
    asks.sink(write)
    flow.reply(asks.map(last))
    job = await submit(tmp_path, flow)
    asking = asyncio.create_task(job.request(1))
    await last.reached.wait()
    await cut(job, asking)
    last.stuck.clear()
    async with await submit(tmp_path, flow):
        pass
    assert (written, last.made[1]) == ([1], 2)


async def parked(job: Job, count: int) -> dict[Any, str]:
    while len(job.parked("refunds")) < count:  # noqa: ASYNC110 - turns of the loop, no time
        await asyncio.sleep(0)
    return {one.item: one.id for one in job.parked("refunds")}


async def test_what_waits_at_a_gate_waits_again(tmp_path: Path) -> None:
    clock = VirtualClock()
    flow = service(lambda s: s.gate("refunds", timeout=100))
    job = await submit(tmp_path, flow, clock=clock)
    asking = [asyncio.create_task(job.request(10, id="10"))]
    ids = await parked(job, 1)
    clock.advance(60)
    asking.append(asyncio.create_task(job.request(20, id="20")))
    ids = await parked(job, 2)
    since = [one.since for one in job.parked("refunds")]
    await cut(job, *asking)

    clock.advance(30)
    async with await submit(tmp_path, flow, clock=clock) as job:
        assert await parked(job, 2) == ids
        assert [one.since for one in job.parked("refunds")] == since
        await job.resolve("refunds", ids[20], 19)
        assert await job.request(20, id="20") == 19
        clock.advance(10)
        job.inboxes.get("refunds").expire()
        with pytest.raises(RejectedError, match="nobody decided on it in inbox 'refunds' within 100 s"):
            await job.request(10, id="10")


async def test_a_decision_is_kept_once_resolve_has_returned(tmp_path: Path) -> None:
    last = Calls(19, "kept back")
    rejected: list[Any] = []

    def build() -> Flow:
        flow = Flow("service")
        gate = flow.requests(object).gate("refunds", timeout=100, on_error="divert")
        gate.diverted.map(Calls(), name="told").map(lambda failure: rejected.append(failure.error)).sink(
            print
        )
        flow.reply(gate.map(last))
        return flow

    job = await submit(tmp_path, build())
    asking = [asyncio.create_task(job.request(x, id=str(x))) for x in (20, 30)]
    ids = await parked(job, 2)
    await job.resolve("refunds", ids[20], 19)
    await job.resolve("refunds", ids[30], Reject("no"))
    await last.reached.wait()
    await job.stop(drain=False)
    await asyncio.gather(*asking, return_exceptions=True)
    assert rejected == ["RejectedError: it was rejected in inbox 'refunds': no"]

    last.stuck.clear()
    async with await submit(tmp_path, build()) as job:
        assert await job.request(20, id="20") == 19
        assert job.parked("refunds") == []
    assert last.made[19] == 2


async def test_what_was_parked_finds_its_place_however_full_the_inbox_is(tmp_path: Path) -> None:
    first = Calls()
    flow = service(lambda s: s.map(first).gate("refunds", timeout=100, limit=1))
    job = await submit(tmp_path, flow)
    asking = asyncio.create_task(job.request(10, id="10"))
    ids = await parked(job, 1)
    with pytest.raises(OverloadedError, match="inbox 'refunds' holds 1 undecided records, its limit"):
        await job.request(20)
    await cut(job, asking)
    async with await submit(tmp_path, flow) as job:
        other = asyncio.create_task(job.request(20))  # may come first
        assert await parked(job, 1) == ids
        await job.resolve("refunds", ids[10])
        assert await job.request(10, id="10") == 10
        other.cancel()
        await asyncio.gather(other, return_exceptions=True)


async def test_checkpoints_restore_inboxes_by_themselves(tmp_path: Path) -> None:
    async with await submit(tmp_path, service(lambda s: s.gate("refunds", timeout=100))) as job:
        with pytest.raises(UsageError, match="restore nothing"):
            job.inboxes.restore(job.inboxes.snapshot())
