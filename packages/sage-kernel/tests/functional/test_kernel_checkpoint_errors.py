"""What checkpoints refuse, in words: sources that are read once, plans that changed, damaged files."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sage.common.errors import ConflictError, UsageError
from sage.kernel import (
    CheckpointError,
    Checkpoints,
    Flow,
    LocalEnvironment,
    PlanError,
    Stream,
    Window,
    operator,
    use,
)
from sage.kernel.runtime.store import FolderStore
from sage.kernel.testing.sinks import EpochFiles, Numbers


def environment(folder: Path) -> LocalEnvironment:
    return LocalEnvironment(checkpoints=Checkpoints(folder / "checkpoints", every=0))


def numbers() -> Iterator[int]:
    yield from range(3)


async def later() -> Any:
    yield 1


class Twice:
    """Can be iterated as often as one likes."""

    def __iter__(self) -> Iterator[int]:
        return numbers()


@pytest.mark.parametrize(
    "source",
    [numbers(), iter([1]), later(), open(__file__)],  # noqa: SIM115
    ids=["generator", "iterator", "async generator", "file"],
)
async def test_a_source_that_can_be_read_once_is_refused(tmp_path: Path, source: Any) -> None:
    flow = Flow("once")
    flow.source(source, name="it").sink(print)
    with pytest.raises(PlanError, match=r"source 'it' is .*, which can be read only once: give it the"):
        await environment(tmp_path).run(flow)
    if hasattr(source, "close"):
        source.close()


async def test_a_set_is_refused_as_its_order_is_of_one_process(tmp_path: Path) -> None:
    flow = Flow("set")
    flow.source({"a", "b"}, name="it").sink(print)
    with pytest.raises(PlanError, match=r"source 'it' is a set, .*: give it sorted\(...\)"):
        await environment(tmp_path).run(flow)


@operator("test.numbers")
def _named() -> Iterator[int]:
    return numbers()


@pytest.mark.parametrize(
    "source",
    [numbers, [0, 1, 2], range(3), Twice(), {0: 1, 1: 1, 2: 1}, use("test.numbers")],
    ids=["function", "list", "range", "object", "dictionary", "name"],
)
async def test_a_source_that_is_made_anew_is_counted(tmp_path: Path, source: Any) -> None:
    """What a name stands for is made by each run, so it may be an iterator."""
    out: list[int] = []
    for _ in range(2):
        flow = Flow("again")
        flow.source(source).sink(out.append)
        await environment(tmp_path).run(flow)
    assert out == [0, 1, 2]


def fewer(kind: str, count: int) -> Any:
    async def later() -> Any:
        for x in range(count):
            yield x

    return later if kind == "async" else range(count)


@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_a_source_that_gives_less_than_before_is_an_error(tmp_path: Path, gate: Any, kind: str) -> None:
    def flow(count: int) -> Flow:
        flow = Flow("less")
        flow.source(fewer(kind, count), name="source").map(gate, concurrency=1).sink(print)
        return flow

    options = Checkpoints(tmp_path / "checkpoints", every=0)
    run = await LocalEnvironment(batch=1, capacity=1, checkpoints=options).start(flow(100))
    await gate.until(1)
    await run.checkpoint()
    await run.stop(drain=False)
    with pytest.raises(
        CheckpointError, match=r"'source' gave 2 records, and the checkpoint had read \d of them"
    ):
        await environment(tmp_path).run(flow(2))


async def test_one_object_cannot_be_two_transactional_sinks(tmp_path: Path) -> None:
    sink, flow = EpochFiles(tmp_path / "out"), Flow("one")
    stream = flow.source([1])
    stream.sink(sink, name="first")
    stream.sink(sink, name="second")
    with pytest.raises(PlanError, match="sinks 'first' and 'second' are one object: make one for each"):
        await environment(tmp_path).run(flow)


def halves(x: int) -> int:
    return x // 2


async def halves_later(x: int) -> int:
    return x // 2


_PLANS: dict[str, tuple[Callable[[Stream[int]], Stream[Any]], str]] = {
    "renamed": (
        lambda s: s.map(halves, name="half"),
        r"'halves' \(map\) is in the checkpoint and not in the flow",
    ),
    "more": (
        lambda s: s.map(halves).map(halves),
        r"'halves-2' \(map\) is in the flow and not in the checkpoint",
    ),
    "verb": (
        lambda s: s.filter(halves),
        "'halves' had verb='map' in the checkpoint, and has verb='filter' now",
    ),
    "calls": (
        lambda s: s.map(halves_later, name="halves"),
        "had calls='sync' in the checkpoint, and has calls='async'",
    ),
    "wired": (
        lambda s: s.map(halves).merge(s, name="m"),
        r"'m' \(merge\) is in the flow and not in the checkpoint",
    ),
}


async def finished(folder: Path, build: Callable[[Stream[int]], Stream[Any]], name: str = "plan") -> None:
    flow = Flow(name)
    build(flow.source(Numbers(3), name="numbers")).sink(EpochFiles(folder / "out"), name="out")
    await environment(folder).run(flow)


@pytest.mark.parametrize("kind", _PLANS)
async def test_a_plan_that_changed_is_refused_and_says_what_does_not_fit(tmp_path: Path, kind: str) -> None:
    await finished(tmp_path, lambda s: s.map(halves))
    with pytest.raises(CheckpointError, match=_PLANS[kind][1]):
        await finished(tmp_path, _PLANS[kind][0])


async def test_what_a_window_is_cannot_change(tmp_path: Path) -> None:
    def windows(size: float, within: float) -> Callable[[Stream[int]], Stream[Any]]:
        def build(stream: Stream[int]) -> Stream[Any]:
            keyed = stream.event_time(float).keyby(halves)
            panes = keyed.window(Window(size)).reduce(int, lambda n, x: n, name="panes")
            return panes.map(str).merge(keyed.join(keyed, within=within, name="pairs").map(str))

        return build

    await finished(tmp_path, windows(10, 1))
    with pytest.raises(CheckpointError, match=r"'panes' had window=.*'size': 10.*'size': 20") as caught:
        await finished(tmp_path, windows(20, 2))
    assert "'pairs' had within=1 in the checkpoint, and has within=2 now" in str(caught.value)


async def test_what_may_change_does(tmp_path: Path) -> None:
    """The code of functions, and how they are called."""
    await finished(tmp_path, lambda s: s.map(halves_later, concurrency=2, name="x"))
    await finished(
        tmp_path, lambda s: s.map(halves_later, concurrency=9, order="input", on_error="skip", name="x")
    )


async def test_each_flow_has_a_folder_of_its_own(tmp_path: Path) -> None:
    await finished(tmp_path, lambda s: s.map(halves))
    with pytest.raises(CheckpointError, match="are those of flow 'plan', and this is flow 'other'"):
        await finished(tmp_path, lambda s: s.map(halves), name="other")


async def test_a_folder_has_one_run(tmp_path: Path, gate: Any) -> None:
    flow = Flow("busy")
    flow.source([1]).map(gate).sink(print)
    run = await environment(tmp_path).start(flow)
    await gate.until(1)
    with pytest.raises(ConflictError, match="in use by a run of this process"):
        await environment(tmp_path).run(flow)
    await run.stop(drain=False)


async def test_a_damaged_checkpoint_is_said_in_the_report(tmp_path: Path) -> None:
    """The run goes on from the one before, and its sinks undo what came later."""
    hold = asyncio.Event()

    def flow() -> Flow:
        flow = Flow("damaged")

        async def source() -> Any:
            for x in range(4):
                yield x
                if not hold.is_set():
                    await step.acquire()

        flow.source(source).keyby(lambda x: 0).scan(int, lambda n, x: (n + 1, (x, n))).sink(
            EpochFiles(tmp_path / "out"), name="out"
        )
        return flow

    step = asyncio.Semaphore(0)
    run = await environment(tmp_path).start(flow())
    for epoch in (1, 2):
        while run.reports()[-1].items_in < epoch:  # noqa: ASYNC110 - turns of the loop, no time
            await asyncio.sleep(0)
        assert await run.checkpoint() == epoch
        step.release()
    await run.stop(drain=False)
    manifest = tmp_path / "checkpoints" / "manifest-00000002"
    manifest.write_bytes(manifest.read_bytes().replace(b'"done": false', b'"done": true '))
    hold.set()
    report = await environment(tmp_path).run(flow())
    assert report.resumed == 1
    assert report.warnings == ("checkpoint 2 is damaged: its checksum does not fit",)
    assert EpochFiles.records(tmp_path / "out") == [(x, x) for x in range(4)]


class Unpicklable:
    def __reduce__(self) -> Any:
        raise TypeError("it holds a socket")


async def test_a_state_that_cannot_be_pickled_names_operator_and_key(tmp_path: Path, gate: Any) -> None:
    async def source() -> Any:
        yield 7
        await asyncio.Event().wait()

    flow = Flow("state")
    keyed = flow.source(source).keyby(lambda x: x)
    keyed.scan(Unpicklable, lambda state, x: (state, x), name="fold").map(gate).sink(print)
    run = await environment(tmp_path).start(flow)
    await gate.until(1)
    wanted = "the state of operator 'fold' for key 7 cannot be pickled for a checkpoint: TypeError: it holds"
    with pytest.raises(CheckpointError, match=wanted):
        await run.checkpoint()
    with pytest.raises(CheckpointError, match=wanted):
        await run.wait()


async def test_a_state_whose_class_is_gone_is_named(tmp_path: Path) -> None:
    await finished(tmp_path, lambda s: s.keyby(halves).scan(int, lambda n, x: (n + 1, n), name="fold"))
    folder = tmp_path / "checkpoints"
    store = FolderStore(folder)
    assert json.loads((folder / "manifest-00000001").read_bytes().partition(b"\n")[2])["done"]
    assert "done-00000001" in store.names()


class Preparing(EpochFiles):
    """Prepares what is no plain data."""

    async def prepare(self, epoch: int, /) -> Any:
        return {1, 2}


async def test_what_a_sink_prepares_is_plain_data(tmp_path: Path) -> None:
    flow = Flow("sets")
    flow.source([1]).sink(Preparing(tmp_path / "out"), name="sets")
    with pytest.raises(
        CheckpointError, match=r"sink 'sets' prepared \{1, 2\}, which is no plain data \(JSON\)"
    ):
        await environment(tmp_path).run(flow)


@pytest.mark.parametrize("options", [{"every": -1}, {"keep": 0}])
def test_options_that_make_no_sense_are_refused(options: Any) -> None:
    with pytest.raises(UsageError, match="needs every >= 0 seconds and keep >= 1"):
        Checkpoints("folder", **options)
