"""Where keys are kept: the port, and its implementation in the gateway's database. Never a key itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import apsw
import msgspec

from sage.common.errors import ConflictError, NotFoundError
from sage.gateway.limits import Limits
from sage.platform.storage.sqlite import Database

__all__ = ["KeyRecord", "KeyStore", "SqliteKeyStore"]

_T = TypeVar("_T")


class KeyRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One key. Times in Unix seconds. `digest`: HMAC-SHA-256 of the whole key, by the pepper.

    `tenant`: whose share it takes, empty = one of its own. No `models` = all. `lowered`: it may use the low
    classes only. `previous` is the digest before the last rotation, good until `previous_until`.
    """

    id: str
    name: str
    digest: bytes
    scopes: frozenset[str]
    created: float
    tenant: str = ""
    models: frozenset[str] = frozenset()
    limits: Limits = Limits()
    lowered: bool = False
    expires: float | None = None
    revoked: float | None = None
    previous: bytes = b""
    previous_until: float = 0.0


class KeyStore(Protocol):
    """Records by id. A change is durable when its call returns. Ids are never used twice."""

    async def seal(self, check: bytes) -> bool:
        """Keep `check` if none is kept; whether it is the one that is. It tells a pepper from another one."""
        ...

    async def all(self) -> list[KeyRecord]:
        """All that there are, revoked ones too, oldest first."""
        ...

    async def add(self, record: KeyRecord) -> None:
        """A new one. Raises ConflictError if its id is there, or its name at a key that is not revoked."""
        ...

    async def change(self, ident: str, edit: Callable[[KeyRecord], KeyRecord]) -> KeyRecord:
        """Replace a record by what `edit` makes of it; nothing comes between. What `edit` raises undoes it.

        Raises NotFoundError for an unknown id, ConflictError for a name that another key has.
        """
        ...


_SCHEMA = """
CREATE TABLE IF NOT EXISTS gateway_key (
    id TEXT PRIMARY KEY, created REAL NOT NULL, record BLOB NOT NULL, active_name TEXT UNIQUE
) STRICT;
CREATE TABLE IF NOT EXISTS gateway_seal (
    only INTEGER PRIMARY KEY CHECK (only = 1), mark BLOB NOT NULL
) STRICT;
"""
_DECODER = msgspec.json.Decoder(KeyRecord)


class SqliteKeyStore:
    """A `KeyStore` in a database of this process; `await SqliteKeyStore.open(database)` makes one."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @classmethod
    async def open(cls, database: Database) -> SqliteKeyStore:
        """The store in that database, with what it held before. It closes with the database."""
        await database.write(lambda db: db.execute(_SCHEMA).fetchall())
        return cls(database)

    async def seal(self, check: bytes) -> bool:
        """See `KeyStore.seal`."""

        def keep(db: apsw.Connection) -> bool:
            db.execute("INSERT OR IGNORE INTO gateway_seal VALUES (1, ?)", (check,))
            return bool(_one(db, "SELECT mark FROM gateway_seal", ()) == check)

        return await self._database.write(keep)

    async def all(self) -> list[KeyRecord]:
        """See `KeyStore.all`."""
        sql = "SELECT record FROM gateway_key ORDER BY created, id"
        rows: list[Any] = await self._database.read(lambda db: db.execute(sql).fetchall())
        return [_DECODER.decode(raw) for (raw,) in rows]

    async def add(self, record: KeyRecord) -> None:
        """See `KeyStore.add`."""

        def insert(db: apsw.Connection) -> None:
            _named(record, lambda: db.execute("INSERT INTO gateway_key VALUES (?, ?, ?, ?)", _row(record)))

        await self._database.write(insert)

    async def change(self, ident: str, edit: Callable[[KeyRecord], KeyRecord]) -> KeyRecord:
        """See `KeyStore.change`."""

        def replace(db: apsw.Connection) -> KeyRecord:
            raw = _one(db, "SELECT record FROM gateway_key WHERE id = ?", (ident,))
            if raw is None:
                raise NotFoundError(f"There is no key {ident!r}.")
            record = edit(_DECODER.decode(raw))
            sql = "UPDATE gateway_key SET id = ?, created = ?, record = ?, active_name = ? WHERE id = ?"
            _named(record, lambda: db.execute(sql, (*_row(record), ident)))
            return record

        return await self._database.write(replace)


def _row(record: KeyRecord) -> tuple[str, float, bytes, str | None]:
    active = record.name if record.revoked is None else None
    return record.id, record.created, msgspec.json.encode(record), active


def _one(db: apsw.Connection, sql: str, values: tuple[Any, ...]) -> Any:
    rows: list[Any] = db.execute(sql, values).fetchall()
    return rows[0][0] if rows else None


def _named(record: KeyRecord, write: Callable[[], _T]) -> _T:
    """Say what a uniqueness that does not hold means."""
    try:
        return write()
    except apsw.ConstraintError as error:
        raise ConflictError(
            f"There is a key named {record.name!r} already.", hint="Take another name, or revoke that one."
        ) from error
