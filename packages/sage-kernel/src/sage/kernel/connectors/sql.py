"""Rows of a SQL database as records, and records as rows; which databases, `databases` says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from itertools import pairwise
from typing import Any, Final

from sage.common.errors import BadRequestError, NotFoundError, UsageError
from sage.kernel.connectors.databases import Database, Transaction, connect, quoted
from sage.kernel.connectors.plain import as_mapping

__all__ = ["Sql", "SqlTable"]

EPOCH: Final = "sage_epoch"
NUMBER: Final = "sage_number"
ROWS: Final = 1000
"""Rows that the sink holds until it stages them, in a transaction."""


class Sql:
    """The rows of a query as dicts, in the order of the column `key`, whose values are unique and never NULL.

    The position is the last key read, so rows that come later with a greater key are read by a run that
    resumes. The key is a number or a text. `batch` rows are asked for at a time. `url`: see
    `databases.connect`.
    """

    def __init__(self, url: str, query: str, key: str, *, batch: int = 1000) -> None:
        if batch < 1:
            raise BadRequestError(f"batches of {batch} rows are none; valid is 1 or more.")
        self._url, self._query, self._key, self._batch = url, query.strip().rstrip(";"), key, batch
        self._database: Database | None = None

    def setup(self) -> None:
        """Connect."""
        self._database = connect(self._url)

    async def read(self, position: Any | None) -> AsyncIterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
        """Rows and the key of the last; raises BadRequestError for a key that is none."""
        last = position["key"] if position else None
        while True:
            rows = await asyncio.to_thread(self._page, last)
            page = rows[: self._batch]
            if page:
                last = page[-1][self._key]
                yield {"key": last}, page
            # One row more than a batch was asked for: to see that its key is another, and that there is one.
            if len(rows) <= self._batch:
                return

    async def close(self) -> None:
        """Disconnect, once what runs in a thread is done."""
        if self._database is not None:
            await asyncio.to_thread(self._database.close)

    def _page(self, last: Any | None) -> list[dict[str, Any]]:
        database = _connected(self._database)
        key, query = quoted(self._key), database.literal(self._query)
        behind = "" if last is None else f"WHERE {key} > :last"
        page = f"SELECT * FROM ({query}) AS q {behind} ORDER BY {key} LIMIT :most"  # noqa: S608 - the user's own
        with database.transaction(write=False) as transaction:
            if last is None:
                unkeyed = f"SELECT 1 AS one FROM ({query}) AS q WHERE {key} IS NULL LIMIT 1"  # noqa: S608
                if transaction.rows(unkeyed, {}):
                    raise BadRequestError(
                        f"the query gives rows whose {self._key!r} is NULL; a key never is."
                    )
            values = {"most": self._batch + 1} | ({} if last is None else {"last": last})
            rows: list[dict[str, Any]] = transaction.rows(page, values)
        for row, after in pairwise(rows):
            if row[self._key] == after[self._key]:
                raise BadRequestError(
                    f"the query gives several rows whose {self._key!r} is {row[self._key]!r}."
                )
        for row in rows[-1:]:
            if not isinstance(row[self._key], int | float | str):
                raise BadRequestError(
                    f"the key {self._key!r} is {type(row[self._key]).__name__}; valid is a number or a text.",
                    hint="Cast it in the query, to a text that sorts as it does.",
                )
        return rows


class SqlTable:
    """Inserts dicts or dataclasses into a table that exists; a `Transactional` sink.

    An epoch's rows are staged in the table `stage` and moved in one transaction when it is committed. With
    `key`, the columns of a unique index, a row takes the place of the one with its key; of several in an
    epoch, the last. All records have the columns of the first. Two runs that write one table at once need
    different stages.
    """

    def __init__(self, url: str, table: str, key: list[str] | None = None, stage: str = "") -> None:
        self._url, self._table, self._key = url, table, key or []
        self._stage = stage or f"{table}_sage_stage"
        self._database: Database | None = None
        self._columns: list[str] = []
        self._staging = False
        self._rows: list[tuple[Any, ...]] = []
        self._epoch = 0
        self._number = 0

    async def setup(self) -> None:
        """Connect, and see that the table and its key are there."""
        self._database = connect(self._url)
        await asyncio.to_thread(self._check)

    async def write(self, epoch: int, items: Sequence[Any]) -> None:
        """Keep the rows, and stage them when there are many."""
        if epoch != self._epoch:
            await self._flush()
            self._epoch = epoch
        for item in items:
            record = as_mapping(item)
            if not self._columns:
                self._columns = list(record)
            if record.keys() != dict.fromkeys(self._columns).keys():
                found, wanted = ", ".join(map(str, record)), ", ".join(self._columns)
                raise BadRequestError(f"a record has the columns {found}; the first one had {wanted}.")
            if any(record.get(column) is None for column in self._key):
                raise BadRequestError(f"a record has no key; {', '.join(self._key)} must not be None.")
            self._rows.append((epoch, self._number, *(record[column] for column in self._columns)))
            self._number += 1
        if len(self._rows) >= ROWS:
            await self._flush()

    async def prepare(self, _epoch: int) -> dict[str, Any]:
        """All rows of this epoch are staged."""
        await self._flush()
        return {}

    async def commit(self, epoch: int) -> None:
        """Move the rows of this epoch."""
        await self._flush()
        await asyncio.to_thread(self._move, epoch)

    async def recover(self, epoch: int, _prepared: Any) -> None:
        """Move what is staged up to this epoch, remove what is of later ones."""
        await asyncio.to_thread(self._recover, epoch)

    async def close(self) -> None:
        """Remove the stage unless something is in it that a resumed run needs, and disconnect."""
        if self._database is not None:
            try:
                await asyncio.to_thread(self._drop)
            finally:
                await asyncio.to_thread(self._database.close)

    async def _flush(self) -> None:
        rows, self._rows = self._rows, []
        if rows:
            await asyncio.to_thread(self._staged, rows)

    def _check(self) -> None:
        with _connected(self._database).transaction(write=False) as transaction:
            columns = transaction.columns(self._table)
        if not columns:
            raise NotFoundError(f"the database has no table {self._table!r}.", hint="Make it first.")
        missing = [column for column in self._key if column not in columns]
        if missing:
            raise BadRequestError(f"table {self._table!r} has no column {missing[0]!r}, which is of its key.")

    def _staged(self, rows: list[tuple[Any, ...]]) -> None:
        columns = [EPOCH, NUMBER, *self._columns]
        with _connected(self._database).transaction(write=True) as transaction:
            if not self._staging:
                self._make(transaction, columns)
            transaction.insert(self._stage, columns, rows)
        self._staging = True

    def _make(self, transaction: Transaction, columns: list[str]) -> None:
        known = transaction.columns(self._table)
        unknown = [column for column in self._columns if column not in known]
        if unknown:
            raise BadRequestError(
                f"a record has the column {unknown[0]!r}; table {self._table!r} has {', '.join(known)}."
            )
        there = transaction.columns(self._stage)
        if there == columns:
            return
        if there:
            # It is of another run, whose rows `recover` has moved or removed.
            transaction.run(f"DROP TABLE {quoted(self._stage)}", {})
        names = ", ".join(map(quoted, self._columns))
        transaction.run(
            f"CREATE TABLE {quoted(self._stage)} AS SELECT CAST(0 AS BIGINT) AS {EPOCH}, "  # noqa: S608
            f"CAST(0 AS BIGINT) AS {NUMBER}, {names} FROM {quoted(self._table)} WHERE 1 = 0",
            {},
        )

    def _recover(self, epoch: int) -> None:
        with _connected(self._database).transaction(write=True) as transaction:
            if not transaction.columns(self._stage):
                return
            transaction.run(f"DELETE FROM {quoted(self._stage)} WHERE {EPOCH} > :epoch", {"epoch": epoch})  # noqa: S608
            staged = f"SELECT DISTINCT {EPOCH} FROM {quoted(self._stage)} ORDER BY {EPOCH}"  # noqa: S608
            epochs = [row[EPOCH] for row in transaction.rows(staged, {})]
        for number in epochs:
            self._move(number)

    def _move(self, epoch: int) -> None:
        """Done again, it finds nothing: the rows leave the stage in the transaction in which they are
        inserted."""
        with _connected(self._database).transaction(write=True) as transaction:
            columns = [c for c in transaction.columns(self._stage) if c not in (EPOCH, NUMBER)]
            if not columns:
                return
            transaction.run(self._moving(columns), {"epoch": epoch})
            stage = quoted(self._stage)
            transaction.run(f"DELETE FROM {stage} WHERE {EPOCH} = :epoch", {"epoch": epoch})  # noqa: S608

    def _moving(self, columns: list[str]) -> str:
        names, stage = ", ".join(map(quoted, columns)), quoted(self._stage)
        chosen, conflict = f"{EPOCH} = :epoch", ""
        if self._key:
            keys = ", ".join(map(quoted, self._key))
            rest = [quoted(column) for column in columns if column not in self._key]
            sets = ", ".join(f"{column} = excluded.{column}" for column in rest)
            conflict = f"ON CONFLICT ({keys}) DO " + (f"UPDATE SET {sets}" if rest else "NOTHING")
            last = f"SELECT max({NUMBER}) FROM {stage} WHERE {chosen} GROUP BY {keys}"  # noqa: S608
            chosen += f" AND {NUMBER} IN ({last})"
        return (
            f"INSERT INTO {quoted(self._table)} ({names}) SELECT {names} FROM {stage} "  # noqa: S608
            f"WHERE {chosen} ORDER BY {NUMBER} {conflict}"
        )

    def _drop(self) -> None:
        with _connected(self._database).transaction(write=True) as transaction:
            if not transaction.columns(self._stage):
                return
            if not transaction.rows(f"SELECT 1 AS one FROM {quoted(self._stage)} LIMIT 1", {}):  # noqa: S608
                transaction.run(f"DROP TABLE {quoted(self._stage)}", {})


def _connected(database: Database | None) -> Database:
    if database is None:
        raise UsageError("the connector is not set up.")
    return database
