"""A head that comes again: bytes that a parser has judged once need not be parsed once more. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from typing import Final

import msgspec

from sage.middleware.native import uses_native

__all__ = ["Head", "python_body"]

_LENGTH: Final = re.compile(rb"\r\ncontent-length:[ \t]*(\d+)\r\n", re.IGNORECASE)
_LONGEST: Final = 16  # digits of a length, and what ends it


class Head(msgspec.Struct, frozen=True):
    """The bytes of a head on both sides of the digits of its Content-Length.

    Over a connection that is kept the same head comes again and again, but for that number.
    """

    before: bytes
    after: bytes

    @classmethod
    def of(cls, data: bytes, size: int) -> Head | None:
        """That of `data`, which began a message whose body has `size` bytes; None unless it is the whole."""
        end = data.find(b"\r\n\r\n") + 4
        length = _LENGTH.search(data, 0, end)
        if length is None or len(data) != end + size:
            return None
        start, stop = length.span(1)
        return cls(data[:start], data[stop:end])

    def body(self, data: bytes, most: int) -> bytes | None:
        """The body of `data` if that is one whole message with this head, and of at most `most` bytes."""
        return _reader()(data, self.before, self.after, most)


@cache
def _reader() -> Callable[[bytes, bytes, bytes, int], bytes | None]:
    if not uses_native():
        return python_body
    from sage.middleware import _native

    return _native.body_after


def python_body(data: bytes, before: bytes, after: bytes, most: int) -> bytes | None:
    """What `Head.body` does, in Python: its definition, and what runs with `SAGE_NATIVE=0`."""
    if not data.startswith(before):
        return None
    start = len(before)
    end = data.find(b"\r", start, start + _LONGEST)
    digits = data[start:end]
    if not digits.isdigit() or not data.startswith(after, end):
        return None
    body = data[end + len(after) :]
    return body if int(digits) == len(body) <= most else None
