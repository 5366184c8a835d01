"""JSON lines: files with one JSON value per line."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sage.common.errors import BadRequestError
from sage.kernel.connectors.appended import AppendedFile
from sage.kernel.connectors.plain import json_lines
from sage.kernel.connectors.text import SLICE, Place, TextFile, split

__all__ = ["Jsonl", "JsonlFile", "parse_lines"]

_scan = json.JSONDecoder().raw_decode


class Jsonl:
    """The JSON values of a file that has one per line; blank lines are passed over.

    `block` bytes are read at a time.
    """

    def __init__(self, path: Path, *, block: int = SLICE) -> None:
        self._file = TextFile(path, "utf-8-sig", block)

    def read(self, position: Any | None) -> Iterator[tuple[Place, list[Any]]]:
        """Values and the place behind them."""
        for place, text in self._file.read(position):
            lines = split(text)
            yield place, parse_lines(lines, str(self._file.path), place["line"] - len(lines) + 1)


class JsonlFile(AppendedFile):
    """Writes each record as one line of JSON; see `AppendedFile` for when the file is seen."""

    def encode(self, items: Sequence[Any], *, first: int) -> bytes:  # noqa: ARG002 - an error names the type
        """The lines."""
        return json_lines(items)


def parse_lines(lines: list[str], name: str, first: int) -> list[Any]:
    """The values of these lines, of which the first is line `first` of `name`."""
    values: list[Any] = []
    for at, line in enumerate(lines):
        # json.loads looks for blanks around the value with two regular expressions: half of its time.
        try:
            value, end = _scan(line, 0)
        except json.JSONDecodeError:
            end = -1
        if end == len(line):
            values.append(value)
        elif line and not line.isspace():
            values.append(_parse(line, name, first + at))
    return values


def _parse(line: str, name: str, number: int) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise BadRequestError(f"{name}:{number}:{error.colno}: not JSON: {error.msg}.") from error
