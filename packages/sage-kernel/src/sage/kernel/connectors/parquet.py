"""Parquet files, through pyarrow: the extra `sage-kernel[parquet]`."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypedDict

from sage.common.errors import BadRequestError, ConflictError, NotFoundError
from sage.kernel.connectors.appended import sync_folder
from sage.kernel.connectors.extras import needed
from sage.kernel.connectors.plain import as_mapping

__all__ = ["Parquet", "ParquetFolder"]


class Row(TypedDict):
    """`row` rows of row group `group` of the file `file` are before it, and all groups and files before
    these."""

    file: str
    group: int
    row: int


class Parquet:
    """The rows of a Parquet file, or of all `*.parquet` of a folder in the order of their names, as dicts.

    `batch` rows are made at a time. Raises NotFoundError, BadRequestError for a file that is not Parquet.
    """

    def __init__(self, path: Path, columns: list[str] | None = None, *, batch: int = 1024) -> None:
        if not path.exists():
            raise NotFoundError(f"file {str(path)!r} does not exist.")
        if batch < 1:
            raise BadRequestError(f"batches of {batch} rows are none; valid is 1 or more.")
        self._path, self._columns, self._batch = path, columns, batch
        if not self._files():
            raise NotFoundError(f"folder {str(path)!r} has no file that matches '*.parquet'.")
        self._arrow = needed("pyarrow", "parquet")
        self._parquet = needed("pyarrow.parquet", "parquet")

    def read(self, position: Any | None) -> Iterator[tuple[Row, list[dict[str, Any]]]]:
        """Rows and the place behind them."""
        names = [path.name for path in self._files()]
        if position and position["file"] not in names:
            raise ConflictError(
                f"{str(self._path)!r} has no file {position['file']!r} any more, which was read before.",
                hint="Put it back, or begin anew.",
            )
        for path in self._files():
            if not position or path.name >= position["file"]:
                yield from self._file(path, position if position and path.name == position["file"] else None)

    def _files(self) -> list[Path]:
        if self._path.is_file():
            return [self._path]
        return sorted(path for path in self._path.glob("*.parquet") if not path.name.startswith("."))

    def _file(self, path: Path, position: Row | None) -> Iterator[tuple[Row, list[dict[str, Any]]]]:
        group, done = (position["group"], position["row"]) if position else (0, 0)
        try:
            file = self._parquet.ParquetFile(path)
        except self._arrow.ArrowInvalid as error:
            raise BadRequestError(f"{path}: not a Parquet file: {error}.") from error
        with file:
            self._check(file, path, group, done)
            for number in range(group, file.num_row_groups):
                at = 0
                batches = file.iter_batches(self._batch, row_groups=[number], columns=self._columns)
                for batch in batches:
                    fresh = batch.slice(max(0, min(done - at, batch.num_rows)))
                    at += batch.num_rows
                    if fresh.num_rows:
                        yield {"file": path.name, "group": number, "row": at}, fresh.to_pylist()
                done = 0

    def _check(self, file: Any, path: Path, group: int, row: int) -> None:
        there = file.metadata.row_group(group).num_rows if group < file.num_row_groups else 0
        if row > there:
            raise ConflictError(
                f"file {str(path)!r} was read up to row {row} of row group {group}, which has {there} now.",
                hint="It was changed since the checkpoint: put it back, or begin anew.",
            )
        missing = set(self._columns or ()) - set(file.schema_arrow.names)
        if missing:
            raise BadRequestError(
                f"{path} has no column {sorted(missing)[0]!r}; it has {', '.join(file.schema_arrow.names)}."
            )


class ParquetFolder:
    """Writes dicts or dataclasses into a folder: a file for each epoch, which appears when that is committed.

    A run without checkpoints writes one. `schema`: column to type ("int64", "string", …); without it, the
    first rows of each file decide. A file gets a row group for every `group` rows. The first commit of a run
    removes the files of one before.
    """

    def __init__(self, folder: Path, schema: dict[str, str] | None = None, *, group: int = 8192) -> None:
        if group < 1:
            raise BadRequestError(f"row groups of {group} rows are none; valid is 1 or more.")
        self._folder, self._group = folder, group
        self._arrow = needed("pyarrow", "parquet")
        self._parquet = needed("pyarrow.parquet", "parquet")
        self._schema = self._typed(schema) if schema else None
        self._rows: list[Any] = []
        self._epoch = 0
        self._writer: Any = None

    def setup(self) -> None:
        """Make the folder, in one that exists."""
        try:
            self._folder.mkdir(exist_ok=True)
        except (FileNotFoundError, FileExistsError) as error:
            raise NotFoundError(f"folder {str(self._folder)!r} cannot be made: {error.strerror}.") from error

    async def write(self, epoch: int, items: Sequence[Any]) -> None:
        """Keep the rows until there are enough for a row group."""
        if self._epoch not in (0, epoch):
            raise BadRequestError(f"epoch {epoch} is written while epoch {self._epoch} is not prepared.")
        self._epoch = epoch
        self._rows += [as_mapping(item) for item in items]
        while len(self._rows) >= self._group:
            rows, self._rows = self._rows[: self._group], self._rows[self._group :]
            await asyncio.to_thread(self._flush, rows)

    async def prepare(self, epoch: int) -> dict[str, Any]:
        """The file of this epoch is whole and on disk, and hidden; none without rows."""
        if self._epoch == epoch:
            await asyncio.to_thread(self._finish)
            self._epoch = 0
        return {}

    async def commit(self, epoch: int) -> None:
        """Show the file."""
        if self._epoch == epoch:
            await self.prepare(epoch)
        await asyncio.to_thread(self._publish, epoch)

    async def recover(self, epoch: int, _prepared: Any) -> None:
        """Show what was prepared up to this epoch, remove what is of later ones."""
        for number, path in self._there(hidden=True).items():
            if number > epoch:
                path.unlink()
        if epoch:
            self._publish(epoch)

    def close(self) -> None:
        """Remove what was written and not prepared."""
        self._rows = []
        if self._writer is not None:
            self._writer.close()
            self._writer = None
            self._name(self._epoch, hidden=True).unlink()

    def _typed(self, schema: dict[str, str]) -> Any:
        try:
            return self._arrow.schema(
                [(name, self._arrow.type_for_alias(kind)) for name, kind in schema.items()]
            )
        except ValueError as error:
            raise BadRequestError(f"the schema has a type that pyarrow does not know: {error}.") from error

    def _flush(self, rows: list[Any]) -> None:
        schema = self._writer.schema if self._writer else self._schema
        names = schema.names if schema else list(rows[0])
        extra = next((key for row in rows for key in row if key not in names), None)
        if extra is not None:
            raise BadRequestError(
                f"a record has the column {extra!r}; {str(self._folder)!r} has {', '.join(map(str, names))}.",
                hint="Name all columns in `schema`.",
            )
        try:
            table = self._table(rows, schema)
        except (self._arrow.ArrowInvalid, self._arrow.ArrowTypeError) as error:
            raise BadRequestError(
                f"a record does not fit the columns of {str(self._folder)!r}: {error}.",
                hint="Name the types in `schema`.",
            ) from error
        if self._writer is None:
            self._writer = self._parquet.ParquetWriter(self._name(self._epoch, hidden=True), table.schema)
        self._writer.write_table(table, row_group_size=self._group)

    def _table(self, rows: list[Any], schema: Any) -> Any:
        for field in schema or ():
            # pyarrow takes 1.5 for an integer, and makes it 1.
            if self._arrow.types.is_integer(field.type):
                broken = [row[field.name] for row in rows if isinstance(row.get(field.name), float)]
                if broken:
                    raise self._arrow.ArrowInvalid(f"{broken[0]} in the integers of {field.name!r}")
        return self._arrow.Table.from_pylist(rows, schema=schema)

    def _finish(self) -> None:
        rows, self._rows = self._rows, []
        if rows:
            self._flush(rows)
        self._writer.close()
        self._writer = None
        file = os.open(self._name(self._epoch, hidden=True), os.O_RDONLY)
        try:
            os.fsync(file)
        finally:
            os.close(file)
        sync_folder(self._folder)

    def _publish(self, epoch: int) -> None:
        """Show the file of this epoch, if it has one, and nothing of later epochs."""
        for number, path in self._there(hidden=False).items():
            if number > epoch:
                path.unlink()
        if epoch in self._there(hidden=True):
            os.replace(self._name(epoch, hidden=True), self._name(epoch, hidden=False))
        sync_folder(self._folder)

    def _name(self, epoch: int, *, hidden: bool) -> Path:
        return self._folder / (f".{epoch:06}.part" if hidden else f"epoch-{epoch:06}.parquet")

    def _there(self, *, hidden: bool) -> dict[int, Path]:
        pattern = re.compile(r"\.(\d+)\.part" if hidden else r"epoch-(\d+)\.parquet")
        found = ((pattern.fullmatch(path.name), path) for path in self._folder.iterdir())
        return {int(match[1]): path for match, path in found if match}
