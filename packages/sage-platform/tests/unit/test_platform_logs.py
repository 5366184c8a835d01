from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage.platform.service.guard import Log, cut
from sage.platform.service.logs import LogMark, Rotation, open_log

LINES = st.lists(st.binary(max_size=40).map(lambda b: b.replace(b"\n", b"")), max_size=40)


def _open(path: Path, max_bytes: int, keep: int = 1000) -> tuple[int, Log]:
    fd = open_log(path)
    return fd, Log((fd,), str(path), max_bytes, keep)


def _files(path: Path) -> list[bytes]:
    """Oldest first."""
    numbered = sorted(path.parent.glob(f"{path.name}.*"), key=lambda f: -int(f.suffix[1:]))
    return [file.read_bytes() for file in [*numbered, path]]


def test_logs_rotate_at_start_and_keep_three(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "a.log"
    for turn in range(6):
        os.close(open_log(log, Rotation(max_bytes=5)))
        log.write_text(f"turn {turn}")
    assert sorted(file.name for file in log.parent.iterdir()) == ["a.log", "a.log.1", "a.log.2", "a.log.3"]
    assert _files(log) == [f"turn {turn}".encode() for turn in (2, 3, 4, 5)]


def test_the_last_line_is_of_this_life_only(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    nothing = LogMark.now(log)
    assert nothing.last_line() == ""
    log.write_bytes(b"old\n" + b"x" * 50_000 + b"\n  last \xff\n\n")
    assert nothing.last_line() == "last \N{REPLACEMENT CHARACTER}"
    mark = LogMark.now(log)
    assert mark.last_line() == ""
    log.rename(tmp_path / "a.log.1")
    log.write_bytes(b"new\n")
    assert mark.text() == "new\n"


@given(LINES, st.integers(1, 60), st.lists(st.integers(1, 30), min_size=1))
def test_no_byte_is_lost_and_files_begin_with_a_line(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes], most: int, steps: list[int]
) -> None:
    path = tmp_path_factory.mktemp("log") / "a.log"
    data = b"".join(line + b"\n" for line in lines)
    fd, log = _open(path, most)
    at = 0
    while at < len(data):  # in pieces that know nothing of lines
        step = steps[at % len(steps)]
        log.write(data[at : at + step])
        at += step
    os.close(fd)
    files = _files(path)
    assert b"".join(files) == data
    for file in files[:-1]:
        assert file.endswith(b"\n")
        assert len(file) <= most or file.rindex(b"\n", 0, len(file)) + 1 == len(file)
        assert len(file) <= most + 41


@given(st.binary(max_size=200), st.integers(0, 100), st.integers(1, 100), st.booleans())
def test_a_cut_always_gets_on(data: bytes, size: int, limit: int, within: bool) -> None:
    fits = cut(data, size, limit, within_line=within)
    assert 0 <= fits <= len(data)
    assert fits or size or not data, "a new file takes something"


def test_a_line_without_an_end_is_cut_and_the_size_bounded(tmp_path: Path) -> None:
    fd, log = _open(tmp_path / "a.log", 1000, keep=2)
    for _ in range(100):
        log.write(b"x" * 10_000)
    os.close(fd)
    assert sum(map(len, _files(tmp_path / "a.log"))) <= 3 * (1000 + 64 * 1024)
    assert len(_files(tmp_path / "a.log")) == 3


def test_older_files_are_kept_up_to_the_number(tmp_path: Path) -> None:
    fd, log = _open(tmp_path / "a.log", 4, keep=2)
    for turn in range(9):
        log.write(b"%d..\n" % turn)
    os.close(fd)
    assert _files(tmp_path / "a.log") == [b"6..\n", b"7..\n", b"8..\n"]


FULL = """
import os, resource, sys
from sage.platform.service.guard import Log
fd = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
log = Log((fd,), sys.argv[1], 10**9, 1)
log.write(b"first\\n")
resource.setrlimit(resource.RLIMIT_FSIZE, (10, resource.RLIM_INFINITY))
log.write(b"second\\n")
log.write(b"third\\n")
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
log.write(b"fourth\\n")
log.write(b"fifth\\n")
"""


def test_a_full_disk_loses_lines_says_so_and_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    if resource.getrlimit(resource.RLIMIT_FSIZE)[1] != resource.RLIM_INFINITY:
        pytest.skip("the size of files is limited here")
    subprocess.run([sys.executable, "-c", FULL, str(path)], check=True)
    assert path.read_text() == "first\nseco\n[9 bytes of this log were lost: File too large]\nfourth\nfifth\n"


def test_a_folder_that_is_gone_does_not_end_it(tmp_path: Path) -> None:
    folder = tmp_path / "logs"
    fd, log = _open(folder / "a.log", 5)
    log.write(b"one..\n")
    (folder / "a.log").unlink()
    folder.rmdir()
    log.write(b"lost\n")
    folder.mkdir()
    log.write(b"two\n")
    os.close(fd)
    said = [*_files(folder / "a.log")]
    assert said[-1] == b"two\n"
    assert b"5 bytes of this log were lost: No such file" in said[-2]
