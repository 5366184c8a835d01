"""The resident guard: runs one service and outlives neither it nor the supervisor.

Run as a file with `python -I -S guard.py FD PARENT_PID CORES -- COMMAND…`, standard library only, so that it
stays small. FD is one end of a stream socket to the supervisor: `stop SECONDS` comes in, `pid N` and
`exit CODE` go out, and end-of-file means that the supervisor is gone.

The guard is a child subreaper: whatever the service starts stays below the guard, also what changed its
process group or session or was orphaned by its own parent. The parent-death signal alone would not do: it
follows the *thread* that started the guard, and reaches only direct children.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import time
from types import FrameType

__all__ = ["main"]

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_LINUX = sys.platform.startswith("linux")
_WAKING = (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)


def _prctl(option: int, value: int) -> None:
    """Best effort: without it the socket's end-of-file still does the work."""
    if not _LINUX:
        return
    import ctypes

    ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def _wake(_signum: int, _frame: FrameType | None) -> None:
    """The number of the signal is in the wake-up pipe; nothing to do here."""


def _waking_pipe() -> int:
    """Turn signals into bytes on a pipe, one byte a signal, so that one select sees everything."""
    reader, writer = os.pipe()
    for end in (reader, writer):
        os.set_blocking(end, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    for number in _WAKING:
        signal.signal(number, _wake)
    return reader


def _start(command: list[str], cores: list[int]) -> int:
    """Fork and execute the service in a session of its own; returns its pid once it executes.

    A stop signal sent any earlier would meet this program's handlers, and be lost.
    """
    guard = os.getpid()
    executes, closed_by_exec = os.pipe()
    pid = os.fork()
    if pid:
        os.close(closed_by_exec)
        os.read(executes, 1)
        os.close(executes)
        return pid
    try:
        os.setsid()
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != guard:  # it died before the line above
            os._exit(1)
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them, and exec hands that on
            signal.signal(number, signal.SIG_DFL)
        if cores and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, cores)
        os.execvp(command[0], command)  # noqa: S606 - the command comes from the supervisor's own arguments
    except OSError as error:
        os.write(2, f"Cannot start {command[0]}: {error.strerror}\n".encode())
    os._exit(127)


def _descendants(root: int) -> list[int]:
    """Every process below `root`, from /proc; empty where there is none."""
    children: dict[int, list[int]] = {}
    with contextlib.suppress(OSError):
        for entry in os.listdir("/proc"):
            if not entry.isdigit():
                continue
            with contextlib.suppress(OSError), open(f"/proc/{entry}/stat", "rb") as stat:
                # The command in parentheses may hold anything, so count from the last one.
                parent = int(stat.read().rpartition(b")")[2].split()[1])
                children.setdefault(parent, []).append(int(entry))
    found: list[int] = []
    front = [root]
    while front:
        front = [child for parent in front for child in children.get(parent, ())]
        found += front
    return found


def _signal_group(leader: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, number)


def _reap(service: int) -> tuple[int | None, bool]:
    """Collect all children that ended: the service's exit code if it did, and whether any child is left."""
    code: int | None = None
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return code, False
        if pid == 0:
            return code, True
        if pid == service:
            code = os.waitstatus_to_exitcode(status)


def _watch(link: int, wake: int, service: int, parent: int) -> int | None:
    """Wait for a reason to end. Returns the service's exit code if it ended by itself or on request."""
    deadline: float | None = None
    while os.getppid() == parent:
        timeout = None if deadline is None else max(0.0, deadline - time.monotonic())
        readable, _, _ = select.select([link, wake], [], [], timeout)
        if wake in readable and signal.SIGTERM in os.read(wake, 4096):
            return None
        code, _ = _reap(service)
        if code is not None:
            return code
        if link in readable:
            order = os.read(link, 4096).split()
            if not order:
                return None
            deadline = time.monotonic() + float(order[1])
            _signal_group(service, signal.SIGTERM)
        if deadline is not None and time.monotonic() >= deadline:
            return None
    return None


def _end_all(service: int, code: int | None) -> int:
    """SIGKILL whatever is left, again until nothing is: a process may fork between listing and killing."""
    while True:
        if code is None:
            _signal_group(service, signal.SIGKILL)
        for pid in _descendants(os.getpid()):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        ended, left = _reap(service)
        code = ended if ended is not None else code
        if not left:
            return -signal.SIGKILL if code is None else code
        time.sleep(0.002)


def main(arguments: list[str]) -> int:
    """Guard one command until it, the supervisor or its patience ends."""
    link, parent, cores, separator, *command = arguments
    if separator != "--" or not command:
        return 2
    fd = int(link)
    os.set_inheritable(fd, False)  # the service must not hold the line open
    wake = _waking_pipe()
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    _prctl(_PR_SET_PDEATHSIG, signal.SIGUSR1)  # only wakes the loop, which then looks at its parent's pid
    service = _start(command, [int(core) for core in cores.split(",") if core])
    with contextlib.suppress(OSError):
        os.write(fd, f"pid {service}\n".encode())
    code = _end_all(service, _watch(fd, wake, service, int(parent)))
    with contextlib.suppress(OSError):
        os.write(fd, f"exit {code}\n".encode())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
