"""Jobs with real processes: what goes well, what is stopped, and what dies."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from sage.common.errors import BadRequestError, ConflictError, NotFoundError
from sage.common.jobs import JobInfo, JobSpec
from sage.common.paths import SagePaths
from sage.kernel.jobs import JobManager, JobOptions
from sage.kernel.scheduler import InfeasibleError, Node
from sage.platform.daemon import alive

TESTS = Path(__file__).resolve().parents[1]
NODE = Node("here", cpus=10, memory=64 << 30)

pytestmark = pytest.mark.timeout(120)


def options(**changes: Any) -> JobOptions:
    return JobOptions(code=("jobflows:*",), path=(TESTS,), **changes)


def spec(flow: str, **fields: Any) -> JobSpec:
    return JobSpec.model_validate({"flow": f"jobflows:{flow}", "restart": "fixed:2:0", **fields})


async def until(jobs: JobManager, which: str, true: Callable[[JobInfo], bool]) -> JobInfo:
    """The job once that is true of it. Fails when it ends before."""
    async for found in jobs.watch(which):
        if true(found):
            return found
    raise AssertionError(jobs.get(which))


async def state(jobs: JobManager, which: str, wanted: str) -> JobInfo:
    return await until(jobs, which, lambda job: job.state == wanted)


async def flowing(jobs: JobManager, which: str) -> JobInfo:
    """Once records come out."""
    return await until(
        jobs, which, lambda job: job.state == "running" and any(one.items_in for one in job.operators)
    )


async def gone(pid: int) -> None:
    """Until a process of somebody else's has ended, of which no event tells."""
    while alive(pid):  # noqa: ASYNC110
        await asyncio.sleep(0.02)


@pytest.fixture
async def jobs(tmp_path: Path) -> AsyncIterator[JobManager]:
    manager = await JobManager.open(SagePaths(tmp_path, tmp_path, tmp_path), [NODE], options())
    manager.start()
    yield manager
    await manager.close(0.0)


async def test_a_plan_runs_to_its_end_and_its_counts_are_kept(jobs: JobManager, tmp_path: Path) -> None:
    plan = {
        "name": "copy it",
        "steps": [
            {"source": {"use": "items", "with": {"values": [1]}}, "id": "in"},
            {"sink": {"use": "jsonl", "with": {"path": "out.jsonl"}}, "id": "out"},
        ],
    }
    work = tmp_path / "work"
    work.mkdir()
    asked = JobSpec(plan=plan, settings={"in.values": [1, 2, 3]}, folder=str(work))
    submitted = await jobs.submit(asked)
    assert (submitted.name, submitted.flow, submitted.source) == ("copy-it", "copy it", "")
    done = await state(jobs, "copy-it", "finished")
    assert [(one.name, one.items_in, one.items_out) for one in done.operators] == [
        ("in", 0, 3),
        ("out", 3, 0),
    ]
    assert (work / "out.jsonl").read_text() == "1\n2\n3\n"
    assert (done.pid, done.node) == (None, "here")
    assert done.placement.startswith("pack: ")
    assert done.ended_at is not None
    assert (tmp_path / "jobs" / done.id).stat().st_mode & 0o777 == 0o700


async def test_code_runs_by_its_name_with_settings(jobs: JobManager, tmp_path: Path) -> None:
    job = await jobs.submit(spec("numbers", settings={"out": "out.txt", "count": 5}, folder=str(tmp_path)))
    assert job.source == "jobflows:numbers"
    await state(jobs, job.id, "finished")
    assert (tmp_path / "out.txt").read_text().split() == ["0", "1", "2", "3", "4"]
    ready = await jobs.submit(spec("READY"))
    assert (await state(jobs, ready.id, "finished")).name == "numbers-2"


