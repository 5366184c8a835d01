"""Where jobs are kept: a row for each, in a database of this process."""

from __future__ import annotations

from typing import Any, Final

import apsw
from pydantic import TypeAdapter

from sage.common.errors import ConflictError
from sage.kernel.jobs.states import Job
from sage.platform.storage.sqlite import Database

__all__ = ["JobStore"]

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS job (
    number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, name TEXT NOT NULL UNIQUE,
    record BLOB NOT NULL
) STRICT;
"""
_JOB: Final = TypeAdapter(Job)


class JobStore:
    """Jobs by id. What a call has written is durable when it returns; calls are written in their order."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @classmethod
    async def open(cls, database: Database) -> JobStore:
        """With its table made."""
        await database.write(lambda db: db.execute(_SCHEMA).fetchall())
        return cls(database)

    async def all(self) -> list[Job]:
        """Every job, oldest first."""
        sql = "SELECT record FROM job ORDER BY number"
        rows: list[Any] = await self._database.read(lambda db: db.execute(sql).fetchall())
        return [_JOB.validate_json(raw) for (raw,) in rows]

    async def add(self, job: Job) -> None:
        """A new one. Raises ConflictError for a name in use."""

        def write(db: apsw.Connection) -> None:
            values = (job.id, job.name, _JOB.dump_json(job))
            try:
                db.execute("INSERT INTO job (id, name, record) VALUES (?, ?, ?)", values).fetchall()
            except apsw.ConstraintError as error:
                raise ConflictError(f"There is a job named {job.name!r} already.") from error

        await self._database.write(write)

    async def put(self, job: Job) -> None:
        """Another state of one that is there; one that was removed stays so."""
        values = (_JOB.dump_json(job), job.id)
        sql = "UPDATE job SET record = ? WHERE id = ?"
        await self._database.write(lambda db: db.execute(sql, values).fetchall())

    async def remove(self, ident: str) -> None:
        """Forget it."""
        await self._database.write(lambda db: db.execute("DELETE FROM job WHERE id = ?", (ident,)).fetchall())

    async def close(self) -> None:
        """Close the database."""
        await self._database.close()
