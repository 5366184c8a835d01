"""The gates of jobs are decided on from outside of their processes."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from sage.common.errors import ConflictError, NotFoundError
from sage.common.jobs import JobDecision, JobInfo, JobSpec
from sage.common.paths import SagePaths
from sage.kernel.jobs import JobManager, JobOptions
from sage.kernel.jobs.parked import SHOWN
from sage.kernel.scheduler import Node
from sage.kernel.testing.sinks import EpochFiles

TESTS = Path(__file__).resolve().parents[1]

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
async def jobs(tmp_path: Path) -> AsyncIterator[JobManager]:
    node = Node("here", cpus=10, memory=64 << 30)
    options = JobOptions(code=("jobflows:*",), path=(TESTS,))
    manager = await JobManager.open(SagePaths(tmp_path, tmp_path, tmp_path), [node], options)
    manager.start()
    yield manager
    await manager.close(0.0)


async def submitted(jobs: JobManager, flow: str, **settings: Any) -> JobInfo:
    given = {"flow": f"jobflows:{flow}", "restart": "fixed:2:0", "every": 3600, "settings": settings}
    return await jobs.submit(JobSpec.model_validate(given))


async def waiting(jobs: JobManager, which: str, count: int) -> JobInfo:
    """The job once so many records wait."""
    async for found in jobs.watch(which):
        if sum(found.gates.values()) == count and found.state == "running":
            return found
    raise AssertionError(jobs.get(which))


async def ids(jobs: JobManager, which: str) -> dict[Any, str]:
    [gate] = (await jobs.gates(which)).gates
    return {one.record: one.id for one in gate.records}


def approve(**more: Any) -> JobDecision:
    return JobDecision.model_validate({"gate": "refunds", "decision": "approve", **more})


async def ended(jobs: JobManager, which: str) -> str:
    return [found.state async for found in jobs.watch(which)][-1]


async def test_records_are_listed_and_decided_on(jobs: JobManager, tmp_path: Path) -> None:
    job = await submitted(jobs, "refunds", folder=str(tmp_path / "sinks"), count=6)
    assert (await waiting(jobs, job.id, 3)).gates == {"refunds": 3}
    [gate] = (await jobs.gates(job.name)).gates
    assert (gate.name, gate.waiting, [one.record for one in gate.records]) == ("refunds", 3, [3, 4, 5])
    assert all(one.until == one.since + 86_400 for one in gate.records)
    found = {one.record: one.id for one in gate.records}

    decided = await jobs.decide(job.id, found[3], approve())
    assert decided.model_dump() == {"id": found[3], "gate": "refunds", "decision": "approve"}
    assert EpochFiles.records(tmp_path / "sinks" / "out") == [0, 1, 2, 3]  # a checkpoint has it
    await jobs.decide(job.id, found[4], approve(value=[40]))
    rejected = JobDecision(gate="refunds", decision="reject", reason="too much")
    await jobs.decide(job.id, found[5], rejected)  # the last one: the run comes to its end
    assert await ended(jobs, job.id) == "finished"
    assert EpochFiles.records(tmp_path / "sinks" / "out") == [0, 1, 2, 3, [40]]
    assert EpochFiles.records(tmp_path / "sinks" / "bad") == [
        (5, "RejectedError: it was rejected in inbox 'refunds': too much")
    ]
    assert jobs.get(job.id).gates == {}


async def test_a_decision_outlives_the_process(jobs: JobManager, tmp_path: Path) -> None:
    job = await submitted(jobs, "refunds", folder=str(tmp_path / "sinks"))
    running = await waiting(jobs, job.id, 2)
    found = await ids(jobs, job.id)
    await jobs.decide(job.id, found[4], approve(value=None))
    assert running.pid is not None
    os.kill(running.pid, signal.SIGKILL)
    async for again in jobs.watch(job.id):
        if again.restarts and again.state == "running" and again.gates:
            break
    assert await ids(jobs, job.id) == {3: found[3]}  # under its id
    await jobs.decide(job.id, found[3], approve())
    assert await ended(jobs, job.id) == "finished"
    assert EpochFiles.records(tmp_path / "sinks" / "out") == [0, 1, 2, None, 3]


async def test_what_is_wrong_with_a_decision_is_told(jobs: JobManager, tmp_path: Path) -> None:
    job = await submitted(jobs, "refunds", folder=str(tmp_path / "sinks"))
    await waiting(jobs, job.id, 2)
    found = await ids(jobs, job.id)
    with pytest.raises(NotFoundError, match=r"Job refunds: inbox 'refunds' has nothing with the id 'nobody'"):
        await jobs.decide(job.id, "nobody", approve())
    with pytest.raises(NotFoundError, match=r"there is no inbox 'else'; there are: refunds"):
        await jobs.decide(job.id, found[3], approve(gate="else"))
    await jobs.decide(job.id, found[3], approve())
    with pytest.raises(NotFoundError, match="has nothing with the id"):
        await jobs.decide(job.id, found[3], approve())
    with pytest.raises(NotFoundError, match="There is no job 'nobody'"):
        await jobs.gates("nobody")


async def test_a_job_that_does_not_run_has_its_gates_in_its_checkpoint(
    jobs: JobManager, tmp_path: Path
) -> None:
    job = await submitted(jobs, "refunds", folder=str(tmp_path / "sinks"))
    await waiting(jobs, job.id, 2)
    found = await ids(jobs, job.id)
    await jobs.pause(job.id)
    async for paused in jobs.watch(job.id):
        if paused.state == "paused":
            assert paused.gates == {}
            break
    with pytest.raises(ConflictError, match="Job refunds is paused: what waits at its gates is in its check"):
        await jobs.gates(job.id)
    with pytest.raises(ConflictError, match="is paused"):
        await jobs.decide(job.id, found[3], approve())
    await jobs.resume(job.id)
    await waiting(jobs, job.id, 2)
    assert await ids(jobs, job.id) == found


async def test_a_rejection_that_fails_the_run_is_told_to_who_decided(jobs: JobManager) -> None:
    job = await submitted(jobs, "strict")
    await waiting(jobs, job.id, 1)
    [ident] = (await ids(jobs, job.id)).values()
    with pytest.raises(
        ConflictError, match=r"operator 'refunds' failed on item 0 \(1\): it was rejected"
    ) as told:
        await jobs.decide(job.id, ident, JobDecision(gate="refunds", decision="reject"))
    assert "on_error skip or divert" in told.value.hint
    async for again in jobs.watch(job.id):
        if again.restarts and again.gates:
            break
    assert (await ids(jobs, job.id)).keys() == {1}  # it failed, so it is asked for again


async def test_many_decide_at_once(jobs: JobManager, tmp_path: Path) -> None:
    job = await submitted(jobs, "refunds", folder=str(tmp_path / "sinks"), count=43)
    await waiting(jobs, job.id, 40)
    found = await ids(jobs, job.id)
    await asyncio.gather(*(jobs.decide(job.id, ident, approve()) for ident in found.values()))
    assert await ended(jobs, job.id) == "finished"
    assert sorted(EpochFiles.records(tmp_path / "sinks" / "out")) == list(range(43))


async def test_records_that_are_no_json_are_told_in_words_and_not_all_at_once(
    jobs: JobManager, tmp_path: Path
) -> None:
    job = await submitted(jobs, "waiting_for_all", folder=str(tmp_path / "sinks"), count=SHOWN + 20)
    await waiting(jobs, job.id, SHOWN + 20)
    [gate] = (await jobs.gates(job.id)).gates
    assert (gate.waiting, len(gate.records)) == (SHOWN + 20, SHOWN)
    first, second, third, *_ = [one.record for one in gate.records]
    assert third == 2
    assert isinstance(first, str)
    assert first.startswith("{'éé")
    assert len(first.encode("ascii", "backslashreplace")) < 4096
    assert isinstance(second, str)
    assert len(second) == 4096
    assert second.endswith("x…")


async def test_who_asks_while_the_process_dies_is_told(jobs: JobManager, tmp_path: Path) -> None:
    job = await submitted(jobs, "refunds", folder=str(tmp_path / "sinks"))
    running = await waiting(jobs, job.id, 2)
    assert running.pid is not None
    os.kill(running.pid, signal.SIGSTOP)
    asking = asyncio.create_task(jobs.gates(job.id))
    await asyncio.sleep(0)
    os.kill(running.pid, signal.SIGKILL)
    with pytest.raises(ConflictError, match="Job refunds: its process has ended"):
        await asking


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"decision": "reject", "value": None}, "has no value to go on with"),
        ({"decision": "approve", "reason": "fine"}, "a reason is for a record that is rejected"),
        ({"decision": "maybe"}, "'approve' or 'reject'"),
    ],
)
def test_decisions_that_make_no_sense_are_none(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        JobDecision.model_validate({"gate": "refunds", **given})
