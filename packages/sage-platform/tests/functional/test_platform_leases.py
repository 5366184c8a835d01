"""Leases between real processes."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from sage.common.errors import ConflictError, ForbiddenError, SageError, UsageError
from sage.common.ports import find_free
from sage.platform.leases import lease_folder, lease_port

HOLDER = """
import signal, sys
from pathlib import Path
from sage.platform.leases import lease_port
lease = lease_port((int(sys.argv[1]), int(sys.argv[2])), folder=Path(sys.argv[3]))
print(lease.port, flush=True)
signal.pause()
"""
SPAN = 200


@pytest.fixture
def low() -> int:
    return find_free((20000, 29000))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "run" / "ports"


@pytest.fixture
def holders(low: int, folder: Path) -> Iterator[list[subprocess.Popen[str]]]:
    """Four processes that lease from the same range at the same time."""
    command = [sys.executable, "-c", HOLDER, str(low), str(low + SPAN), str(folder)]
    made = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    yield made
    for process in made:
        process.kill()
        process.communicate()


def _port(process: subprocess.Popen[str]) -> int:
    assert process.stdout is not None
    return int(process.stdout.readline())


def test_processes_never_get_the_same_and_kill_9_gives_it_back(
    holders: list[subprocess.Popen[str]], low: int, folder: Path
) -> None:
    ports = [_port(process) for process in holders]
    assert len(set(ports)) == 4
    with pytest.raises(ConflictError, match=f"Port {ports[0]} is in use on 127.0.0.1; 1 leased by process"):
        lease_port(ports[0], folder=folder)
    holders[0].send_signal(signal.SIGKILL)
    holders[0].wait()
    with lease_port(ports[0], folder=folder) as lease:
        assert lease.port == ports[0]


def test_threads_of_one_process_never_get_the_same(low: int, folder: Path) -> None:
    leases = []
    threads = [
        threading.Thread(target=lambda: leases.append(lease_port((low, low + SPAN), folder=folder)))
        for _ in range(20)
    ]
    with ExitStack() as stack:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for lease in leases:
            stack.enter_context(lease)
        assert len({lease.port for lease in leases}) == 20


def test_a_port_that_somebody_listens_on_is_passed_over(low: int, folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        taken = stranger.getsockname()[1]
        with pytest.raises(ConflictError, match=rf"Port {taken} is in use on 127.0.0.1\. Stop what"):
            lease_port(taken, folder=folder)


def test_a_range_with_nothing_left_names_who_has_it(low: int, folder: Path) -> None:
    with lease_port(low, folder=folder), pytest.raises(ConflictError, match=f"by process {os.getpid()}"):
        lease_port((low, low), folder=folder)
    lease = lease_port(low, folder=folder)
    lease.release()
    lease.release()
    assert (folder / str(low)).read_bytes() == b""


def test_a_forked_child_does_not_keep_what_was_released(low: int, folder: Path) -> None:
    lease = lease_port(low, folder=folder)
    with subprocess.Popen(
        [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=[lease._lock or 0]
    ) as child:
        lease.release()
        lease_port(low, folder=folder).release()
        child.communicate(b"\n")


@pytest.mark.parametrize("span", [(5, 4), (0, 9), (1, 65536), 0])
def test_what_is_no_range_is_refused(span: tuple[int, int] | int, folder: Path) -> None:
    with pytest.raises(UsageError, match="are no range; valid are 1 to 65535"):
        lease_port(span, folder=folder)


def test_a_folder_that_others_can_write_to_is_refused(low: int, folder: Path, tmp_path: Path) -> None:
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    with pytest.raises(ForbiddenError, match="is not a folder of user"):
        lease_port(low, folder=folder)
    (tmp_path / "link").symlink_to(folder.parent)
    with pytest.raises(ForbiddenError, match="link is not a folder"):
        lease_port(low, folder=tmp_path / "link" / "ports")
    (tmp_path / "file").touch()
    with pytest.raises(SageError, match=r"Not a directory|not a folder"):
        lease_port(low, folder=tmp_path / "file" / "ports")


def test_the_folder_is_private_and_the_users_own() -> None:
    with lease_port((20000, 29999)):
        assert lease_folder().stat().st_mode & 0o777 == 0o700
        assert str(lease_folder()).endswith("/ports")
