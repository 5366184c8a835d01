"""The tables of files and batches, and a page of one of them."""

from __future__ import annotations

from typing import Any, NamedTuple

import apsw

from sage.common.errors import NotFoundError

__all__ = ["SCHEMA", "Page", "page"]

SCHEMA = """
CREATE TABLE IF NOT EXISTS file (
    number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, owner TEXT NOT NULL,
    purpose TEXT NOT NULL, bytes INTEGER NOT NULL, expires INTEGER, record BLOB NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS file_owner ON file (owner, number);
CREATE TABLE IF NOT EXISTS batch (
    number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, owner TEXT NOT NULL,
    input TEXT NOT NULL, status TEXT NOT NULL, open INTEGER NOT NULL,
    completed INTEGER NOT NULL DEFAULT 0, failed INTEGER NOT NULL DEFAULT 0, record BLOB NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS batch_owner ON batch (owner, number);
CREATE INDEX IF NOT EXISTS batch_open ON batch (open) WHERE open;
CREATE TABLE IF NOT EXISTS batch_result (
    batch TEXT NOT NULL, line INTEGER NOT NULL, good INTEGER NOT NULL, result BLOB NOT NULL,
    PRIMARY KEY (batch, line)
) STRICT;
"""


class Page(NamedTuple):
    """Which of an owner's rows: so many, after this id, oldest or newest first."""

    limit: int
    after: str | None = None
    descending: bool = True


def page(
    db: apsw.Connection, select: str, owner: str, asked: Page, *, table: str, more: str = "", value: str = ""
) -> tuple[list[tuple[Any, ...]], bool]:
    """Rows of `table` by `select`, and whether there are more. `more`: a condition on `value`.

    Raises NotFoundError if `after` is no row of this owner.
    """
    sign, order = ("<", "DESC") if asked.descending else (">", "ASC")
    start: Any = None
    if asked.after is not None:
        sql = f"SELECT number FROM {table} WHERE id = ? AND owner = ?"  # noqa: S608 - names of ours
        rows = db.execute(sql, (asked.after, owner)).fetchall()
        if not rows:
            raise NotFoundError(f"after: there is no {table} {asked.after!r} of this key.", param="after")
        start = rows[0][0]
    sql = (
        f"SELECT {select} FROM {table} WHERE owner = ?1 AND (?2 IS NULL OR number {sign} ?2)"  # noqa: S608
        f" {more} ORDER BY number {order} LIMIT ?3"
    )
    values = (owner, start, asked.limit + 1, value) if more else (owner, start, asked.limit + 1)
    found = db.execute(sql, values).fetchall()
    return found[: asked.limit], len(found) > asked.limit
