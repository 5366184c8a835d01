"""When refused clients come again: not all at the same moment."""

from __future__ import annotations

from random import Random
from typing import Final

__all__ = ["SHARE", "Jitter"]

SHARE: Final = 0.2  # of a time to come back, by which it is made longer or shorter


class Jitter:
    """Spreads times to come back, evenly by `SHARE` each way. One seed gives one sequence."""

    def __init__(self, seed: int) -> None:
        self._random = Random(seed)  # noqa: S311 - nothing secret hangs on it

    def spread(self, seconds: float) -> float:
        """What one client is told instead of `seconds`."""
        return seconds * self._random.uniform(1.0 - SHARE, 1.0 + SHARE)
