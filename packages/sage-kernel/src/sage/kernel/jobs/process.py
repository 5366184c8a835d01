"""The manager's end of the line to one process, which runs below a guard."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

from sage.common.errors import SageError
from sage.kernel.jobs.messages import LONGEST, Order, Word, decode_word, encode
from sage.platform.service import Rotation, ServiceSpec
from sage.platform.service.process import GuardedProcess

__all__ = ["LOG", "JobProcess", "ask"]

LOG: Final = Rotation(max_bytes=1024 * 1024, keep=1)
_MODULE: Final = "sage.kernel.jobs.worker"


@dataclass(slots=True, eq=False)
class JobProcess:
    """A process of a job. `lost` says why it was given up, if it was."""

    _process: GuardedProcess
    _reader: asyncio.StreamReader
    _writer: asyncio.StreamWriter
    lost: str = ""

    @classmethod
    async def spawn(cls, name: str, log: Path, env: Mapping[str, str]) -> JobProcess:
        """Start it; it waits for its first order. `env` is added to this process's environment.

        Raises SageError when it cannot be started.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            # -P: code is looked for where packages are installed, and not in the folder that we stand in.
            argv = (sys.executable, "-P", "-m", _MODULE, str(theirs.fileno()))
            spec = ServiceSpec(name, argv, probe_url="", log=log, env=env, rotation=LOG)
            try:
                process = await GuardedProcess.spawn(spec, fds=(theirs.fileno(),))
            except BaseException:
                ours.close()
                raise
        try:
            return cls(process, *await asyncio.open_unix_connection(sock=ours, limit=LONGEST))
        except BaseException:  # stopped in between; nobody else knows of the process yet
            ours.close()
            await process.stop(0.0)
            raise

    @property
    def pid(self) -> int:
        """Of the process itself, not of its guard."""
        return self._process.pid

    def say(self, order: Order) -> None:
        """Send it; one that has ended hears nothing."""
        if not self._writer.is_closing():
            self._writer.write(encode(order))

    async def words(self) -> AsyncIterator[Word]:
        """What it says, until it has ended."""
        while line := await self._next_line():
            yield decode_word(line)

    async def _next_line(self) -> bytes:
        try:
            return await self._reader.readline()
        except (ConnectionError, ValueError):  # it is gone; or what it says is longer than any word
            return b""

    def cpu(self) -> float:
        """Seconds of CPU time that it has used; 0 if it is gone."""
        try:
            used = psutil.Process(self.pid).cpu_times()
        except psutil.Error:
            return 0.0
        return float(used.user + used.system)

    async def ended(self) -> str:
        """Wait for its end: how it ended, in words."""
        code = await asyncio.shield(self._process.exited)
        self._writer.close()
        how = f"was ended by signal {-code}" if code < 0 else f"exited with code {code}"
        return self.lost or f"its process {how}{self._process.last_words()}"

    async def kill(self) -> None:
        """End it now, with all that it started. Raises SageError if it does not end."""
        try:
            await self._process.stop(0.0)
        finally:
            self._writer.close()


async def ask(process: JobProcess, order: Order, patience: float) -> Word:
    """Its last word on the order. Raises SageError when it ends without one, or takes too long."""
    last: Word | None = None
    try:
        async with asyncio.timeout(patience):
            process.say(order)
            async for word in process.words():
                last = word
    except TimeoutError:
        raise SageError(f"The flow was not there after {patience:g} s.") from None
    finally:
        await process.kill()
    if last is None:
        raise SageError(f"The flow could not be looked at: {await process.ended()}")
    return last
