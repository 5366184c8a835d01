"""Disks that fail: the Nth write, sync, truncation, deletion or opening, for SQLite and for plain files."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path
from typing import Literal

import apsw

from sage.platform.state import FileSystem

__all__ = ["Call", "FaultFileSystem", "FaultVFS", "Faults", "Kind"]

Call = Literal["open", "write", "sync", "truncate", "delete", "rename", "sync_folder"]
Kind = Literal["full", "io"]

_IO_ERRORS = {
    "open": apsw.SQLITE_CANTOPEN,  # of a full disk too
    "write": apsw.SQLITE_IOERR_WRITE,
    "sync": apsw.SQLITE_IOERR_FSYNC,
    "truncate": apsw.SQLITE_IOERR_TRUNCATE,
    "delete": apsw.SQLITE_IOERR_DELETE,
}


class Faults:
    """Which call fails. Nothing does until `arm`; `fired` counts the failures since then.

    Shared by any number of files and threads: calls are counted over all of them.
    """

    def __init__(self) -> None:
        self.fired = 0
        self.kind: Kind = "io"
        self._call: Call | None = None
        self._left = 0
        self._lasting = False
        self._lock = threading.Lock()

    def arm(self, call: Call, nth: int, kind: Kind, *, lasting: bool = False) -> None:
        """Let the `nth` such call from now fail, counted from 1; `lasting`: and each one after it."""
        with self._lock:
            self.fired = 0
            self.kind = kind
            self._call, self._left, self._lasting = call, nth, lasting

    def disarm(self) -> None:
        """Let all calls work again; `fired` stays."""
        with self._lock:
            self._call = None

    def due(self, call: Call) -> bool:
        """Count this call; whether it has to fail."""
        with self._lock:
            if call != self._call:
                return False
            self._left -= 1
            due = self._left <= 0 if self._lasting else self._left == 0
            self.fired += due
            return due


class FaultVFS(apsw.VFS):
    """A VFS whose calls fail as `faults` says. Pass `name` as `vfs=` when a database is opened.

    A full disk takes the first half of a write. One difference to a real disk: a fault while SQLite moves the
    WAL into the database after a commit is reported as if the commit had failed, because apsw raises what
    Python code below it raised.
    """

    def __init__(self, name: str, faults: Faults) -> None:
        self.name = name
        self._faults = faults
        super().__init__(name, "")

    def xOpen(self, name: str | apsw.URIFilename | None, flags: list[int]) -> apsw.VFSFile:  # noqa: N802
        """Open by the VFS below, unless an `open` is due to fail."""
        if self._faults.due("open"):
            raise _error(self._faults.kind, "open")
        return _FaultFile(name, flags, self._faults)

    def xDelete(self, filename: str, syncdir: bool) -> None:  # noqa: N802
        """Delete by the VFS below, unless a `delete` is due to fail."""
        if self._faults.due("delete"):
            raise _error(self._faults.kind, "delete")
        super().xDelete(filename, syncdir)


class _FaultFile(apsw.VFSFile):
    def __init__(self, name: str | apsw.URIFilename | None, flags: list[int], faults: Faults) -> None:
        super().__init__("", name, flags)
        self._faults = faults

    def xWrite(self, data: bytes, offset: int) -> None:  # noqa: N802
        if self._faults.due("write"):
            if self._faults.kind == "full":
                super().xWrite(data[: len(data) // 2], offset)
            raise _error(self._faults.kind, "write")
        super().xWrite(data, offset)

    def xTruncate(self, newsize: int) -> None:  # noqa: N802
        if self._faults.due("truncate"):
            raise _error(self._faults.kind, "truncate")
        super().xTruncate(newsize)

    def xSync(self, flags: int) -> None:  # noqa: N802
        if self._faults.due("sync"):
            raise _error(self._faults.kind, "sync")
        super().xSync(flags)


def _error(kind: Kind, call: Call) -> Exception:
    code = apsw.SQLITE_FULL if kind == "full" and call != "open" else _IO_ERRORS[call]
    error = apsw.exception_for(code)
    error.args = (f"injected {'full disk' if kind == 'full' else 'input/output error'} at {call}",)
    return error


class FaultFileSystem(FileSystem):
    """The usual calls, failing as `faults` says; for `write_atomic(..., fs=...)`."""

    def __init__(self, faults: Faults) -> None:
        self._faults = faults

    def create(self, target: Path) -> tuple[int, Path]:
        """Create, unless an `open` is due to fail."""
        self._check("open")
        return super().create(target)

    def write(self, fd: int, data: bytes) -> None:
        """Write; a write that is due to fail takes the first half."""
        if self._faults.due("write"):
            super().write(fd, data[: len(data) // 2])
            raise self._error()
        super().write(fd, data)

    def sync(self, fd: int) -> None:
        """Sync, unless it is due to fail."""
        self._check("sync")
        super().sync(fd)

    def rename(self, source: Path, target: Path) -> None:
        """Rename, unless it is due to fail."""
        self._check("rename")
        super().rename(source, target)

    def sync_folder(self, path: Path) -> None:
        """Sync the names, unless it is due to fail."""
        self._check("sync_folder")
        super().sync_folder(path)

    def _check(self, call: Call) -> None:
        if self._faults.due(call):
            raise self._error()

    def _error(self) -> OSError:
        number = errno.ENOSPC if self._faults.kind == "full" else errno.EIO
        return OSError(number, os.strerror(number))
