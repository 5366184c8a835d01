"""Checkpoints of flows with workers: a run that is cut off goes on, and every record comes out once."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import kernel_worker_ops as ops
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sage.common.errors import SageError, UnavailableError
from sage.kernel import Checkpoints, Flow, LocalEnvironment, Parallel, Run
from sage.kernel.testing.dataflow import check
from sage.kernel.testing.plans import Recipe, build
from sage.kernel.testing.sinks import EpochFiles, Numbers

THREADS = ("threads", "threads-any", "threads-divert")
STEPS = st.lists(st.sampled_from([*THREADS, *THREADS, "async", "merge"]), min_size=1, max_size=4)


async def keep_taking(run: Run, pause: int) -> None:
    try:
        while True:
            await run.checkpoint()
            for _ in range(pause):
                await asyncio.sleep(0)
    except UnavailableError:
        return


async def until(flow: Flow, folder: Path, cut: tuple[int, bool] | None, pause: int, **sizes: Any) -> None:
    checkpoints = Checkpoints(folder / "checkpoints", every=0)
    run = await LocalEnvironment(checkpoints=checkpoints, **sizes).start(flow)
    taking = asyncio.create_task(keep_taking(run, pause))
    if cut:
        for _ in range(cut[0]):
            await asyncio.sleep(0)
        await run.stop(drain=cut[1])
    else:
        await run.wait()
    await taking


@settings(max_examples=60)
@given(
    STEPS,
    st.sampled_from(["count", "window", "map"]),
    st.integers(1, 30),
    st.lists(st.tuples(st.integers(0, 600), st.booleans()), max_size=4),
    st.integers(0, 40),
)
def test_threads_that_are_cut_off_go_on(
    steps: list[str], last: str, size: int, cuts: list[tuple[int, bool]], pause: int
) -> None:
    recipe = Recipe((*steps, last), records=60)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for cut in [*cuts, None]:
            flow = build(recipe, folder / "sinks")
            asyncio.run(until(flow, folder, cut, pause, batch=size, capacity=size))
        check(recipe, folder / "sinks")


@pytest.mark.parametrize("order", ["input", "any"])
def test_processes_that_are_cut_off_go_on(tmp_path: Path, order: Any) -> None:
    def made() -> Flow:
        flow = Flow("work")
        stream = flow.source(Numbers(3000)).map(ops.increase, parallelism=Parallel(2, order=order))
        fine = stream.map(ops.brittle, on_error="skip", parallelism=Parallel(2, order=order))
        fine.sink(EpochFiles(tmp_path / "out"))
        return flow

    for cut in [(300, False), (900, True), (1500, False), None]:
        asyncio.run(until(made(), tmp_path, cut, 20))
    expected = Counter(x for x in range(1, 3001) if x % 7)
    assert Counter(EpochFiles.records(tmp_path / "out")) == expected


def test_what_workers_have_when_a_run_is_cut_off_is_done_again(tmp_path: Path) -> None:
    async def cut_off(pipe: Path) -> None:
        run = await LocalEnvironment(checkpoints=Checkpoints(tmp_path / "c", every=0)).start(made(pipe))
        await asyncio.to_thread(pipe.read_text)  # an item is with the worker, and stays there
        assert await run.checkpoint() == 1
        await run.stop(drain=False)

    def made(pipe: Path) -> Flow:
        flow = Flow("stuck")
        flow.source(Numbers(5)).map(ops.StuckOnce(pipe), parallelism=1).sink(EpochFiles(tmp_path / "out"))
        return flow

    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    asyncio.run(cut_off(pipe))
    pipe.unlink()
    report = LocalEnvironment(checkpoints=Checkpoints(tmp_path / "c")).run_sync(made(pipe))
    assert sorted(EpochFiles.records(tmp_path / "out")) == list(range(5))
    assert (report.resumed, report["StuckOnce"].items_in) == (1, 5)


def test_another_number_of_workers_is_no_other_plan_but_other_neighbours_are(tmp_path: Path) -> None:
    def run(first: Parallel | None, second: Parallel | None) -> None:
        flow = Flow("shape")
        stream = flow.source(Numbers(5)).map(ops.increase, parallelism=first, name="first")
        stream.map(ops.increase, parallelism=second, name="second").sink(EpochFiles(tmp_path / "out"))
        LocalEnvironment(checkpoints=Checkpoints(tmp_path / "c")).run_sync(flow)

    run(Parallel(1, "thread"), Parallel(1, "thread"))
    run(Parallel(2, "thread"), Parallel(2, "thread"))
    with pytest.raises(SageError, match="operator 'second' had workers='first'"):
        run(Parallel(1, "thread"), Parallel(2, "thread"))
    with pytest.raises(SageError, match="operator 'first' had workers='first'"):
        run(None, None)
