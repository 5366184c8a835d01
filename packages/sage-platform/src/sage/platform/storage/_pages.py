"""A checksum in each page of a database file, written and verified by a VFS below SQLite.

The last 4 bytes of a page are the CRC-32 of the rest, begun with the page's number, so that a page at the
wrong place is found too. Pages in the WAL have SQLite's own checksums; they get this one when they move to
the file.
"""

from __future__ import annotations

import itertools
import os
import zlib
from collections.abc import Iterator

import apsw

__all__ = ["PAGE", "RESERVED", "ChecksumVFS", "checksum"]

PAGE = 4096
RESERVED = 4
_PENDING = 0x40000000 // PAGE  # SQLite locks bytes of this page, and never uses it

_numbers = itertools.count(1)


def checksum(page: bytes, number: int) -> bytes:
    """The last 4 bytes that the page of that number (from 0) must have."""
    return zlib.crc32(memoryview(page)[:-RESERVED], number).to_bytes(RESERVED, "big")


class ChecksumVFS(apsw.VFS):
    """A VFS of one database, above the one named `base` (empty: the system's own)."""

    def __init__(self, base: str) -> None:
        self.name = f"sage-checksum-{next(_numbers)}"
        self._base = base
        self._first: _Pages | None = None
        super().__init__(self.name, base)

    def xOpen(self, name: str | apsw.URIFilename | None, flags: list[int]) -> apsw.VFSFile:  # noqa: N802
        """Open the file; pages of a main database are checked."""
        if flags[0] & apsw.SQLITE_OPEN_MAIN_DB:
            file = _Pages(self._base, name, flags)
            self._first = self._first or file
            return file
        if flags[0] & apsw.SQLITE_OPEN_WAL and not self._base:
            return _Log(name, flags)
        return apsw.VFSFile(self._base, name, flags)

    def wrong(self) -> Iterator[str]:
        """What is wrong with the pages of the file, past all caches, while the first connection is idle."""
        file = self._first
        if file is None:
            return
        size = file.xFileSize()
        if size % PAGE:
            yield f"the file ends within page {size // PAGE + 1}"
        for number in range(size // PAGE):
            page = file.raw(number)
            if number != _PENDING and page[-RESERVED:] != checksum(page, number):
                yield f"page {number + 1} does not have its checksum"

    def forget(self) -> None:
        """Let the name go, after the last connection is closed."""
        self._first = None
        self.unregister()


class _Pages(apsw.VFSFile):
    def __init__(self, base: str, name: str | apsw.URIFilename | None, flags: list[int]) -> None:
        super().__init__(base, name, flags)

    def raw(self, number: int) -> bytes:
        return super().xRead(PAGE, number * PAGE)

    def xDeviceCharacteristics(self) -> int:  # noqa: N802
        # Else SQLite reads overflow pages in part, past the checksum, and answers with what was not checked.
        return super().xDeviceCharacteristics() & ~apsw.SQLITE_IOCAP_SUBPAGE_READ

    def xRead(self, amount: int, offset: int) -> bytes:  # noqa: N802
        data = super().xRead(amount, offset)
        if len(data) == PAGE and not offset % PAGE:
            number = offset // PAGE
            if data[-RESERVED:] != checksum(data, number):
                error = apsw.exception_for(apsw.SQLITE_IOERR_DATA)
                error.args = (f"page {number + 1} does not have its checksum",)
                raise error
        return data

    def xWrite(self, data: bytes, offset: int) -> None:  # noqa: N802
        if len(data) == PAGE and not offset % PAGE:
            data = bytes(memoryview(data)[:-RESERVED]) + checksum(data, offset // PAGE)
        super().xWrite(data, offset)


class _Log(apsw.VFSFile):
    """The WAL of the system's own VFS, synced without the interpreter's lock, which apsw holds meanwhile."""

    def __init__(self, name: str | apsw.URIFilename | None, flags: list[int]) -> None:
        super().__init__("", name, flags)
        # SQLite holds no lock on this file, so closing a descriptor of it takes none away.
        path = name.filename() if isinstance(name, apsw.URIFilename) else str(name)
        self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        self._new = True

    def xSync(self, flags: int) -> None:  # noqa: N802
        if self._new:
            super().xSync(flags)  # syncs the folder too
            self._new = False
            return
        try:
            os.fdatasync(self._fd)
        except OSError as error:
            failed = apsw.exception_for(apsw.SQLITE_IOERR_FSYNC)
            failed.args = (error.strerror,)
            raise failed from error

    def xClose(self) -> None:  # noqa: N802
        os.close(self._fd)
        super().xClose()
