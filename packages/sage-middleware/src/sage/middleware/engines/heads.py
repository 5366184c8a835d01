"""A head that comes again: bytes that a parser has judged once need not be parsed once more. Pure."""

from __future__ import annotations

import re
from typing import Final

import msgspec

__all__ = ["Head"]

_LENGTH: Final = re.compile(rb"\r\ncontent-length:[ \t]*(\d+)\r\n", re.IGNORECASE)
_LONGEST: Final = 16  # digits of a length


class Head(msgspec.Struct, frozen=True):
    """The bytes of a head on both sides of the digits of its Content-Length.

    Over a connection that is kept the same head comes again and again, but for that number.
    """

    before: bytes
    after: bytes
    start: int  # where the digits begin
    rest: int  # bytes of the head from their end on

    @classmethod
    def of(cls, data: bytes, size: int) -> Head | None:
        """That of `data`, which began a message whose body has `size` bytes; None unless it is the whole."""
        end = data.find(b"\r\n\r\n") + 4
        length = _LENGTH.search(data, 0, end)
        if length is None or len(data) != end + size:
            return None
        start, stop = length.span(1)
        return cls(data[:start], data[stop:end], start, end - stop)

    def body(self, data: bytes, most: int) -> bytes | None:
        """The body of `data` if that is one whole message with this head, and of at most `most` bytes."""
        if not data.startswith(self.before):
            return None
        start = self.start
        end = data.find(b"\r", start, start + _LONGEST)
        digits = data[start:end]
        if not digits.isdigit() or not data.startswith(self.after, end):
            return None
        body = data[end + self.rest :]
        return body if int(digits) == len(body) <= most else None
