"""The model of the disk itself, without SQLite: what it must keep, and what it may lose."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sage.platform.state import FileSystem, write_atomic
from sage.platform.testing.power import Disk, PowerCutFileSystem

A, B = Path("/d/a"), Path("/d/b")
SEEDS = range(60)


def _contents(disk: Disk, name: Path = A) -> set[bytes | None]:
    return {disk.crash(seed).files.get(name) for seed in SEEDS}


def _synced(data: bytes) -> tuple[Disk, int]:
    disk = Disk()
    file = disk.opened(A, existed=False)
    disk.written(file, 0, data)
    disk.synced(file)
    disk.folder_synced(A.parent)
    return disk, file


def test_what_is_synced_is_there_in_every_crash() -> None:
    disk, _ = _synced(b"x" * 2000)
    assert _contents(disk) == {b"x" * 2000}


def test_a_new_name_can_be_lost_although_its_bytes_are_synced() -> None:
    disk = Disk()
    file = disk.opened(A, existed=False)
    disk.written(file, 0, b"x")
    disk.synced(file)
    assert _contents(disk) == {None, b"x"}


def test_unsynced_writes_arrive_by_sectors_of_512_bytes() -> None:
    disk, file = _synced(b"o" * 2048)
    disk.written(file, 100, b"n" * 1500)
    seen = _contents(disk)
    assert {b"o" * 2048, b"o" * 100 + b"n" * 1500 + b"o" * 448} <= seen
    parts = [(0, 100), (100, 512), (512, 1024), (1024, 1536), (1536, 1600), (1600, 2048)]
    for content in seen:
        assert content is not None
        assert all(len(set(content[begin:end])) == 1 for begin, end in parts)
    assert len(seen) > 4


def test_an_earlier_write_can_be_lost_and_a_later_one_stay() -> None:
    disk, file = _synced(bytes(1024))
    disk.written(file, 0, b"1" * 512)
    disk.written(file, 512, b"2" * 512)
    assert bytes(512) + b"2" * 512 in _contents(disk)


def test_beyond_the_synced_end_are_zeros_or_noise() -> None:
    disk, file = _synced(b"o" * 512)
    disk.written(file, 512, b"n" * 1024)
    beyond = {(content or b"")[512:1024] for content in _contents(disk)}
    assert {b"", b"n" * 512, bytes(512)} < beyond
    assert len(beyond) > 3


def test_an_unsynced_truncation_happens_or_not() -> None:
    disk, file = _synced(b"x" * 600)
    disk.truncated(file, 10)
    assert _contents(disk) == {b"x" * 600, b"x" * 10}
    disk.synced(file)
    assert _contents(disk) == {b"x" * 10}
    disk.truncated(file, 12)
    disk.synced(file)
    assert _contents(disk) == {b"x" * 10 + bytes(2)}


def test_after_a_failed_sync_the_next_one_does_not_bring_the_rest() -> None:
    disk, file = _synced(bytes(512))
    disk.written(file, 0, b"n" * 512)
    disk.sync_failed(file)
    disk.synced(file)
    assert _contents(disk) == {bytes(512), b"n" * 512}
    disk.written(file, 0, b"m" * 512)
    disk.synced(file)
    assert _contents(disk) == {b"m" * 512}


def test_a_deleted_name_comes_back_until_the_folder_is_synced() -> None:
    disk, _ = _synced(b"x")
    disk.deleted(A)
    assert _contents(disk) == {b"x", None}
    disk.folder_synced(Path("/other"))
    assert _contents(disk) == {b"x", None}
    disk.folder_synced(A.parent)
    assert _contents(disk) == {None}


def test_a_rename_is_whole_or_not_there() -> None:
    disk, _ = _synced(b"x")
    disk.renamed(A, B)
    assert {frozenset(disk.crash(seed).files) for seed in SEEDS} == {frozenset({A}), frozenset({B})}


def test_a_crash_knows_what_was_acknowledged_before_it_and_is_the_same_for_a_seed() -> None:
    disk, file = _synced(bytes(4096))
    disk.acknowledge("first")
    at = len(disk)
    disk.written(file, 0, b"y" * 4096)
    disk.acknowledge("second")
    assert disk.crash(1, at).acknowledged == {"first"}
    assert disk.crash(1).acknowledged == {"first", "second"}
    assert disk.crash(3) == disk.crash(3)
    assert disk.crash(1, at).files == {A: bytes(4096)}


def test_what_was_there_before_counts_as_synced(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"old")
    disk = Disk()
    assert disk.opened(tmp_path / "f", existed=True) == disk.opened(tmp_path / "f", existed=True)
    assert _contents(disk, tmp_path / "f") == {b"old"}


def test_an_image_is_written_by_name(tmp_path: Path) -> None:
    disk, _ = _synced(b"x")
    disk.crash(0).write_to(tmp_path)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"x"]


Step = tuple[str, int, bytes]
_steps = st.lists(
    st.tuples(
        st.sampled_from(["write", "truncate", "sync", "folder"]),
        st.integers(0, 3000),
        st.binary(min_size=1, max_size=8).map(lambda unit: unit * 200),
    ),
    max_size=20,
)


@settings(deadline=None)
@given(_steps, st.integers(0, 2**32))
def test_the_model_agrees_with_a_file_once_all_is_synced(steps: list[Step], seed: int) -> None:
    disk = Disk()
    number = disk.opened(A, existed=False)
    with tempfile.TemporaryFile() as real:
        for what, where, data in steps:
            if what == "write":
                os.pwrite(real.fileno(), data, where)
                disk.written(number, where, data)
            elif what == "truncate":
                real.truncate(where)
                disk.truncated(number, where)
            elif what == "sync":
                disk.synced(number)
            else:
                disk.folder_synced(A.parent)
        disk.synced(number)
        disk.folder_synced(A.parent)
        real.seek(0)
        assert disk.crash(seed).files == {A: real.read()}


class _NeverSyncs(PowerCutFileSystem):
    def sync(self, fd: int) -> None:
        """A disk that only says it has."""


def _crashes_of_write_atomic(folder: Path, make: Callable[[Disk], FileSystem]) -> set[tuple[bytes, bytes]]:
    """What `f` was last acknowledged to hold, and holds: power cuts at every point of two replacements."""
    target = folder / "f"
    target.write_bytes(b"0" * 1500)
    disk = Disk()
    disk.opened(target, existed=True)
    begin = len(disk)
    fs = make(disk)
    for version in (b"1" * 1500, b"2" * 1500):
        write_atomic(target, version, fs=fs)
        disk.acknowledge(version)
    found: set[tuple[bytes, bytes]] = set()
    for at in range(begin, len(disk) + 1):
        for seed in range(20):
            crash = disk.crash(seed, at)
            acknowledged = [version for version in crash.acknowledged if isinstance(version, bytes)]
            found.add((max(acknowledged, default=b""), crash.files[target]))
    return found


def test_write_atomic_is_whole_or_not_there_at_any_power_cut(tmp_path: Path) -> None:
    found = _crashes_of_write_atomic(tmp_path, PowerCutFileSystem)
    assert {held for _, held in found} == {b"0" * 1500, b"1" * 1500, b"2" * 1500}
    assert all(held >= acknowledged for acknowledged, held in found)


def test_without_fsync_the_same_power_cuts_tear_the_file(tmp_path: Path) -> None:
    found = _crashes_of_write_atomic(tmp_path, _NeverSyncs)
    assert len({held for _, held in found} - {b"0" * 1500, b"1" * 1500, b"2" * 1500}) > 3


@pytest.mark.parametrize("size", [0, 1, 100_000])
def test_write_atomic_writes_the_same_through_the_recorder(tmp_path: Path, size: int) -> None:
    disk = Disk()
    write_atomic(tmp_path / "f", b"z" * size, fs=PowerCutFileSystem(disk))
    assert (tmp_path / "f").read_bytes() == b"z" * size
    assert disk.crash(9).files == {tmp_path / "f": b"z" * size}
