from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from sage.common.errors import ForbiddenError, NotFoundError, SageError, UsageError
from sage.platform.state import StateDirectory, explain, read_secret, write_atomic


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_directories_are_private_at_every_level(tmp_path: Path) -> None:
    with StateDirectory(tmp_path / "a" / "b") as state:
        state.write_atomic(Path("c/d.json"), b"{}")
        state.secret(Path("e/f.key"), lambda: "x")
    for folder in ("a", "a/b", "a/b/c", "a/b/e"):
        assert _mode(tmp_path / folder) == 0o700
    assert _mode(tmp_path / "a/b/c/d.json") == 0o600


def test_the_same_owner_may_ask_again_and_release_twice(tmp_path: Path) -> None:
    state = StateDirectory(tmp_path)
    state.acquire()
    state.acquire()
    state.release()
    state.release()
    with StateDirectory(tmp_path):
        assert (tmp_path / "owner.lock").read_text() == str(os.getpid())


def test_a_secret_is_made_once_and_read_later(tmp_path: Path) -> None:
    state = StateDirectory(tmp_path)
    made = iter(["first", "second"])
    target = tmp_path / "default.key"
    assert state.secret(target, lambda: next(made)) == "first"
    assert state.secret(Path("default.key"), lambda: next(made)) == "first"
    assert read_secret(target) == "first"
    assert _mode(target) == 0o600
    assert os.listdir(tmp_path) == ["default.key"]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o700 | 0o010])
def test_a_secret_that_others_can_reach_is_refused(tmp_path: Path, mode: int) -> None:
    secret = tmp_path / "k"
    secret.write_text("x")
    secret.chmod(mode)
    with pytest.raises(ForbiddenError, match=rf"mode {mode:04o}; valid is 0600\). Run `chmod 600 {secret}`"):
        StateDirectory(tmp_path).secret(secret, lambda: "new")
    assert secret.read_text() == "x"


def test_a_link_or_a_folder_is_no_secret(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("x")
    (tmp_path / "real").chmod(0o600)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(ForbiddenError, match="Cannot read the secret"):
        read_secret(tmp_path / "link")
    with pytest.raises(NotFoundError, match="There is no secret at"):
        read_secret(tmp_path / "none")
    (tmp_path / "folder").mkdir(mode=0o700)
    with pytest.raises(ForbiddenError, match="is not a plain file"):
        read_secret(tmp_path / "folder")


def test_another_users_secret_is_refused(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root to give a file away")
    secret = tmp_path / "k"
    secret.write_text("x")
    secret.chmod(0o600)
    os.chown(secret, 12345, -1)
    with pytest.raises(ForbiddenError, match="belongs to user 12345, not to 0"):
        read_secret(secret)


@pytest.mark.parametrize("path", ["../out", "/etc/sage-key", "a/../../out"])
def test_nothing_is_written_outside(tmp_path: Path, path: str) -> None:
    state = StateDirectory(tmp_path / "state")
    with pytest.raises(UsageError, match="is not below the state directory"):
        state.secret(Path(path), lambda: "x")
    with pytest.raises(UsageError, match="is not below the state directory"):
        state.write_atomic(Path(path), b"x")


def test_a_write_replaces_all_and_leaves_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "run.json"
    write_atomic(target, b"a" * 1000)
    write_atomic(target, b"new", mode=0o644)
    assert target.read_bytes() == b"new"
    assert _mode(target) == 0o644
    assert os.listdir(tmp_path) == ["run.json"]


def test_a_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "run.json"
    target.mkdir()
    with pytest.raises(SageError, match=f"Cannot write {target}: Is a directory"):
        write_atomic(target, b"x")
    with pytest.raises(SageError, match="No such file or directory"):
        write_atomic(tmp_path / "none" / "file", b"x")
    assert os.listdir(tmp_path) == ["run.json"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_one_clear_sentence(number: int) -> None:
    error = explain(OSError(number, os.strerror(number)), Path("/x/run.json"))
    assert str(error).startswith("No space left to write /x/run.json (")


def test_a_write_beyond_the_limit_of_this_process_fails_whole(tmp_path: Path) -> None:
    program = (
        "import resource, sys; from pathlib import Path\n"
        "from sage.common.errors import SageError; from sage.platform.state import write_atomic\n"
        "target = Path(sys.argv[1]); write_atomic(target, b'old')\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "try: write_atomic(target, b'x' * 100_000)\n"
        "except SageError as error: print(error)\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "f")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("No space left to write")
    assert (tmp_path / "f").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["f"]
