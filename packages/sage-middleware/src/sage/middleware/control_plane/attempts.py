"""The calls that are under way, and the times at which something may be presumed about them."""

from __future__ import annotations

import heapq
from collections.abc import Iterator

from sage.middleware.control_plane.engine_table import Attempt

__all__ = ["Attempts"]


class Attempts(dict[int, Attempt]):
    """All attempts that have not ended, by number. Numbers are given in order of sending and never again."""

    __slots__ = ("_late", "_presumed", "_sent")

    def __init__(self) -> None:
        super().__init__()
        self._presumed: list[tuple[float, int]] = []
        self._late: list[tuple[float, int]] = []
        self._sent = 0

    def number(self) -> int:
        """The next number."""
        self._sent += 1
        return self._sent

    def presume(self, attempt: Attempt, at: float) -> None:
        """It shows no first byte before its last: by then its prompt has been read."""
        heapq.heappush(self._presumed, (at, attempt.number))

    def presumed_begun(self, now: float) -> Iterator[Attempt]:
        """Those whose prompt has been read by now, each once, if they still run and were silent."""
        while self._presumed and self._presumed[0][0] <= now:
            attempt = self.get(heapq.heappop(self._presumed)[1])
            if attempt is not None and attempt.first_byte is None:
                yield attempt

    def watch(self, attempt: Attempt, late_at: float) -> None:
        """It is late from then on."""
        heapq.heappush(self._late, (late_at, attempt.number))

    def late(self, now: float) -> Iterator[Attempt]:
        """Those that are late, each once."""
        while self._late and self._late[0][0] <= now:
            attempt = self.get(heapq.heappop(self._late)[1])
            if attempt is not None:
                yield attempt

    def due_before(self, at: float) -> bool:
        """Whether one of these times may be before `at`: quicker to say than when it is."""
        presumed, late = self._presumed, self._late
        return bool(presumed and presumed[0][0] < at) or bool(late and late[0][0] < at)

    def next_due(self) -> float | None:
        """When one of these times is next."""
        if not self._presumed and not self._late:
            return None
        presumed, late = self._presumed, self._late
        while presumed and presumed[0][1] not in self:
            heapq.heappop(presumed)
        while late and late[0][1] not in self:
            heapq.heappop(late)
        due = presumed[0][0] if presumed else None
        return late[0][0] if late and (due is None or late[0][0] < due) else due
