"""Test doubles of this layer's ports."""

from __future__ import annotations

__all__ = ["VirtualClock"]


class VirtualClock:
    """A `Clock` that moves only when told."""

    def __init__(self, now: float = 0.0, wall: float = 1_700_000_000.0) -> None:
        self._now = now
        self._wall = wall

    def now(self) -> float:
        """Monotonic virtual seconds."""
        return self._now

    def wall(self) -> float:
        """Virtual Unix seconds."""
        return self._wall

    def advance(self, seconds: float) -> None:
        """Move both clocks on. Raises ValueError for a step back."""
        if seconds < 0:
            raise ValueError(f"A clock cannot go back by {-seconds} s; valid is 0 or more.")
        self._now += seconds
        self._wall += seconds
