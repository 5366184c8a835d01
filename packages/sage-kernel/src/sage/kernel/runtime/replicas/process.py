"""A worker process as the run sees it."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from threading import Thread
from typing import Any, Final

from sage.common.errors import UnavailableError
from sage.kernel.runtime.replicas.bench import Done
from sage.kernel.runtime.replicas.wire import Area, Part, message, pack, read, unpack

__all__ = ["ProcessReplica", "WorkerLostError"]

GRACE_S: Final = 2.0
"""How long a worker that is told to end may take to close what its operators own."""


class WorkerLostError(Exception):
    """A worker process ended before it had answered."""


class ProcessReplica(asyncio.Protocol):
    """One worker process, one batch at a time. `env` is added to its environment."""

    def __init__(self, first: list[Part], env: Mapping[str, str]) -> None:
        self._first = first
        self._env = env
        self._data = bytearray()
        self._answer: asyncio.Future[Any] | None = None
        self._areas: tuple[Area, ...] = ()
        self._exit: str | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._transport: asyncio.Transport | None = None

    async def start(self) -> None:
        """Start it and wait until its operators are set up; raises what failed there."""
        ours, theirs = socket.socketpair()
        self._data.clear()
        self._exit = None
        self._areas = self._requests, self._answers = Area(), Area()
        self._ended = asyncio.Event()
        try:
            with theirs:
                self._process = self._spawned(theirs.fileno())
            loop = asyncio.get_running_loop()
            code = loop.create_future()
            self._watching = loop.create_task(self._watch(code))
            Thread(target=_wait, args=(self._process, loop, code), daemon=True).start()
            self._transport, _ = await loop.create_connection(lambda: self, sock=ours)
            await self._ask(self._first)
        except BaseException:
            ours.close()
            await self.close(True)
            raise

    def _spawned(self, fd: int) -> subprocess.Popen[bytes]:
        # Not asyncio's, which loses sight of a process when its loop ends first or its start is cancelled.
        fds = (fd, self._requests.fd, self._answers.fd)
        return subprocess.Popen(
            (
                *(sys.executable, "-m", "sage.kernel.runtime.replicas.worker"),
                *map(str, (*fds, os.getpid())),
            ),
            stdin=subprocess.DEVNULL,
            pass_fds=fds,
            env={**os.environ, **self._env},
            process_group=0,  # Ctrl-C is the run's
        )

    async def run(self, items: Any, one_by_one: bool) -> list[Done]:
        """What became of a batch, in one account or one for each item. Raises WorkerLostError."""
        return [Done(*plain) for plain in await self._ask(pack((one_by_one, items)))]

    async def close(self, now: bool, /) -> None:
        """Let it close what its operators own, or, `now`, give it a moment for that and kill it."""
        try:
            if not now and self._exit is None and self._transport is not None:
                self._transport.write_eof()
                with suppress(WorkerLostError):  # it had nothing to do any more
                    await self._answered()
                await asyncio.wait({self._watching})
        finally:
            await self._end()

    # ---- asyncio.Protocol -----------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """Part of an answer, or all of it."""
        whole: bytes | bytearray = data
        if self._data:
            self._data += data
            whole = self._data
        if (found := read(whole, self._answers)) is None:
            self._data = bytearray(whole) if whole is data else self._data
            return
        parts, _ = found
        self._data.clear()
        waiting, self._answer = self._answer, None
        if waiting is None or waiting.done():
            return
        try:
            value = unpack(parts)
        except Exception as error:
            value = UnavailableError(f"its results cannot be read here: {type(error).__name__}: {error}")
        if isinstance(value, Exception):
            waiting.set_exception(value)
        else:
            waiting.set_result(value)

    def eof_received(self) -> bool:
        """It says no more; `connection_lost` follows."""
        self._ended.set()
        return False

    def connection_lost(self, _exc: Exception | None) -> None:
        """The socket is gone."""
        self._ended.set()

    # ---------------------------------------------------------------------------------------------------

    async def _ask(self, parts: list[Part]) -> Any:
        if self._exit is not None or self._transport is None:
            raise WorkerLostError(self._exit or "it is not running")
        self._transport.write(message(parts, self._requests))
        return await self._answered()

    async def _answered(self) -> Any:
        self._answer = asyncio.get_running_loop().create_future()
        return await self._answer

    async def _watch(self, ended: asyncio.Future[int]) -> None:
        code = await ended
        # What it said last may be on its way; a process that it started may hold the socket open, though.
        with suppress(TimeoutError):
            async with asyncio.timeout(GRACE_S):
                await self._ended.wait()
        self._exit = _spelled(code)
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(WorkerLostError(self._exit))

    async def _end(self) -> None:
        process, self._process = self._process, None
        try:
            if process is not None and process.poll() is None:
                process.terminate()
                await asyncio.wait({self._watching}, timeout=GRACE_S)
        finally:
            # Also where the wait was cancelled: nothing of it stays.
            if process is not None:
                process.kill()
                process.wait()
            if self._transport is not None:
                self._transport.close()
                self._transport = None
            for area in self._areas:
                area.close()
            self._areas = ()
        if process is not None:
            await self._watching


def _wait(
    process: subprocess.Popen[bytes], loop: asyncio.AbstractEventLoop, code: asyncio.Future[int]
) -> None:
    """Tell the loop how the process ended, if it is still there."""

    def tell() -> None:
        if not code.done():
            code.set_result(ended)

    ended = process.wait()
    with suppress(RuntimeError):  # the loop has ended before
        loop.call_soon_threadsafe(tell)


def _spelled(code: int) -> str:
    if code >= 0:
        return f"it ended with exit code {code}"
    try:
        return f"it was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"it was killed by signal {-code}"
