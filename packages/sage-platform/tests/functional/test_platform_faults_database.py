"""Failing disks under `Database`: failures are said, nothing acknowledged goes, it works again afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from sage.common.errors import SageError
from sage.platform.storage.sqlite import Database
from sage.platform.testing.faults import Call, Faults, FaultVFS, Kind

CALLS: tuple[Call, ...] = ("open", "write", "sync", "truncate", "delete")


@pytest.fixture
def faults() -> Faults:
    return Faults()


@pytest.fixture
def vfs(faults: Faults) -> Iterator[str]:
    made = FaultVFS("faults-database", faults)
    yield made.name
    made.unregister()


async def _create(path: Path, vfs: str = "") -> Database:
    database = Database(path, vfs=vfs or None)
    await database.write(
        lambda db: db.execute("CREATE TABLE IF NOT EXISTS rows (id INTEGER PRIMARY KEY, data BLOB) STRICT")
    )
    return database


async def _insert(database: Database, row: int) -> None:
    data = f"{row}:".encode() * 1500
    await database.write(lambda db: db.execute("INSERT INTO rows VALUES (?, ?)", (row, data)))


async def _rows(database: Database) -> set[int]:
    return await database.read(lambda db: {int(str(row)) for (row,) in db.execute("SELECT id FROM rows")})


async def _one_fault(
    path: Path, vfs: str, faults: Faults, call: Call, nth: int, kind: Kind, lasting: bool
) -> int:
    """Ten writes over a disk with that fault; how often it fired."""
    database = await _create(path, vfs)
    faults.arm(call, nth, kind, lasting=lasting)
    acknowledged: set[int] = set()
    failed: set[int] = set()
    for row in range(10):
        try:
            await _insert(database, row)
            acknowledged.add(row)
        except SageError as error:
            assert str(path) in str(error)  # noqa: PT017
            failed.add(row)
    faults.disarm()
    await _insert(database, 100)
    found = await _rows(database)
    assert acknowledged | {100} <= found <= acknowledged | failed | {100}
    await database.close()
    again = await _create(path)
    assert acknowledged | {100} <= await _rows(again)
    assert await again.integrity() == []
    await again.close()
    assert bool(failed) <= bool(faults.fired)
    return faults.fired


@pytest.mark.parametrize("lasting", [False, True])
@pytest.mark.parametrize("kind", ["full", "io"])
@pytest.mark.parametrize("call", CALLS)
async def test_whichever_call_fails_nothing_acknowledged_goes_and_it_works_again(
    tmp_path: Path, faults: Faults, vfs: str, call: Call, kind: Kind, lasting: bool
) -> None:
    nth = 0
    while nth == 0 or faults.fired:
        nth += 1
        await _one_fault(tmp_path / f"{nth}.db", vfs, faults, call, nth, kind, lasting)


@pytest.mark.parametrize("kind", ["full", "io"])
@pytest.mark.parametrize("call", CALLS)
async def test_a_database_that_cannot_be_made_says_so_and_can_be_made_later(
    tmp_path: Path, faults: Faults, vfs: str, call: Call, kind: Kind
) -> None:
    nth = 0
    while nth == 0 or faults.fired:
        nth += 1
        path = tmp_path / f"{nth}.db"
        faults.arm(call, nth, kind)
        try:
            database = await _create(path, vfs)
        except SageError as error:
            assert str(path) in str(error)  # noqa: PT017
            assert faults.fired
            faults.disarm()
            database = await _create(path, vfs)
        faults.disarm()
        await _insert(database, 1)
        assert await _rows(database) == {1}
        await database.close()
