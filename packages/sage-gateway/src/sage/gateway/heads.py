"""A head that comes again on its connection: bytes that were judged once need not be parsed once more."""

from __future__ import annotations

import re
from typing import Final

import msgspec

from sage.gateway.edge import Admission

__all__ = ["SeenHead"]

_LENGTH: Final = re.compile(rb"\r\ncontent-length:[ \t]*(\d+)(\r\n)", re.IGNORECASE)
_LONGEST: Final = 16  # digits of a length


class SeenHead(msgspec.Struct, frozen=True):
    """The head of a request that was let in, and what was found out about it.

    `before` and `after` are its bytes on both sides of the digits of its Content-Length: keep-alive clients
    send the same head again and again, but for that number. `own_id`: the client named the request, by the
    same id each time. `version`: that of the keys; with another one it has to be judged anew.
    """

    before: bytes
    after: bytes
    headers: dict[bytes, bytes]
    admission: Admission
    own_id: str
    version: int

    @classmethod
    def of(
        cls,
        data: bytes,
        size: int,
        headers: dict[bytes, bytes],
        admission: Admission,
        own_id: str,
        version: int,
    ) -> SeenHead | None:
        """That of `data`, which began a request whose body has `size` bytes; None unless it is the whole."""
        end = data.find(b"\r\n\r\n") + 4
        length = _LENGTH.search(data, 0, end)
        if length is None or len(data) != end + size:
            return None
        before, after = data[: length.start(1)], data[length.start(2) : end]
        return cls(before, after, headers, admission, own_id, version)

    def body(self, data: bytes) -> bytes | None:
        """The body of `data` if that is one whole request with this head, and not larger than allowed."""
        if not data.startswith(self.before):
            return None
        start = len(self.before)
        end = data.find(b"\r", start, start + _LONGEST)
        digits = data[start:end]
        if not digits.isdigit() or not data.startswith(self.after, end):
            return None
        end += len(self.after)
        size = len(data) - end
        return data[end:] if int(digits) == size <= self.admission.max_body else None
