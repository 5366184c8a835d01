"""A queue in shared memory, for the processes of one user on one machine.

The tables of `SqliteQueue` in a file that stays in memory: the locks of SQLite give each lease to one
process, and one that is killed leaves whole transactions behind. What is put survives its processes, but
not the machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import apsw

from sage.common.clock import Clock
from sage.common.errors import BadRequestError, UnavailableError
from sage.platform.queue.port import QueueOptions
from sage.platform.queue.sqlite import SqliteQueue

__all__ = ["SharedMemoryQueue", "remove_shared", "shared_path"]

_MEMORY = Path("/dev/shm")  # noqa: S108 - the folder below it is private
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
# Processes cannot wake each other through a file: so long a waiting get may miss a put of another one.
_POLL = 0.005
_PATIENCE = 5.0

_T = TypeVar("_T")


class _SharedFile:
    """Transactions on one file by many processes. They are short, so they run in the event loop itself."""

    def __init__(self, path: Path) -> None:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
        self._db = apsw.Connection(str(path))
        self._db.set_busy_timeout(int(_PATIENCE * 1000))
        self._db.execute("PRAGMA journal_mode = WAL; PRAGMA synchronous = OFF").fetchall()
        self._db.set_busy_timeout(0)

    async def write(self, fn: Callable[[apsw.Connection], _T]) -> _T:
        await self._begin()
        try:
            result = fn(self._db)
            self._db.execute("COMMIT")
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        return result

    def close(self) -> None:
        self._db.close()

    async def _begin(self) -> None:
        try:
            async with asyncio.timeout(_PATIENCE):
                while True:
                    with contextlib.suppress(apsw.BusyError):
                        self._db.execute("BEGIN IMMEDIATE")
                        return
                    # Another process writes; this event loop does not stand still for it.
                    await asyncio.sleep(0.0002)
        except TimeoutError as error:
            raise UnavailableError(
                f"Another process has locked the shared queue for {_PATIENCE:g} s.",
                hint="Is one of its processes stopped?",
            ) from error


class SharedMemoryQueue(SqliteQueue):
    """A `Queue` that all processes which open the same name share; not durable.

    `await SharedMemoryQueue.attach("frames")` opens or makes it; `remove_shared("frames")` frees its memory.
    """

    _file: _SharedFile

    @classmethod
    async def attach(
        cls, name: str, options: QueueOptions | None = None, *, clock: Clock | None = None
    ) -> SharedMemoryQueue:
        """The queue of that name. Raises BadRequestError for a name that is none, UnavailableError."""
        path = shared_path(name)
        try:
            path.parent.mkdir(mode=0o700, exist_ok=True)
            if path.parent.stat().st_uid != os.geteuid() or path.parent.is_symlink():
                raise PermissionError(f"{path.parent} belongs to another user")
        except OSError as error:
            raise UnavailableError(
                f"There is no shared memory to use: {error}.", hint="Use the SQLite queue instead."
            ) from error
        file = _SharedFile(path)
        queue = await cls.open(file, name, options, clock=clock, poll=_POLL)
        queue._file = file
        return queue

    async def close(self) -> None:
        """See `Queue.close`; what is in the memory stays there for the other processes."""
        self._file.close()


def shared_path(name: str) -> Path:
    """The file behind the queue of this name. Raises BadRequestError."""
    if not _NAME.fullmatch(name):
        raise BadRequestError(
            f"The name is {name!r}; valid are up to 64 letters, digits, dots, dashes and underscores.",
            param="name",
        )
    return _MEMORY / f"sage-{os.geteuid()}" / f"{name}.db"


def remove_shared(name: str) -> None:
    """Free the memory of this queue, and what is in it. Nobody may have it open."""
    path = shared_path(name)
    for suffix in ("", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # other queues are still in it
        path.parent.rmdir()
