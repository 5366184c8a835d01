"""The default queue: rows in a SQLite database, acknowledged when they are on disk.

Many queues may live in one database. Each message is one row; `state` says where it is, `due` when its delay
or its lease ends. What changes something goes through `Database.write`, so concurrent puts share a commit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, Self, TypeVar

import apsw

from sage.common.clock import Clock, SystemClock
from sage.platform.queue._waiting import POLL, Signal, undone_if_cancelled
from sage.platform.queue.port import (
    DeadLetter,
    Lease,
    Message,
    QueueOptions,
    QueueStats,
    check,
    check_lease,
    full,
    lost,
)

__all__ = ["SqliteQueue", "Transactions"]

_T = TypeVar("_T")

_READY, _DELAYED, _, _DEAD = range(4)  # and 2 is leased

_SCHEMA = """
CREATE TABLE IF NOT EXISTS queue_message (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, queue TEXT NOT NULL, state INTEGER NOT NULL,
    priority INTEGER NOT NULL, due REAL, attempts INTEGER NOT NULL DEFAULT 0,
    token INTEGER NOT NULL DEFAULT 0, key TEXT, reason TEXT NOT NULL DEFAULT '', body BLOB NOT NULL
);
CREATE INDEX IF NOT EXISTS queue_ready ON queue_message (queue, priority DESC, seq) WHERE state = 0;
CREATE INDEX IF NOT EXISTS queue_due ON queue_message (queue, due, state) WHERE due IS NOT NULL;
CREATE INDEX IF NOT EXISTS queue_dead ON queue_message (queue, seq) WHERE state = 3;
CREATE TABLE IF NOT EXISTS queue_total (
    queue TEXT PRIMARY KEY, items INTEGER NOT NULL, bytes INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS queue_key (
    queue TEXT NOT NULL, key TEXT NOT NULL, id TEXT NOT NULL, until REAL, PRIMARY KEY (queue, key)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS queue_key_until ON queue_key (queue, until) WHERE until IS NOT NULL;
"""

_INSERT = "INSERT INTO queue_message (queue, state, priority, due, key, body) VALUES (?, ?, ?, ?, ?, ?)"
_TAKE = """
UPDATE queue_message SET state = 2, due = ?, attempts = attempts + 1, token = token + 1 WHERE seq IN (
    SELECT seq FROM queue_message WHERE queue = ? AND state = 0 ORDER BY priority DESC, seq LIMIT ?
) RETURNING seq, body, priority, attempts, due, token, reason
"""
_SWEEP = """
UPDATE queue_message SET due = NULL, state = CASE WHEN state = 2 AND attempts >= ? THEN 3 ELSE 0 END,
    reason = CASE WHEN state = 2 THEN 'the lease ended' ELSE reason END
WHERE queue = ? AND due <= ? RETURNING state, length(body)
"""
_NACK = """
UPDATE queue_message SET due = CASE WHEN attempts >= ?1 THEN NULL ELSE ?2 END, reason = ?3,
    state = CASE WHEN attempts >= ?1 THEN 3 WHEN ?2 IS NULL THEN 0 ELSE 1 END
WHERE seq = ?4 AND queue = ?5 AND state = 2 AND token = ?6 AND due > ?7 RETURNING state, length(body)
"""
# A cancelled get: as if it had never been, but for the token, which must not be given twice.
_RETURN = """
UPDATE queue_message SET state = 0, due = NULL, attempts = attempts - 1
WHERE seq = ? AND queue = ? AND state = 2 AND token = ?
"""
_ACK = """
DELETE FROM queue_message WHERE seq = ? AND queue = ? AND state = 2 AND token = ? AND due > ?
RETURNING length(body), key
"""
_EXTEND = """
UPDATE queue_message SET due = ? WHERE seq = ? AND queue = ? AND state = 2 AND token = ? AND due > ?
RETURNING seq
"""
_REQUEUE = """
UPDATE queue_message SET state = 0, attempts = 0, reason = ''
WHERE queue = ? AND state = 3 AND (? IS NULL OR seq = ?) RETURNING length(body)
"""
# Each count is answered by one index alone.
_STATS = """
SELECT (SELECT count(*) FROM queue_message WHERE queue = ?1 AND state = 0),
    (SELECT count(*) FROM queue_message WHERE queue = ?1 AND due IS NOT NULL AND state = 1),
    (SELECT count(*) FROM queue_message WHERE queue = ?1 AND due IS NOT NULL AND state = 2),
    (SELECT count(*) FROM queue_message WHERE queue = ?1 AND state = 3)
"""


@dataclass(frozen=True, slots=True)
class _Rows:
    """What a queue does inside a transaction; each method is done as a whole or not at all."""

    name: str
    options: QueueOptions

    def prepare(self, db: apsw.Connection) -> None:
        db.execute(_SCHEMA)
        db.execute("INSERT OR IGNORE INTO queue_total VALUES (?, 0, 0)", (self.name,))

    def store(self, db: apsw.Connection, messages: Sequence[Message], now: float) -> list[str] | None:
        """Their ids, or None if there is no room for all of them."""
        if all(message.key is None for message in messages):
            return self._insert(db, messages, now)
        db.execute("DELETE FROM queue_key WHERE queue = ? AND until <= ?", (self.name, now))
        ids: dict[int, str] = {}
        places: dict[str, int] = {}  # of the first message with each key that is new
        new: list[int] = []
        for place, message in enumerate(messages):
            if message.key is not None:
                known = _query(
                    db, "SELECT id FROM queue_key WHERE queue = ? AND key = ?", self.name, message.key
                )
                if known:
                    ids[place] = known[0][0]
                    continue
                if places.setdefault(message.key, place) != place:
                    continue
            new.append(place)
        inserted = self._insert(db, [messages[place] for place in new], now)
        if inserted is None:
            return None
        ids.update(zip(new, inserted, strict=True))
        keys = [(self.name, key, ids[place]) for key, place in places.items()]
        db.executemany("INSERT INTO queue_key VALUES (?, ?, ?, NULL)", keys)
        return [
            ids[place] if place in ids else ids[places[message.key or ""]]
            for place, message in enumerate(messages)
        ]

    def take(self, db: apsw.Connection, limit: int, seconds: float, now: float) -> tuple[list[Lease], float]:
        """Leases, and when to look again if there are none."""
        self.sweep(db, now)
        rows = _query(db, _TAKE, now + seconds, self.name, limit)
        if rows:
            rows.sort(key=lambda row: (-row[2], row[0]))
            return [Lease(str(row[0]), *row[1:]) for row in rows], 0.0
        due: float | None = _query(
            db, "SELECT min(due) FROM queue_message WHERE queue = ? AND due IS NOT NULL", self.name
        )[0][0]
        return [], POLL if due is None else due - now

    def sweep(self, db: apsw.Connection, now: float) -> None:
        """Delays and leases that are over."""
        gone = [
            size
            for state, size in _query(db, _SWEEP, self.options.max_attempts, self.name, now)
            if state == _DEAD
        ]
        self._count(db, -len(gone), -sum(gone))

    def ack(self, db: apsw.Connection, leases: Sequence[Lease], now: float) -> list[str]:
        """The ids of those that are not held any more."""
        missing, gone = [], []
        for lease in leases:
            rows = _query(db, _ACK, lease.id, self.name, lease.token, now)
            if not rows:
                missing.append(lease.id)
                continue
            size, key = rows[0]
            gone.append(size)
            if key is not None:
                db.execute(
                    "UPDATE queue_key SET until = ? WHERE queue = ? AND key = ?",
                    (now + self.options.remember, self.name, key),
                )
        self._count(db, -len(gone), -sum(gone))
        return missing

    def nack(self, db: apsw.Connection, lease: Lease, delay: float, reason: str, now: float) -> bool:
        due = now + delay if delay else None
        values = (self.options.max_attempts, due, reason, lease.id, self.name, lease.token, now)
        rows = _query(db, _NACK, *values)
        if rows and rows[0][0] == _DEAD:
            self._count(db, -1, -rows[0][1])
        return bool(rows)

    def extend(self, db: apsw.Connection, lease: Lease, until: float, now: float) -> bool:
        return bool(_query(db, _EXTEND, until, lease.id, self.name, lease.token, now))

    def give_back(self, db: apsw.Connection, leases: Sequence[Lease]) -> None:
        db.executemany(_RETURN, [(lease.id, self.name, lease.token) for lease in leases])

    def stats(self, db: apsw.Connection, now: float) -> QueueStats:
        self.sweep(db, now)
        ready, delayed, leased, dead = _query(db, _STATS, self.name)[0]
        return QueueStats(ready, delayed, leased, dead, self._totals(db)[1])

    def dead_letters(self, db: apsw.Connection, limit: int, now: float) -> list[DeadLetter]:
        self.sweep(db, now)
        rows = _query(
            db,
            "SELECT seq, body, priority, attempts, reason FROM queue_message"
            " WHERE queue = ? AND state = 3 ORDER BY seq LIMIT ?",
            self.name,
            limit,
        )
        return [DeadLetter(str(row[0]), *row[1:]) for row in rows]

    def requeue(self, db: apsw.Connection, ids: Sequence[str], now: float) -> int:
        self.sweep(db, now)
        sizes = [
            size for ident in ids or (None,) for (size,) in _query(db, _REQUEUE, self.name, ident, ident)
        ]
        self._count(db, len(sizes), sum(sizes))
        return len(sizes)

    def _insert(self, db: apsw.Connection, messages: Sequence[Message], now: float) -> list[str] | None:
        size = sum(len(message.body) for message in messages)
        if messages and not self._fits(db, len(messages), size):
            # A lease that has ended for the last time makes room.
            self.sweep(db, now)
            if not self._fits(db, len(messages), size):
                return None
        rows = [
            (self.name, _DELAYED, m.priority, now + m.delay, m.key, m.body)
            if m.delay
            else (self.name, _READY, m.priority, None, m.key, m.body)
            for m in messages
        ]
        db.executemany(_INSERT, rows)
        self._count(db, len(rows), size)
        # Nobody else writes during this transaction, so the numbers of these rows follow each other.
        last = db.last_insert_rowid()
        return [str(seq) for seq in range(last - len(rows) + 1, last + 1)]

    def _fits(self, db: apsw.Connection, count: int, size: int) -> bool:
        items, used = self._totals(db)
        return items + count <= self.options.max_items and used + size <= self.options.max_bytes

    def _totals(self, db: apsw.Connection) -> tuple[int, int]:
        found: tuple[int, int] = _query(
            db, "SELECT items, bytes FROM queue_total WHERE queue = ?", self.name
        )[0]
        return found

    def _count(self, db: apsw.Connection, items: int, size: int) -> None:
        if items:
            db.execute(
                "UPDATE queue_total SET items = items + ?, bytes = bytes + ? WHERE queue = ?",
                (items, size, self.name),
            )


def _query(db: apsw.Connection, sql: str, *values: float | str | None) -> list[Any]:
    return db.execute(sql, values).fetchall()


class Transactions(Protocol):
    """What the queue needs of a database; `sage.platform.storage.sqlite.Database` is one."""

    async def write(self, fn: Callable[[apsw.Connection], _T]) -> _T:
        """Run `fn` in a transaction of its own or with others; its result, when that is committed."""
        ...


class SqliteQueue:
    """A `Queue` in a `Database`; `await SqliteQueue.open(database, "jobs")` makes one.

    Closing the queue leaves the database open. Two objects for one name work, in one process or in two, but
    see each other only every `poll` seconds.
    """

    def __init__(self, database: Transactions, rows: _Rows, clock: Clock, poll: float) -> None:
        self._database = database
        self._rows = rows
        self._clock = clock
        self._arrived = Signal(poll)
        self._room = Signal(poll)

    @classmethod
    async def open(
        cls,
        database: Transactions,
        name: str,
        options: QueueOptions | None = None,
        *,
        clock: Clock | None = None,
        poll: float = POLL,
    ) -> Self:
        """The queue of that name, with what it held before. Leases made before go on to their end.

        `poll`: in how many seconds a waiting get or put sees what another object or process did.
        """
        rows = _Rows(name, options or QueueOptions())
        await database.write(rows.prepare)
        return cls(database, rows, clock or SystemClock(), poll)

    async def put(self, body: bytes, *, priority: int = 0, delay: float = 0.0, key: str | None = None) -> str:
        """See `Queue.put`; on disk when this returns."""
        return (await self.put_many([Message(body, priority, delay, key)]))[0]

    async def put_many(self, messages: Sequence[Message]) -> list[str]:
        """See `Queue.put_many`; one transaction."""
        options = self._rows.options
        check(messages, options)
        if not messages:
            return []

        async def look() -> tuple[list[str] | None, float]:
            now = self._clock.wall()
            return await self._database.write(lambda db: self._rows.store(db, messages, now)), POLL

        ids = await self._room.until(look, options.patience)
        if ids is None:
            raise full(self._rows.name, options)
        self._arrived.notify()
        return ids

    async def get(self, limit: int = 1, *, wait: float | None = None, lease: float = 30.0) -> list[Lease]:
        """See `Queue.get`."""
        check_lease(limit, lease)

        async def look() -> tuple[list[Lease], float]:
            now = self._clock.wall()
            taking = self._database.write(lambda db: self._rows.take(db, limit, lease, now))
            return await undone_if_cancelled(taking, self._undo)

        return await self._arrived.until(look, wait)

    async def ack(self, *leases: Lease) -> None:
        """See `Queue.ack`."""
        if not leases:
            return
        now = self._clock.wall()
        missing = await self._database.write(lambda db: self._rows.ack(db, leases, now))
        self._room.notify()
        if missing:
            raise lost(*missing)

    async def nack(self, lease: Lease, *, delay: float = 0.0, reason: str = "") -> None:
        """See `Queue.nack`."""
        now = self._clock.wall()
        if not await self._database.write(lambda db: self._rows.nack(db, lease, delay, reason, now)):
            raise lost(lease.id)
        self._arrived.notify()
        self._room.notify()

    async def extend(self, lease: Lease, seconds: float) -> Lease:
        """See `Queue.extend`."""
        check_lease(1, seconds)
        now = self._clock.wall()
        until = now + seconds
        if not await self._database.write(lambda db: self._rows.extend(db, lease, until, now)):
            raise lost(lease.id)
        return replace(lease, leased_until=until)

    async def stats(self) -> QueueStats:
        """See `Queue.stats`."""
        now = self._clock.wall()
        return await self._database.write(lambda db: self._rows.stats(db, now))

    async def dead_letters(self, limit: int = 100) -> list[DeadLetter]:
        """See `Queue.dead_letters`."""
        now = self._clock.wall()
        return await self._database.write(lambda db: self._rows.dead_letters(db, limit, now))

    async def requeue(self, *ids: str) -> int:
        """See `Queue.requeue`."""
        now = self._clock.wall()
        count = await self._database.write(lambda db: self._rows.requeue(db, ids, now))
        self._arrived.notify()
        return count

    async def close(self) -> None:
        """See `Queue.close`; whoever opened the database closes it."""

    async def _undo(self, taken: tuple[list[Lease], float]) -> None:
        await self._database.write(lambda db: self._rows.give_back(db, taken[0]))
        self._arrived.notify()
