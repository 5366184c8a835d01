from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from sage.common.api import StackStatus
from sage.common.errors import UnreachableError
from sage.studio.feed import Feed

STATUS = StackStatus(version="1", uptime_s=1.0, policy="fifo", engines=[], queues=[])


class Clock:
    def __init__(self) -> None:
        self.time = 100.0

    def now(self) -> float:
        return self.time

    def wall(self) -> float:
        return 1_000.0 + self.time


class Source:
    def __init__(self) -> None:
        self.asked = 0
        self.down = False

    def __call__(self) -> Any:
        self.asked += 1
        if self.down:
            raise UnreachableError("No stack is running.", hint="Start one with `sage up`.")
        return STATUS, []


@pytest.fixture
def source() -> Source:
    return Source()


async def test_many_readers_share_one_question(source: Any) -> None:
    feed = Feed(source, clock=Clock())
    answers = await asyncio.gather(*(feed.latest() for _ in range(20)))
    assert source.asked == 1
    assert {number for number, _ in answers} == {1}


async def test_the_source_is_asked_again_after_a_period_and_not_before(source: Any) -> None:
    clock = Clock()
    feed = Feed(source, period=2.0, clock=clock)
    await feed.latest()
    clock.time += 1.9
    assert (await feed.latest())[0] == 1
    clock.time += 0.1
    assert (await feed.latest())[0] == 2
    assert source.asked == 2


async def test_a_stack_that_is_down_is_a_snapshot_with_its_reason(source: Any) -> None:
    source.down = True
    _, snapshot = await Feed(source, clock=Clock()).latest()
    assert snapshot.status is None
    assert snapshot.problem == "No stack is running. Start one with `sage up`."
    assert snapshot.at == 1_100.0


async def test_the_page_recovers_with_the_stack(source: Any) -> None:
    clock = Clock()
    feed = Feed(source, period=2.0, clock=clock)
    source.down = True
    await feed.latest()
    source.down = False
    clock.time += 2
    _, snapshot = await feed.latest()
    assert snapshot.status == STATUS
    assert not snapshot.problem


async def test_a_fault_of_the_program_is_not_hidden(source: Any) -> None:
    def broken() -> Any:
        raise KeyError("bug")

    with pytest.raises(KeyError):
        await Feed(broken).latest()


async def test_events_are_numbered_and_carry_one_json_line(source: Any) -> None:
    stream = Feed(source, period=0.001).stream()
    first = await anext(stream)
    second = await anext(stream)
    for number, event in ((1, first), (2, second)):
        head, data = event.strip().split("\n")
        assert head == f"id: {number}"
        assert json.loads(data.removeprefix("data: "))["status"]["policy"] == "fifo"
        assert event.endswith("\n\n")
    await stream.aclose()


async def test_closing_ends_streams_at_once(source: Any) -> None:
    feed = Feed(source, period=3600.0)
    stream = feed.stream()
    await anext(stream)
    rest = asyncio.create_task(anext(stream, None))
    await asyncio.sleep(0)
    feed.close()
    assert await asyncio.wait_for(rest, 60) is None
