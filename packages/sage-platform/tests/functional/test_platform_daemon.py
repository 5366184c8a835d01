from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from sage.common.errors import ConflictError, SageError, UsageError
from sage.platform import daemon
from sage.platform.state import StateDirectory

STUBBORN = (
    "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); signal.pause()"
)
POLITE = "import os, signal; print(os.environ['MARK'], os.getsid(0), flush=True); signal.pause()"
OWNER = (
    "import signal, sys; from pathlib import Path; from sage.platform.state import StateDirectory\n"
    "StateDirectory(Path(sys.argv[1])).acquire(); print('owner', flush=True); signal.pause()"
)


def _python(program: str, *arguments: str) -> list[str]:
    return [sys.executable, "-c", program, *arguments]


def _wait_for_text(log: Path) -> str:
    """The log's text, once there is some. The process writes it when it is set up."""
    deadline = time.monotonic() + 20
    while not log.exists() or not log.read_text().endswith("\n"):
        assert time.monotonic() < deadline
        os.sched_yield()
    return log.read_text()


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "logs" / "sage.log"


@pytest.fixture
def started() -> Iterator[list[int]]:
    pids: list[int] = []
    yield pids
    for pid in pids:
        daemon.terminate(pid, 0)


def test_a_daemon_is_detached_and_ends_on_sigterm(log: Path, started: list[int]) -> None:
    before = time.time()
    pid = daemon.spawn(_python(POLITE), log, {"MARK": "here"})
    started.append(pid)
    assert _wait_for_text(log) == f"here {pid}\n"
    assert log.stat().st_mode & 0o777 == 0o600
    assert daemon.alive(pid)
    assert daemon.alive(pid, time.time())
    assert not daemon.alive(pid, before - 60)  # that was another process of the same number
    assert daemon.terminate(pid, 20)
    assert not daemon.alive(pid)
    assert daemon.terminate(pid, 20)


def test_a_log_that_is_full_is_moved_aside(log: Path, started: list[int]) -> None:
    log.parent.mkdir()
    with log.open("wb") as file:
        file.truncate(11 * 1024 * 1024)
    started.append(daemon.spawn(_python(POLITE), log, {"MARK": "new"}))
    assert _wait_for_text(log).startswith("new ")
    assert log.with_name("sage.log.1").stat().st_size == 11 * 1024 * 1024


def test_one_that_ignores_sigterm_is_killed(log: Path, started: list[int]) -> None:
    pid = daemon.spawn(_python(STUBBORN), log)
    started.append(pid)
    _wait_for_text(log)
    assert daemon.terminate(pid, 0.05) is False
    assert not daemon.alive(pid)


def test_a_process_of_another_time_is_not_touched(log: Path, started: list[int]) -> None:
    pid = daemon.spawn(_python(STUBBORN), log)
    started.append(pid)
    assert daemon.terminate(pid, 5, started=time.time() - 3600)
    assert daemon.alive(pid)


def test_it_outlives_the_one_that_started_it(log: Path, started: list[int]) -> None:
    program = (
        "import sys; from pathlib import Path; from sage.platform import daemon\n"
        "print(daemon.spawn([sys.executable, '-c', sys.argv[1]], Path(sys.argv[2])))"
    )
    done = subprocess.run(_python(program, STUBBORN, str(log)), capture_output=True, text=True, check=True)
    started.append(int(done.stdout))
    _wait_for_text(log)
    assert daemon.alive(int(done.stdout))


def test_a_zombie_and_a_number_nobody_has_are_not_alive() -> None:
    child = subprocess.Popen(_python("pass"))
    psutil.Process(child.pid).wait(20)
    assert not daemon.alive(child.pid)
    child.wait()
    assert not daemon.alive(2**30)
    assert not daemon.alive(-1)
    assert not daemon.alive(2**80)


def test_what_cannot_be_started(tmp_path: Path, log: Path) -> None:
    with pytest.raises(SageError, match="Cannot start /no/such: No such file"):
        daemon.spawn(["/no/such"], log)
    with pytest.raises(SageError, match="Cannot write the log"):
        daemon.spawn(_python("pass"), tmp_path)
    with pytest.raises(UsageError, match="no command"):
        daemon.spawn([], log)


def test_a_state_directory_has_one_owner_even_after_kill_9(tmp_path: Path) -> None:
    state = tmp_path / "state"
    owner = subprocess.Popen(_python(OWNER, str(state)), stdout=subprocess.PIPE)
    assert owner.stdout is not None
    assert owner.stdout.readline() == b"owner\n"
    with pytest.raises(ConflictError, match=f"{state} is in use by process {owner.pid}"):
        StateDirectory(state).acquire()
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    owner.stdout.close()
    with StateDirectory(state):
        assert (state / "owner.lock").read_text() == str(os.getpid())
