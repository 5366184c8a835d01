"""Where responses are kept, each with all that was said before it: in the gateway's database, by owner."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import apsw
import msgspec

from sage.common.clock import Clock
from sage.common.config import GatewayConfig
from sage.platform.storage.sqlite import Database

__all__ = ["ResponseLimits", "ResponseStore", "StoredResponse"]


class StoredResponse(msgspec.Struct, frozen=True):
    """One response. `items`: a JSON array of all that went in; `answer`: the response as a client has it."""

    id: str
    items: bytes
    answer: bytes


@dataclass(frozen=True, slots=True)
class ResponseLimits:
    """What is kept of one owner: the newest `count`, `size` bytes of them, none older than `age` seconds."""

    count: int
    size: int
    age: float

    @classmethod
    def of(cls, gateway: GatewayConfig) -> ResponseLimits:
        """The limits that a configuration sets."""
        return cls(
            gateway.max_stored_responses, gateway.max_stored_response_bytes, gateway.stored_response_age_s
        )


_SCHEMA = """
CREATE TABLE IF NOT EXISTS gateway_response (
    number INTEGER PRIMARY KEY AUTOINCREMENT, owner TEXT NOT NULL, id TEXT NOT NULL, created REAL NOT NULL,
    items BLOB NOT NULL, answer BLOB NOT NULL, size INTEGER NOT NULL, UNIQUE (owner, id)
) STRICT;
CREATE INDEX IF NOT EXISTS gateway_response_age ON gateway_response (created);
"""
_PUT = """
INSERT OR REPLACE INTO gateway_response (owner, id, created, items, answer, size) VALUES (?, ?, ?, ?, ?, ?)
"""
_EXPIRE = "DELETE FROM gateway_response WHERE created <= ?"
_TRIM = """
DELETE FROM gateway_response WHERE number IN (
    SELECT number FROM (
        SELECT number, row_number() OVER newest AS place, sum(size) OVER newest AS total
        FROM gateway_response WHERE owner = ?1 WINDOW newest AS (ORDER BY number DESC)
    ) WHERE place > ?2 OR (total > ?3 AND place > 1)
)
"""
_GET = "SELECT id, items, answer FROM gateway_response WHERE owner = ? AND id = ? AND created > ?"
_DELETE = "DELETE FROM gateway_response WHERE owner = ? AND id = ? AND created > ?"


class ResponseStore:
    """Responses by owner and id; `await ResponseStore.open(…)` makes one. What returns is durable.

    Every query names the owner: what is another's is not there. The newest of an owner is always kept.
    """

    def __init__(self, database: Database, limits: ResponseLimits, clock: Clock) -> None:
        self._database = database
        self._limits = limits
        self._clock = clock

    @classmethod
    async def open(cls, database: Database, limits: ResponseLimits, clock: Clock) -> ResponseStore:
        """The store in that database, with what it held before. It closes with the database."""
        await database.write(lambda db: db.execute(_SCHEMA).fetchall())
        return cls(database, limits, clock)

    async def put(self, owner: str, response: StoredResponse) -> None:
        """Keep it, and forget what is over the limits then."""
        now, limits = self._clock.wall(), self._limits
        size = len(response.items) + len(response.answer)
        row = (owner, response.id, now, response.items, response.answer, size)

        def insert(db: apsw.Connection) -> None:
            db.execute(_EXPIRE, (now - limits.age,))
            db.execute(_PUT, row)
            db.execute(_TRIM, (owner, limits.count, limits.size))

        await self._database.write(insert)

    async def get(self, owner: str, ident: str) -> StoredResponse | None:
        """The owner's response of that id."""
        values = (owner, ident, self._oldest())

        def select(db: apsw.Connection) -> list[Any]:
            return db.execute(_GET, values).fetchall()

        rows = await self._database.read(select)
        return StoredResponse(*rows[0]) if rows else None

    async def delete(self, owner: str, ident: str) -> bool:
        """Forget it; whether it was there."""
        values = (owner, ident, self._oldest())

        def remove(db: apsw.Connection) -> bool:
            db.execute(_DELETE, values)
            return db.changes() > 0

        return await self._database.write(remove)

    def _oldest(self) -> float:
        return self._clock.wall() - self._limits.age
