"""The `KeyValue` implementations: in a `Database`, and in memory."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import apsw

from sage.common.clock import Clock, SystemClock
from sage.platform.storage.port import Check, Delete, Entry, Put, Step, check_steps, encode, stale
from sage.platform.storage.sqlite import Database

__all__ = ["MemoryKeyValue", "SqliteKeyValue"]

_SCHEMA = """
CREATE TABLE IF NOT EXISTS kv_entry (
    namespace TEXT NOT NULL, key BLOB NOT NULL, value BLOB NOT NULL, version INTEGER NOT NULL, until REAL,
    PRIMARY KEY (namespace, key)
) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS kv_until ON kv_entry (until) WHERE until IS NOT NULL;
CREATE TABLE IF NOT EXISTS kv_version (
    only INTEGER PRIMARY KEY CHECK (only = 1), last INTEGER NOT NULL
) STRICT;
INSERT OR IGNORE INTO kv_version VALUES (1, 0);
"""
_LIVE = "(until IS NULL OR until > ?)"
_VERSION = f"SELECT version FROM kv_entry WHERE namespace = ? AND key = ? AND {_LIVE}"  # noqa: S608
_GET = f"SELECT value, version FROM kv_entry WHERE namespace = ? AND key = ? AND {_LIVE}"  # noqa: S608
_SCAN = """
SELECT key, value, version FROM kv_entry WHERE namespace = ?1 AND key >= ?2 AND key < ?3
    AND (?4 IS NULL OR key > ?4) AND (until IS NULL OR until > ?5) ORDER BY key LIMIT ?6
"""
_NEXT = "UPDATE kv_version SET last = last + 1 RETURNING last"
_PUT = "INSERT OR REPLACE INTO kv_entry VALUES (?, ?, ?, ?, ?)"
_DELETE = "DELETE FROM kv_entry WHERE namespace = ? AND key = ?"


class _Front(ABC):
    """The single changes, each a transaction of one or two steps."""

    @abstractmethod
    async def transact(self, *steps: Step) -> list[int]:
        """See `KeyValue.transact`."""

    async def put(
        self, namespace: str, key: str, value: bytes, *, ttl: float | None = None, expect: int | None = None
    ) -> int:
        """See `KeyValue.put`."""
        put = Put(namespace, key, value, ttl)
        checks = [] if expect is None else [Check(namespace, key, expect)]
        return (await self.transact(*checks, put))[-1]

    async def delete(self, namespace: str, key: str, *, expect: int | None = None) -> bool:
        """See `KeyValue.delete`."""
        checks = [] if expect is None else [Check(namespace, key, expect)]
        return bool((await self.transact(*checks, Delete(namespace, key)))[-1])


class SqliteKeyValue(_Front):
    """A `KeyValue` in a database of this process; `await SqliteKeyValue.open(database)` makes one."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    @classmethod
    async def open(cls, database: Database, *, clock: Clock | None = None) -> SqliteKeyValue:
        """The store in that database, with what it held before. It closes with the database."""
        await database.write(lambda db: db.execute(_SCHEMA).fetchall())
        return cls(database, clock or SystemClock())

    async def get(self, namespace: str, key: str) -> Entry | None:
        """See `KeyValue.get`."""
        where = (encode(namespace, "namespace").decode(), encode(key, "key"), self._clock.wall())
        rows: list[Any] = await self._database.read(lambda db: db.execute(_GET, where).fetchall())
        return Entry(key, *rows[0]) if rows else None

    async def scan(
        self, namespace: str, prefix: str = "", *, after: str | None = None, limit: int = 1000
    ) -> list[Entry]:
        """See `KeyValue.scan`."""
        encode(namespace, "namespace")
        begin = encode(prefix, "prefix")
        # No byte of UTF-8 is 0xff, so this is behind each key that begins with the prefix.
        behind = None if after is None else encode(after, "key")
        values = (namespace, begin, begin + b"\xff", behind, self._clock.wall(), max(limit, 0))
        rows: list[Any] = await self._database.read(lambda db: db.execute(_SCAN, values).fetchall())
        return [Entry(bytes(key).decode(), value, version) for key, value, version in rows]

    async def namespaces(self) -> list[str]:
        """See `KeyValue.namespaces`."""
        sql = f"SELECT DISTINCT namespace FROM kv_entry WHERE {_LIVE} ORDER BY namespace"  # noqa: S608
        now = self._clock.wall()
        rows: list[Any] = await self._database.read(lambda db: db.execute(sql, (now,)).fetchall())
        return [name for (name,) in rows]

    async def transact(self, *steps: Step) -> list[int]:
        """See `KeyValue.transact`; on disk when this returns."""
        check_steps(steps)
        now = self._clock.wall()
        return await self._database.write(lambda db: [_apply(db, step, now) for step in steps])

    async def expire(self) -> int:
        """See `KeyValue.expire`."""
        now = self._clock.wall()

        def remove(db: apsw.Connection) -> int:
            db.execute("DELETE FROM kv_entry WHERE until <= ?", (now,))
            return db.changes()

        return await self._database.write(remove)


