"""How a get waits for a message and a put for room: look, sleep until something changed, look again."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TypeVar

__all__ = ["POLL", "Signal", "undone_if_cancelled"]

# A change by another process cannot wake this one: so long it takes at most until it is seen.
POLL = 0.5


_T = TypeVar("_T")


class Signal:
    """Wakes those who wait in this event loop; a change between a look and the wait after it counts."""

    def __init__(self, poll: float = POLL) -> None:
        self._poll = poll
        self._event = asyncio.Event()

    def notify(self) -> None:
        """Something changed: everybody look again."""
        event, self._event = self._event, asyncio.Event()
        event.set()

    async def until(self, look: Callable[[], Awaitable[tuple[_T, float]]], wait: float | None) -> _T:
        """The first thing found that is true, or the last thing found when `wait` seconds are over.

        `look` returns what it found, and in how many seconds it is worth looking again at the latest.
        """
        now = asyncio.get_running_loop().time
        end = float("inf") if wait is None else now() + wait
        while True:
            event = self._event
            found, again = await look()
            left = end - now()
            if found or left <= 0:
                return found
            with suppress(TimeoutError):
                async with asyncio.timeout(max(0.001, min(left, again, self._poll))):
                    await event.wait()


async def undone_if_cancelled(step: Awaitable[_T], undo: Callable[[_T], Awaitable[object]]) -> _T:
    """Do `step`; if the caller is cancelled meanwhile, wait for its end and undo what it did."""
    doing = asyncio.ensure_future(step)
    try:
        return await asyncio.shield(doing)
    except asyncio.CancelledError:
        # Whoever cancelled wants that, not the errors of what is no longer wanted.
        with suppress(Exception):
            await undo(await doing)
        raise