async def test_twenty_jobs_at_once(jobs: JobManager) -> None:
    made = await asyncio.gather(*(jobs.submit(spec("numbers")) for _ in range(20)))
    assert len({job.name for job in made}) == 20
    running = await asyncio.gather(*(flowing(jobs, job.id) for job in made))
    assert {job.state for job in jobs.jobs()} == {"running"}
    assert len({job.pid for job in running}) == 20
    await asyncio.gather(*(jobs.stop(job.id) for job in made))
    await asyncio.gather(*(state(jobs, job.id, "finished") for job in made))
    for job in running:
        assert job.pid is not None
        await gone(job.pid)


async def test_a_job_takes_what_its_operators_ask_for(jobs: JobManager) -> None:
    job = await jobs.submit(spec("demanding"))
    assert (job.resources.cpu, job.resources.memory) == (6, "128MiB")
    assert (await jobs.submit(spec("demanding", resources={"cpu": 7}, name="seven"))).resources.cpu == 7
    with pytest.raises(InfeasibleError) as refused:
        await jobs.submit(spec("demanding", settings={"workers": 4}))
    assert "lacks cpu; nearest is 'here': cpu 12 (has 10)" in refused.value.message
    assert "That is what its operators ask for, which run all at once." in refused.value.message
    with pytest.raises(InfeasibleError, match=r"gpu 2 \(has 0\)"):
        await jobs.submit(spec("demanding", settings={"gpu": 1}))
    assert [found.name for found in jobs.jobs()] == ["demanding", "seven"]
    assert len(list(jobs._folders.root.iterdir())) == 2


SERVICES = {"doubled": "jobflows:DOUBLED", "greeter": "jobflows:Greeter"}


async def test_services_are_made_by_code_that_is_allowed(jobs: JobManager, tmp_path: Path) -> None:
    out = tmp_path / "out.txt"
    job = await jobs.submit(spec("greeted", services=SERVICES, settings={"out": str(out)}))
    assert job.services == SERVICES
    assert (await state(jobs, job.id, "finished")).services == SERVICES
    assert out.read_text().splitlines() == ["hello 2", "hello 4", "hello 6"]
    log = b"".join([piece async for piece in jobs.log(job.id)])
    assert log.splitlines() == [b"the greeter is set up", b"the greeter is closed"]


async def test_services_take_their_part_of_the_node(jobs: JobManager) -> None:
    job = await jobs.submit(spec("demanding", services={"other": "jobflows:DEMANDING_SERVICE"}))
    assert job.resources.cpu == 10


@pytest.mark.parametrize(
    ("services", "words"),
    [
        ({}, "no service is named 'doubled'; this environment has none"),
        ({"doubled": SERVICES["doubled"]}, "no service is named 'greeter'; there are: doubled"),
        ({**SERVICES, "shell": "os:system"}, "service 'shell': code named 'os:system' is not allowed"),
        ({**SERVICES, "none": "jobflows:none"}, "service 'none': 'jobflows:none' cannot be imported"),
        (
            {**SERVICES, "list": "jobflows:FUNCTIONS"},
            "service 'list': 'jobflows:FUNCTIONS' is a list; valid is a class or function",
        ),
        ({**SERVICES, "doubled": "jobflows:READY"}, "it is service 'doubled' and answers no requests"),
    ],
)
async def test_a_job_without_the_services_that_it_calls_is_refused(
    jobs: JobManager, services: dict[str, str], words: str
) -> None:
    with pytest.raises(BadRequestError) as refused:
        await jobs.submit(spec("greeted", services=services, settings={"out": "out"}))
    assert words in refused.value.message
    assert jobs.jobs() == []


async def test_what_was_read_is_finished_before_a_job_stops(jobs: JobManager, tmp_path: Path) -> None:
    out = tmp_path / "out.txt"
    job = await jobs.submit(spec("numbers", settings={"out": str(out)}))
    await flowing(jobs, job.id)
    assert (await jobs.stop(job.id)).state == "draining"
    done = await state(jobs, job.id, "finished")
    assert done.detail == "stopped; what was read was finished"
    read = next(one.items_out for one in done.operators if one.name == "numbers")
    assert out.read_text().split() == [str(number) for number in range(read)]
    with pytest.raises(ConflictError, match="is finished; it cannot be stopped"):
        await jobs.stop(job.id)


