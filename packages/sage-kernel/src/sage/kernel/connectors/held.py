"""What a sink keeps in memory until it is committed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias

from sage.common.errors import OverloadedError

__all__ = ["Held", "Keyed"]

Keyed: TypeAlias = tuple[bytes | None, bytes]
"""A key, if there is one, and a body."""


class Held:
    """Messages by epoch, of `max_bytes` at most in all."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._size = 0
        self._epochs: dict[int, list[Keyed]] = {}

    def add(self, epoch: int, messages: Iterable[Keyed]) -> None:
        """Keep more of an epoch; raises OverloadedError."""
        more = list(messages)
        self._size += _size(more)
        if self._size > self._max_bytes:
            raise OverloadedError(
                f"the records of an epoch, held until its commit, are more than {self._max_bytes} bytes.",
                hint="Take checkpoints more often, raise max_bytes, or send with at: write.",
            )
        self._epochs.setdefault(epoch, []).extend(more)

    def of(self, epoch: int) -> list[Keyed]:
        """Those of an epoch."""
        return self._epochs.get(epoch, [])

    def drop(self, epoch: int) -> None:
        """Those of this epoch are elsewhere now."""
        self._size -= _size(self._epochs.pop(epoch, []))


def _size(messages: list[Keyed]) -> int:
    return sum(len(body) + len(key or b"") for key, body in messages)
