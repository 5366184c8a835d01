"""How a run reads a source that tells its position, and what it tells the source and the sinks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

import pytest

from sage.kernel import Flow, LocalEnvironment, OperatorError


class Numbers:
    """Batches of growing size; it notes what happens to it."""

    def __init__(self, batches: int = 6, *, broken: bool = False) -> None:
        self.batches = batches
        self.broken = broken
        self.calls: list[Any] = []

    def setup(self) -> None:
        self.calls.append("setup")

    def read(self, position: int | None) -> Iterator[tuple[int, Sequence[int]]]:
        try:
            for batch in range(position or 0, self.batches):
                yield batch + 1, range(batch * 100, batch * 100 + batch * 40)
            if self.broken:
                raise RuntimeError("the disk is gone")
        finally:
            self.calls.append("end of read")

    async def committed(self, position: int) -> None:
        self.calls.append(("committed", position))

    def close(self) -> None:
        self.calls.append("close")

    @property
    def all(self) -> list[int]:
        return [x for _, batch in Numbers(self.batches).read(None) for x in batch]


class AsyncNumbers(Numbers):
    """The same numbers, each batch after a turn of the loop."""

    async def read(self, position: int | None) -> AsyncIterator[tuple[int, Sequence[int]]]:  # type: ignore[override]
        for pair in super().read(position):
            await asyncio.sleep(0)
            yield pair


class Noting:
    """A transactional sink that notes its calls beside those of the source."""

    def __init__(self, calls: list[Any]) -> None:
        self.calls = calls
        self.items: list[int] = []

    async def write(self, epoch: int, items: Sequence[int]) -> None:
        assert "recover" in self.calls
        self.items += items

    async def prepare(self, epoch: int) -> None:
        raise AssertionError("a run without checkpoints prepares nothing")

    async def commit(self, epoch: int) -> None:
        self.calls.append(("commit", epoch))

    async def recover(self, epoch: int, prepared: Any) -> None:
        assert (epoch, prepared) == (0, None)
        self.calls.append("recover")


@pytest.mark.parametrize("kind", [Numbers, AsyncNumbers])
@pytest.mark.parametrize("batch", [1, 7, 64, 1000])
async def test_records_come_in_order_and_the_source_hears_last_that_they_are_done(
    kind: type[Numbers], batch: int
) -> None:
    source = kind()
    sink = Noting(source.calls)
    flow = Flow("numbers")
    flow.source(source, name="numbers").sink(sink)
    report = await LocalEnvironment(batch=batch).run(flow)
    assert sink.items == source.all
    assert report["numbers"].items_out == len(source.all)
    assert source.calls == ["setup", "recover", "end of read", ("commit", 1), ("committed", 6), "close"]


@pytest.mark.parametrize("kind", [Numbers, AsyncNumbers])
async def test_a_failed_run_commits_nothing_and_ends_the_reading(kind: type[Numbers]) -> None:
    source = kind()
    flow = Flow("numbers")
    flow.source(source).map(lambda x: 1 // (x - 215)).sink(print_nothing)
    with pytest.raises(OperatorError, match="item 55 "):
        await LocalEnvironment().run(flow)
    assert source.calls == ["setup", "end of read", "close"]


async def test_a_broken_source_is_named_with_how_far_it_came() -> None:
    flow = Flow("numbers")
    flow.source(Numbers(broken=True), name="numbers").sink(print_nothing)
    with pytest.raises(
        OperatorError, match="'numbers' failed after 600 items: RuntimeError: the disk is gone"
    ):
        await LocalEnvironment().run(flow)


@pytest.mark.parametrize("kind", [Numbers, AsyncNumbers])
async def test_a_drained_run_says_how_far_it_came(kind: type[Numbers]) -> None:
    source, stop, seen = kind(1_000_000), asyncio.Event(), list[int]()

    async def note(x: int) -> None:
        seen.append(x)
        if x == 215:
            stop.set()

    flow = Flow("numbers")
    flow.source(source).sink(note)
    report = await LocalEnvironment(capacity=16).run(flow, stop=stop)
    assert report.interrupted
    # What was read is whole batches, and all of it has arrived.
    (position,) = [call[1] for call in source.calls if call[0] == "committed"]
    assert seen == Numbers(position).all


def print_nothing(_item: Any) -> None:
    return None
