"""Text files read in slices of whole lines, with the position behind each."""

from __future__ import annotations

import codecs
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Final, TypedDict

from sage.common.errors import BadRequestError, ConflictError, NotFoundError

__all__ = ["SLICE", "Cutter", "Decoder", "Place", "TextFile", "split"]

SLICE: Final = 64 * 1024


class Place(TypedDict):
    """A position in a text: `line` lines, `offset` bytes, are before it."""

    offset: int
    line: int


class Cutter:
    """Cuts a stream of bytes behind the last line end of each piece."""

    def __init__(self) -> None:
        self._rest: list[bytes] = []

    def cut(self, piece: bytes) -> bytes:
        """The whole lines that this piece ends; empty if it ends none."""
        end = piece.rfind(b"\n") + 1
        if not end:
            self._rest.append(piece)
            return b""
        whole = b"".join((*self._rest, piece[:end]))
        self._rest = [piece[end:]]
        return whole

    def rest(self) -> bytes:
        """What is behind the last line end."""
        return b"".join(self._rest)


class Decoder:
    """Whole lines from bytes to text; `name` is the file in errors.

    Raises BadRequestError for an encoding that is unknown, or whose line end is not the one byte LF.
    """

    def __init__(self, name: str, encoding: str) -> None:
        self.name = name
        try:
            self._marked = codecs.lookup(encoding).name == "utf-8-sig"
            self.encoding = "utf-8" if self._marked else encoding
            one_byte = "\n".encode(self.encoding) == b"\n"
        except LookupError as error:
            raise BadRequestError(f"the encoding {encoding!r} is unknown.") from error
        if not one_byte:
            raise BadRequestError(
                f"the encoding {encoding!r} has line ends of more than one byte: none can be found in it.",
                hint="Convert the text to UTF-8.",
            )

    def decode(self, block: bytes, place: Place) -> str:
        """The text of `block`, which is at `place`."""
        if self._marked and not place["offset"]:
            block = block.removeprefix(codecs.BOM_UTF8)
        try:
            return block.decode(self.encoding)
        except UnicodeDecodeError as error:
            line = place["line"] + block.count(b"\n", 0, error.start) + 1
            column = error.start - block.rfind(b"\n", 0, error.start)
            raise BadRequestError(
                f"{self.name}:{line}:{column}: not {self.encoding} text (byte 0x{block[error.start]:02x})."
            ) from error


class TextFile:
    """A text file that is there, read in slices of `size` bytes."""

    def __init__(self, path: Path, encoding: str, size: int) -> None:
        if not path.is_file():
            raise NotFoundError(f"file {str(path)!r} does not exist.")
        if size < 1:
            raise BadRequestError(f"slices of {size} bytes are none; valid is 1 or more.")
        self.path = path
        self._decoder = Decoder(str(path), encoding)
        self._size = size

    def read(self, position: Any | None) -> Iterator[tuple[Place, str]]:
        """(place behind them, whole lines) from `position` on; the last line may lack its end.

        Raises ConflictError if the file cannot be the one that was read up to `position`.
        """
        place: Place = {"offset": 0, "line": 0}
        if position:
            place = position
        with self.path.open("rb", buffering=0) as file:
            self._seek(file, place)
            cutter = Cutter()
            while piece := file.read(self._size):
                if block := cutter.cut(piece):
                    text = self._decoder.decode(block, place)
                    place = {
                        "offset": place["offset"] + len(block),
                        "line": place["line"] + block.count(b"\n"),
                    }
                    yield place, text
            if block := cutter.rest():
                text = self._decoder.decode(block, place)
                yield {"offset": place["offset"] + len(block), "line": place["line"] + 1}, text

    def _seek(self, file: IO[bytes], place: Place) -> None:
        offset, size = place["offset"], os.fstat(file.fileno()).st_size
        if size < offset:
            found = f"it has {size} bytes"
        elif offset:
            file.seek(offset - 1)
            if file.read(1) == b"\n" or size == offset:
                return
            found = "that line goes on behind it"
        else:
            return
        raise ConflictError(
            f"file {str(self.path)!r} was read up to byte {offset}, line {place['line']}; now {found}.",
            hint="It was changed since the checkpoint: put it back, or begin anew.",
        )


def split(text: str) -> list[str]:
    """The lines of a text without their ends, which are LF or CRLF."""
    lines = text.split("\n")
    if not lines[-1]:
        lines.pop()
    if "\r" in text:
        return [line[:-1] if line.endswith("\r") else line for line in lines]
    return lines
