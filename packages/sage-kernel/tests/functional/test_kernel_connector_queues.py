"""Queues as sources and sinks: when messages are acknowledged, given back, extended and put."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from sage.common.errors import BadRequestError, OverloadedError, UsageError
from sage.common.testing import VirtualClock
from sage.kernel import Flow, LocalEnvironment, OperatorError, use
from sage.kernel.connectors import QueueSink, QueueSource
from sage.platform.queue import Message, QueueStats
from sage.platform.queue.memory import MemoryQueue


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture
async def queue(clock: VirtualClock) -> MemoryQueue:
    made = MemoryQueue("test", clock=clock)
    await made.put_many([Message(json.dumps(n).encode()) for n in range(10)])
    return made


def counts(stats: QueueStats) -> tuple[int, int]:
    return stats.ready, stats.leased


async def test_a_run_acknowledges_at_its_end(queue: MemoryQueue) -> None:
    leased: list[int] = []

    async def look(_record: Any) -> None:
        leased.append((await queue.stats()).leased)

    flow = Flow("queue")
    flow.source(QueueSource(queue, wait=0, batch=4)).sink(look)
    await LocalEnvironment().run(flow)
    assert leased[-1] == 10
    assert counts(await queue.stats()) == (0, 0)


async def test_a_run_that_fails_gives_everything_back(queue: MemoryQueue) -> None:
    flow = Flow("queue")
    flow.source(QueueSource(queue, wait=0, batch=4)).map(lambda n: 1 // (n - 5)).sink(lambda _: None)
    with pytest.raises(OperatorError, match="item 5 "):
        await LocalEnvironment().run(flow)
    assert counts(await queue.stats()) == (10, 0)
    (lease, *_) = await queue.get()
    assert (lease.attempts, lease.reason) == (2, "the run ended before it was done")


async def test_a_run_that_is_stopped_acknowledges_what_it_read(queue: MemoryQueue) -> None:
    stop, seen = asyncio.Event(), list[int]()

    def note(n: int) -> None:
        seen.append(n)
        if n == 9:
            stop.set()

    flow = Flow("queue")
    flow.source(QueueSource(queue, batch=3)).sink(note)
    report = await LocalEnvironment().run(flow, stop=stop)
    assert report.interrupted
    assert seen == list(range(10))
    assert counts(await queue.stats()) == (0, 0)


async def test_a_message_that_comes_again_while_it_is_under_way_is_not_read_twice(
    queue: MemoryQueue, clock: VirtualClock
) -> None:
    source = QueueSource(queue, wait=0, batch=10)
    await source.setup()
    pairs = source.read(None)
    position, records = await anext(pairs)
    assert records == list(range(10))
    clock.advance(61)  # every lease has ended, and the messages are there again
    await queue.put(b"10")
    assert [pair[1] async for pair in pairs] == [[10]]
    await source.committed(position)
    assert counts(await queue.stats()) == (0, 1)
    await source.close()
    assert counts(await queue.stats()) == (1, 0)


async def test_leases_are_extended_while_a_run_goes_on(queue: MemoryQueue, clock: VirtualClock) -> None:
    source = QueueSource(queue, wait=0, batch=10, lease=0.03)  # real time extends it, virtual time ends it
    await source.setup()
    (pair,) = [pair async for pair in source.read(None)]
    ends = {lease.leased_until for lease in source._held.values()}
    clock.advance(0.02)
    async with asyncio.timeout(20):
        while ends & {lease.leased_until for lease in source._held.values()}:  # noqa: ASYNC110
            await asyncio.sleep(0)
    clock.advance(0.02)
    await source.committed(pair[0])
    assert counts(await queue.stats()) == (0, 0)
    await source.close()


async def test_text_and_what_cannot_be_read(queue: MemoryQueue) -> None:
    await queue.put(b"\xff")
    source = QueueSource(queue, format="text", wait=0, batch=10)
    await source.setup()
    pairs = source.read(None)
    assert (await anext(pairs))[1] == [str(n) for n in range(10)]
    with pytest.raises(BadRequestError, match="message 11 is not text"):
        await anext(pairs)
    await source.close()


async def test_a_sink_holds_records_until_their_commit(queue: MemoryQueue) -> None:
    sink = QueueSink(queue, format="text")
    await sink.setup()
    await sink.write(1, ["a"])
    assert (await queue.stats()).items == 10
    await sink.commit(1)
    assert (await queue.stats()).items == 11
    with pytest.raises(BadRequestError, match="a record is int, not text"):
        await sink.write(2, [1])
    await sink.close()


async def test_what_is_held_is_bounded(queue: MemoryQueue) -> None:
    sink = QueueSink(queue, max_bytes=10)
    await sink.setup()
    await sink.write(1, ["12345"])
    await sink.commit(1)
    await sink.write(2, ["12345"])
    with pytest.raises(OverloadedError, match="are more than 10 bytes"):
        await sink.write(2, ["12345"])


async def test_a_sink_can_put_at_once(queue: MemoryQueue) -> None:
    sink = QueueSink(queue, at="write")
    await sink.setup()
    await sink.write(1, ["a", "b"])
    assert (await queue.stats()).items == 12
    assert (await sink.prepare(1))["bodies"] == []
    await sink.commit(1)
    assert (await queue.stats()).items == 12


async def test_queues_by_url(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/queue.db"
    flow = Flow("put")
    flow.source(["a", "b"]).sink(use("queue", queue=url, name="words"))
    await LocalEnvironment().run(flow)
    found: list[str] = []
    flow = Flow("get")
    flow.source(use("queue", queue=url, name="words", wait=0.0)).sink(found.append)
    await LocalEnvironment().run(flow)
    assert found == ["a", "b"]


@pytest.mark.parametrize(
    ("queue", "name", "said"),
    [("sqlite:///x.db", "", "Its `name` is missing"), ("amqp://x", "q", "the queue URL is 'amqp://x'")],
)
async def test_what_is_no_queue(queue: str, name: str, said: str) -> None:
    with pytest.raises(BadRequestError, match=said):
        await QueueSource(queue, name).setup()
    with pytest.raises(UsageError, match="not set up"):
        await QueueSink(queue, name, at="write").write(1, [1])
