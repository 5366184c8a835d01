"""`multipart/form-data` (RFC 7578) as it comes: parts and their bytes, however the body is cut. Pure."""

from __future__ import annotations

import re
import urllib.parse
from typing import Final

import msgspec

from sage.common.errors import BadRequestError, MediaTypeError
from sage.common.telemetry import Bound

__all__ = ["FORM", "Multipart", "Part", "boundary_of"]

FORM: Final = "multipart/form-data"
MAX_HEAD: Final = 8 * 1024  # of one part
MAX_PARTS: Final = 16
_BOUNDARY: Final = re.compile(r"[0-9A-Za-z'()+_,./:=? -]{0,69}[0-9A-Za-z'()+_,./:=?-]")
_PARAMETER: Final = re.compile(r';\s*([A-Za-z*]+)\s*=\s*("(?:[^"\\]|\\.)*"|[^\s;"]*)')
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")


class Part(msgspec.Struct, frozen=True):
    """A part begins; the bytes that follow are its own. `filename`: None if it is a plain field.

    `start`: where the first of its bytes is in the whole body.
    """

    name: str
    filename: str | None = None
    start: int = 0


def boundary_of(content_type: str) -> bytes:
    """What separates the parts. Raises MediaTypeError for another type, and for one without a boundary."""
    media, _, rest = content_type.partition(";")
    if media.strip().lower() != FORM:
        raise MediaTypeError(f"Content-Type is {media[:128] or 'none'!r}; it must be {FORM}.")
    given: dict[str, str] = dict(_PARAMETER.findall(f";{rest}"))
    boundary = _plain(given.get("boundary", ""))
    if not _BOUNDARY.fullmatch(boundary):
        raise MediaTypeError("Content-Type has no boundary that is one (1 to 70 characters of RFC 2046).")
    return boundary.encode()


class Multipart:
    """Takes a body in pieces. Every call returns what has become certain: parts, and bytes of the last one.

    Bytes before the first boundary are refused, those after the last one are dropped.
    """

    def __init__(self, boundary: bytes, max_parts: int = MAX_PARTS) -> None:
        self._mark = b"\r\n--" + boundary
        self._rest = b"\r\n"  # so that the first boundary is found like the others
        self._at = -len(self._rest)  # where `_rest` begins in the body
        self._max_parts = max_parts
        self._state = "start"
        self._parts = 0

    def feed(self, data: bytes) -> list[Part | bytes]:
        """The next bytes. Raises BadRequestError for what is no such body."""
        self._rest += data
        found: list[Part | bytes] = []
        while True:
            before = (self._state, len(self._rest))
            if self._state == "start":
                self._start()
            elif self._state == "after":
                self._after()
            elif self._state == "head":
                found += self._head()
            elif self._state == "body":
                found += self._body()
            else:
                self._rest = b""
            if before == (self._state, len(self._rest)):
                return found

    def close(self) -> None:
        """The body has ended. Raises BadRequestError if its last boundary is missing."""
        if self._state != "end":
            raise BadRequestError("The form breaks off before its last boundary.")

    def _start(self) -> None:
        if not self._mark.startswith(self._rest[: len(self._mark)]):
            raise BadRequestError("The form does not begin with its boundary.")
        if len(self._rest) >= len(self._mark):
            self._pass("after", len(self._mark))

    def _after(self) -> None:
        if self._rest[:2] == b"--":
            self._pass("end", 2)
        elif self._rest[:2] == b"\r\n":
            self._pass("head", 2)
        elif len(self._rest) >= 2:
            raise BadRequestError("A boundary of the form is followed by neither a new line nor '--'.")

    def _head(self) -> list[Part | bytes]:
        end = self._rest.find(b"\r\n\r\n")
        if max(end, len(self._rest) if end < 0 else 0) > MAX_HEAD:
            words = f"The headers of a part are over {MAX_HEAD} bytes."
            raise BadRequestError(words, bound=Bound.FORM_HEAD_BYTES)
        if end < 0:
            return []
        self._parts += 1
        if self._parts > self._max_parts:
            words = f"The form has more than {self._max_parts} parts."
            raise BadRequestError(words, bound=Bound.FORM_PARTS)
        name, filename = _named(self._rest[:end])
        self._pass("body", end + 4)
        return [Part(name, filename, self._at)]

    def _body(self) -> list[Part | bytes]:
        end = self._rest.find(self._mark)
        if end >= 0:
            found = self._rest[:end]
            self._pass("after", end + len(self._mark))
        else:
            certain = max(0, len(self._rest) - len(self._mark) + 1)
            found = self._rest[:certain]
            self._pass("body", certain)
        return [found] if found else []

    def _pass(self, state: str, size: int) -> None:
        self._state = state
        self._rest = self._rest[size:]
        self._at += size


def _named(head: bytes) -> tuple[str, str | None]:
    """Name and file name of a part, as its headers say."""
    try:
        text = head.decode()
    except UnicodeDecodeError:
        raise BadRequestError("The headers of a part are not UTF-8.") from None
    for line in text.split("\r\n"):
        name, _, value = line.partition(":")
        if name.strip().lower() == "content-disposition":
            return _disposed(value)
    raise BadRequestError("A part of the form has no Content-Disposition.")


def _disposed(value: str) -> tuple[str, str | None]:
    given = {name.lower(): _plain(raw) for name, raw in _PARAMETER.findall(value)}
    if "filename*" in given:
        given["filename"] = urllib.parse.unquote(given["filename*"].rpartition("'")[2])
    name, filename = given.get("name", ""), given.get("filename")
    if not value.strip().lower().startswith("form-data") or not name:
        raise BadRequestError("A part of the form has no name.")
    if _CONTROL.search(name + (filename or "")):
        raise BadRequestError("A name in the form holds control characters.")
    return name, filename


def _plain(raw: str) -> str:
    return re.sub(r"\\(.)", r"\1", raw[1:-1]) if raw.startswith('"') else raw
