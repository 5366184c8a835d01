"""Barriers in the queue between two stages: behind those of all writers, or before what is queued."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage.kernel.runtime.channel import Channel
from sage.kernel.runtime.columns import Barrier, Columns, Idle, Watermark

BARRIER = Barrier(1)


async def taken(channel: Channel) -> list[Any]:
    """All that is queued now."""
    return [await channel.get() for _ in range(len(channel.entries))]


async def test_it_comes_out_behind_those_of_all_writers() -> None:
    channel = Channel(10)
    one, other = channel.writer(), channel.writer()
    assert one.try_put([1])
    one.control(BARRIER)
    assert not one.try_put([2])
    waiting = asyncio.create_task(one.put([2]))
    await asyncio.sleep(0)
    assert other.try_put([3])
    assert await taken(channel) == [[1], [3]]
    other.control(BARRIER)
    assert other.try_put([4])
    await waiting
    assert await taken(channel) == [BARRIER, [4], [2]]


async def test_one_writer_is_never_held() -> None:
    channel = Channel(10)
    writer = channel.writer()
    writer.control(BARRIER)
    assert writer.try_put([1])
    assert await taken(channel) == [BARRIER, [1]]


@pytest.mark.parametrize("closes_first", [True, False])
async def test_a_writer_that_has_closed_counts_as_in(closes_first: bool) -> None:
    channel = Channel(10)
    one, other = channel.writer(), channel.writer()
    if closes_first:
        other.close()
    one.control(BARRIER)
    if not closes_first:
        assert await taken(channel) == []
        other.close()
    assert await taken(channel) == [BARRIER]
    one.close()
    assert await channel.get() is None


async def test_what_a_held_writer_says_waits_with_it() -> None:
    """Else a watermark of later records would close windows in the state that is kept."""
    channel = Channel(10)
    one, other = channel.writer(), channel.writer()
    for writer in (one, other):
        writer.control(Watermark(1.0))
    assert await taken(channel) == [Watermark(1.0)]
    one.control(BARRIER)
    one.control(Watermark(5.0))
    one.control(Idle())
    one.close()
    other.control(Watermark(4.0))
    assert await taken(channel) == []
    marks = (1.0, False, [(1.0, False), (4.0, False)])
    other.control(BARRIER)
    assert channel.marks == marks
    assert await taken(channel) == [BARRIER, Watermark(4.0)]


async def test_its_marks_are_gone_on_from() -> None:
    before, after = Channel(10), Channel(10)
    ends = [before.writer(), before.writer()]
    ends[0].control(Watermark(9.0))
    ends[1].control(Watermark(7.0))
    for end in ends:
        end.control(BARRIER)
    others = [after.writer(), after.writer()]
    after.begin(before.marks, [])
    others[0].control(Watermark(8.0))  # behind what it has said already
    assert await taken(after) == []
    others[1].control(Watermark(8.5))
    assert await taken(after) == [Watermark(8.5)]


@pytest.mark.parametrize("hurry_first", [True, False])
async def test_one_in_a_hurry_overtakes_what_is_queued(hurry_first: bool) -> None:
    channel, seen = Channel(10), list[str]()
    channel.on_front = lambda: seen.append("front")
    writer = channel.writer()
    writer.try_put([1, 2])
    writer.control(Watermark(3.0))
    if hurry_first:
        channel.hurry()
    writer.control(BARRIER)
    writer.try_put([4])
    if not hurry_first:
        assert not channel.barred
        channel.hurry()
    assert channel.barred
    assert (channel.overtaken, seen) == ([[1, 2], Watermark(3.0)], ["front"])
    assert channel.size == 3
    again = Channel(1)
    again.writer()
    again.begin(channel.marks, channel.overtaken)
    assert await taken(channel) == [BARRIER, [1, 2], Watermark(3.0), [4]]
    assert (again.size, await taken(again)) == (2, [[1, 2], Watermark(3.0)])
    channel.settle()
    writer.control(Barrier(2))  # the hurry was for one barrier
    writer.try_put([5])
    assert await taken(channel) == [Barrier(2), [5]]


async def test_a_batch_that_waits_for_room_goes_in_if_a_barrier_is_behind_it() -> None:
    channel = Channel(2)
    writer, other = channel.writer(), channel.writer()
    writing = asyncio.create_task(writer.put([1, 2, 3, 4, 5]))
    await asyncio.sleep(0)
    late = asyncio.create_task(other.put([6]))
    await asyncio.sleep(0)
    writer.hurry()
    await writing
    assert channel.size == 5
    writer.control(BARRIER)
    assert not writer.hurried
    assert not late.done()  # who brings no barrier waits for room
    for _ in range(2):
        await channel.get()
    await late
    other.control(BARRIER)
    assert [one for one in await taken(channel) if one == BARRIER]


@given(st.lists(st.tuples(st.integers(0, 2), st.sampled_from(["put", "barrier", "close"])), max_size=40))
async def test_each_record_is_on_its_side_of_each_barrier(steps: list[tuple[int, str]]) -> None:
    """Whatever the writers do in whatever order: what came before a writer's barrier comes out before it."""
    channel = Channel(1000)
    writers = [channel.writer() for _ in range(3)]
    epochs, closed, waiting = [1, 1, 1], set[int](), list[asyncio.Task[None]]()
    for at, what in steps:
        writer = writers[at]
        if at in closed or writer.held:
            continue
        if what == "put":
            waiting.append(asyncio.create_task(writer.put([(at, epochs[at])])))
            await asyncio.sleep(0)
        elif what == "barrier":
            epochs[at] += 1
            writer.control(Barrier(epochs[at] - 1))
        else:
            closed.add(at)
            writer.close()
    for at, writer in enumerate(writers):
        if at not in closed:
            writer.close()
    await asyncio.gather(*waiting)
    epoch, found = 1, 0
    while (entry := await channel.get()) is not None:
        if isinstance(entry, Barrier):
            epoch = entry.epoch + 1
        else:
            assert isinstance(entry, list)
            found += len(entry)
            assert all(number == epoch for _, number in entry)
    assert found == len(waiting)


async def test_columns_are_overtaken_as_they_are() -> None:
    channel = Channel(10)
    channel.writer()
    left = channel.writer(side=1)
    left.try_put(Columns([1], [1.0]))
    channel.hurry()
    for writer in channel.writers:
        writer.control(BARRIER)
    (batch,) = channel.overtaken
    assert (batch.values, batch.times, batch.side) == ([1], [1.0], 1)
