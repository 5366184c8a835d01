"""The resident guard: runs one service and outlives neither it nor the supervisor.

Run as a file with `python -I -S guard.py FD PARENT_PID OPTIONS -- COMMAND…`, standard library only, so that
it stays small. FD is one end of a stream socket to the supervisor: `stop SECONDS` comes in, `pid N` and
`exit CODE` go out, and end-of-file means that the supervisor is gone. OPTIONS is JSON: `cores`, `limits`, and
of the log, which is open as standard output and error, `path`, `max_bytes` and `keep`.

What the service prints comes through a pipe, and the guard appends it to the log: so the log is changed for a
new one while the service runs, at the end of a line, and no line is lost by it.

The guard is a child subreaper: whatever the service starts stays below the guard, also what changed its
process group or session or was orphaned by its own parent. The parent-death signal alone would not do: it
follows the *thread* that started the guard, and reaches only direct children.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import resource
import select
import signal
import sys
import time
from types import FrameType

__all__ = ["Log", "Pump", "cut", "main"]

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_LINUX = sys.platform.startswith("linux")
_CHUNK = 256 * 1024  # bytes taken from the pipe at once
_PIPE = 1024 * 1024  # what the service can print while the guard waits for the disk; the default is 64 KiB
_OVER = 64 * 1024  # bytes by which a log may be too long, so that a line ends in the file where it began
_RLIMITS = {
    "memory_bytes": resource.RLIMIT_DATA,
    "open_files": resource.RLIMIT_NOFILE,
    "processes": resource.RLIMIT_NPROC,
}
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


def cut(data: bytes, size: int, limit: int, *, within_line: bool) -> int:
    """How many bytes of `data` belong into a file of `size` bytes; 0 means: begin a new file.

    A file ends with a line, as long as that makes it no more than `_OVER` bytes too long.
    """
    room = limit - size
    if len(data) <= room:
        return len(data)
    end = data.rfind(b"\n", 0, max(0, room)) + 1
    if end or (size and not within_line):
        return end
    most = max(0, room + _OVER)
    return data.find(b"\n", 0, most) + 1 or min(len(data), most)


class Log:
    """A file of at most `max_bytes` (and a line), with `keep` older ones beside it: `.1` is the newest.

    `fds` are descriptors of the open file; each is moved to the new file. A write that fails loses what was
    to be written, never blocks, and the next one that works says how much that was.
    """

    def __init__(self, fds: tuple[int, ...], path: str, max_bytes: int, keep: int) -> None:
        self._fds = fds
        self._path = path
        self._limit = max_bytes
        self._keep = keep
        self._size = os.fstat(fds[0]).st_size
        self._within_line = False
        self._lost = 0
        self._why = ""

    def write(self, data: bytes) -> None:
        """Append all of it, over as many files as it takes."""
        if self._lost:
            note = f"[{self._lost} bytes of this log were lost: {self._why}]\n".encode()
            if self._put((b"\n" if self._within_line else b"") + note):
                self._lost += len(data)
                return
        self._lost = self._put(data)

    def _put(self, data: bytes) -> int:
        """How many bytes, at the end, could not be written."""
        done = 0
        try:
            while rest := data[done:]:
                fits = cut(rest, self._size, self._limit, within_line=self._within_line)
                if fits:
                    done += self._append(rest[:fits])
                else:
                    self._rotate()
        except OSError as error:
            self._why = error.strerror or str(error)
        return len(data) - done

    def _append(self, data: bytes) -> int:
        count = os.write(self._fds[0], data)
        self._size += count
        self._within_line = not data[:count].endswith(b"\n")
        return count

    def _rotate(self) -> None:
        for number in range(self._keep, 0, -1):
            newer = f"{self._path}.{number - 1}" if number > 1 else self._path
            with contextlib.suppress(FileNotFoundError):
                os.replace(newer, f"{self._path}.{number}")
        fresh = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        for fd in self._fds:
            os.dup2(fresh, fd)
        os.close(fresh)
        self._size = 0


class Pump:
    """The reading end of the pipe that the service prints into."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self.reader, self.writer = os.pipe()
        os.set_blocking(self.reader, False)
        with contextlib.suppress(OSError, AttributeError):  # not Linux, or this user has too many such pipes
            fcntl.fcntl(self.writer, fcntl.F_SETPIPE_SZ, _PIPE)

    def move(self) -> bool:
        """Log what is there; False at the end of the stream."""
        try:
            data = os.read(self.reader, _CHUNK)
        except BlockingIOError:
            return True
        self._log.write(data)
        return bool(data)

    def empty(self) -> None:
        """Log what is left when nobody prints any more; what somebody still does is not waited for."""
        for _ in range(2 * _PIPE // 4096):
            if not select.select([self.reader], [], [], 0)[0] or not self.move():
                return


def _limit(limits: dict[str, int]) -> None:
    """Set what this process, and all it starts, may use. Raises OSError that says which limit cannot be."""
    for name, value in limits.items():
        try:
            if name == "nice":
                os.setpriority(os.PRIO_PROCESS, 0, value)
            else:
                resource.setrlimit(_RLIMITS[name], (value, value))
        except (ValueError, OSError) as error:
            most = "" if name == "nice" else f"the {resource.getrlimit(_RLIMITS[name])[1]} that "
            raise OSError(0, f"the limit {name}={value} is more than {most}this user may set") from error


def _start(command: list[str], cores: list[int], limits: dict[str, int], output: int) -> int:
    """Fork and execute the service in a session of its own; returns its pid once it executes.

    A stop signal sent any earlier would meet this program's handlers, and be lost.
    """
    guard = os.getpid()
    executes, closed_by_exec = os.pipe()
    pid = os.fork()
    if pid:
        os.close(closed_by_exec)
        os.close(output)
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
        os.dup2(output, 1)
        os.dup2(output, 2)
        _limit(limits)
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


def _watch(link: int, wake: int, pump: Pump, service: int, parent: int) -> int | None:
    """Wait for a reason to end. Returns the service's exit code if it ended by itself or on request."""
    deadline: float | None = None
    sources = [link, wake, pump.reader]
    while os.getppid() == parent:
        timeout = None if deadline is None else max(0.0, deadline - time.monotonic())
        readable, _, _ = select.select(sources, [], [], timeout)
        if pump.reader in readable and not pump.move():
            sources.remove(pump.reader)
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
    link, parent, given, separator, *command = arguments
    if separator != "--" or not command:
        return 2
    fd = int(link)
    options = json.loads(given)
    os.set_inheritable(fd, False)  # the service must not hold the line open
    wake = _waking_pipe()
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    _prctl(_PR_SET_PDEATHSIG, signal.SIGUSR1)  # only wakes the loop, which then looks at its parent's pid
    pump = Pump(Log((1, 2), **options["log"]))
    service = _start(command, options["cores"], options["limits"], pump.writer)
    with contextlib.suppress(OSError):
        os.write(fd, f"pid {service}\n".encode())
    code = _end_all(service, _watch(fd, wake, pump, service, int(parent)))
    pump.empty()  # before the message: who reads it wants the last words
    with contextlib.suppress(OSError):
        os.write(fd, f"exit {code}\n".encode())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
