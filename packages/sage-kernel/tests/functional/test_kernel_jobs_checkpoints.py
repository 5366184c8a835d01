"""Jobs go on from their checkpoints: every record once, whoever is killed."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from sage.common.errors import BadRequestError
from sage.common.jobs import JobInfo, JobSpec
from sage.common.paths import SagePaths
from sage.kernel.jobs import JobManager, JobOptions
from sage.kernel.scheduler import Node
from sage.kernel.testing.sinks import EpochFiles

TESTS = Path(__file__).resolve().parents[1]
NODE = Node("here", cpus=10, memory=64 << 30)

pytestmark = pytest.mark.timeout(180)


async def opened(folder: Path) -> JobManager:
    options = JobOptions(code=("jobflows:*",), path=(TESTS,))
    manager = await JobManager.open(SagePaths(folder, folder, folder), [NODE], options)
    manager.start()
    return manager


@pytest.fixture
async def jobs(tmp_path: Path) -> AsyncIterator[JobManager]:
    manager = await opened(tmp_path)
    yield manager
    await manager.close(0.0)


def spec(flow: str, **fields: Any) -> JobSpec:
    usual = {"flow": f"jobflows:{flow}", "restart": "fixed:50:0", "every": 0.2}
    return JobSpec.model_validate({**usual, **fields})


async def until(jobs: JobManager, which: str, true: Callable[[JobInfo], bool]) -> JobInfo:
    async for found in jobs.watch(which):
        if true(found):
            return found
    raise AssertionError(jobs.get(which))


async def state(jobs: JobManager, which: str, wanted: str) -> JobInfo:
    return await until(jobs, which, lambda job: job.state == wanted)


async def beyond(jobs: JobManager, which: str, number: int) -> JobInfo:
    """Once it runs and has a checkpoint after that one."""
    return await until(
        jobs, which, lambda job: job.state == "running" and (newest(job) > number) and job.pid is not None
    )


def newest(job: JobInfo) -> int:
    return job.checkpoint.number if job.checkpoint else 0


async def test_a_paused_job_goes_on_where_it_was(jobs: JobManager, tmp_path: Path) -> None:
    out = tmp_path / "out"
    job = await jobs.submit(spec("counted", settings={"folder": str(out)}, every=3600))
    await until(jobs, job.id, lambda one: bool(one.operators) and one.operators[-1].items_in > 50)
    assert (await jobs.pause(job.id)).state == "pausing"
    rests = await state(jobs, job.id, "paused")
    assert (rests.pid, newest(rests), rests.detail) == (None, 1, "")
    there = EpochFiles.records(out)
    assert there == list(range(len(there)))
    assert len(there) > 50
    await jobs.resume(job.id)
    goes_on = await state(jobs, job.id, "running")
    assert goes_on.detail == "it went on from checkpoint 1"
    await until(jobs, job.id, lambda one: one.operators[-1].items_in > len(there))
    await jobs.stop(job.id)
    done = await state(jobs, job.id, "finished")
    read = done.operators[0].items_out
    assert EpochFiles.records(out) == list(range(read))
    assert read > len(there)


async def test_a_job_that_is_killed_again_and_again_has_every_record_once(
    jobs: JobManager, tmp_path: Path
) -> None:
    out, chance = tmp_path / "out", random.Random(3)  # noqa: S311
    job = await jobs.submit(spec("sums", settings={"folder": str(out), "count": 3000}))
    kills = 0
    async for found in jobs.watch(job.id):
        if found.state == "running" and found.pid and newest(found) > kills and chance.random() < 0.5:
            os.kill(found.pid, signal.SIGKILL)
            kills = newest(found)
    assert found.state == "finished", found
    assert found.restarts >= 1
    expected, totals = [], dict.fromkeys(range(10), 0)
    for number in range(3000):
        totals[number % 10] += number
        expected.append((number, totals[number % 10]))
    assert EpochFiles.records(out) == expected


async def test_a_manager_that_comes_back_goes_on_from_the_last_checkpoint(tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = await opened(tmp_path)
    job = await first.submit(spec("counted", settings={"folder": str(out), "count": 2000}))
    number = newest(await beyond(first, job.id, 0))
    await first.close(5.0)
    second = await opened(tmp_path)
    found = await state(second, job.id, "running")
    assert int(found.detail.removeprefix("it went on from checkpoint ")) > number  # the one of the close
    assert (await state(second, job.id, "finished")).restarts == 0
    assert EpochFiles.records(out) == list(range(2000))
    await second.close(0.0)


async def test_what_failed_or_was_cancelled_can_be_resumed(jobs: JobManager, tmp_path: Path) -> None:
    out = tmp_path / "out"
    job = await jobs.submit(spec("counted", settings={"folder": str(out), "count": 1500}, restart="none"))
    running = await beyond(jobs, job.id, 0)
    assert running.pid is not None
    os.kill(running.pid, signal.SIGKILL)
    await state(jobs, job.id, "failed")
    assert (await jobs.resume(job.id)).ended_at is None
    await beyond(jobs, job.id, newest(running))
    await jobs.stop(job.id, now=True)
    await jobs.resume(job.id)
    await state(jobs, job.id, "finished")
    assert EpochFiles.records(out) == list(range(1500))


async def test_pause_and_resume_at_once_are_done_one_after_the_other(
    jobs: JobManager, tmp_path: Path
) -> None:
    """Whoever asks while something else is done gets an answer, and the job stays whole."""
    out = tmp_path / "out"
    job = await jobs.submit(spec("counted", settings={"folder": str(out), "count": 200}))
    await state(jobs, job.id, "running")
    chance = random.Random(5)  # noqa: S311

    async def bother() -> None:
        for _ in range(6):
            ask = chance.choice((jobs.pause, jobs.resume))
            await asyncio.gather(ask(job.id), return_exceptions=True)

    await asyncio.gather(*(bother() for _ in range(3)))
    await until(jobs, job.id, lambda one: one.state != "pausing")
    if jobs.get(job.id).state == "paused":
        await jobs.resume(job.id)
    await state(jobs, job.id, "finished")
    assert EpochFiles.records(out) == list(range(200))


async def test_a_job_whose_operators_cannot_be_set_up_fails_at_once(jobs: JobManager) -> None:
    job = await jobs.submit(spec("unready"))
    failed = await state(jobs, job.id, "failed")
    assert (failed.restarts, failed.started_at) == (0, None)
    assert "no such model" in failed.detail


async def test_a_source_of_which_no_checkpoint_can_be_taken_is_refused(jobs: JobManager) -> None:
    with pytest.raises(BadRequestError, match="can be read only once"):
        await jobs.submit(spec("once"))


async def test_checkpoints_of_a_job_do_not_grow_without_bound(jobs: JobManager, tmp_path: Path) -> None:
    job = await jobs.submit(spec("counted", settings={"folder": str(tmp_path / "out")}, every=0.02))
    await beyond(jobs, job.id, 60)
    await jobs.stop(job.id, now=True)
    kept = [path for path in (tmp_path / "jobs" / job.id / "checkpoints").iterdir() if path.is_file()]
    assert len(kept) < 40
    await jobs.delete(job.id)
    assert list((tmp_path / "jobs").iterdir()) == []


async def test_a_plan_of_files_that_is_killed_has_every_line_once(jobs: JobManager, tmp_path: Path) -> None:
    count = 1_500_000
    (tmp_path / "in.txt").write_text("".join(f"line {number}\n" for number in range(count)))
    steps = [
        {"source": {"use": "lines", "with": {"path": "in.txt"}}},
        {"sink": {"use": "jsonl", "with": {"path": "out.jsonl"}}},
    ]
    plan = {"name": "copy", "steps": steps}
    job = await jobs.submit(JobSpec(plan=plan, every=0.1, restart="fixed:9:0", folder=str(tmp_path)))
    killed = kills = 0
    async for found in jobs.watch(job.id):
        # Fewer than it may crash: on a slow machine each life comes no further than its first checkpoint.
        if kills < 5 and found.state == "running" and found.pid and newest(found) > killed:
            os.kill(found.pid, signal.SIGKILL)
            killed, kills = newest(found), kills + 1
    assert found.state == "finished", found
    assert found.restarts >= 1
    lines = (tmp_path / "out.jsonl").read_text().splitlines()
    assert lines == [f'"line {number}"' for number in range(count)]
