"""Loops and gates in runs that are cut off and gone on with; the suite of backends does that at random."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from sage.common.testing import VirtualClock
from sage.kernel import Checkpoints, Flow, LocalEnvironment, Parked, Run

HOUR = 3600.0


def environment(folder: Path, **options: Any) -> LocalEnvironment:
    return LocalEnvironment(checkpoints=Checkpoints(folder / "checkpoints", every=0), **options)


def parity(x: int) -> bool:
    return x % 2 == 1


def gated(out: list[int], xs: list[int], **options: Any) -> Flow:
    flow = Flow("gated")
    flow.source(xs).gate("desk", when=parity, timeout=HOUR, **options).sink(out.append)
    return flow


async def parked(run: Run, count: int) -> list[Parked]:
    """Let the loop turn until so many records wait."""
    async with asyncio.timeout(10):
        while len(run.parked("desk")) < count:  # noqa: ASYNC110 - turns of the loop, no time
            await asyncio.sleep(0)
    return run.parked("desk")


async def test_what_is_parked_when_a_run_stops_is_decided_on_in_the_next(tmp_path: Path, turns: Any) -> None:
    clock = VirtualClock()
    out: list[int] = []
    run = await environment(tmp_path, clock=clock).start(gated(out, [1, 2, 3, 4, 5]))
    before = await parked(run, 3)
    await turns()
    assert out == [2, 4]
    await run.resolve("desk", before[0].id, 100)
    await run.stop()
    assert (await run.wait()).interrupted
    assert sorted(out) == [2, 4, 100]
    clock.advance(60)
    again = await environment(tmp_path, clock=clock).start(gated(out, [1, 2, 3, 4, 5]))
    assert await parked(again, 2) == before[1:]
    clock.advance(HOUR - 60)
    await again.resolve("desk", before[2].id)
    again.inboxes.get("desk").expire()
    with pytest.raises(Exception, match=r"operator 'desk' failed on item 2 \(3\): nobody decided"):
        await again.wait()


async def test_a_full_inbox_holds_no_checkpoint_back(tmp_path: Path, turns: Any) -> None:
    out: list[int] = []
    xs = list(range(40))
    run = await environment(tmp_path, batch=4, capacity=8).start(gated(out, xs, limit=2))
    await parked(run, 2)
    async with asyncio.timeout(10):
        assert await run.checkpoint() == 1
    await run.stop(drain=False)
    again = await environment(tmp_path, batch=4, capacity=8).start(gated(out, xs, limit=2))
    while again.state == "running":
        await turns(5)
        for one in again.parked("desk"):
            await again.resolve("desk", one.id)
    assert (await again.wait()).resumed == 1
    assert Counter(out) == Counter(xs)


async def test_a_loop_begins_its_rounds_anew(tmp_path: Path, gate: Any, turns: Any) -> None:
    def looped(out: list[int]) -> Flow:
        async def step(x: int) -> int:
            await gate(x)
            return x + 1

        flow = Flow("looped")
        flow.source([10, 20]).iterate(lambda s: s.map(step), until=lambda x: x % 10 == 2, max_rounds=9).sink(
            out.append
        )
        return flow

    out: list[int] = []
    run = await environment(tmp_path).start(looped(out))
    await gate.until(2)
    for x in (10, 20, 21):
        gate.open(x)
        await turns()
    assert out == [22]
    assert set(gate.waiting) == {11}
    await run.checkpoint()
    await run.stop(drain=False)
    again = await environment(tmp_path).start(looped(out))
    await gate.until(1)
    for x in (10, 11):
        assert set(gate.waiting) == {x}
        gate.open(x)
        await turns()
    await again.wait()
    assert out == [22, 12]
