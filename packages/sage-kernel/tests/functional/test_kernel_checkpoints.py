"""Runs that go on from a checkpoint: what they remember, what they tell sources and sinks, how they end."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from sage.common.errors import UnavailableError
from sage.kernel import Checkpoints, Flow, LocalEnvironment, OperatorError, Pane, Run, RunReport, Window
from sage.kernel.testing.sinks import EpochFiles, Numbers


def environment(folder: Path, **options: Any) -> LocalEnvironment:
    return LocalEnvironment(checkpoints=Checkpoints(folder / "checkpoints", every=0), **options)


def counted(count: int, x: int) -> tuple[int, tuple[int, int]]:
    return count + 1, (x, count)


class Tap:
    """A source that gives what it is told to; it is read again from the start by each run."""

    def __init__(self) -> None:
        self.items: list[int] = []
        self._more = asyncio.Event()

    def give(self, *items: int) -> None:
        self.items += items
        self._more.set()

    async def __call__(self) -> AsyncIterator[int]:
        at = 0
        while True:
            while at == len(self.items):
                self._more.clear()
                await self._more.wait()
            if self.items[at] < 0:
                return
            at += 1
            yield self.items[at - 1]


def taken(run: Run, name: str) -> int:
    return next(one.items_in for one in run.reports() if one.name == name)


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop turn until it holds."""
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - turns of the loop, no time
            await asyncio.sleep(0)


async def has(run: Run, name: str, count: int) -> None:
    await until(lambda: taken(run, name) >= count)


async def stopped(
    flow: Flow, folder: Path, *, after: Callable[[], bool], drain: bool, **options: Any
) -> None:
    """Run until a condition holds, take a checkpoint, and stop."""
    run = await environment(folder, **options).start(flow)
    await until(after)
    await run.checkpoint()
    await run.stop(drain=drain)


