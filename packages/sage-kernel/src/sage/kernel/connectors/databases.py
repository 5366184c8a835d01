"""What the SQL connectors need of a database, and the two that they know: SQLite and PostgreSQL."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit

from sage.common.errors import BadRequestError, ConflictError, UnavailableError
from sage.kernel.connectors.extras import needed

__all__ = ["Database", "Transaction", "connect", "quoted"]


class Transaction(Protocol):
    """Statements that are done together or not at all."""

    def rows(self, sql: str, values: Mapping[str, Any]) -> list[dict[str, Any]]:
        """What a query gives; `:name` in it stands for a value."""
        ...

    def run(self, sql: str, values: Mapping[str, Any]) -> None:
        """A statement."""
        ...

    def insert(self, table: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Rows for a table."""
        ...

    def columns(self, table: str) -> list[str]:
        """The columns of a table; none where there is no such table."""
        ...


class Database(Protocol):
    """A database that may be used in any thread, by one at a time."""

    def transaction(self, *, write: bool) -> AbstractContextManager[Transaction]:
        """A `Transaction` that is committed at the end of the block, and undone on an error."""
        ...

    def literal(self, query: str) -> str:
        """A query of a user's own, which has no values, as a part of another."""
        ...

    def close(self) -> None:
        """Let go of the connection."""
        ...


def connect(url: str) -> Database:
    """The database at `sqlite:///relative.db`, `sqlite:////absolute.db` or `postgresql://user@host/name`.

    Raises BadRequestError for another URL, ConfigError if the extra is missing, UnavailableError.
    """
    scheme = urlsplit(url).scheme
    if scheme == "sqlite" and url.startswith("sqlite:///"):
        return _Sqlite(Path(unquote(url.removeprefix("sqlite:///"))))
    if scheme in ("postgresql", "postgres"):
        return _Postgres(f"postgresql+psycopg{url[len(scheme) :]}")
    raise BadRequestError(
        f"the database URL has the scheme {scheme or 'none'!r}.",
        hint="Valid are sqlite:///FILE and postgresql://USER@HOST/NAME.",
    )


def quoted(name: str) -> str:
    """A name as SQL takes it; `schema.table` is two."""
    return ".".join('"' + part.replace('"', '""') + '"' for part in name.split("."))


class _SqliteTransaction:
    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def rows(self, sql: str, values: Mapping[str, Any]) -> list[dict[str, Any]]:
        cursor = self._connection.execute(sql, values)
        names: list[str] = []
        rows = []
        for row in cursor:
            names = names or [column[0] for column in cursor.getdescription()]
            rows.append(dict(zip(names, row, strict=True)))
        return rows

    def run(self, sql: str, values: Mapping[str, Any]) -> None:
        self._connection.execute(sql, values)

    def insert(self, table: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        names, marks = ", ".join(map(quoted, columns)), ", ".join("?" * len(columns))
        self._connection.executemany(f"INSERT INTO {quoted(table)} ({names}) VALUES ({marks})", rows)  # noqa: S608

    def columns(self, table: str) -> list[str]:
        found = self._connection.execute("SELECT name FROM pragma_table_info(?)", (table,))
        return [name for (name,) in found]


class _Sqlite:
    """A file through apsw. The file must exist: a new one would have none of the tables."""

    def __init__(self, path: Path) -> None:
        import apsw

        if not path.is_file():
            raise UnavailableError(f"the database file {str(path)!r} does not exist.")
        self._connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)
        self._connection.set_busy_timeout(30_000)
        self._lock = threading.Lock()

    @contextmanager
    def transaction(self, *, write: bool) -> Iterator[Transaction]:
        # One that begins to write half way cannot wait for another that does.
        with self._lock:
            self._connection.transaction_mode = "IMMEDIATE" if write else "DEFERRED"
            with self._connection:
                yield _SqliteTransaction(self._connection)

    def literal(self, query: str) -> str:
        return query

    def close(self) -> None:
        with self._lock:
            self._connection.close()


class _PostgresTransaction:
    def __init__(self, connection: Any, alchemy: Any) -> None:
        self._connection = connection
        self._alchemy = alchemy

    def rows(self, sql: str, values: Mapping[str, Any]) -> list[dict[str, Any]]:
        found = self._connection.execute(self._alchemy.text(sql), values)
        return [dict(row) for row in found.mappings()]

    def run(self, sql: str, values: Mapping[str, Any]) -> None:
        self._connection.execute(self._alchemy.text(sql), values)

    def insert(self, table: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        names = ", ".join(map(quoted, columns))
        cursor = self._connection.connection.cursor()
        with cursor.copy(f"COPY {quoted(table)} ({names}) FROM STDIN") as copy:
            for row in rows:
                copy.write_row(row)

    def columns(self, table: str) -> list[str]:
        found = self.rows(
            "SELECT attname FROM pg_attribute WHERE attrelid = to_regclass(:name)"
            " AND attnum > 0 AND NOT attisdropped ORDER BY attnum",
            {"name": quoted(table)},
        )
        return [row["attname"] for row in found]


class _Postgres:
    """A server through SQLAlchemy core and psycopg: the extra `sage-kernel[postgres]`."""

    def __init__(self, url: str) -> None:
        needed("psycopg", "postgres")
        self._alchemy = needed("sqlalchemy", "postgres")
        self._engine = self._alchemy.create_engine(url, pool_size=1, max_overflow=0)
        self._lock = threading.Lock()

    @contextmanager
    def transaction(self, *, write: bool) -> Iterator[Transaction]:  # noqa: ARG002 - a server's writers do not wait
        with self._lock:
            try:
                with self._engine.begin() as connection:
                    yield _PostgresTransaction(connection, self._alchemy)
            except self._alchemy.exc.OperationalError as error:
                raise UnavailableError(f"the database failed: {error.orig}.") from error
            except self._alchemy.exc.IntegrityError as error:
                raise ConflictError(f"the database refused a row: {error.orig}.") from error

    def literal(self, query: str) -> str:
        return query.replace(":", r"\:")

    def close(self) -> None:
        with self._lock:
            self._engine.dispose()
