"""Where jobs are kept: rows, folders and logs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from sage.common.errors import ConflictError, NotFoundError, SageError
from sage.common.jobs import CheckpointInfo, JobResources, JobSpec, OperatorInfo
from sage.kernel.jobs.folders import Folders
from sage.kernel.jobs.logs import read_log
from sage.kernel.jobs.restart import Restart
from sage.kernel.jobs.states import Job
from sage.kernel.jobs.store import JobStore
from sage.platform.storage.sqlite import Database

SPEC = JobSpec(plan={"name": "x", "steps": []}, settings={"a.b": [1, None]})
OPERATOR = OperatorInfo(
    name="a",
    verb="map",
    items_in=1,
    items_out=2,
    diverted=3,
    skipped=4,
    retries=5,
    in_flight=6,
    busy=0.5,
    wait=0.25,
)
JOB = Job(
    id="job-1",
    name="one",
    flow="x",
    created=1.5,
    restart=Restart.parse("rate:3:60:2"),
    every=2.5,
    source="a:b",
    resources=JobResources(cpu=2, labels={"disk": "fast"}),
    state="failed",
    detail="why",
    started=2.0,
    ended=3.0,
    restarts=2,
    crashes=(2.0, 3.0),
    node="here",
    placement="pack: it has room",
    checkpoint=CheckpointInfo(number=7, at=2.75),
    operators=(OPERATOR,),
)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[JobStore]:
    store = await JobStore.open(Database(tmp_path / "jobs.db"))
    yield store
    await store.close()


async def test_a_job_comes_back_as_it_was(store: JobStore, tmp_path: Path) -> None:
    await store.add(JOB)
    await store.close()
    again = await JobStore.open(Database(tmp_path / "jobs.db"))
    assert await again.all() == [JOB]
    await again.close()


async def test_rows_are_changed_and_removed_in_order(store: JobStore) -> None:
    from dataclasses import replace

    await store.add(JOB)
    await store.add(replace(JOB, id="job-2", name="two"))
    with pytest.raises(ConflictError, match="named 'one' already"):
        await store.add(replace(JOB, id="job-3"))
    await asyncio.gather(*(store.put(replace(JOB, restarts=n)) for n in range(50)))
    assert [job.restarts for job in await store.all()] == [49, 2]
    await store.remove("job-1")
    await store.put(JOB)  # too late
    assert [job.name for job in await store.all()] == ["two"]


def test_a_folder_is_private_and_goes_with_all_that_is_in_it(tmp_path: Path) -> None:
    folders = Folders(tmp_path / "jobs")
    folders.sweep([])
    folders.make("job-1", SPEC)
    folders.make("job-2", SPEC)
    for path in (folders.root, folders.root / "job-1", folders.checkpoints("job-1")):
        assert path.stat().st_mode & 0o777 == 0o700
    assert (folders.root / "job-1" / "spec.json").stat().st_mode & 0o777 == 0o600
    assert folders.spec("job-1") == SPEC
    folders.log("job-1").write_text("words")
    folders.sweep(["job-2"])
    assert [path.name for path in folders.root.iterdir()] == ["job-2"]
    folders.remove("job-1")
    with pytest.raises(NotFoundError, match=r"is not in .* any more"):
        folders.spec("job-1")
    (folders.root / "job-2" / "spec.json").write_text("{}")
    with pytest.raises(NotFoundError, match="any more"):
        folders.spec("job-2")
    with pytest.raises(SageError, match="Cannot write"):
        folders.make("job-2", SPEC)


async def test_a_log_is_read_from_its_last_lines(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert [piece async for piece in read_log(log, 10)] == []
    log.write_text("a\nb\nc")
    assert [piece async for piece in read_log(log, 2)] == [b"b\nc"]
    assert [piece async for piece in read_log(log, 0)] == [b""]


async def test_a_log_is_followed_over_the_file_that_takes_its_place(tmp_path: Path) -> None:
    log, steps = tmp_path / "log", iter(["begin", "more", "change", "end"])
    log.write_text("a\nb\n")

    def more() -> bool:
        """What is written between two looks; False once there is no more."""
        step = next(steps)
        with log.open("a") as file:
            file.write(f"{step}\n")
        if step == "change":
            log.rename(tmp_path / "log.1")
            log.write_text("fresh\n")
        return step != "end"

    assert b"".join([piece async for piece in read_log(log, 1, more)]) == (
        b"b\nbegin\nmore\nchange\nfresh\nend\n"
    )


async def test_a_log_that_is_not_there_yet_is_awaited(tmp_path: Path) -> None:
    log, looks = tmp_path / "log", iter([True, True, False, False])

    def more() -> bool:
        there = next(looks)
        if not there:
            log.write_text("late\n")
        return there

    assert [piece async for piece in read_log(log, 5, more)] == [b"late\n"]
