"""A process that outlives the one that started it: start it, find it again, end it."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from sage.common.errors import SageError, UsageError
from sage.platform.service.logs import open_log

__all__ = ["alive", "spawn", "terminate"]

_SLACK = 2.0  # seconds by which the system's idea of a start time may be off


def spawn(argv: Sequence[str], log: Path, env: Mapping[str, str] | None = None) -> int:
    """Start `argv` detached, in a session of its own; output is appended to `log`. Returns its pid.

    A log that is full is moved aside before. `env` is added to this process's environment. Raises SageError
    if program or log cannot be opened.
    """
    if not argv:
        raise UsageError("There is no command to start.")
    try:
        output = open_log(log)
    except OSError as error:
        raise SageError(f"Cannot write the log {log}: {error.strerror}.") from error
    actions: list[tuple[int, int, str, int, int] | tuple[int, int, int]] = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_DUP2, output, 1),
        (os.POSIX_SPAWN_DUP2, output, 2),
    ]
    try:
        return os.posix_spawnp(
            argv[0],
            list(argv),
            {**os.environ, **(env or {})},
            file_actions=actions,
            setsid=True,
            setsigdef=[signal.SIGPIPE, signal.SIGXFSZ],  # ignored in Python, and exec hands that on
        )
    except OSError as error:
        raise SageError(f"Cannot start {argv[0]}: {error.strerror}.") from error
    finally:
        os.close(output)


def alive(pid: int, started: float | None = None) -> bool:
    """Whether that process runs. `started`: a Unix time at which it already ran.

    A process made later than `started` has only inherited the number, and a zombie has ended: both are False.
    """
    import psutil  # imported here: the command line reads this module on every start

    _reap(pid)
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        return started is None or process.create_time() <= started + _SLACK
    except (psutil.NoSuchProcess, ValueError):
        return False


def terminate(pid: int, timeout: float, started: float | None = None) -> bool:
    """SIGTERM, and SIGKILL after `timeout` seconds. True when it ended by itself, or had ended before.

    It is gone when this returns, whatever the value. Raises SageError if it belongs to someone else.
    """
    for number, patience in ((signal.SIGTERM, timeout), (signal.SIGKILL, 10.0)):
        if not alive(pid, started):
            return True
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return True
        except PermissionError as error:
            raise SageError(f"Process {pid} belongs to another user; it is not ours to stop.") from error
        if _gone(pid, started, patience):
            return number == signal.SIGTERM
    raise SageError(f"Process {pid} is still there after SIGKILL.", hint="It may hang in the kernel.")


def _gone(pid: int, started: float | None, patience: float) -> bool:
    deadline = time.monotonic() + patience
    pause = 0.005
    while alive(pid, started):
        if time.monotonic() >= deadline:
            return False
        time.sleep(pause)
        pause = min(0.1, pause * 1.5)
    return True


def _reap(pid: int) -> None:
    """Collect it if it was started by this very process; else it would stay a zombie."""
    with contextlib.suppress(ChildProcessError, OverflowError):
        if pid > 0:
            os.waitpid(pid, os.WNOHANG)
