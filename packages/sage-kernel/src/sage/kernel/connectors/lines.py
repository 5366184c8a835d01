"""Text files, a record per line."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sage.common.errors import BadRequestError
from sage.kernel.connectors.appended import AppendedFile
from sage.kernel.connectors.text import SLICE, Decoder, Place, TextFile, split

__all__ = ["Lines", "LinesFile"]


class Lines:
    """The lines of a text file, without their ends (LF or CRLF); `block` bytes are read at a time."""

    def __init__(self, path: Path, encoding: str = "utf-8", *, block: int = SLICE) -> None:
        self._file = TextFile(path, encoding, block)

    def read(self, position: Any | None) -> Iterator[tuple[Place, list[str]]]:
        """Lines and the place behind them."""
        return ((place, split(text)) for place, text in self._file.read(position))


class LinesFile(AppendedFile):
    """Writes strings as the lines of a file, each with LF at its end; see `AppendedFile` for when it is
    seen."""

    def __init__(self, path: Path, encoding: str = "utf-8") -> None:
        super().__init__(path)
        self._encoding = Decoder(str(path), encoding).encoding

    def encode(self, items: Sequence[Any], *, first: int) -> bytes:
        """The lines; refuses what would be read back as something else."""
        for number, item in enumerate(items, first):
            if not isinstance(item, str):
                raise BadRequestError(f"record {number} is {type(item).__name__}, not a line of text.")
            if "\n" in item or item.endswith("\r"):
                raise BadRequestError(
                    f"record {number} has a line end in it: it would be more than one line."
                )
        try:
            return "".join([f"{item}\n" for item in items]).encode(self._encoding)
        except UnicodeEncodeError as error:
            letter = error.object[error.start]
            raise BadRequestError(f"{letter!r} cannot be written in {self._encoding}.") from error
