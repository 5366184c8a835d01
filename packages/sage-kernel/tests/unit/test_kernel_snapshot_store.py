"""The folder of checkpoints: it passes the suite, and a power cut leaves no file that is half there."""

from __future__ import annotations

import errno
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sage.common.errors import ConflictError, SageError
from sage.kernel.runtime.archive import Archive
from sage.kernel.runtime.manifest import Manifest
from sage.kernel.runtime.state import Changes
from sage.kernel.runtime.store import FolderStore
from sage.kernel.testing.snapshots import SnapshotStoreSuite
from sage.platform.state import FileSystem
from sage.platform.testing.power import Disk, PowerCutFileSystem


class TestFolderStore(SnapshotStoreSuite):
    @pytest.fixture
    def make(self, tmp_path: Path) -> Callable[[], FolderStore]:
        return lambda: FolderStore(tmp_path / "checkpoints")


def test_another_process_is_named(tmp_path: Path) -> None:
    code = (
        "import sys; from sage.kernel.runtime.store import FolderStore; FolderStore(sys.argv[1]).open();"
        "print('open', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        with pytest.raises(ConflictError, match=f"in use by process {child.pid}.*Let that run end"):
            FolderStore(tmp_path).open()
        child.kill()
    store = FolderStore(tmp_path)
    store.open()  # the lock went with the process
    store.close()


def test_what_was_half_written_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".state-00000001.x1").write_bytes(b"half")
    (tmp_path / ".state-00000001m.x2").write_bytes(b"half")
    for name in ("notes", ".notes"):
        (tmp_path / name).write_bytes(b"of somebody else")
    store = FolderStore(tmp_path)
    store.open()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".notes", "notes", "owner.lock"]
    store.close()


class FullDisk(FileSystem):
    """Has no room left."""

    def write(self, fd: int, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_is_a_clear_error_and_leaves_nothing(tmp_path: Path) -> None:
    store = FolderStore(tmp_path, fs=FullDisk())
    store.open()
    with pytest.raises(SageError, match=f"No space left to write {tmp_path}"):
        store.write("name", [b"x"])
    with pytest.raises(SageError, match=f"No space left to write {tmp_path}"):
        store.append("log", b"x")
    store.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log", "owner.lock"]


@pytest.mark.parametrize("seed", range(5))
def test_a_power_cut_takes_no_checkpoint_that_was_acknowledged(tmp_path: Path, seed: int) -> None:
    """Whenever the power fails, the newest sound checkpoint is the last that was saved, or a later one."""
    disk = Disk()
    store = FolderStore(tmp_path / "live", fs=PowerCutFileSystem(disk))
    store.open()
    archive = Archive(store, keep=2)
    for epoch in range(1, 6):
        keys = [b"%d" % (epoch % 3), b"shared"]
        archive.save(_manifest(epoch), {"stage": b"%d" % epoch}, {"op": Changes(keys, [b"%d" % epoch] * 2)})
        disk.acknowledge(epoch)
        archive.tidy()
    store.close()
    for at in range(0, len(disk) + 1, 3):
        crash = disk.crash(seed, at)
        folder = tmp_path / f"{at}"
        folder.mkdir()
        crash.write_to(folder)
        found = FolderStore(folder)
        found.open()
        last = max((int(str(epoch)) for epoch in crash.acknowledged), default=0)
        try:
            restored, _ = Archive(found, keep=2).newest()
        except SageError:
            restored = None
        epoch = restored.manifest.epoch if restored else 0
        assert epoch >= last
        if restored:
            assert restored.plain == {"stage": b"%d" % epoch}
            assert restored.states["op"][b"shared"] == b"%d" % epoch
        found.close()


def _manifest(epoch: int) -> Manifest:
    return Manifest("flow", epoch, False, {}, ())
