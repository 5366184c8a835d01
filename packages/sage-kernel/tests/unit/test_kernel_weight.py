"""Channels are bounded by bytes: estimates of batches, and what a stalled reader lets in."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage.common.errors import UsageError
from sage.kernel import Flow, LocalEnvironment
from sage.kernel.runtime.channel import Channel
from sage.kernel.runtime.columns import Columns
from sage.kernel.runtime.weight import BATCH_BYTES, weigh

MIB = 1 << 20


@dataclass
class Doc:
    path: str
    text: str


@dataclass(slots=True)
class Slotted:
    text: str


class Pair(NamedTuple):
    key: int
    text: str


class Array:
    nbytes = MIB


@pytest.mark.parametrize(
    "record",
    [
        "x" * MIB,
        b"x" * MIB,
        bytearray(MIB),
        Doc("a", "x" * MIB),
        Slotted("x" * MIB),
        Pair(1, "x" * MIB),
        (1, ("x" * MIB,)),
        {"text": "x" * MIB},
        {"docs": [Doc("a", "x" * MIB)]},
        ["x" * (MIB // 16)] * 16,
        Array(),
        memoryview(bytes(MIB)),
    ],
)
def test_large_records_are_seen_whatever_they_are(record: Any) -> None:
    assert 0.9 * MIB <= weigh([record]) <= 1.1 * MIB
    assert 9 * MIB <= weigh([record] * 10) <= 11 * MIB
    assert 9 * MIB <= weigh(Columns([record] * 10, [0.0] * 10)) <= 11 * MIB


def test_what_is_small_weighs_little_or_nothing() -> None:
    assert weigh([]) == weigh([1, 2.5, True, None]) == 0
    assert weigh([(1, 2)] * 64) < 64 * 100
    assert weigh([object(), len]) < 1000
    assert weigh(["a", "bc"]) == 3
    assert weigh(["a", 1, "x" * 100]) > 0  # not all of them are texts


@given(st.lists(st.integers() | st.text() | st.lists(st.text()) | st.dictionaries(st.text(), st.text())))
def test_any_batch_has_a_weight(batch: list[Any]) -> None:
    assert weigh(batch) >= 0


@given(st.lists(st.lists(st.integers(0, 50), min_size=1, max_size=6), max_size=30), st.integers(1, 8))
def test_a_channel_never_holds_more_bytes_than_it_may_but_for_one_record(
    batches: list[list[int]], limit: int
) -> None:
    async def run() -> list[str]:
        channel, got = Channel(1000, 100), list[str]()
        writer = channel.writer()

        async def write() -> None:
            for sizes in batches:
                batch = ["x" * size for size in sizes]
                if not writer.try_put(batch):
                    await writer.put(batch)
            writer.close()

        writing = asyncio.create_task(write())
        while True:
            await asyncio.sleep(0)
            held = [len(one) for entry in channel.entries for one in entry]
            assert channel.bytes == sum(channel.weights)
            assert sum(held) <= 100 + 50 * 6  # a batch is divided by its mean
            taken = await channel.get(limit)
            if taken is None:
                break
            assert isinstance(taken, list)
            got += taken
        await writing
        assert channel.bytes == channel.size == 0
        return got

    assert asyncio.run(run()) == ["x" * size for sizes in batches for size in sizes]


async def test_a_record_larger_than_the_bound_passes_alone() -> None:
    channel = Channel(10, 100)
    writer = channel.writer()
    assert writer.try_put(["x" * 500])
    assert not writer.try_put(["y"])
    putting = asyncio.create_task(writer.put(["z" * 500, "z" * 500]))
    sizes = []
    for _ in range(3):
        batch = await channel.get()
        assert isinstance(batch, list)
        sizes += [len(one) for one in batch]
        await asyncio.sleep(0)
    await putting
    assert sizes == [500, 500, 500]


async def test_large_records_are_not_joined_to_larger_batches() -> None:
    channel = Channel(100, 100 * BATCH_BYTES)
    writer = channel.writer()
    for _ in range(4):
        assert writer.try_put(["x" * (BATCH_BYTES // 2)])
    assert [len(await channel.get(64) or ()) for _ in range(2)] == [2, 2]  # type: ignore[arg-type]


async def test_a_stalled_sink_lets_in_as_many_bytes_as_it_may(gate: Any, turns: Any) -> None:
    read: deque[int] = deque(maxlen=1)

    def docs() -> Any:
        for at in range(10_000):
            read.append(at)
            yield Array()

    flow = Flow("stalled")
    flow.source(docs).map_batch(list).sink(gate)
    running = asyncio.create_task(LocalEnvironment(capacity_bytes=16 * MIB).run(flow))
    await gate.until(1)
    await turns(2000)
    in_hand = 3 * 2 * BATCH_BYTES // MIB  # of source, stage and sink: at most twice that each
    assert read[0] <= 2 * 16 + in_hand
    running.cancel()
    await asyncio.wait({running})


def test_the_bounds_are_at_least_one() -> None:
    with pytest.raises(UsageError, match=r"capacity_bytes=0\): all are at least 1"):
        LocalEnvironment(capacity_bytes=0)
