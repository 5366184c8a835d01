"""No orphan ever: whatever way the supervising process ends, nothing of its services is left."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from sage.common.ports import find_free, is_free
from sage.platform import daemon
from sage.platform.service import process
from sage.platform.testing import scripted_service

# Supervises one service until it is killed. `fork`: a child keeps a copy of every descriptor, the line to the
# guard among them. `thread`: the loop does not run in the main thread.
PROGRAM = """
import asyncio, json, os, signal, sys, threading
from pathlib import Path
from sage.platform.service import ServiceSpec, Supervisor
port, log, how, *argv = sys.argv[1:]
spec = ServiceSpec("svc", tuple(argv), f"http://127.0.0.1:{port}/health", Path(log))
supervisor = Supervisor()
async def main():
    await supervisor.start(spec)
    status = await supervisor.wait_ready("svc")
    holder = 0
    if how == "fork":
        holder = os.fork()
        if holder == 0:
            signal.pause()
    print(json.dumps([status.pid, holder]), flush=True)
    if how == "return":
        return
    await asyncio.Event().wait()
if how == "thread":
    threading.Thread(target=lambda: asyncio.run(main())).start()
    signal.pause()
asyncio.run(main())
"""


class Family:
    """A supervising process, its guard, and a service with a child and a grandchild in its own session."""

    def __init__(self, folder: Path, how: str) -> None:
        self.port = find_free((20000, 29999))
        command = scripted_service(self.port, ignore_term=True, family=True)
        self.parent = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(self.port), str(folder / "svc.log"), how, *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self.parent.stdout is not None
        service, self.holder = json.loads(self.parent.stdout.readline())
        self.guard = psutil.Process(service).ppid() if psutil.pid_exists(service) else 0
        self.service = service

    def pids(self) -> list[int]:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/about", timeout=10) as answer:
            return [self.guard, *json.load(answer)["pids"]]

    def end(self) -> None:
        for pid in filter(None, (self.holder, self.parent.pid)):
            if psutil.pid_exists(pid):
                os.kill(pid, signal.SIGKILL)
        self.parent.wait()
        assert self.parent.stdout is not None
        self.parent.stdout.close()


@pytest.fixture
def family(tmp_path: Path) -> Iterator[Callable[[str], Family]]:
    made: list[Family] = []

    def make(how: str) -> Family:
        made.append(Family(tmp_path, how))
        return made[-1]

    yield make
    for one in made:
        one.end()


def _wait_gone(pids: list[int]) -> float:
    """Wait for the end of all; how long it took. Fails with those that are left after ten seconds."""
    begin = time.monotonic()
    while left := [pid for pid in pids if daemon.alive(pid)]:
        assert time.monotonic() - begin < 10, f"still there: {left}"
        os.sched_yield()
    return time.monotonic() - begin


@pytest.mark.parametrize("how", ["plain", "fork", "thread"])
def test_kill_9_of_the_supervisor_ends_the_whole_tree(family: Callable[[str], Family], how: str) -> None:
    tree = family(how)
    pids = tree.pids()
    assert len(pids) == 4
    assert len({os.getsid(pid) for pid in pids}) == 3  # guard, service with child, grandchild
    tree.parent.send_signal(signal.SIGKILL)
    assert _wait_gone(pids) < 5
    assert is_free(tree.port)


def test_a_supervisor_that_forgets_to_close_leaves_nothing(family: Callable[[str], Family]) -> None:
    tree = family("return")
    tree.parent.wait(timeout=20)
    if psutil.pid_exists(tree.service):
        _wait_gone([tree.service])
    assert is_free(tree.port)


def test_sigterm_to_the_guard_ends_the_service(family: Callable[[str], Family]) -> None:
    tree = family("plain")
    pids = tree.pids()
    os.kill(tree.guard, signal.SIGTERM)
    _wait_gone(pids[1:])


def test_the_end_of_the_thread_that_started_it_is_not_the_end_of_the_service(tmp_path: Path) -> None:
    """The parent-death signal follows the thread; the guard must look at its parent's pid instead."""
    guard_file = Path(process.__file__).with_name("guard.py")
    ours, theirs = socket.socketpair()
    nap = [sys.executable, "-I", "-S", "-c", "import signal; signal.pause()"]
    log = {"path": str(tmp_path / "svc.log"), "max_bytes": 1000, "keep": 1}
    given = json.dumps({"cores": [], "limits": {}, "log": log})
    program = [sys.executable, "-I", "-S", str(guard_file), str(theirs.fileno()), str(os.getpid()), given]
    command = [*program, "--", *nap]
    guards: list[subprocess.Popen[bytes]] = []
    thread = threading.Thread(
        target=lambda: guards.append(subprocess.Popen(command, pass_fds=(theirs.fileno(),)))
    )
    with ours, theirs, ours.makefile("rb") as line:
        thread.start()
        thread.join()
        theirs.close()
        pid = int(line.readline().split()[1])
        assert daemon.alive(pid)
        ours.sendall(b"stop 20\n")
        assert line.readline() == b"exit -15\n"
    assert guards[0].wait(20) == 0
