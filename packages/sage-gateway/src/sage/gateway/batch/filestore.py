"""What is known of each file. A row is there once its bytes are on the disk, and gone before they are."""

from __future__ import annotations

from typing import Any, NamedTuple

import apsw
import msgspec

from sage.common.errors import ConflictError, NotFoundError
from sage.gateway.batch.tables import Page, page
from sage.gateway.limits import LimitError
from sage.platform.storage.sqlite import Database

__all__ = ["FileRecord", "FileStore", "Quota", "QuotaError", "insert_file", "owned_file"]


class QuotaError(LimitError):
    """A key has stored as much as it may."""

    code = "insufficient_quota"


class FileRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One file. Times in Unix seconds. `owner`: the id of the key that it belongs to."""

    id: str
    owner: str
    filename: str
    purpose: str
    bytes: int
    created: int
    expires: int | None = None


class Quota(NamedTuple):
    """What one key may store."""

    files: int
    bytes: int

    def check(self, files: int, stored: int) -> None:
        """Raise QuotaError unless so many files of so many bytes together are within it."""
        if files > self.files:
            raise QuotaError(
                f"This key may keep {self.files} files, and has as many.",
                limit="max_files",
                hint="Delete some first.",
            )
        if stored > self.bytes:
            raise QuotaError(
                f"This key may store {self.bytes} bytes in all; this file would make it {stored}.",
                limit="max_stored_bytes",
                hint="Delete some first.",
            )


_DECODER = msgspec.json.Decoder(FileRecord)
_INSERT = "INSERT INTO file (id, owner, purpose, bytes, expires, record) VALUES (?, ?, ?, ?, ?, ?)"
_IN_USE = "SELECT id FROM batch WHERE input = ? AND open"
_DUE = """
DELETE FROM file WHERE expires <= ? AND NOT EXISTS (SELECT 1 FROM batch WHERE input = file.id AND open)
RETURNING id
"""


class FileStore:
    """The rows, in a database of this process whose tables are made. Every query names the owner."""

    def __init__(self, database: Database, quota: Quota) -> None:
        self._database = database
        self._quota = quota

    async def room(self, owner: str) -> int:
        """Bytes that this key may still store. Raises QuotaError if it may not store another file."""
        files, stored = await self._database.read(lambda db: _used(db, owner))
        self._quota.check(files + 1, stored + 1)
        return self._quota.bytes - stored

    async def add(self, record: FileRecord) -> None:
        """Know a file. Raises QuotaError, and knows nothing."""

        def write(db: apsw.Connection) -> None:
            files, stored = _used(db, record.owner)
            self._quota.check(files + 1, stored + record.bytes)
            insert_file(db, record)

        await self._database.write(write)

    async def get(self, owner: str, ident: str) -> FileRecord:
        """One file. Raises NotFoundError if this key has none of that id."""
        return await self._database.read(lambda db: owned_file(db, owner, ident))

    async def listed(self, owner: str, asked: Page, purpose: str | None) -> tuple[list[FileRecord], bool]:
        """A page of this key's files, and whether there are more."""
        more = "AND purpose = ?4" if purpose else ""

        def read(db: apsw.Connection) -> tuple[list[tuple[Any, ...]], bool]:
            return page(db, "record", owner, asked, table="file", more=more, value=purpose or "")

        rows, rest = await self._database.read(read)
        return [_DECODER.decode(raw) for (raw,) in rows], rest

    async def delete(self, owner: str, ident: str) -> None:
        """Forget a file. Raises NotFoundError, and ConflictError while a batch reads it."""

        def write(db: apsw.Connection) -> None:
            owned_file(db, owner, ident)
            if busy := db.execute(_IN_USE, (ident,)).fetchall():
                raise ConflictError(
                    f"The batch {busy[0][0]} reads the file {ident}.", hint="Cancel it, or await its end."
                )
            db.execute("DELETE FROM file WHERE id = ?", (ident,))

        await self._database.write(write)

    async def expire(self, wall: float) -> list[str]:
        """Forget what is over its time, but for what a batch reads; the ids."""
        return await self._database.write(
            lambda db: [str(ident) for (ident,) in db.execute(_DUE, (int(wall),)).fetchall()]
        )

    async def ids(self) -> set[str]:
        """All files of all keys."""
        rows = await self._database.read(lambda db: db.execute("SELECT id FROM file").fetchall())
        return {str(ident) for (ident,) in rows}


def insert_file(db: apsw.Connection, record: FileRecord) -> None:
    """Know a file, whatever the quota says."""
    raw = msgspec.json.encode(record)
    db.execute(
        _INSERT, (record.id, record.owner, record.purpose, record.bytes, record.expires, raw)
    ).fetchall()


def owned_file(db: apsw.Connection, owner: str, ident: str) -> FileRecord:
    """One file. Raises NotFoundError if this key has none of that id."""
    rows: list[Any] = db.execute(
        "SELECT record FROM file WHERE id = ? AND owner = ?", (ident, owner)
    ).fetchall()
    if not rows:
        raise NotFoundError(f"There is no file {ident[:128]!r} of this key.", hint="GET /v1/files lists all.")
    return _DECODER.decode(rows[0][0])


def _used(db: apsw.Connection, owner: str) -> tuple[int, int]:
    sql = "SELECT count(*), coalesce(sum(bytes), 0) FROM file WHERE owner = ?"
    rows: list[Any] = db.execute(sql, (owner,)).fetchall()
    files, stored = rows[0]
    return int(files), int(stored)
