"""The lines of a batch's input: what each must be, and reading them in memory that stays flat."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final

import msgspec

from sage.common.errors import BadRequestError
from sage.gateway.batch.states import Problem
from sage.middleware.control_plane.json_guard import strict_object

__all__ = ["Inspector", "Line", "LineBounds", "LineError", "Lines", "read_line"]

MAX_ID: Final = 512
MAX_PROBLEMS: Final = 100  # that are told of one file
AT_ONCE: Final = 256  # lines that are read in one go
AT_ONCE_BYTES: Final = 4 * 1024 * 1024  # more is not read in one go, but for one line


class LineBounds(msgspec.Struct, frozen=True):
    """Most lines of a file, and most bytes of one."""

    lines: int
    line_bytes: int


class Line(msgspec.Struct, frozen=True):
    """One line that is right. `body` is what the route gets, as it was written."""

    number: int
    custom_id: str
    body: bytes
    stream: bool


class _Wire(msgspec.Struct):
    custom_id: str
    method: str
    url: str
    body: msgspec.Raw


_DECODER: Final = msgspec.json.Decoder(_Wire)


class LineError(Exception):
    """Why a line is none."""

    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.param = param


def read_line(number: int, raw: bytes, endpoint: str) -> Line:
    """One line as a call of `endpoint`. Raises LineError that says what is wrong with it."""
    try:
        fields = strict_object(raw)
    except BadRequestError as error:
        message = error.message.replace("The body", "The line", 1)
        raise LineError("invalid_json_line", message) from None
    for name in ("custom_id", "method", "url"):
        if not isinstance(fields.get(name), str):
            raise LineError("missing_required_parameter", f"{name} is no string.", name)
    if not isinstance(fields.get("body"), dict):
        raise LineError("missing_required_parameter", "body is no object.", "body")
    ident, method, url = fields["custom_id"], fields["method"], fields["url"]
    if not 1 <= len(ident) <= MAX_ID:
        raise LineError("invalid_custom_id", f"custom_id has {len(ident)} of 1 to {MAX_ID} characters.")
    if method != "POST":
        raise LineError("invalid_method", f"method is {method[:64]!r}; valid is 'POST'.", "method")
    if url != endpoint:
        raise LineError(
            "invalid_url", f"url is {url[:128]!r}; in this batch it is {endpoint!r}, its endpoint.", "url"
        )
    body = bytes(_DECODER.decode(raw).body)
    return Line(number, ident, body, bool(fields["body"].get("stream")))


class Inspector:
    """Looks at the lines of one file in turn; `problems` is what it found, of many only the first."""

    def __init__(self, endpoint: str, bounds: LineBounds) -> None:
        self._endpoint = endpoint
        self._bounds = bounds
        self._seen: dict[bytes, int] = {}
        self.problems: list[Problem] = []
        self.total = 0

    @property
    def full(self) -> bool:
        """Whether it needs no more lines to refuse the file."""
        return len(self.problems) >= MAX_PROBLEMS or self.total > self._bounds.lines

    def look(self, number: int, raw: bytes | None) -> None:
        """The next line; None = it is too long."""
        self.total += 1
        if self.total > self._bounds.lines:
            self._add(number, "too_many_lines", f"The file has more than {self._bounds.lines} lines.")
        elif raw is None:
            self._add(number, "line_too_long", f"The line is over {self._bounds.line_bytes} bytes.")
        else:
            self._read(number, raw)

    def _read(self, number: int, raw: bytes) -> None:
        try:
            line = read_line(number, raw, self._endpoint)
        except LineError as error:
            self._add(number, error.code, str(error), error.param)
            return
        # A digest: of 50,000 long names the names themselves would be 25 MB.
        digest = hashlib.blake2b(line.custom_id.encode(), digest_size=16).digest()
        first = self._seen.setdefault(digest, number)
        if first != number:
            message = f"custom_id {line.custom_id[:128]!r} is that of line {first} already."
            self._add(number, "duplicate_custom_id", message, "custom_id")

    def finish(self) -> None:
        """There are no more lines."""
        if not self.total:
            self.problems.append(Problem(code="empty_file", message="The file has no lines."))

    def _add(self, number: int, code: str, message: str, param: str | None = None) -> None:
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(Problem(code=code, message=message, param=param, line=number))


class Lines:
    """Reads a file line by line; blank lines are passed over, and counted. `with` closes it."""

    def __init__(self, path: Path, longest: int) -> None:
        self._file: BinaryIO = path.open("rb")
        self._longest = longest
        self._number = 0

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def some(self) -> list[tuple[int, bytes | None]]:
        """The next lines with their numbers, None for one that is too long; none at the end.

        It reads from the disk: not on the event loop.
        """
        found: list[tuple[int, bytes | None]] = []
        size = 0
        for number, raw in self._read():
            found.append((number, raw))
            size += len(raw or b"")
            if len(found) >= AT_ONCE or size >= AT_ONCE_BYTES:
                break
        return found

    def _read(self) -> Iterator[tuple[int, bytes | None]]:
        while raw := self._file.readline(self._longest + 2):
            self._number += 1
            text = raw.rstrip(b"\r\n")
            if len(text) > self._longest:
                self._skip(raw)
                yield self._number, None
            elif text.strip():
                yield self._number, text

    def _skip(self, raw: bytes) -> None:
        """Pass over the rest of a line that is too long."""
        while raw and not raw.endswith(b"\n"):
            raw = self._file.readline(self._longest)