async def test_a_job_can_be_stopped_at_once_with_all_that_it_started(
    jobs: JobManager, tmp_path: Path
) -> None:
    pids = tmp_path / "pids"
    job = await jobs.submit(spec("leaving", settings={"pids": str(pids)}))
    running = await flowing(jobs, job.id)
    await until(jobs, job.id, lambda _: pids.exists() and bool(pids.read_text()))
    stopped = await jobs.stop(job.id, now=True)
    assert (stopped.state, stopped.pid) == ("cancelled", None)
    assert running.pid is not None
    await gone(running.pid)
    await gone(int(pids.read_text()))


async def test_a_job_that_runs_is_deleted_with_its_process_and_its_folder(
    jobs: JobManager, tmp_path: Path
) -> None:
    job = await jobs.submit(spec("numbers", name="mine"))
    running = await flowing(jobs, "mine")
    watching = asyncio.create_task(until(jobs, "mine", lambda found: found.state == "finished"))
    await asyncio.sleep(0)
    assert await jobs.delete("mine") == job.id
    with pytest.raises(AssertionError):  # the watch has ended without that
        await watching
    assert running.pid is not None
    await gone(running.pid)
    assert list((tmp_path / "jobs").iterdir()) == []
    with pytest.raises(NotFoundError, match="There is no job 'mine'; there are: none"):
        jobs.get("mine")
    assert (await jobs.submit(spec("READY", name="mine"))).name == "mine"


async def test_a_killed_process_is_started_again(jobs: JobManager) -> None:
    job = await jobs.submit(spec("numbers"))
    running = await flowing(jobs, job.id)
    assert running.pid is not None
    os.kill(running.pid, signal.SIGKILL)
    again = await until(jobs, job.id, lambda found: found.state == "running" and found.restarts == 1)
    assert again.pid not in (None, running.pid)
    assert jobs.restarts == 1
    await flowing(jobs, job.id)


async def test_a_stopped_process_is_given_up_and_its_work_placed_again(jobs: JobManager) -> None:
    job = await jobs.submit(spec("numbers"))
    running = await flowing(jobs, job.id)
    assert running.pid is not None
    os.kill(running.pid, signal.SIGSTOP)
    lost = await until(jobs, job.id, lambda found: found.restarts == 1)
    assert "gave no sign of life for 3.5 s" in lost.detail
    await gone(running.pid)
    assert (await flowing(jobs, job.id)).pid != running.pid


async def test_code_that_blocks_its_loop_is_not_taken_for_dead(jobs: JobManager) -> None:
    job = await jobs.submit(spec("deaf"))
    stuck = await until(jobs, job.id, lambda found: found.stuck_s > 4.0)
    assert (stuck.state, stuck.restarts) == ("running", 0)
    assert (await jobs.stop(job.id, now=True)).state == "cancelled"


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("raise", "operator 'touch' failed on item 3 (3): ValueError: a poisonous record"),
        ("kill", "its process was ended by signal 9"),
    ],
)
async def test_a_poisonous_record_is_tried_as_often_as_is_allowed(
    jobs: JobManager, how: str, words: str
) -> None:
    job = await jobs.submit(spec("poison", settings={"how": how}))
    failed = await state(jobs, job.id, "failed")
    assert failed.restarts == 2
    assert words in failed.detail
    assert failed.detail.endswith("gave up after 2 restarts")
    assert [one.name for one in failed.operators] == (["numbers", "touch", "out"] if how == "raise" else [])
    kept = b"".join([piece async for piece in jobs.log(job.id)])
    assert (b"ValueError: a poisonous record" in kept) == (how == "raise")


