"""Power cuts under the queue: a message that was put is there until it is done, and never after."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from sage.platform.queue.sqlite import SqliteQueue
from sage.platform.storage.sqlite import Database
from sage.platform.testing.power import Crash, Disk, PowerCutVFS

CRASHES = 100
MESSAGES = 40  # of each of four producers


@pytest.fixture
def disk() -> Disk:
    return Disk()


@pytest.fixture
def vfs(disk: Disk) -> Iterator[str]:
    made = PowerCutVFS("power-cut-queue", disk)
    yield made.name
    made.unregister()


async def _load(path: Path, vfs: str, disk: Disk) -> None:
    """Four producers and two consumers; the consumers stop in the middle."""
    database = Database(path, vfs=vfs)
    queue = await SqliteQueue.open(database, "jobs")

    async def produce(number: int) -> None:
        for i in range(MESSAGES):
            body = f"{number}/{i}".encode()
            await queue.put(body, priority=i % 3)
            disk.acknowledge(("put", body))

    async def consume() -> None:
        for _ in range(MESSAGES // 4):
            leases = await queue.get(4, lease=3600)
            for lease in leases:
                disk.acknowledge(("leased", lease.body))
            await queue.ack(*leases)
            for lease in leases:
                disk.acknowledge(("done", lease.body))

    await asyncio.gather(*(produce(number) for number in range(4)), consume(), consume())
    await queue.close()
    await database.close()


def _image(crash: Crash, folder: Path) -> Path:
    folder.mkdir()
    crash.write_to(folder)
    return folder / "store.db"


def _told(crash: Crash, what: str) -> set[bytes]:
    told = [event for event in crash.acknowledged if isinstance(event, tuple)]
    return {body for kind, body in told if kind == what}


async def test_no_put_is_lost_and_nothing_done_comes_back_in_100_power_cuts(
    disk: Disk, vfs: str, tmp_path: Path
) -> None:
    await _load(tmp_path / "store.db", vfs, disk)
    rng = random.Random(6)  # noqa: S311
    put = done = 0
    for seed in range(CRASHES):
        crash = disk.crash(seed, rng.randrange(len(disk)))
        database = Database(_image(crash, tmp_path / str(seed)))
        queue = await SqliteQueue.open(database, "jobs")  # makes the tables if the power failed before that
        there = await database.read(
            lambda db: {bytes(body) for (body,) in db.execute("SELECT body FROM queue_message")}
        )
        assert _told(crash, "put") - _told(crash, "leased") <= there, f"seed {seed} at {crash.at}"
        assert not _told(crash, "done") & there, f"seed {seed} at {crash.at}"
        stats = await queue.stats()
        assert stats.items == len(there)
        assert stats.bytes == sum(map(len, there))
        put += len(_told(crash, "put"))
        done += len(_told(crash, "done"))
        await database.close()
    assert put > 5_000
    assert done > 2_000