def _apply(db: apsw.Connection, step: Step, now: float) -> int:
    where = (step.namespace, step.key.encode())
    if isinstance(step, Put):
        counted: list[Any] = db.execute(_NEXT).fetchall()
        version = int(counted[0][0])
        until = None if step.ttl is None else now + step.ttl
        db.execute(_PUT, (*where, step.value, version, until))
        return version
    rows: list[Any] = db.execute(_VERSION, (*where, now)).fetchall()
    found = int(rows[0][0]) if rows else 0
    if isinstance(step, Check):
        if found != step.version:
            raise stale(step, found)
        return found
    db.execute(_DELETE, where)
    return int(found > 0)


class MemoryKeyValue(_Front):
    """A `KeyValue` of one event loop that lasts as long as the object."""

    def __init__(self, *, clock: Clock | None = None) -> None:
        self._clock = clock or SystemClock()
        self._entries: dict[tuple[str, str], tuple[Entry, float | None]] = {}
        self._last = 0

    async def get(self, namespace: str, key: str) -> Entry | None:
        """See `KeyValue.get`."""
        encode(namespace, "namespace")
        encode(key, "key")
        return self._live().get((namespace, key))

    async def scan(
        self, namespace: str, prefix: str = "", *, after: str | None = None, limit: int = 1000
    ) -> list[Entry]:
        """See `KeyValue.scan`."""
        for text, what in ((namespace, "namespace"), (prefix, "prefix"), (after or "", "key")):
            encode(text, what)
        found = [
            entry
            for (name, key), entry in self._live().items()
            if name == namespace and key.startswith(prefix) and (after is None or key > after)
        ]
        return sorted(found, key=lambda entry: entry.key)[: max(limit, 0)]

    async def namespaces(self) -> list[str]:
        """See `KeyValue.namespaces`."""
        return sorted({name for name, _ in self._live()})

    async def transact(self, *steps: Step) -> list[int]:
        """See `KeyValue.transact`."""
        check_steps(steps)
        before, last = dict(self._entries), self._last
        try:
            return [self._apply(step) for step in steps]
        except BaseException:
            self._entries, self._last = before, last
            raise

    async def expire(self) -> int:
        """See `KeyValue.expire`."""
        live = self._live()
        gone = [where for where in self._entries if where not in live]
        for where in gone:
            del self._entries[where]
        return len(gone)

    def _live(self) -> dict[tuple[str, str], Entry]:
        now = self._clock.wall()
        entries = self._entries.items()
        return {where: entry for where, (entry, until) in entries if until is None or until > now}

    def _apply(self, step: Step) -> int:
        where = (step.namespace, step.key)
        if isinstance(step, Put):
            self._last += 1
            until = None if step.ttl is None else self._clock.wall() + step.ttl
            self._entries[where] = (Entry(step.key, bytes(step.value), self._last), until)
            return self._last
        live = self._live().get(where)
        found = live.version if live else 0
        if isinstance(step, Check):
            if found != step.version:
                raise stale(step, found)
            return found
        self._entries.pop(where, None)
        return int(found > 0)
