"""The checkpoints of a flow of requests: journal, folder, and disks that fail."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from kernel_served import Calls, cut, numbered, service, submit

from sage.common.errors import UnavailableError
from sage.kernel import (
    CheckpointError,
    Checkpoints,
    Flow,
    LocalEnvironment,
    OperatorError,
    PlanError,
)
from sage.kernel.runtime.store import FolderStore
from sage.kernel.testing.sinks import EpochFiles


async def test_a_checkpoint_takes_the_place_of_the_journal(tmp_path: Path) -> None:
    calls = Calls(5)
    flow = service(lambda s: s.map(calls))
    job = await submit(tmp_path, flow, checkpoints=Checkpoints(tmp_path / "checkpoints", every=0, keep=2))
    asking = asyncio.create_task(job.request(5, id="5"))
    await calls.reached.wait()
    for number in range(10, 15):
        await job.request(number, id=str(number))
        assert await job.checkpoint() == number - 9
    report = job.report()
    assert (report.resumed, report.epoch) == (0, 5)
    await cut(job, asking)
    names = FolderStore(tmp_path / "checkpoints").names()
    assert [name for name in names if name.startswith("manifest")] == [
        "manifest-00000004",
        "manifest-00000005",
    ]
    assert [name for name in names if name.startswith("requests")] == ["requests-00000005"]

    calls.stuck.clear()
    async with await submit(tmp_path, flow) as job:
        assert job.report().resumed == 5
        assert await job.request(5, id="5") == 5
        assert [await job.request(n, id=str(n)) for n in range(10, 15)] == list(range(10, 15))
    assert set(calls.made.values()) == {1, 2}


async def test_it_goes_on_from_the_one_before_where_the_newest_is_damaged(tmp_path: Path) -> None:
    calls = Calls()
    flow = service(lambda s: s.map(calls).keyby(lambda x: 0).scan(int, numbered))
    job = await submit(tmp_path, flow)
    for number in range(4):
        await job.request(number, id=str(number))
        await job.checkpoint()
    await job.request(4, id="4")
    await job.stop(drain=False)
    (tmp_path / "checkpoints" / "state-00000004").write_bytes(b"damaged")
    async with await submit(tmp_path, flow) as job:
        assert [await job.request(n, id=str(n)) for n in range(5)] == [(n, n) for n in range(5)]
        assert await job.request(5) == (5, 5)
        report = job.report()
        assert report.resumed == 3
        assert "checkpoint 4 is damaged" in report.warnings[0]
    assert set(calls.made.values()) == {1}


async def test_an_end_of_the_journal_that_was_not_written_is_told(tmp_path: Path) -> None:
    calls = Calls()
    flow = service(lambda s: s.map(calls))
    job = await submit(tmp_path, flow)
    for number in range(3):
        await job.request(number, id=str(number))
    await job.stop(drain=False)
    journal = tmp_path / "checkpoints" / "requests-00000001"
    journal.write_bytes(journal.read_bytes()[:-3])  # the last reply, which nobody has had then
    async with await submit(tmp_path, flow) as job:
        [warning] = job.report().warnings
        assert warning.startswith("requests-00000001: record 8 ends in its middle")
        assert job.taken_up == 1
        assert [await job.request(n, id=str(n)) for n in range(3)] == [0, 1, 2]
    assert set(calls.made.values()) == {1}


async def test_it_takes_checkpoints_by_itself(tmp_path: Path) -> None:
    flow = service(lambda s: s.map(str))
    checkpoints = Checkpoints(tmp_path / "checkpoints", every=0.001)
    async with await submit(tmp_path, flow, checkpoints=checkpoints) as job:
        await job.request(1)
        async with asyncio.timeout(20):
            while not job.report().epoch:  # noqa: ASYNC110 - its time is short
                await asyncio.sleep(0.001)


async def test_an_idle_job_takes_none(tmp_path: Path) -> None:
    flow = service(lambda s: s.map(str))
    checkpoints = Checkpoints(tmp_path / "checkpoints", every=0.001)
    job = await submit(tmp_path, flow, checkpoints=checkpoints)
    for _ in range(20):
        await asyncio.sleep(0.001)
    assert job.report().epoch == 0
    await job.stop(drain=False)


async def test_requests_that_come_together_share_their_writes(tmp_path: Path) -> None:
    class Counted(FolderStore):
        appends = 0

        def append(self, name: str, data: bytes, /) -> None:
            self.appends += 1
            super().append(name, data)

    store = Counted(tmp_path / "checkpoints")
    flow = service(lambda s: s.map(lambda x: x + 1).map(lambda x: x + 1, name="second"))
    async with await submit(tmp_path, flow, checkpoints=Checkpoints(store, every=0)) as job:
        assert await asyncio.gather(*map(job.request, range(64))) == list(range(2, 66))
        assert store.appends == 2  # all that came, then all replies


async def test_nothing_is_answered_that_is_not_kept(tmp_path: Path) -> None:
    class Filling(FolderStore):
        full = False

        def append(self, name: str, data: bytes, /) -> None:
            if self.full:
                raise OSError("no space left")
            super().append(name, data)

    store, calls = Filling(tmp_path / "checkpoints"), Calls("answered too late")
    flow = service(lambda s: s.map(calls))
    job = await submit(tmp_path, flow, checkpoints=Checkpoints(store, every=0))
    assert await job.request(1) == 1
    late = asyncio.create_task(job.request("answered too late", id="late"))
    await calls.reached.wait()
    store.full = True
    for _ in range(2):
        with pytest.raises(
            UnavailableError, match=r"takes no requests, as they cannot be kept: no space left"
        ):
            await job.request(2)
    with pytest.raises(UnavailableError, match="cannot be kept"):
        await job.checkpoint()
    assert 2 not in calls.made  # it was never taken
    await cut(job, late)

    calls.stuck.clear()
    async with await submit(tmp_path, flow) as job:
        assert job.taken_up == 1
        assert await job.request("answered too late", id="late") == "answered too late"


async def test_a_checkpoint_that_fails_is_the_end(tmp_path: Path) -> None:
    class Broken:
        async def write(self, epoch: int, items: Any) -> None: ...

        async def prepare(self, epoch: int) -> Any:
            raise ConnectionError("no bucket")

        async def commit(self, epoch: int) -> None: ...

        async def recover(self, epoch: int, prepared: Any) -> None: ...

    flow = Flow("service")
    asks = flow.requests(int)
    asks.sink(Broken(), name="bucket")
    flow.reply(asks)
    job = await submit(tmp_path, flow)
    assert await job.request(1) == 1
    with pytest.raises(
        OperatorError, match="prepare of operator 'bucket' failed: ConnectionError: no bucket"
    ):
        await job.checkpoint()
    with pytest.raises(UnavailableError, match="no bucket"):
        await job.request(2)
    await job.stop(drain=False)


async def test_the_end_of_a_job_is_a_checkpoint(tmp_path: Path) -> None:
    out = tmp_path / "out"
    flow = Flow("service")
    asks = flow.requests(int)
    asks.sink(EpochFiles(out))
    flow.reply(asks)
    async with await submit(tmp_path, flow) as job:
        await job.request(1)
    assert EpochFiles.records(out) == [1]
    assert job.report().epoch == 1


async def test_a_folder_is_for_one_flow_that_stays_as_it_is(tmp_path: Path) -> None:
    async with await submit(tmp_path, service(lambda s: s.map(str, name="a"))) as job:
        await job.request(1)
        with pytest.raises(Exception, match="in use by a run of this process"):
            await submit(tmp_path, service(lambda s: s.map(str, name="a")))
    with pytest.raises(
        CheckpointError, match=r"operator 'a' \(map\) is in the checkpoint and not in the flow"
    ):
        await submit(tmp_path, service(lambda s: s.map(str, name="b")))
    with pytest.raises(
        CheckpointError, match="the checkpoints are those of flow 'service', and this is flow 'x'"
    ):
        await submit(tmp_path, service(lambda s: s.map(str, name="a"), "x"))
    finite = Flow("service")
    finite.source([1]).sink(print)
    with pytest.raises(CheckpointError, match="does not fit"):
        await LocalEnvironment(checkpoints=Checkpoints(tmp_path / "checkpoints")).run(finite)


async def test_two_sinks_are_two_objects(tmp_path: Path) -> None:
    sink = EpochFiles(tmp_path / "out")
    flow = Flow("service")
    asks = flow.requests(int)
    asks.sink(sink, name="a")
    asks.sink(sink, name="b")
    flow.reply(asks)
    with pytest.raises(PlanError, match="sinks 'a' and 'b' are one object"):
        await submit(tmp_path, flow)