async def test_the_last_run_goes_on_and_says_from_where(tmp_path: Path) -> None:
    def flow(source: Any) -> Flow:
        flow = Flow("count")
        keyed = flow.source(source, name="source").keyby(lambda x: x % 3).scan(int, counted, name="count")
        keyed.sink(EpochFiles(tmp_path / "out"), name="out")
        return flow

    source = Tap()
    source.give(*range(10))
    run = await environment(tmp_path).start(flow(source))
    await has(run, "out", 10)
    assert await run.checkpoint() == 1
    source.give(*range(10, 15))
    assert await run.checkpoint() == 2
    await run.stop(drain=False)

    again = Tap()
    again.give(*range(20), -1)
    report = await environment(tmp_path).run(flow(again))
    assert (report.resumed, report.epoch, report.already_done, report.warnings) == (2, 3, False, ())
    assert [report[name].items_in for name in ("count", "out")] == [20, 20]
    assert report["source"].items_out == 20
    assert sorted(EpochFiles.records(tmp_path / "out")) == [(x, x // 3) for x in range(20)]
    done = await environment(tmp_path).run(flow(again))
    assert (done.resumed, done.epoch, done.already_done) == (3, 3, True)
    assert done["out"].items_in == 20


async def test_a_drained_run_can_go_on_with_its_open_windows(tmp_path: Path) -> None:
    """Ctrl-C: what was read reaches the sinks, and no window is closed before its time."""
    panes: list[Pane[int, int]] = []

    def flow(source: Any) -> Flow:
        flow = Flow("windows")
        timed = flow.source(source).event_time(float).keyby(lambda x: x % 2)
        timed.window(Window(10)).reduce(int, lambda n, x: n + x).sink(panes.append)
        return flow

    source = Tap()
    source.give(1, 2, 12, 13)
    await stopped(flow(source), tmp_path, after=lambda: len(panes) == 2, drain=True)
    assert panes == [Pane(1, 0, 10, 1), Pane(0, 0, 10, 2)]
    source.give(14, 25, -1)
    report = await environment(tmp_path).run(flow(source))
    assert sorted(panes[2:]) == [Pane(0, 10, 20, 26), Pane(1, 10, 20, 13), Pane(1, 20, 30, 25)]
    assert not report.interrupted


async def test_draining_waits_for_calls(tmp_path: Path, gate: Any) -> None:
    flow, out = Flow("calls"), list[int]()
    source = Tap()
    source.give(1, 2)
    flow.source(source).map(gate).sink(out.append)
    run = await environment(tmp_path).start(flow)
    await gate.until(2)
    stopping = asyncio.create_task(run.stop())
    for item in (1, 2):
        assert not stopping.done()
        gate.open(item)
    await stopping
    assert sorted(out) == [1, 2]
    report = await run.wait()
    assert (report.interrupted, report.epoch, gate.cancelled) == (True, 1, [])


async def test_lists_that_change_in_place_are_kept_as_they_were(tmp_path: Path) -> None:
    """Windows and folds that append: what comes behind the barrier is not in the checkpoint."""
    seen: list[Any] = []

    def appended(state: list[int], x: int) -> tuple[list[int], tuple[int, ...]]:
        state.append(x)
        return state, tuple(state)

    def flow(source: Any) -> Flow:
        flow = Flow("lists")
        items = flow.source(source)
        items.keyby(lambda x: 0).scan(list, appended).sink(seen.append)
        timed = items.event_time(float, lateness=100).keyby(lambda x: 0)
        timed.window(Window(100)).collect().sink(seen.append)
        timed.join(timed, within=0).sink(seen.append)
        return flow

    source = Tap()
    source.give(1, 2)
    run = await environment(tmp_path).start(flow(source))
    await until(lambda: (1, 2) in seen)
    await run.checkpoint()
    source.give(3, 4)
    await until(lambda: (1, 2, 3, 4) in seen)
    await run.stop(drain=False)
    seen.clear()
    source.give(5, -1)
    await environment(tmp_path).run(flow(source))
    assert [one for one in seen if type(one) is tuple and len(one) > 2] == [
        (1, 2, 3),
        (1, 2, 3, 4),
        (1, 2, 3, 4, 5),
    ]
    assert Pane(0, 0, 100, [1, 2, 3, 4, 5]) in seen
    assert {one for one in seen if type(one) is tuple and len(one) == 2} == {(3, 3), (4, 4), (5, 5)}


async def test_a_checkpoint_may_be_taken_while_it_rests(tmp_path: Path, turns: Any) -> None:
    flow, out, source = Flow("pause"), list[int](), Tap()
    flow.source(source).merge(flow.source(Numbers(5))).sink(out.append)
    run = await environment(tmp_path).start(flow)
    source.give(1)
    await until(lambda: len(out) >= 6)
    await run.pause()
    source.give(7)
    await turns()
    before = out.count(7)
    assert await run.checkpoint() == 1
    await run.resume()
    await turns()
    assert (before, out.count(7)) == (0, 1)
    assert await run.checkpoint() == 2
    await run.stop(drain=False)


async def test_an_ended_source_stays_ended(tmp_path: Path) -> None:
    """Its last windows come out once, and the sinks that nothing comes to any more commit with the others."""
    source = Tap()

    def flow() -> Flow:
        flow = Flow("ended")
        timed = flow.source(Numbers(30), name="numbers").event_time(float).keyby(lambda x: 0)
        timed.window(Window(10)).reduce(int, lambda n, x: n + 1).sink(
            EpochFiles(tmp_path / "panes"), name="panes"
        )
        flow.source(source, name="tap").sink(EpochFiles(tmp_path / "taps"), name="taps")
        return flow

    run = await environment(tmp_path).start(flow())
    await has(run, "panes", 3)
    for epoch in (1, 2):
        source.give(epoch)
        assert await run.checkpoint() == epoch
    assert [pane[3] for pane in EpochFiles.records(tmp_path / "panes")] == [10, 10, 10]
    await run.stop(drain=False)
    source.give(3, -1)
    report = await environment(tmp_path).run(flow())
    assert [pane[3] for pane in EpochFiles.records(tmp_path / "panes")] == [10, 10, 10]
    assert EpochFiles.records(tmp_path / "taps") == [1, 2, 3]
    assert report["numbers"].items_out == 30


class Acknowledged(Numbers):
    """Notes up to where it was told that nobody asks again."""

    def __init__(self, count: int) -> None:
        super().__init__(count)
        self.told: list[int] = []

    async def committed(self, position: int) -> None:
        self.told.append(position)


async def test_a_source_hears_of_each_durable_checkpoint(tmp_path: Path) -> None:
    source = Acknowledged(25)
    flow = Flow("told")
    flow.source(source).sink(EpochFiles(tmp_path / "out"))
    first = await environment(tmp_path).run(flow)
    assert source.told == [25]
    assert first.epoch == 1


class Plain:
    """A sink that is not transactional."""

    def __init__(self) -> None:
        self.log: list[Any] = []

    async def write(self, epoch: int, items: Sequence[int]) -> None:
        self.log.append((epoch, list(items)))

    async def commit(self, epoch: int) -> None:
        self.log.append(f"commit {epoch}")


async def test_plain_sinks_are_told_of_epochs(tmp_path: Path, turns: Any) -> None:
    source, sink, each = Tap(), Plain(), list[int]()

    async def later(x: int) -> None:
        each.append(x)

    flow = Flow("plain")
    stream = flow.source(source)
    stream.sink(sink)
    stream.sink(later)
    run = await environment(tmp_path).start(flow)
    for x in (1, 2):
        source.give(x)
        await turns()
        await run.checkpoint()
    source.give(-1)
    await run.wait()
    assert sink.log == [(1, [1]), "commit 1", (2, [2]), "commit 2", "commit 3"]
    assert each == [1, 2]


async def test_a_failed_run_goes_on_from_its_last_checkpoint(tmp_path: Path) -> None:
    """The poison is taken out of the code, and the run that is started again does the rest."""
    source = Tap()

    def flow(poison: int) -> Flow:
        flow = Flow("poison")

        def judge(x: int) -> int:
            if x == poison:
                raise ValueError("poison")
            return x

        keyed = flow.source(source).map(judge, name="judge").keyby(lambda x: 0).scan(int, counted)
        keyed.sink(EpochFiles(tmp_path / "out"), name="out")
        return flow

    source.give(0, 1)
    run = await environment(tmp_path).start(flow(poison=3))
    await has(run, "out", 2)
    await run.checkpoint()
    source.give(2, 3)
    for _ in range(2):
        with pytest.raises(OperatorError, match=r"'judge' failed on item 3 \(3\)"):
            await run.wait()
        run = await environment(tmp_path).start(flow(poison=3))
    with pytest.raises(OperatorError):
        await run.wait()
    source.give(-1)
    report = await environment(tmp_path).run(flow(poison=-1))
    assert report.resumed == 1
    assert EpochFiles.records(tmp_path / "out") == [(x, x) for x in range(4)]


async def test_checkpoints_come_by_themselves(tmp_path: Path) -> None:
    source = Tap()
    flow = Flow("timer")
    flow.source(source).sink(lambda x: None)
    checkpoints = Checkpoints(tmp_path, every=0.001, keep=2)
    run = await LocalEnvironment(checkpoints=checkpoints).start(flow)
    await until(lambda: (tmp_path / "manifest-00000004").exists())
    source.give(-1)
    report = await run.wait()
    assert report.epoch >= 4
    assert len([name for name in os.listdir(tmp_path) if name.startswith("manifest-")]) == 2
    with pytest.raises(UnavailableError, match="it is done"):
        await run.checkpoint()


def test_ctrl_c_takes_a_last_checkpoint(tmp_path: Path) -> None:
    """In a process of its own, with the signal that a terminal sends."""
    code = """
import sys
from pathlib import Path
from sage.kernel import Checkpoints, Flow, LocalEnvironment
from sage.kernel.testing.sinks import EpochFiles, Numbers

class Said(Numbers):
    def read(self, position):
        print("reading", flush=True)
        yield from super().read(position)

folder = Path(sys.argv[1])
flow = Flow("interrupt")
flow.source(Said(10**9)).filter(lambda x: x % 1000 == 0).sink(EpochFiles(folder / "out"))
report = LocalEnvironment(checkpoints=Checkpoints(folder / "checkpoints", every=0)).run_sync(flow)
print(report.interrupted, report.resumed, report.epoch, report.operators[0].items_out)
"""
    read = 0
    for resumed in range(2):
        command = [sys.executable, "-c", code, str(tmp_path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            child.stdout.readline()
            child.send_signal(signal.SIGINT)
            words = child.stdout.read().split()
        assert words[:3] == ["True", str(resumed), str(resumed + 1)]
        found = EpochFiles.records(tmp_path / "out")
        read = int(words[3])
        assert found == list(range(0, read, 1000))


def whole(report: RunReport) -> tuple[int, int]:
    return report.resumed, report.epoch


async def test_restarting_really_restarts(tmp_path: Path) -> None:
    """One environment, one flow object: as often as it is started it goes on, and never from the start."""
    source = Tap()
    flow = Flow("again")
    flow.source(source).sink(EpochFiles(tmp_path / "out"), name="out")
    mine = environment(tmp_path)
    for epoch in range(1, 5):
        run = await mine.start(flow)
        source.give(epoch)
        await has(run, "out", epoch)
        await run.stop()
        report = await run.wait()
        assert whole(report) == (epoch - 1, epoch)
    source.give(-1)
    assert whole(await mine.run(flow)) == (4, 5)
    assert EpochFiles.records(tmp_path / "out") == [1, 2, 3, 4]