async def test_more_jobs_than_there_is_room_for_wait_their_turn(jobs: JobManager) -> None:
    """Ten have room; each has thirteen operators, and none waits for another that waits."""
    whole = {"cpu": 1}
    first = [await jobs.submit(spec("numbers", resources=whole, name=f"first-{n}")) for n in range(10)]
    rest = [await jobs.submit(spec("wide", resources=whole, name=f"wide-{n}")) for n in range(3)]
    await asyncio.gather(*(flowing(jobs, job.id) for job in first))
    for job in rest:
        found = jobs.get(job.id)
        assert (found.state, found.placement) == ("queued", "no node has free cpu 1 (most: 0)")
    await jobs.stop("first-0")
    for job in rest:
        done = await state(jobs, job.id, "finished")
        assert [one.items_in for one in done.operators[1:]] == [20] * 12


async def test_a_job_that_waits_can_be_paused_resumed_and_stopped(jobs: JobManager) -> None:
    running = await jobs.submit(spec("numbers", resources={"cpu": 10}))
    await flowing(jobs, running.id)
    waits = await jobs.submit(spec("READY", name="waits"))
    assert waits.state == "queued"
    assert (await jobs.pause("waits")).state == "paused"
    assert (await jobs.resume("waits")).state == "queued"
    assert (await jobs.stop("waits")).state == "cancelled"
    await jobs.stop(running.id, now=True)
    assert jobs.get("waits").state == "cancelled"
    await jobs.resume("waits")
    await state(jobs, "waits", "finished")


async def test_the_log_can_be_followed_until_the_job_ends(jobs: JobManager) -> None:
    job = await jobs.submit(spec("chatty"))
    pieces: list[bytes] = []
    async for piece in jobs.log(job.id, follow=True):
        pieces.append(piece)
        if b"record 2\n" in b"".join(pieces):
            await jobs.stop(job.id)
    assert b"".join(pieces).splitlines()[:3] == [b"record 0", b"record 1", b"record 2"]
    assert [piece async for piece in jobs.log(job.id, lines=1)] == [b"record 2\n"]


async def test_jobs_outlive_their_manager_as_they_were(tmp_path: Path) -> None:
    paths = SagePaths(tmp_path, tmp_path, tmp_path)
    first = await JobManager.open(paths, [NODE], options())
    first.start()
    runs = await first.submit(spec("numbers", name="runs"))
    rests = await first.submit(spec("numbers", name="rests", resources={"cpu": 10}))
    assert rests.state == "queued"
    await first.pause("rests")
    ended = await first.submit(spec("READY", name="ended"))
    await state(first, ended.id, "finished")
    pid = (await flowing(first, runs.id)).pid
    watching = asyncio.create_task(until(first, "rests", lambda job: job.state == "finished"))
    await first.close(0.0)
    with pytest.raises(AssertionError):
        await watching
    assert pid is not None
    await gone(pid)
    (tmp_path / "jobs" / "job-stray").mkdir()
    second = await JobManager.open(paths, [NODE], options())
    assert not (tmp_path / "jobs" / "job-stray").exists()
    assert [(job.name, job.state) for job in second.jobs()] == [
        ("runs", "queued"),
        ("rests", "paused"),
        ("ended", "finished"),
    ]
    assert second.get("runs").placement == "the stack is starting"
    assert len(second.get("ended").operators) == 2
    second.start()
    assert (await flowing(second, "runs")).restarts == 0
    assert (await second.resume("rests")).state == "queued"
    await second.stop("runs", now=True)
    await flowing(second, "rests")
    await second.close(0.0)
    smaller = await JobManager.open(paths, [Node("here", cpus=2, memory=64 << 30)], options())
    smaller.start()
    failed = await state(smaller, "rests", "failed")
    assert "fits no node" in failed.detail
    await smaller.close(0.0)
