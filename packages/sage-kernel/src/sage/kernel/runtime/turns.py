"""Turns on the event loop, for a source that always has a next record."""

from __future__ import annotations

import asyncio
import threading
from time import perf_counter_ns, sleep

__all__ = ["TURN_NS", "Turn"]

TURN_NS = 2_000_000
"""How long a source may keep the event loop, and how long one of its batches should take."""
_REST_EVERY_NS = 10_000_000
_REST_S = 50e-6


class Turn:
    """A source's turn: when it is over, others on the event loop come up, and now and then other threads.

    A loop that never waits gives up the interpreter's lock for moments too short for a thread to wake in, and
    each of them makes it begin its wait anew: those that write checkpoints could wait for ever. So it sleeps.
    """

    __slots__ = ("_began", "_rested")

    def __init__(self) -> None:
        self._began = self._rested = perf_counter_ns()

    def is_over(self, now: int) -> bool:
        """Whether it has lasted long enough, `now` by `perf_counter_ns`."""
        return now - self._began > TURN_NS

    async def end(self, now: int) -> None:
        """Let others come up; the next turn begins with what follows."""
        if now - self._rested > _REST_EVERY_NS:
            self._rest(now)
        await asyncio.sleep(0)
        self._began = perf_counter_ns()

    def _rest(self, now: int) -> None:
        self._rested = now
        if threading.active_count() > 1:
            sleep(_REST_S)
