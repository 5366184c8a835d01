"""The embedded database: SQLite through apsw, where acknowledged means on disk.

One thread writes. What is submitted at about the same time shares a transaction and a sync (group commit).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

import apsw

from sage.common.errors import ConflictError, SageError, UnavailableError, UsageError
from sage.platform.state import explain
from sage.platform.storage._owner import own, release
from sage.platform.storage._pages import PAGE, RESERVED, ChecksumVFS

__all__ = ["FORMAT", "Database"]

FORMAT = 1  # user_version: how the file as a whole is laid out; its tables belong to those who make them
_READERS = 4
_BUSY_MS = 5000
_CHECKPOINT = 1000  # pages in the WAL
_SETTINGS = f"PRAGMA page_size = {PAGE}; PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;"
_STORAGE = (
    apsw.FullError,
    apsw.IOError,
    apsw.CantOpenError,
    apsw.CorruptError,
    apsw.NotADBError,
    apsw.BusyError,
    apsw.ReadOnlyError,
    apsw.PermissionsError,
    apsw.NoMemError,
    OSError,
)

T = TypeVar("T")


class _Write:
    """One submitted function and who waits for it."""

    __slots__ = ("answer", "error", "fn", "loop", "result")

    def __init__(
        self,
        fn: Callable[[apsw.Connection], Any],
        answer: Future[Any] | asyncio.Future[Any],
        loop: asyncio.AbstractEventLoop | None,
    ) -> None:
        self.fn = fn
        self.answer = answer
        self.loop = loop
        self.result: Any = None
        self.error: BaseException | None = None


class Database:
    """A SQLite file of this process: WAL, synchronous=FULL, a checksum in each page, mode 0600.

    Writes wait up to `group_wait` seconds for as many others as came last time, at most `group_rows`. `vfs`
    names an apsw VFS below this one. The folder gets one owner: another process gets a ConflictError that
    names this one. A file of a newer format is refused. Raises SageError, naming the file, if it cannot be
    opened.
    """

    def __init__(
        self, path: Path, *, group_wait: float = 0.002, group_rows: int = 64, vfs: str | None = None
    ) -> None:
        if group_rows < 1 or group_wait < 0:
            raise UsageError(f"group_rows is {group_rows} and group_wait {group_wait}; valid is ≥ 1 and ≥ 0.")
        self.path = Path(path)
        self._group_wait, self._group_rows = group_wait, group_rows
        self._submitted: SimpleQueue[_Write | None] = SimpleQueue()
        self._gate = threading.Lock()  # no write is submitted behind the end mark
        self._writing = threading.Lock()  # the writer's connection is in use
        self._closed = False
        self._local = threading.local()
        self._readers: list[apsw.Connection] = []
        own(self.path.parent)
        self._vfs = ChecksumVFS(vfs or "")
        try:
            self._writer = self._open()
        except BaseException as error:
            self._vfs.forget()
            release(self.path.parent)
            if isinstance(error, _STORAGE):
                raise self._explain(error) from error
            raise
        self._pool = ThreadPoolExecutor(_READERS, thread_name_prefix=f"read-{self.path.name}")
        self._thread = threading.Thread(target=self._work, name=f"write-{self.path.name}", daemon=True)
        self._thread.start()

    async def write(self, fn: Callable[[apsw.Connection], T]) -> T:
        """Run `fn` in a transaction and return its result once that is on disk.

        If `fn` raises, what it did is undone and its neighbours in the transaction are not touched. If the
        commit fails, SageError says why, and the next write tries afresh. A write that is cancelled while it
        waits may still be done.
        """
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[T] = loop.create_future()
        self._submit(_Write(fn, answer, loop))
        return await answer

    def write_sync(self, fn: Callable[[apsw.Connection], T]) -> T:
        """`write` for a thread without an event loop."""
        answer: Future[T] = Future()
        self._submit(_Write(fn, answer, None))
        return answer.result()

    async def read(self, fn: Callable[[apsw.Connection], T]) -> T:
        """Run `fn` on one snapshot, in a thread; no writer delays it. It must return values, not a cursor."""
        self._check_open()
        return await asyncio.get_running_loop().run_in_executor(self._pool, self.read_sync, fn)

    def read_sync(self, fn: Callable[[apsw.Connection], T]) -> T:
        """`read` in this thread, which keeps its connection until `close`."""
        try:
            reader = self._reader()
            reader.execute("BEGIN")
            try:
                return fn(reader)
            finally:
                with contextlib.suppress(apsw.Error):
                    reader.execute("ROLLBACK")
        except _STORAGE as error:
            raise self._explain(error) from error

    async def integrity(self) -> list[str]:
        """What is wrong with the file: SQLite's own check, then the checksum of each page. Empty is sound.

        Writers wait meanwhile. Raises UnavailableError if a read does not let the WAL be emptied.
        """
        self._check_open()
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._check)

    async def close(self) -> None:
        """Finish what was submitted, move the WAL into the file, give up the folder."""
        await asyncio.get_running_loop().run_in_executor(None, self._close)

    def _close(self) -> None:
        with self._gate:
            if self._closed:
                return
            self._closed = True
            self._submitted.put(None)
        self._thread.join()
        self._pool.shutdown()
        for connection in [*self._readers, self._writer]:
            # The WAL holds what a failing disk did not let move.
            with contextlib.suppress(apsw.Error, OSError):
                connection.close()
        self._vfs.forget()
        release(self.path.parent)

    def _check_open(self) -> None:
        if self._closed:
            raise UsageError(f"The database {self.path} is closed.")

    def _submit(self, write: _Write) -> None:
        with self._gate:
            self._check_open()
            self._submitted.put(write)

    def _open(self) -> apsw.Connection:
        if not self.path.exists():
            with contextlib.suppress(FileExistsError):
                os.close(os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
            folder = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        connection = self._connect()
        try:
            found = connection.pragma("user_version")
            if found > FORMAT:
                raise ConflictError(
                    f"The database {self.path} has format {found}; this version knows up to {FORMAT}.",
                    hint="Use the newer version that wrote it, or another folder.",
                )
            if found < FORMAT:
                connection.pragma("user_version", FORMAT)
            connection.wal_autocheckpoint(0)
            connection.set_wal_hook(self._grown)
        except BaseException:
            connection.close()
            raise
        self._pages = 0
        return connection

    def _connect(self) -> apsw.Connection:
        connection = apsw.Connection(str(self.path), vfs=self._vfs.name, statementcachesize=200)
        try:
            connection.set_busy_timeout(_BUSY_MS)
            connection.reserve_bytes(reserve=RESERVED)
            for _ in connection.execute(_SETTINGS):
                pass
        except BaseException:
            connection.close()
            raise
        return connection

    def _reader(self) -> apsw.Connection:
        reader: apsw.Connection | None = getattr(self._local, "reader", None)
        if reader is None:
            with self._gate:
                self._check_open()
                reader = self._connect()
                reader.pragma("query_only", 1)
                self._readers.append(reader)
            self._local.reader = reader
        return reader

    def _grown(self, _connection: apsw.Connection, _name: str, pages: int) -> int:
        self._pages = pages
        return int(apsw.SQLITE_OK)

    def _work(self) -> None:
        size = 1
        while (first := self._submitted.get()) is not None:
            group, more = self._gather(first, size)
            size = len(group)
            with self._writing:
                self._commit(group)
            _answer(group)
            if self._pages >= _CHECKPOINT:
                # After the answers, and apart from the commit: that this fails loses nothing.
                with self._writing, contextlib.suppress(apsw.Error, OSError):
                    self._writer.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
            if not more:
                return

    def _gather(self, first: _Write, expected: int) -> tuple[list[_Write], bool]:
        """What is there, and what comes within `group_wait` if fewer are there than last time."""
        group = [first]
        until = time.monotonic() + self._group_wait
        while len(group) < self._group_rows:
            left = until - time.monotonic() if len(group) < expected else 0.0
            try:
                write = self._submitted.get(left > 0, max(left, 0.0))
            except Empty:
                break
            if write is None:
                return group, False
            group.append(write)
        return group, True

    def _commit(self, group: list[_Write]) -> None:
        """Run the group as one transaction; whatever happens is in `result` or `error` of each."""
        db = self._writer
        try:
            db.execute("BEGIN IMMEDIATE")
            for write in group:
                _run(db, write)
            db.execute("COMMIT")
        except BaseException as error:
            with contextlib.suppress(apsw.Error, OSError):
                if db.in_transaction:
                    db.execute("ROLLBACK")
            for write in group:
                write.error = self._explain(error)
                write.error.__cause__ = error
            return
        for write in group:
            if isinstance(write.error, _STORAGE):
                cause, write.error = write.error, self._explain(write.error)
                write.error.__cause__ = cause

    def _check(self) -> list[str]:
        with self._writing:
            try:
                self._writer.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
                wrong = [str(row) for (row,) in self._writer.execute("PRAGMA integrity_check") if row != "ok"]
            except apsw.BusyError as error:
                raise UnavailableError(
                    f"Cannot check {self.path}: a read is open for more than {_BUSY_MS / 1000:g} s."
                ) from error
            except (apsw.Error, OSError) as error:
                wrong = [str(error)]
            return [*wrong, *self._vfs.wrong()]

    def _explain(self, error: BaseException) -> SageError:
        if isinstance(error, apsw.FullError):
            return SageError(f"No space left to write {self.path}.", hint="Make room and try again.")
        if isinstance(error, apsw.BusyError):
            return UnavailableError(f"The database {self.path} is locked by another process.")
        if isinstance(error, OSError):
            return explain(error, self.path)
        return SageError(f"The database {self.path} failed: {error}.")


def _run(db: apsw.Connection, write: _Write) -> None:
    """One function of the group, undone alone if it raises; raises if the whole transaction is gone."""
    db.execute("SAVEPOINT one")
    try:
        write.result = write.fn(db)
    except BaseException as error:
        if not db.in_transaction:
            raise
        write.error = error
        db.execute("ROLLBACK TO one")
    db.execute("RELEASE one")


def _answer(group: list[_Write]) -> None:
    """Tell those who wait; each event loop is woken once."""
    loops: dict[asyncio.AbstractEventLoop, list[_Write]] = {}
    for write in group:
        if write.loop is None:
            _settle([write])
        else:
            loops.setdefault(write.loop, []).append(write)
    for loop, writes in loops.items():
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
            loop.call_soon_threadsafe(_settle, writes)


def _settle(writes: list[_Write]) -> None:
    for write in writes:
        if write.answer.done():
            continue
        if write.error is not None:
            write.answer.set_exception(write.error)
        else:
            write.answer.set_result(write.result)
