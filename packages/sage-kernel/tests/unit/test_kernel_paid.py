"""The log of paid results: each is given back once, whatever was written twice or only in part."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage.kernel.runtime.paid import AHEAD, Paid, ResultLog
from sage.kernel.runtime.store import FolderStore


class Counted:
    """A call that gives a new number each time."""

    def __init__(self) -> None:
        self.items: list[Any] = []

    async def __call__(self, item: Any) -> int:
        self.items.append(item)
        return len(self.items)


@asynccontextmanager
async def opened(folder: Path, epoch: int) -> AsyncIterator[tuple[ResultLog, Paid]]:
    """A log that goes on from the checkpoint of this epoch."""
    store = FolderStore(folder)
    store.open()
    log = ResultLog(store)
    await log.open(epoch)
    yield log, log.operator("op")
    await log.close()
    store.close()


async def test_a_result_is_given_back_once(tmp_path: Path) -> None:
    call = Counted()
    for wanted, made in (([1, 2, 3], ["a", "a", "b"]), ([1, 2, 3], []), ([1, 2, 3], [])):
        call.items.clear()
        async with opened(tmp_path, 0) as (_, paid):
            assert [await paid.each(call)(item) for item in "aab"] == wanted
        assert call.items == made
    call.items.clear()
    async with opened(tmp_path, 0) as (_, paid):
        results = [await paid.each(call)(item) for item in "aaa"]
    assert results == [1, 2, 1]  # there are two of "a", the third is called
    assert call.items == ["a"]


async def test_operators_are_apart(tmp_path: Path) -> None:
    call = Counted()
    async with opened(tmp_path, 0) as (_, paid):
        await paid.each(call)("a")
    async with opened(tmp_path, 0) as (log, _):
        await log.operator("other").each(call)("a")
    assert call.items == ["a", "a"]


async def test_a_result_that_was_carried_over_is_still_one(tmp_path: Path) -> None:
    """A barrier passed, and the run was killed before its checkpoint was complete."""
    call = Counted()
    async with opened(tmp_path, 0) as (_, paid):
        await paid.each(call)("a")
    for _ in range(3):
        async with opened(tmp_path, 0) as (_, paid):
            paid.turn(2)
    call.items.clear()
    async with opened(tmp_path, 0) as (_, paid):
        results = [await paid.each(call)("a") for _ in range(2)]
    assert results == [1, 1]
    assert call.items == ["a"]


async def test_what_a_checkpoint_covers_is_not_given_back(tmp_path: Path) -> None:
    call = Counted()
    async with opened(tmp_path, 0) as (log, paid):
        await paid.each(call)("before")
        paid.turn(2)
        await paid.each(call)("after")
        await log.cut(1)
    call.items.clear()
    async with opened(tmp_path, 1) as (_, paid):
        for item in ("before", "after"):
            await paid.each(call)(item)
    assert call.items == ["before"]


@given(st.lists(st.sampled_from(["a", "b", ("a", 1), {"k": [1]}]), max_size=12), st.integers(0, 12))
async def test_a_batch_is_as_its_items_are(tmp_path_factory: Any, items: list[Any], known: int) -> None:
    folder = tmp_path_factory.mktemp("batch")

    async def call(batch: list[Any]) -> list[str]:
        made.extend(batch)
        return [repr(item) for item in batch]

    made: list[Any] = []
    async with opened(folder, 0) as (_, paid):
        assert await paid.batch(call)(items[:known]) == [repr(item) for item in items[:known]]
    made.clear()
    async with opened(folder, 0) as (_, paid):
        assert await paid.batch(call)(items) == [repr(item) for item in items]
    assert len(made) == len(items[known:])


async def test_calls_wait_while_much_is_to_be_written(tmp_path: Path) -> None:
    async with opened(tmp_path, 0) as (log, paid):

        async def large(_: int) -> bytes:
            return bytes(AHEAD)

        waiting = asyncio.ensure_future(paid.each(large)(1))
        for _ in range(20):
            await asyncio.sleep(0)
        assert not waiting.done()
        writing = asyncio.create_task(log.run())
        await waiting
        writing.cancel()


@pytest.mark.parametrize("cut", range(1, 60, 7))
async def test_a_torn_end_costs_only_itself(tmp_path: Path, cut: int) -> None:
    call = Counted()
    async with opened(tmp_path, 0) as (_, paid):
        for item in "abc":
            await paid.each(call)(item)
    log = tmp_path / "results-00000001"
    log.write_bytes(log.read_bytes()[:-cut])
    call.items.clear()
    async with opened(tmp_path, 0) as (_, paid):
        for item in "abc":
            await paid.each(call)(item)
    assert call.items == ["c"]
