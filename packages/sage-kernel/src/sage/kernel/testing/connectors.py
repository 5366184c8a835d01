"""The conformance suites of sources and sinks: they play the runtime, and crash it at every point.

Subclass `SourceConformance` or `SinkConformance`, give it a fixture `fresh`, and pytest runs every test on
it.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Literal

import pytest

from sage.kernel.ports import FIRST_EPOCH, Replayable, Transactional

__all__ = ["LiveSink", "LiveSource", "SinkConformance", "SourceConformance", "gathered"]

End = Literal["crash", "close"]
ENDS: tuple[End, ...] = ("crash", "close")


async def _nothing(_made: Any) -> None:
    """What the system does about most connectors when their process dies."""


@dataclass
class LiveSource:
    """A source under test, and the outside world that it reads, which nobody has touched.

    `make`: the source, as a new process would make it. `records`: what it reads in all, in order. `killed`:
    what happens to one when its process dies, and until the next is there.
    """

    make: Callable[[], Replayable[Any]]
    records: list[Any]
    killed: Callable[[Any], Awaitable[None]] = _nothing


@dataclass
class LiveSink:
    """A sink under test. `make` and `killed`: see `LiveSource`. `written`: what a reader finds, in order.

    `records`: what is written, at least four. A sink that is not `exact` may repeat records, and may show
    them before their commit. One that `undoes` can go on from an older checkpoint than its last.
    """

    make: Callable[[], Transactional[Any]]
    records: list[Any]
    written: Callable[[], Awaitable[list[Any]]]
    exact: bool = True
    undoes: bool = False
    killed: Callable[[Any], Awaitable[None]] = _nothing


async def gathered(source: Replayable[Any], position: Any = None) -> list[Any]:
    """All records behind a position, of a source that needs no `setup`."""
    return [record async for _, records in _pairs(source.read(position)) for record in records]


class SourceConformance:
    """What every source does."""

    @pytest.fixture
    def fresh(self) -> Callable[[], Awaitable[LiveSource]]:
        """The subclass says what is tested; each call makes an outside world of its own."""
        raise LookupError("A subclass of SourceConformance needs a fixture `fresh`.")

    async def test_reads_everything_in_order(self, fresh: Callable[[], Awaitable[LiveSource]]) -> None:
        """It reads everything in order, in more than one piece, and nothing when it is asked again."""
        live = await fresh()
        source = live.make()
        await _call(source, "setup")
        pairs = [pair async for pair in _pairs(source.read(None))]
        assert [record for _, records in pairs for record in records] == live.records
        assert len(pairs) > 2, "a source with one position cannot show that it resumes"
        await _call(source, "committed", pairs[-1][0])
        await _call(source, "close")
        assert await _resumed(live, pairs[-1][0]) == []

    async def test_a_position_is_plain_data_that_stays(
        self, fresh: Callable[[], Awaitable[LiveSource]]
    ) -> None:
        """A position is plain data, and what comes later does not change it."""
        source = (await fresh()).make()
        await _call(source, "setup")
        given = [(place, json.dumps(place)) async for place, _ in _pairs(source.read(None))]
        assert [json.dumps(position) for position, _ in given] == [text for _, text in given]
        await _call(source, "close")

    @pytest.mark.parametrize("end", ENDS)
    @pytest.mark.parametrize("told", [True, False], ids=["committed", "not-committed"])
    async def test_resumes_from_every_position(
        self, fresh: Callable[[], Awaitable[LiveSource]], told: bool, end: End
    ) -> None:
        """After a crash or a failure, what is behind the checkpoint comes, once, and nothing else."""
        for batches in count():
            live = await fresh()
            covered, position, more = await _interrupted(live, batches, told=told, end=end)
            assert covered + await _resumed(live, position) == live.records, f"behind {position}"
            if not more:
                return

    async def test_what_is_read_after_resuming_is_not_committed_yet(
        self, fresh: Callable[[], Awaitable[LiveSource]]
    ) -> None:
        """Told again of the position that it resumed from, a source forgets nothing that it has read
        since."""
        live = await fresh()
        covered, position, _ = await _interrupted(live, 1, told=False, end="close")
        source = live.make()
        await _call(source, "setup")
        pairs = _pairs(source.read(position))
        await anext(pairs)
        await _call(source, "committed", position)
        await pairs.aclose()
        await live.killed(source)
        assert covered + await _resumed(live, position) == live.records

    @pytest.mark.parametrize("end", ENDS)
    async def test_resumes_again_and_again(
        self, fresh: Callable[[], Awaitable[LiveSource]], end: End
    ) -> None:
        """A run that crashes after each batch comes to the end all the same."""
        live = await fresh()
        found: list[Any] = []
        position, more = None, True
        while more:
            covered, position, more = await _interrupted(live, 1, told=False, end=end, position=position)
            found += covered
        assert found == live.records


async def _interrupted(
    live: LiveSource, batches: int, *, told: bool, end: End, position: Any = None
) -> tuple[list[Any], Any, bool]:
    """Take a checkpoint after so many batches, read one more and die.

    What the checkpoint covers, its position, and whether there was more.
    """
    source = live.make()
    await _call(source, "setup")
    pairs = _pairs(source.read(position))
    covered: list[Any] = []
    for _ in range(batches):
        place, records = await anext(pairs, (position, []))
        covered += records
        position = json.loads(json.dumps(place))
    if told and position is not None:
        await _call(source, "committed", position)
    more = await anext(pairs, None) is not None
    await pairs.aclose()
    await (_call(source, "close") if end == "close" else live.killed(source))
    return covered, position, more


async def _resumed(live: LiveSource, position: Any) -> list[Any]:
    """The records behind a position, read by a new source to the end."""
    source = live.make()
    await _call(source, "setup")
    found: list[Any] = []
    last = None
    async for place, records in _pairs(source.read(json.loads(json.dumps(position)))):
        found += records
        last = place
    if last is not None:
        await _call(source, "committed", last)
    await _call(source, "close")
    return found


@dataclass(frozen=True)
class Step:
    """One call of the runtime, or, as "durable", its own writing of a checkpoint."""

    call: Literal["write", "prepare", "durable", "commit"]
    epoch: int
    records: tuple[Any, ...] = ()


@dataclass
class _World:
    """What outlives a crash: the last checkpoint, and how many records are committed or covered by it."""

    live: LiveSink
    epoch: int = 0
    prepared: str = "null"
    covered: int = 0
    committed: list[Any] = field(default_factory=list)
    history: list[tuple[int, str, int]] = field(default_factory=list)  # of all checkpoints


def _steps(records: Sequence[Any], first: int, size: int) -> Iterator[Step]:
    """Epochs of `size` batches of one record, then one without any. What follows is written before a
    commit."""
    epochs: list[Sequence[Any]] = [*(records[at : at + size] for at in range(0, len(records), size)), []]
    early: Sequence[Any] = []
    for epoch, part in enumerate(epochs, first):
        yield from (Step("write", epoch, (record,)) for record in part[len(early) :])
        yield Step("prepare", epoch)
        early = epochs[epoch - first + 1][:1] if part else []
        yield from (Step("write", epoch + 1, (record,)) for record in early)
        yield Step("durable", epoch, tuple(part))
        yield Step("commit", epoch, tuple(part))


async def _play(world: _World, crash_at: int, end: End, size: int) -> bool:
    """One life of a process; whether it came to its end before it crashed."""
    sink = world.live.make()
    await _call(sink, "setup")
    await sink.recover(world.epoch, json.loads(world.prepared))
    world.committed = world.live.records[: world.covered]
    given = "null"
    steps = list(_steps(world.live.records[world.covered :], world.epoch + FIRST_EPOCH, size))
    for step in steps[:crash_at]:
        if step.call == "write":
            await sink.write(step.epoch, step.records)
        elif step.call == "prepare":
            given = json.dumps(await sink.prepare(step.epoch))
        elif step.call == "durable":
            world.epoch, world.prepared = step.epoch, given
            world.covered += len(step.records)
            world.history.append((world.epoch, world.prepared, world.covered))
        else:
            await sink.commit(step.epoch)
            world.committed = [*world.committed, *step.records]
    done = crash_at >= len(steps)
    await (_call(sink, "close") if done or end == "close" else world.live.killed(sink))
    return done


class SinkConformance:
    """What every transactional sink does."""

    @pytest.fixture
    def fresh(self) -> Callable[[], Awaitable[LiveSink]]:
        """The subclass says what is tested; each call makes an outside world of its own."""
        raise LookupError("A subclass of SinkConformance needs a fixture `fresh`.")

    @pytest.mark.parametrize("end", ENDS)
    async def test_a_crash_at_any_point_loses_and_repeats_nothing(
        self, fresh: Callable[[], Awaitable[LiveSink]], end: End
    ) -> None:
        """Killed before each call and resumed with other epochs, every record is there once, in order."""
        for crash_at in count():
            live = await fresh()
            world = _World(live)
            done = await _play(world, crash_at, end, 2)
            if live.exact:
                assert await live.written() == world.committed, f"seen after {crash_at} calls"
            if not done:
                await _play(world, 10**9, end, 3)
            self._check(live, await live.written(), crash_at)
            if done:
                return

    async def test_two_crashes(self, fresh: Callable[[], Awaitable[LiveSink]]) -> None:
        """A process that dies while it makes good what an earlier one left loses nothing either."""
        for crash_at in range(4, 9):
            for again in range(5):
                world = _World(await fresh())
                for calls in (crash_at, again, 10**9):
                    await _play(world, calls, "crash", 2)
                self._check(world.live, await world.live.written(), (crash_at, again))

    async def test_an_older_checkpoint(self, fresh: Callable[[], Awaitable[LiveSink]]) -> None:
        """Where later checkpoints are damaged, what was committed after this one is undone."""
        live = await fresh()
        if not live.undoes:
            pytest.skip("it cannot undo what it has committed")
        world = _World(live)
        await _play(world, 10**9, "close", 1)
        epoch, prepared, covered = world.history[1]
        await _play(_World(live, epoch, prepared, covered), 10**9, "close", 3)
        assert await live.written() == live.records

    async def test_a_run_without_checkpoints_shows_all_at_its_commit(
        self, fresh: Callable[[], Awaitable[LiveSink]]
    ) -> None:
        """Without checkpoints there is one epoch, and what failed before it is forgotten."""
        live = await fresh()
        for failing in (True, False):
            sink = live.make()
            await _call(sink, "setup")
            await sink.recover(0, None)
            for record in live.records[: 2 if failing else None]:
                await sink.write(FIRST_EPOCH, [record])
            if not failing:
                await sink.commit(FIRST_EPOCH)
            await _call(sink, "close")
            if live.exact:
                assert await live.written() == ([] if failing else live.records)
        self._check(live, await live.written(), "no checkpoint")

    @staticmethod
    def _check(live: LiveSink, found: list[Any], where: object) -> None:
        if live.exact:
            assert found == live.records, where
        assert [record for record in live.records if record not in found] == [], where


async def _pairs(read: Any) -> AsyncGenerator[tuple[Any, Sequence[Any]], None]:
    if hasattr(read, "__aiter__"):
        try:
            async for pair in read:
                yield pair
        finally:
            await read.aclose()
    else:
        for pair in read:
            yield pair


async def _call(made: Any, method: str, *args: Any) -> None:
    found = getattr(made, method, None)
    result = found(*args) if found else None
    if inspect.isawaitable(result):
        await result
