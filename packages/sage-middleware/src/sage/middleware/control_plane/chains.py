"""The deadlines that requests share with those which come after them, by `Job.parent`."""

from __future__ import annotations

from heapq import heappop, heappush
from typing import Final

__all__ = ["Chains"]

KEPT: Final = 65_536


class Chains:
    """Which deadline a request had, its own or that of its chain, long after its record is forgotten.

    At most `size` are kept; beyond them the earliest deadline goes first, so that one which has not passed
    is lost only while so many have not. Times are absolute, in seconds.
    """

    __slots__ = ("_deadlines", "_earliest", "_size")

    def __init__(self, size: int = KEPT) -> None:
        self._size = size
        self._deadlines: dict[str, float] = {}
        self._earliest: list[tuple[float, str]] = []

    def __len__(self) -> int:
        return len(self._earliest)

    def note(self, ident: str, deadline: float | None) -> None:
        """A request arrived with this deadline; an id that is used again is new again."""
        if deadline is None:
            self._deadlines.pop(ident, None)
            return
        self._deadlines[ident] = deadline
        heappush(self._earliest, (deadline, ident))
        if len(self._earliest) > self._size:
            gone, other = heappop(self._earliest)
            if self._deadlines.get(other) == gone:
                del self._deadlines[other]

    def deadline(self, parent: str, own: float | None) -> float | None:
        """What a request has of its own and of the one that it follows, whichever is earlier."""
        shared = self._deadlines.get(parent)
        if shared is None or own is None:
            return own if shared is None else shared
        return min(shared, own)
