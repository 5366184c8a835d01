"""What each key has used, by model, class and day: counted in memory, stored about once a second."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import apsw
import msgspec

from sage.gateway.limits import DAY_S, Spent
from sage.middleware.engines.port import Usage
from sage.platform.storage.sqlite import Database

__all__ = ["Meter", "SqliteUsageStore", "Tally", "UsageKey", "UsageStore", "day_of"]


class UsageKey(NamedTuple):
    """What is counted apart. `day`: days since 1970-01-01, UTC. An unknown model is counted as ''."""

    key: str
    model: str
    request_class: str
    day: int


Row = tuple[str, str, str, int]


class Tally(msgspec.Struct):
    """Counts of one such; `refusals` and `errors` are among the `requests`. `last`: Unix seconds."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    errors: int = 0
    refusals: int = 0
    last: float = 0.0

    def add(self, other: Tally) -> None:
        """Count what another one has counted."""
        self.requests += other.requests
        self.prompt_tokens += other.prompt_tokens
        self.completion_tokens += other.completion_tokens
        self.errors += other.errors
        self.refusals += other.refusals
        self.last = max(self.last, other.last)


class UsageStore(Protocol):
    """Sums that only grow. What was added is durable when the call returns."""

    async def add(self, tallies: Mapping[UsageKey, Tally]) -> None:
        """Add all of them, or none if it raises."""
        ...

    async def rows(
        self, first: int, last: int, *, key: str | None = None, model: str | None = None
    ) -> list[tuple[UsageKey, Tally]]:
        """Sums of the days from `first` to `last`, both included, ordered by day, key, model and class."""
        ...

    async def spent(self, day: int) -> dict[str, Spent]:
        """Tokens of each key that has used any: on that day, and ever."""
        ...

    async def last_used(self) -> dict[str, float]:
        """When each key was used last, Unix seconds."""
        ...


def day_of(wall: float) -> int:
    """The day of a time in Unix seconds."""
    return int(wall // DAY_S)


_COUNTS = Tally.__struct_fields__
_SCHEMA = """
CREATE TABLE IF NOT EXISTS gateway_usage (
    key TEXT NOT NULL, model TEXT NOT NULL, class TEXT NOT NULL, day INTEGER NOT NULL,
    requests INTEGER NOT NULL, prompt_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL,
    errors INTEGER NOT NULL, refusals INTEGER NOT NULL, last REAL NOT NULL,
    PRIMARY KEY (day, key, model, class)
) STRICT, WITHOUT ROWID;
"""
_ADD = """
INSERT INTO gateway_usage VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT DO UPDATE SET
    requests = requests + excluded.requests, prompt_tokens = prompt_tokens + excluded.prompt_tokens,
    completion_tokens = completion_tokens + excluded.completion_tokens,
    errors = errors + excluded.errors, refusals = refusals + excluded.refusals,
    last = max(last, excluded.last)
"""
_ROWS = """
SELECT * FROM gateway_usage WHERE day BETWEEN ?1 AND ?2 AND (?3 IS NULL OR key = ?3)
    AND (?4 IS NULL OR model = ?4) ORDER BY day, key, model, class
"""
_SPENT = """
SELECT key, sum(iif(day = ?1, prompt_tokens + completion_tokens, 0)), sum(prompt_tokens + completion_tokens)
FROM gateway_usage GROUP BY key HAVING sum(prompt_tokens + completion_tokens) > 0
"""
_LAST = "SELECT key, max(last) FROM gateway_usage GROUP BY key"


class SqliteUsageStore:
    """A `UsageStore` in a database of this process; `await SqliteUsageStore.open(database)` makes one."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @classmethod
    async def open(cls, database: Database) -> SqliteUsageStore:
        """The store in that database, with what it held before. It closes with the database."""
        await database.write(lambda db: db.execute(_SCHEMA).fetchall())
        return cls(database)

    async def add(self, tallies: Mapping[UsageKey, Tally]) -> None:
        """See `UsageStore.add`."""
        rows = [(*key, *msgspec.structs.astuple(tally)) for key, tally in tallies.items()]

        def upsert(db: apsw.Connection) -> None:
            db.executemany(_ADD, rows)

        await self._database.write(upsert)

    async def rows(
        self, first: int, last: int, *, key: str | None = None, model: str | None = None
    ) -> list[tuple[UsageKey, Tally]]:
        """See `UsageStore.rows`."""
        found = await self._read(_ROWS, first, last, key, model)
        return [(UsageKey(*row[:4]), Tally(*row[4:])) for row in found]

    async def spent(self, day: int) -> dict[str, Spent]:
        """See `UsageStore.spent`."""
        return {key: Spent(day, today, ever) for key, today, ever in await self._read(_SPENT, day)}

    async def last_used(self) -> dict[str, float]:
        """See `UsageStore.last_used`."""
        return dict(await self._read(_LAST))

    async def _read(self, sql: str, *values: object) -> list[Any]:
        def select(db: apsw.Connection) -> list[Any]:
            return db.execute(sql, values).fetchall()

        return await self._database.read(select)


class Meter:
    """Counts requests as they end. What a crash can lose is what was counted since the last `flush`."""

    def __init__(self, store: UsageStore) -> None:
        self._store = store
        self._pending: dict[UsageKey, Tally] = {}
        self._flushing = asyncio.Lock()
        self.last_used: dict[str, float] = {}

    def count(self, row: Row, at: float, usage: Usage, *, error: bool = False, refused: bool = False) -> None:
        """One request has ended, at `at` Unix seconds. `row` is what a `UsageKey` holds."""
        tally = self._pending.get(row)  # type: ignore[call-overload]  # a plain tuple is quicker, and equal
        if tally is None:
            tally = self._pending[UsageKey(*row)] = Tally()
        tally.requests += 1
        tally.prompt_tokens += usage.prompt_tokens
        tally.completion_tokens += usage.completion_tokens
        if error:
            tally.errors += 1
        if refused:
            tally.refusals += 1
        tally.last = self.last_used[row[0]] = at

    async def flush(self) -> None:
        """Add what was counted to the store, in one transaction; if that fails it is kept for the next."""
        async with self._flushing:
            taken, self._pending = self._pending, {}
            if not taken:
                return
            try:
                await self._store.add(taken)
            except Exception:
                for row, tally in taken.items():
                    self._pending.setdefault(row, Tally()).add(tally)
                raise
