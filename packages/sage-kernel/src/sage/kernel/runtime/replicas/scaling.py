"""How large the next batch of a worker is, and how many workers there are: pure decisions."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Final

from sage.kernel.provision import Scale

__all__ = ["Load", "Scaler", "next_size"]

TARGET_NS: Final = 5_000_000
"""How long a batch should keep a worker: long against the way there, short against a wait for it."""

CALM_S: Final = 5.0


def next_size(size: int, limit: int, items: int, busy: int) -> int:
    """The size of the next batch after `items` items kept a worker busy for so many nanoseconds."""
    if busy > 2 * TARGET_NS:
        return max(1, min(size, items) // 2)
    if items >= size and busy < TARGET_NS:
        return min(limit, 2 * size)
    return size


@dataclass(frozen=True, slots=True)
class Load:
    """At one moment: how many items wait, how many were done so far, how many workers have a batch."""

    queued: int
    done: int
    working: int


class Scaler:
    """Decides from the load at some moments how many workers there should be.

    How long a record queues is estimated as what waits over what was done per second. Above the target, as
    many are added as would bring it there, at most as many again. One goes when for five seconds not all had
    a batch whenever it was looked.
    """

    def __init__(self, scale: Scale, now: float) -> None:
        self._scale = scale
        self._since = self._calm = now
        self._done = 0

    def decide(self, now: float, load: Load, workers: int) -> int:
        """How many there should be from now on."""
        target, seconds, done = self._scale.target_wait, now - self._since, load.done - self._done
        if load.queued and not done and seconds <= target:
            return workers  # too early to tell
        self._since, self._done = now, load.done
        wait = load.queued * seconds / done if done else seconds if load.queued else 0.0
        if load.working >= workers or wait > target:
            self._calm = now
        if wait > target:
            return min(self._scale.max, max(ceil(workers * min(2.0, wait / target)), workers + 1))
        if now - self._calm >= CALM_S and workers > self._scale.min:
            self._calm = now
            return workers - 1
        return workers
