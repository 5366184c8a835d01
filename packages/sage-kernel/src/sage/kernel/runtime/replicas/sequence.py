"""The order in which results and control messages leave a stage that works on several batches at once."""

from __future__ import annotations

from collections import deque
from typing import Any, TypeAlias

from sage.kernel.runtime.columns import Control

__all__ = ["Sequence", "Turn"]

Turn: TypeAlias = "Control | tuple[int, Any]"
"""A message, or the position of a first item and what became of it and those behind it."""


class _Stretch:
    """What was taken between two messages."""

    __slots__ = ("done", "left", "next")

    def __init__(self, start: int) -> None:
        self.left = 0  # items whose results are not here yet
        self.next = start
        self.done: dict[int, tuple[int, Any]] = {}  # by the position of the first item: how many, what


class Sequence:
    """Batches are taken and messages come in one order; results are finished in any.

    `first` is the position of the first item.

    A message leaves behind the results of all that was taken before it, and ahead of all others. Between two
    messages results leave in the order of their items, or as they come.
    """

    def __init__(self, *, ordered: bool, first: int = 0) -> None:
        self._ordered = ordered
        self._taken = first
        self._stretches = deque([_Stretch(first)])
        self._messages: deque[tuple[int, Control]] = deque()
        self._homes: dict[int, _Stretch] = {}  # by the position of the first item of what is under way

    def take(self, count: int) -> int:
        """So many items are under way; gives the position of the first."""
        start = self._taken
        self._taken += count
        stretch = self._homes[start] = self._stretches[-1]
        stretch.left += count
        return start

    def message(self, message: Control) -> None:
        """A message came behind all that was taken."""
        self._messages.append((self._taken, message))
        self._stretches.append(_Stretch(self._taken))

    def finish(self, start: int, pieces: list[tuple[int, int, Any]]) -> None:
        """All that was taken at `start` is done, in pieces of (first, behind the last, result)."""
        stretch = self._homes.pop(start)
        for first, end, result in pieces:
            stretch.done[start + first] = (end - first, result)

    def leave(self) -> Turn | None:
        """What may leave next; None while nothing may."""
        stretch = self._stretches[0]
        at = stretch.next if self._ordered else next(iter(stretch.done), -1)
        if at in stretch.done:
            count, result = stretch.done.pop(at)
            stretch.next = at + count
            stretch.left -= count
            return at, result
        if self._messages and not stretch.left:
            self._stretches.popleft()
            return self._messages.popleft()[1]
        return None

    @property
    def messages(self) -> list[tuple[int, Control]]:
        """Those that have not left, each with the position of the first item behind it."""
        return list(self._messages)
