"""CSV files (RFC 4180): a record is a dict of column to text."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Final

from sage.common.errors import BadRequestError
from sage.kernel.connectors.appended import AppendedFile
from sage.kernel.connectors.plain import as_mapping
from sage.kernel.connectors.text import SLICE, Place, TextFile

__all__ = ["Csv", "CsvFile"]

LARGEST: Final = 1 << 30
"""Bytes of one field; the csv module has one such limit for the whole process."""

FIELDS: Final = frozenset((str, int, float, bool, type(None)))


class Csv:
    """The records of a CSV file as dicts of text; blank lines are passed over.

    The first record names the columns, unless `columns` does. `block` bytes are read at a time.
    """

    def __init__(
        self,
        path: Path,
        columns: list[str] | None = None,
        delimiter: str = ",",
        encoding: str = "utf-8-sig",
        *,
        block: int = SLICE,
    ) -> None:
        self._file = TextFile(path, encoding, block)
        self._columns = columns and _columns(columns, str(path))
        self._delimiter = _delimiter(delimiter)
        csv.field_size_limit(max(csv.field_size_limit(), LARGEST))

    def read(self, position: Any | None) -> Iterator[tuple[Place, list[dict[str, str]]]]:
        """Records and the place behind them; raises BadRequestError that names file and line."""
        columns = self._columns
        if columns is None and position:
            columns = self._header(next(self._rows(None))[1])
        line = position["line"] if position else 0
        for place, rows in self._rows(position):
            if columns is None:
                columns = self._header(rows)
                line += _height(rows.pop(0))
            yield place, self._named(columns, rows, line)
            line = place["line"]

    def _rows(self, position: Any | None) -> Iterator[tuple[Place, list[list[str]]]]:
        """Rows up to the end of a slice that is the end of a row as well: a quoted field may have many
        lines."""
        before = position["line"] if position else 0
        place: Place = {"offset": 0, "line": 0}
        last = 0  # number of the last line of the slice, in this reading

        def slices() -> Iterator[io.StringIO]:
            nonlocal place, last
            for behind, text in self._file.read(position):
                place, last = behind, behind["line"] - before
                yield io.StringIO(text, newline="\n")

        reader = csv.reader(chain.from_iterable(slices()), delimiter=self._delimiter, strict=True)
        rows: list[list[str]] = []
        try:
            for row in reader:
                rows.append(row)
                if reader.line_num == last:
                    yield place, rows
                    rows = []
        except csv.Error as error:
            raise BadRequestError(
                f"{self._file.path}:{before + reader.line_num}: not CSV: {error}."
            ) from error

    def _header(self, rows: list[list[str]]) -> list[str]:
        if not rows[0]:
            raise BadRequestError(
                f"{self._file.path}:1: the first line names no columns.", hint="Name them in `columns`."
            )
        return _columns(rows[0], f"{self._file.path}:1")

    def _named(self, columns: list[str], rows: list[list[str]], line: int) -> list[dict[str, str]]:
        width = len(columns)
        odd = {*map(len, rows)} - {width}
        if odd - {0}:
            at, row = next((at, row) for at, row in enumerate(rows) if len(row) not in (0, width))
            line += sum(map(_height, rows[:at])) + 1
            raise BadRequestError(f"{self._file.path}:{line}: {len(row)} fields; the header has {width}.")
        if odd:
            rows = [row for row in rows if row]
        return [dict(zip(columns, row)) for row in rows]  # noqa: B905 - their lengths are equal


class CsvFile(AppendedFile):
    """Writes dicts or dataclasses as CSV with a header; see `AppendedFile` for when the file is seen.

    Every record has the columns of the first one, or those named in `columns`; None is an empty field.
    """

    def __init__(self, path: Path, columns: list[str] | None = None, delimiter: str = ",") -> None:
        super().__init__(path)
        if columns:
            self.kept["columns"] = _columns(columns, str(path))
        self._delimiter = _delimiter(delimiter)

    def encode(self, items: Sequence[Any], *, first: int) -> bytes:
        """The rows, and the header ahead of the first of them."""
        text = io.StringIO(newline="")
        writer = csv.writer(text, delimiter=self._delimiter)
        records = [as_mapping(item) for item in items]
        if not records:
            return b""
        if "columns" not in self.kept:
            self.kept["columns"] = _columns(list(map(str, records[0])), str(self._path))
        columns: list[str] = self.kept["columns"]
        if not first:
            writer.writerow(columns)
        keys = dict.fromkeys(columns).keys()
        for number, record in enumerate(records, first):
            if record.keys() != keys:
                raise BadRequestError(
                    f"record {number} has the columns {', '.join(map(str, record))}; "
                    f"the file has {', '.join(columns)}."
                )
            cells = [record[column] for column in columns]
            if not FIELDS.issuperset(map(type, cells)):
                _check(columns, cells, number)
            writer.writerow(cells)
        try:
            return text.getvalue().encode()
        except UnicodeEncodeError as error:
            raise BadRequestError(f"{error.object[error.start]!r} cannot be written in UTF-8.") from error


def _columns(names: list[str], where: str) -> list[str]:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice or not names:
        found = f"the column {twice[0]!r} twice" if twice else "no column"
        raise BadRequestError(f"{where} has {found}; valid are different names.")
    return names


def _delimiter(text: str) -> str:
    if len(text) != 1 or text in '"\r\n':
        raise BadRequestError(f"the delimiter is {text!r}; valid is one character, no quote or line end.")
    return text


def _height(row: list[str]) -> int:
    """How many lines a row takes."""
    return 1 + sum(field.count("\n") for field in row)


def _check(columns: list[str], cells: list[Any], number: int) -> None:
    for column, value in zip(columns, cells, strict=True):
        if value is not None and not isinstance(value, str | int | float):
            raise BadRequestError(
                f"record {number} has {type(value).__name__} in the column {column!r}; "
                "a field is text or a number.",
                hint="Map it to text before the sink.",
            )
