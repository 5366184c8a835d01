"""What every receiver of an engine's answer begins with."""

from __future__ import annotations

from typing import Final

from sage.middleware.engines.port import Usage

__all__ = ["Answer"]

_MAX_ERROR_BYTES: Final = 64 * 1024


class Answer:
    """Collects an answer; an error's text is cut off at 64 KiB."""

    __slots__ = ("_parts", "_size", "status")
    full = False

    def __init__(self) -> None:
        self.status = 0
        self._parts: list[bytes] = []
        self._size = 0

    def head(self, status: int, _content_type: str) -> None:
        """Remember whether it is one."""
        self.status = status

    def data(self, chunk: bytes) -> None:
        """Keep the next bytes."""
        if self.status == 200 or self._size < _MAX_ERROR_BYTES:
            self._size += len(chunk)
            self._parts.append(chunk)

    def joined(self) -> bytes:
        """All of it."""
        return b"".join(self._parts)

    def finish(self) -> Usage:
        """It is whole: what was used."""
        return Usage()

    async def drain(self) -> None:
        """Nothing to wait for."""
        return
