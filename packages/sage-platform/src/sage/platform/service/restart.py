"""When a crashed service comes back: a pure decision."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["RestartPolicy"]


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """Exponential backoff, all in seconds; a crash older than `window` is forgotten."""

    first: float = 0.5
    factor: float = 2.0
    cap: float = 30.0
    window: float = 300.0

    def delay(self, crashes: Sequence[float], now: float, max_restarts: int) -> float | None:
        """Seconds to wait before the next start, or None: it crashes in a loop, leave it.

        `crashes` holds the times of all crashes so far, the present one included.
        """
        recent = sum(1 for at in crashes if now - at <= self.window)
        if recent > max_restarts:
            return None
        exponent = min(max(recent - 1, 0), 64)  # beyond that the power overflows and the cap rules anyway
        return min(self.cap, self.first * self.factor**exponent)
