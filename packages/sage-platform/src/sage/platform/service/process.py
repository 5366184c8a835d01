"""One guarded process: the supervisor's end of the line to `guard.py`."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from sage.common.errors import SageError, TimedOutError
from sage.platform.service.limits import limit_hit
from sage.platform.service.logs import LogMark, open_log
from sage.platform.service.mark import MARK, Mark
from sage.platform.service.spec import ServiceSpec

__all__ = ["GuardedProcess", "environment"]

_GUARD = Path(__file__).with_name("guard.py")
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_KILL_PATIENCE = 10.0


def environment(spec: ServiceSpec, base: Mapping[str, str]) -> dict[str, str]:
    """`base`, then thread counts that fit `spec.cores`, then `spec.env`; the later wins."""
    threads = {name: str(len(spec.cores)) for name in _THREADS} if spec.cores else {}
    return {**base, **threads, **spec.env}


class GuardedProcess:
    """A running service below its guard. When this process dies, so does all of the service."""

    def __init__(
        self,
        spec: ServiceSpec,
        guard: subprocess.Popen[bytes],
        pid: int,
        line: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        log: LogMark,
    ) -> None:
        self.pid = pid
        self._spec = spec
        self._guard = guard
        self._reader, self._writer = line
        self._log = log
        self.exited: asyncio.Task[int] = asyncio.create_task(self._follow())

    @classmethod
    async def spawn(cls, spec: ServiceSpec, *, fds: tuple[int, ...] = ()) -> GuardedProcess:
        """Start `spec.argv` under a guard, with these descriptors of ours under the same numbers.

        They are closed when both have ended. Raises SageError when log or guard cannot be had.
        """
        try:
            log = open_log(spec.log, spec.rotation)
        except OSError as error:
            raise SageError(f"Cannot write the log {spec.log} of {spec.name}: {error.strerror}.") from error
        mark = LogMark.now(spec.log)
        try:
            ours, guard = _start_guard(spec, log, fds)
        except OSError as error:
            raise SageError(f"Cannot start the guard of {spec.name}: {error}.") from error
        finally:
            os.close(log)
        writer: asyncio.StreamWriter | None = None
        try:
            reader, writer = await asyncio.open_unix_connection(sock=ours)
            words = (await reader.readline()).split()
        except asyncio.CancelledError:  # stopped in between; nobody else knows of the guard yet
            guard.terminate()
            guard.wait()
            (writer or ours).close()
            raise
        if len(words) != 2:
            writer.close()
            await asyncio.to_thread(guard.wait)
            raise SageError(f"The guard of {spec.name} did not start: {mark.last_line()}")
        return cls(spec, guard, int(words[1]), (reader, writer), mark)

    def last_words(self) -> str:
        """Which limit it ran into, if one, and the last line that it wrote; each after a semicolon."""
        text = self._log.text()
        hit = limit_hit(self._spec.limits, text)
        last = self._log.last_line()
        return (f"; {hit}" if hit else "") + (f"; last log line: {last}" if last else "")

    async def stop(self, timeout: float) -> int:
        """SIGTERM to its group, SIGKILL to all that is left after `timeout` seconds; the exit code."""
        if not self._writer.is_closing():  # uvloop raises RuntimeError for one that is closed
            with contextlib.suppress(OSError):
                self._writer.write(f"stop {timeout}\n".encode())
                await self._writer.drain()
        patience = timeout + _KILL_PATIENCE
        done, _ = await asyncio.wait({self.exited}, timeout=patience)
        if not done:
            raise TimedOutError(f"Process {self.pid} is still there {patience:g} s after SIGTERM.")
        return self.exited.result()

    async def _follow(self) -> int:
        """Read the line until the guard ends; the exit code of the service, negative for a signal."""
        code = -signal.SIGKILL
        clean = False
        with contextlib.suppress(ConnectionError):
            while words := (await self._reader.readline()).split():
                code, clean = int(words[1]), True
        if not clean:  # the guard itself was killed, and could end only its direct child
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)
        self._writer.close()
        await asyncio.to_thread(self._guard.wait)
        return code


def _start_guard(
    spec: ServiceSpec, log: int, fds: tuple[int, ...]
) -> tuple[socket.socket, subprocess.Popen[bytes]]:
    ours, theirs = socket.socketpair()
    rotation = {"path": str(spec.log), "max_bytes": spec.rotation.max_bytes, "keep": spec.rotation.keep}
    given = json.dumps({"cores": spec.cores, "limits": spec.limits.given(), "log": rotation})
    # -I -S: no environment, no user site, no site-packages; nothing of ours gets into the guard
    options = ["-I", "-S", str(_GUARD), str(theirs.fileno()), str(os.getpid()), given, "--", *spec.argv]
    mark = Mark(spec.name, os.getpid(), time.time(), str(spec.log.absolute()))
    with theirs:
        try:
            guard = subprocess.Popen(
                [sys.executable, *options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**environment(spec, os.environ), MARK: mark.to_text()},
                pass_fds=(theirs.fileno(), *fds),
                start_new_session=True,
            )
        except OSError:
            ours.close()
            raise
    return ours, guard
