"""Failing disks: what was acknowledged stays, what failed is said, and all works again afterwards."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import apsw
import pytest

from sage.common.errors import SageError
from sage.platform.state import write_atomic
from sage.platform.testing.faults import Call, FaultFileSystem, Faults, FaultVFS, Kind

KINDS: tuple[Kind, ...] = ("full", "io")


@pytest.fixture
def faults() -> Faults:
    return Faults()


@pytest.fixture
def vfs(faults: Faults) -> Iterator[str]:
    made = FaultVFS("faults", faults)
    yield made.name
    made.unregister()


@pytest.mark.parametrize("lasting", [False, True])
def test_the_nth_call_of_one_kind_is_due(faults: Faults, lasting: bool) -> None:
    assert not faults.due("write")
    faults.arm("write", 2, "io", lasting=lasting)
    assert [faults.due("sync"), faults.due("write"), faults.due("write"), faults.due("write")] == [
        False,
        False,
        True,
        lasting,
    ]
    assert faults.fired == 1 + lasting
    faults.disarm()
    assert not faults.due("write")
    assert faults.fired == 1 + lasting
    faults.arm("sync", 1, "full")
    assert faults.fired == 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("call", ["open", "write", "sync", "rename"])
def test_write_atomic_keeps_the_old_file_until_the_disk_works_again(
    tmp_path: Path, faults: Faults, call: Call, kind: Kind
) -> None:
    target, fs = tmp_path / "run.json", FaultFileSystem(faults)
    write_atomic(target, b"old", fs=fs)
    faults.arm(call, 1, kind)
    words = "No space left to write" if kind == "full" else "Cannot write"
    with pytest.raises(SageError, match=f"{words} {target}"):
        write_atomic(target, b"new" * 1000, fs=fs)
    assert faults.fired == 1
    assert target.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["run.json"]
    write_atomic(target, b"new", fs=fs)
    assert target.read_bytes() == b"new"


def test_write_atomic_that_cannot_sync_the_folder_says_so(tmp_path: Path, faults: Faults) -> None:
    target, fs = tmp_path / "run.json", FaultFileSystem(faults)
    write_atomic(target, b"old", fs=fs)
    faults.arm("sync_folder", 1, "io")
    with pytest.raises(SageError, match="Cannot write"):
        write_atomic(target, b"new", fs=fs)
    assert target.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["run.json"]


@pytest.mark.parametrize(
    ("call", "kind", "number"),
    [
        ("write", "io", apsw.SQLITE_IOERR_WRITE),
        ("write", "full", apsw.SQLITE_FULL),
        ("sync", "io", apsw.SQLITE_IOERR_FSYNC),
        ("sync", "full", apsw.SQLITE_FULL),
        ("open", "full", apsw.SQLITE_CANTOPEN),
    ],
)
def test_sqlite_sees_the_code_of_a_real_disk(
    tmp_path: Path, faults: Faults, vfs: str, call: Call, kind: Kind, number: int
) -> None:
    faults.arm(call, 1, kind)
    with pytest.raises(apsw.Error) as caught:
        apsw.Connection(str(tmp_path / "a.db"), vfs=vfs).execute("CREATE TABLE t (a)")
    assert getattr(caught.value, "extendedresult", None) == number


def test_truncations_and_deletions_fail_too(tmp_path: Path, faults: Faults, vfs: str) -> None:
    connection = apsw.Connection(str(tmp_path / "a.db"), vfs=vfs)
    connection.execute("PRAGMA journal_mode=WAL").fetchall()
    connection.execute("CREATE TABLE t (a)")
    faults.arm("truncate", 1, "io")
    with pytest.raises(apsw.IOError, match="error at truncate"):
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    assert connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall() == [(0, 0, 0)]
    faults.arm("delete", 1, "full")
    with pytest.raises(apsw.FullError, match="full disk at delete"):
        connection.execute("PRAGMA journal_mode=DELETE").fetchall()
    assert connection.execute("PRAGMA journal_mode=DELETE").fetchall() == [("delete",)]
    connection.close()
