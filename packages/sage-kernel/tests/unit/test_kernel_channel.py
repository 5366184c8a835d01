"""The queue between two stages: bounded, fair, and exact about what comes before a message."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sage.kernel.runtime.channel import Channel
from sage.kernel.runtime.columns import Columns, Idle, Watermark


async def taken(channel: Channel) -> list[Any]:
    """All that is queued now."""
    return [await channel.get() for _ in range(len(channel.entries))]


async def test_it_is_bounded_by_items_and_splits_large_batches() -> None:
    channel = Channel(4)
    writer = channel.writer()
    putting = asyncio.create_task(writer.put(list(range(10))))
    await asyncio.sleep(0)
    assert channel.size == 4
    got: list[Any] = []
    while len(got) < 10:
        batch: Any = await channel.get()
        assert channel.size <= 4
        got += batch
        await asyncio.sleep(0)
    await putting
    writer.close()
    assert await channel.get() is None
    assert got == list(range(10))


async def test_it_joins_and_splits_to_the_limit_without_touching_batches() -> None:
    channel, shared = Channel(10), [1, 2]
    writer = channel.writer()
    for batch in (shared, [3], [4, 5, 6]):
        assert writer.try_put(batch)
    assert await channel.get(4) == [1, 2, 3, 4]
    assert await channel.get(4) == [5, 6]
    assert shared == [1, 2]
    assert writer.try_put(list(range(10)))
    assert not writer.try_put([1])


async def test_batches_are_joined_up_to_a_message_and_never_across_sides() -> None:
    channel = Channel(100)
    left, right = channel.writer(), channel.writer(side=1)
    left.try_put(Columns([1], [1.0]))
    left.try_put(Columns([2], [2.0]))
    right.try_put(Columns([3], [3.0]))
    for writer in (left, right):
        writer.control(Watermark(3.0))
    left.try_put(Columns([4], [4.0]))
    got: list[Any] = [await channel.get(10) for _ in range(4)]
    assert [(batch.values, batch.times, batch.side) for batch in (got[0], got[1], got[3])] == [
        ([1, 2], [1.0, 2.0], 0),
        ([3], [3.0], 1),
        ([4], [4.0], 0),
    ]
    assert got[2] == Watermark(3.0)


async def test_writers_wait_in_turn_and_a_cancelled_one_gives_way() -> None:
    channel = Channel(1)
    first, *others = [channel.writer() for _ in range(4)]
    assert first.try_put([0])
    putting = [asyncio.create_task(writer.put([n])) for n, writer in enumerate(others, 1)]
    await asyncio.sleep(0)
    assert await channel.get() == [0]
    putting[0].cancel()
    await asyncio.gather(putting[0], return_exceptions=True)
    assert await channel.get() == [2]
    assert await channel.get() == [3]
    await asyncio.gather(*putting[1:])
    assert channel.size == 0


async def test_a_quick_writer_does_not_take_the_turn_of_one_that_waits() -> None:
    channel = Channel(1)
    quick, patient = channel.writer(), channel.writer()
    assert quick.try_put([0])
    putting = asyncio.create_task(patient.put([1]))
    await asyncio.sleep(0)
    assert await channel.get() == [0]
    assert not quick.try_put([2])  # the other was told to go on and has not run yet
    await putting
    assert await channel.get() == [1]


async def test_the_watermark_is_the_least_of_those_that_count() -> None:
    channel = Channel(10)
    one, other = channel.writer(), channel.writer()
    one.control(Watermark(5.0))
    assert await taken(channel) == []
    other.control(Watermark(3.0))
    other.control(Watermark(2.0))  # never back
    assert await taken(channel) == [Watermark(3.0)]
    other.control(Idle())
    assert await taken(channel) == [Watermark(5.0)]
    one.control(Idle())
    one.control(Idle())
    assert await taken(channel) == [Idle()]
    other.control(Watermark(4.0))
    assert await taken(channel) == [Watermark(5.0)]  # it was promised already
    one.close()
    other.control(Watermark(9.0))
    assert await taken(channel) == [Watermark(9.0)]


async def test_where_nobody_is_waited_for_the_greatest_watermark_counts() -> None:
    channel = Channel(10)
    ended, silent = channel.writer(), channel.writer()
    ended.control(Watermark(7.0))
    ended.close()
    assert await taken(channel) == []
    silent.control(Idle())
    assert await taken(channel) == [Watermark(7.0), Idle()]
    silent.close()
    assert await channel.get() is None


STEP = st.one_of(st.lists(st.integers(), min_size=1, max_size=4), st.integers(0, 9).map(float))


@settings(max_examples=150, deadline=None)
@given(st.lists(st.lists(STEP, max_size=8), min_size=1, max_size=4), st.integers(1, 5))
def test_nothing_is_lost_and_no_watermark_runs_ahead(scripts: list[list[Any]], capacity: int) -> None:
    """Each writer's records come out in its order, and a watermark only when all of them have reached it."""

    async def go() -> None:
        channel = Channel(capacity)
        writers = [channel.writer() for _ in scripts]
        reached = [float("-inf")] * len(scripts)

        async def write(number: int, script: list[Any]) -> None:
            for step in script:
                if isinstance(step, float):
                    reached[number] = max(reached[number], step)
                    writers[number].control(Watermark(step))
                else:
                    await writers[number].put([(number, value) for value in step])
                await asyncio.sleep(0)
            reached[number] = float("inf")
            writers[number].close()

        async with asyncio.timeout(30), asyncio.TaskGroup() as group:
            for number, script in enumerate(scripts):
                group.create_task(write(number, script))
            last, got = float("-inf"), []
            while (entry := await channel.get(3)) is not None:
                assert channel.size <= capacity
                if isinstance(entry, Watermark):
                    assert last < entry.time <= min(reached)
                    last = entry.time
                elif isinstance(entry, list):
                    got += entry
        for number, script in enumerate(scripts):
            wanted = [value for step in script if isinstance(step, list) for value in step]
            assert [value for writer, value in got if writer == number] == wanted

    asyncio.run(go())


@pytest.mark.parametrize("limit", [0, 2])
async def test_cancelling_a_reader_loses_nothing(limit: int) -> None:
    channel = Channel(10)
    writer = channel.writer()
    reading = asyncio.create_task(channel.get(limit))
    await asyncio.sleep(0)
    writer.try_put([1, 2])
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)
    assert await channel.get(limit) == [1, 2]
