"""Power cuts under `Database`: what it acknowledged is there."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Iterator
from pathlib import Path

import apsw
import pytest

from sage.common.errors import SageError
from sage.platform.storage.sqlite import Database
from sage.platform.testing.faults import Faults, FaultVFS
from sage.platform.testing.power import Crash, Disk, PowerCutVFS

CRASHES = 100


@pytest.fixture
def disk() -> Disk:
    return Disk()


@pytest.fixture
def vfs(disk: Disk) -> Iterator[str]:
    made = PowerCutVFS("power-cut-database", disk)
    yield made.name
    made.unregister()


def _payload(row: int) -> bytes:
    return f"{row}:".encode() * (2500 if row % 4 == 0 else 10)


async def _insert(database: Database, rows: range, disk: Disk) -> None:
    values = [(row, _payload(row)) for row in rows]
    await database.write(lambda db: db.executemany("INSERT INTO rows VALUES (?, ?)", values))
    for row in rows:
        disk.acknowledge(row)


async def _load(path: Path, vfs: str, disk: Disk) -> None:
    """Eight writers at once, each of 50 writes of 1 to 4 rows; late in it, the WAL is emptied twice too."""
    database = Database(path, vfs=vfs)
    await database.write(
        lambda db: db.execute("CREATE TABLE rows (id INTEGER PRIMARY KEY, data BLOB) STRICT")
    )

    async def writer(number: int) -> None:
        rng = random.Random(number)  # noqa: S311
        row = 10_000 * number
        for count in range(50):
            if number == 0 and count in (40, 45):
                assert await database.integrity() == []
            rows = range(row, row + rng.randint(1, 4))
            row = rows.stop
            await _insert(database, rows, disk)

    await asyncio.gather(*(writer(number) for number in range(8)))
    await database.close()


async def _rows(database: Database) -> dict[int, bytes]:
    def read(db: apsw.Connection) -> dict[int, bytes]:
        if not db.execute("SELECT 1 FROM sqlite_schema WHERE name = 'rows'").fetchall():
            return {}
        return {int(str(row)): bytes(data) for row, data in db.execute("SELECT id, data FROM rows")}

    return await database.read(read)


def _image(crash: Crash, folder: Path) -> Path:
    folder.mkdir()
    crash.write_to(folder)
    return folder / "store.db"


class _LyingDisk(Disk):
    def synced(self, file: int) -> None:
        """It only says so."""


async def test_no_acknowledged_row_is_lost_in_100_power_cuts(disk: Disk, vfs: str, tmp_path: Path) -> None:
    await _load(tmp_path / "store.db", vfs, disk)
    rng = random.Random(2)  # noqa: S311
    acknowledged = 0
    for seed in range(CRASHES):
        crash = disk.crash(seed, rng.randrange(len(disk)))
        database = Database(_image(crash, tmp_path / str(seed)))
        rows = await _rows(database)
        problems = await database.integrity()
        await database.close()
        assert problems == [], f"seed {seed} at {crash.at}"
        assert crash.acknowledged <= set(rows), f"seed {seed} at {crash.at}"
        assert all(data == _payload(row) for row, data in rows.items())
        acknowledged += len(crash.acknowledged)
    assert acknowledged > 20_000


async def test_over_a_disk_that_only_says_it_synced_rows_are_lost(tmp_path: Path) -> None:
    disk = _LyingDisk()
    vfs = PowerCutVFS("power-cut-liar", disk)
    await _load(tmp_path / "store.db", vfs.name, disk)
    rng = random.Random(2)  # noqa: S311
    losing = 0
    for seed in range(30):
        crash = disk.crash(seed, rng.randrange(len(disk) // 2, len(disk)))
        try:
            database = Database(_image(crash, tmp_path / str(seed)))
        except SageError:
            losing += 1
            continue
        try:
            losing += not crash.acknowledged <= set(await _rows(database))
        except SageError:
            losing += 1
        await database.close()
    vfs.unregister()
    assert losing > 15


async def test_a_sync_that_failed_and_then_a_power_cut_loses_nothing_acknowledged(tmp_path: Path) -> None:
    faults = Faults()
    below = FaultVFS("faults-below-database", faults)
    nth = 0
    while nth == 0 or faults.fired:
        nth += 1
        disk = Disk()
        vfs = PowerCutVFS("power-cut-above-faults", disk, base=below.name)
        database = Database(tmp_path / str(nth) / "store.db", vfs=vfs.name)
        await database.write(
            lambda db: db.execute("CREATE TABLE rows (id INTEGER PRIMARY KEY, data BLOB) STRICT")
        )
        faults.arm("sync", nth, "io")
        for row in range(20):
            with contextlib.suppress(SageError):
                await _insert(database, range(row, row + 1), disk)
            if row == 10:
                await database.integrity()  # moves the WAL into the file
        faults.disarm()
        await database.close()
        vfs.unregister()
        for seed in range(4):
            crash = disk.crash(seed, len(disk) * (seed + 1) // 4)
            again = Database(_image(crash, tmp_path / f"{nth}-{seed}"))
            assert crash.acknowledged <= set(await _rows(again)), f"sync {nth}, seed {seed}"
            assert await again.integrity() == []
            await again.close()
    assert nth > 20
    below.unregister()
