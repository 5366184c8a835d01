"""Power cuts under a load of commits: what was acknowledged is there after each of them."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import apsw
import pytest

from sage.platform.testing.faults import Faults, FaultVFS
from sage.platform.testing.power import Crash, Disk, PowerCutVFS

CRASHES = 100
Read = Callable[[Path], tuple[dict[int, bytes], list[str]]]


@dataclass
class Outcome:
    """What was found after the power cuts."""

    crashes: int = 0
    acknowledged: int = 0
    lost: int = 0
    losing_crashes: int = 0
    unsound: list[str] = field(default_factory=list)


@pytest.fixture
def disk() -> Disk:
    return Disk()


@pytest.fixture
def vfs(disk: Disk) -> Iterator[str]:
    made = PowerCutVFS("power-cut", disk)
    yield made.name
    made.unregister()


def _payload(row: int) -> bytes:
    """Short ones share a page, every twentieth fills overflow pages."""
    return f"{row}:".encode() * (2000 if row % 20 == 0 else 10)


def _open(path: Path, vfs: str, synchronous: str) -> apsw.Connection:
    connection = apsw.Connection(str(path), vfs=vfs)
    connection.execute("PRAGMA journal_mode=WAL").fetchall()
    connection.execute(f"PRAGMA synchronous={synchronous}").fetchall()
    connection.execute("PRAGMA wal_autocheckpoint=40").fetchall()
    connection.execute(
        "CREATE TABLE IF NOT EXISTS rows (id INTEGER PRIMARY KEY, data BLOB) STRICT"
    ).fetchall()
    return connection


def _insert(connection: apsw.Connection, rows: range, disk: Disk) -> None:
    with connection:
        connection.executemany("INSERT INTO rows VALUES (?, ?)", ((i, _payload(i)) for i in rows))
    for row in rows:
        disk.acknowledge(row)


def _raw_load(path: Path, vfs: str, synchronous: str, disk: Disk) -> None:
    """300 commits of 1 to 8 rows; checkpoints often, so that the database file is written too."""
    rng = random.Random(1)  # noqa: S311
    connection = _open(path, vfs, synchronous)
    row = 0
    for _ in range(300):
        group = range(row, row + rng.randint(1, 8))
        row = group.stop
        _insert(connection, group, disk)
    connection.close()


def _read(image: Path) -> tuple[dict[int, bytes], list[str]]:
    """The rows after recovery, and what the check of integrity says."""
    connection = apsw.Connection(str(image))
    try:
        said = [str(word) for (word,) in connection.execute("PRAGMA integrity_check")]
        if not connection.execute("SELECT 1 FROM sqlite_schema WHERE name = 'rows'").fetchall():
            return {}, said
        rows = connection.execute("SELECT id, data FROM rows").fetchall()
        return {int(str(row)): data for row, data in rows if isinstance(data, bytes)}, said
    finally:
        connection.close()


def _crashes(disk: Disk) -> Iterator[tuple[int, Crash]]:
    """Cut the power at random points of what was recorded."""
    rng = random.Random(2)  # noqa: S311
    for seed in range(CRASHES):
        yield seed, disk.crash(seed, rng.randrange(len(disk)))


def _survey(disk: Disk, folder: Path, read: Read) -> Outcome:
    outcome = Outcome()
    for seed, crash in _crashes(disk):
        rows, said = _reopen(crash, folder / str(seed), read)
        lost = {row for row in crash.acknowledged if row not in rows}
        outcome.crashes += 1
        outcome.acknowledged += len(crash.acknowledged)
        outcome.lost += len(lost)
        outcome.losing_crashes += bool(lost)
        if said != ["ok"]:
            outcome.unsound.append(f"seed {seed} at {crash.at}: {said}")
        outcome.unsound += [f"seed {seed}: row {i}" for i, data in rows.items() if data != _payload(i)]
    return outcome


def _reopen(crash: Crash, folder: Path, read: Read) -> tuple[dict[int, bytes], list[str]]:
    folder.mkdir()
    crash.write_to(folder)
    return read(folder / "store.db")


def test_full_loses_no_acknowledged_row_in_100_power_cuts(disk: Disk, vfs: str, tmp_path: Path) -> None:
    _raw_load(tmp_path / "store.db", vfs, "FULL", disk)
    outcome = _survey(disk, tmp_path, _read)
    assert outcome.unsound == []
    assert outcome.lost == 0
    assert outcome.acknowledged > 20_000


def test_normal_loses_rows_so_the_power_cuts_are_real(disk: Disk, vfs: str, tmp_path: Path) -> None:
    _raw_load(tmp_path / "store.db", vfs, "NORMAL", disk)
    outcome = _survey(disk, tmp_path, _read)
    assert outcome.losing_crashes > CRASHES / 2, outcome


def test_without_any_sync_the_power_cuts_corrupt(disk: Disk, vfs: str, tmp_path: Path) -> None:
    _raw_load(tmp_path / "store.db", vfs, "OFF", disk)
    broken = 0
    for seed, crash in _crashes(disk):
        try:
            _, said = _reopen(crash, tmp_path / str(seed), _read)
            broken += said != ["ok"]
        except (apsw.CorruptError, apsw.NotADBError, apsw.CantOpenError):
            broken += 1
    assert broken > CRASHES / 4


def test_a_second_power_cut_during_or_after_the_recovery_loses_nothing(
    disk: Disk, vfs: str, tmp_path: Path
) -> None:
    _raw_load(tmp_path / "store.db", vfs, "FULL", disk)
    unfinished = 0
    for seed, crash in list(_crashes(disk))[:30]:
        folder = tmp_path / str(seed)
        folder.mkdir()
        crash.write_to(folder)
        again = Disk()
        for path in folder.iterdir():
            again.opened(path, existed=True)
        begin = len(again)
        second = PowerCutVFS("power-cut-again", again)
        connection = _open(folder / "store.db", second.name, "FULL")
        _insert(connection, range(10_000, 10_004), again)
        connection.close()
        second.unregister()
        for number, at in enumerate(range(begin, len(again), 5)):
            last = again.crash(seed, at)
            rows, said = _reopen(last, folder / str(number), _read)
            assert said == ["ok"]
            assert crash.acknowledged | last.acknowledged <= set(rows)
            unfinished += not last.acknowledged
    assert unfinished > 30


def test_a_sync_that_failed_and_then_a_power_cut_loses_nothing_acknowledged(tmp_path: Path) -> None:
    faults = Faults()
    below = FaultVFS("faults-below", faults)
    nth = 0
    while nth == 0 or faults.fired:
        nth += 1
        disk = Disk()
        vfs = PowerCutVFS("power-cut-above", disk, base=below.name)
        folder = tmp_path / str(nth)
        folder.mkdir()
        connection = _open(folder / "store.db", vfs.name, "FULL")
        faults.arm("sync", nth, "io")
        for row in range(0, 120, 3):
            with contextlib.suppress(apsw.IOError):
                _insert(connection, range(row, row + 3), disk)
        faults.disarm()
        connection.close()
        vfs.unregister()
        for seed in range(4):
            crash = disk.crash(seed, len(disk) * (seed + 1) // 4)
            rows, said = _reopen(crash, folder / str(seed), _read)
            assert said == ["ok"]
            assert crash.acknowledged <= set(rows), f"sync {nth}, seed {seed}"
    assert nth > 40
    below.unregister()
