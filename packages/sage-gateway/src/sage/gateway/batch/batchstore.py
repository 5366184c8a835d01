"""Where batches are kept, and the results of those that run: a result is there once, and stays."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import apsw
import msgspec

from sage.common.batch import BatchStatus
from sage.common.errors import BadRequestError, NotFoundError
from sage.gateway.batch.filestore import FileRecord, insert_file, owned_file
from sage.gateway.batch.states import Batch, Counts
from sage.gateway.batch.tables import Page, page
from sage.gateway.limits import RateError
from sage.platform.storage.sqlite import Database

__all__ = ["BatchStore", "Held", "Result"]

AT_ONCE = 256  # results that are read in one go


class Result(NamedTuple):
    """What came of one line: a line of the output file, or of that of errors if it is not good."""

    line: int
    good: bool
    text: bytes


class Held(NamedTuple):
    """A batch and its counts."""

    batch: Batch
    counts: Counts


_DECODER = msgspec.json.Decoder(Batch)
_COLUMNS = "record, completed, failed"
_RESULTS = "SELECT line, good, result FROM batch_result WHERE batch = ? AND line > ? ORDER BY line LIMIT ?"
_ADD = "INSERT OR IGNORE INTO batch_result (batch, line, good, result) VALUES (?, ?, ?, ?)"
_COUNT = "UPDATE batch SET completed = completed + ?, failed = failed + ? WHERE id = ?"


class BatchStore:
    """The rows, in a database of this process whose tables are made. What a call has written is durable.

    `statuses` counts batches by status, `lines` the results since this process began.
    """

    def __init__(self, database: Database, max_open: int) -> None:
        self._database = database
        self._max_open = max_open
        self.statuses: Counter[BatchStatus] = Counter()
        self.lines = Counts()

    async def load(self) -> list[str]:
        """Those that have not ended, oldest first."""

        def read(db: apsw.Connection) -> tuple[list[Any], list[Any]]:
            counted = db.execute("SELECT status, count(*) FROM batch GROUP BY status").fetchall()
            return counted, db.execute("SELECT id FROM batch WHERE open ORDER BY number").fetchall()

        counted, left = await self._database.read(read)
        self.statuses = Counter(dict(counted))
        return [str(ident) for (ident,) in left]

    async def add(self, batch: Batch) -> None:
        """A new one. Raises NotFoundError or BadRequestError for its input, RateError for too many."""

        def write(db: apsw.Connection) -> None:
            file = owned_file(db, batch.owner, batch.input)
            if file.purpose != "batch":
                raise BadRequestError(
                    f"The file {file.id} is for {file.purpose}; the input of a batch is for 'batch'.",
                    param="input_file_id",
                )
            sql = "SELECT count(*) FROM batch WHERE owner = ? AND open"
            rows: list[Any] = db.execute(sql, (batch.owner,)).fetchall()
            if rows[0][0] >= self._max_open:
                raise RateError(
                    f"{rows[0][0]} batches of this key have not ended; there may be {self._max_open}.",
                    limit="max_open",
                    hint="Await the end of one.",
                    retry_after=60.0,
                )
            sql = "INSERT INTO batch (id, owner, input, status, open, record) VALUES (?, ?, ?, ?, ?, ?)"
            values = (batch.id, batch.owner, batch.input, batch.status, True, msgspec.json.encode(batch))
            db.execute(sql, values).fetchall()

        await self._database.write(write)
        self.statuses[batch.status] += 1

    async def get(self, ident: str, owner: str | None = None) -> Held:
        """One batch, of this owner; None = whoever it belongs to. Raises NotFoundError."""
        return await self._database.read(lambda db: _one(db, ident, owner))

    async def listed(self, owner: str, asked: Page) -> tuple[list[Held], bool]:
        """A page of this key's batches, and whether there are more."""

        def read(db: apsw.Connection) -> tuple[list[tuple[Any, ...]], bool]:
            return page(db, _COLUMNS, owner, asked, table="batch")

        rows, rest = await self._database.read(read)
        return [_held(row) for row in rows], rest

    async def change(
        self,
        ident: str,
        edit: Callable[[Batch], Batch],
        *,
        owner: str | None = None,
        files: Sequence[FileRecord] = (),
    ) -> Held:
        """Replace a batch by what `edit` makes of it, and know `files` with it; nothing comes between.

        The results of one that has ended are in its files, and forgotten here. What `edit` raises undoes it.
        """

        def write(db: apsw.Connection) -> tuple[Held, BatchStatus]:
            before, counts = _one(db, ident, owner)
            after = edit(before)
            sql = "UPDATE batch SET status = ?, open = ?, record = ? WHERE id = ?"
            db.execute(sql, (after.status, not after.ended, msgspec.json.encode(after), ident)).fetchall()
            for file in files:
                insert_file(db, file)
            if after.ended:
                db.execute("DELETE FROM batch_result WHERE batch = ?", (ident,)).fetchall()
            return Held(after, counts), before.status

        held, before = await self._database.write(write)
        self.statuses[before] -= 1
        self.statuses[held.batch.status] += 1
        return held

    async def put(self, ident: str, result: Result) -> None:
        """Keep the result of a line; another one of the same line changes nothing."""

        def write(db: apsw.Connection) -> int:
            db.execute(_ADD, (ident, *result)).fetchall()
            if new := db.changes():
                db.execute(_COUNT, (result.good, not result.good, ident)).fetchall()
            return new

        if await self._database.write(write):
            done, failed = self.lines.completed, self.lines.failed
            self.lines = Counts(done + result.good, failed + (not result.good))

    async def done(self, ident: str) -> set[int]:
        """Numbers of the lines that have their result."""
        sql = "SELECT line FROM batch_result WHERE batch = ?"
        rows: list[Any] = await self._database.read(lambda db: db.execute(sql, (ident,)).fetchall())
        return {int(line) for (line,) in rows}

    async def results(self, ident: str, after: int) -> list[Result]:
        """The next results behind line `after`, in the order of lines; none at the end."""
        values = (ident, after, AT_ONCE)
        rows: list[Any] = await self._database.read(lambda db: db.execute(_RESULTS, values).fetchall())
        return [Result(int(line), bool(good), bytes(text)) for line, good, text in rows]


def _one(db: apsw.Connection, ident: str, owner: str | None) -> Held:
    sql = f"SELECT {_COLUMNS} FROM batch WHERE id = ?1 AND (?2 IS NULL OR owner = ?2)"  # noqa: S608 - names of ours
    rows: list[Any] = db.execute(sql, (ident, owner)).fetchall()
    if not rows:
        raise NotFoundError(
            f"There is no batch {ident[:128]!r} of this key.", hint="GET /v1/batches lists them."
        )
    return _held(rows[0])


def _held(row: Sequence[Any]) -> Held:
    raw, completed, failed = row
    return Held(_DECODER.decode(raw), Counts(int(completed), int(failed)))
