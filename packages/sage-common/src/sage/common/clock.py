"""Time as a port, so that deciding code can run in virtual time."""

from __future__ import annotations

import time
from typing import Protocol

__all__ = ["Clock", "SystemClock"]


class Clock(Protocol):
    """Monotonic seconds for durations, wall seconds for records."""

    def now(self) -> float:
        """Monotonic time in seconds; the origin has no meaning."""
        ...

    def wall(self) -> float:
        """Seconds since the Unix epoch."""
        ...


class SystemClock:
    """The machine's own clocks."""

    now = staticmethod(time.monotonic)  # not wrapped: it is asked several times for each request
    wall = staticmethod(time.time)
