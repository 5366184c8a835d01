"""How many lines of one key run at once: a batch must leave room for what its key asks for by itself."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable

__all__ = ["Share"]


class Share:
    """Slots of each key. `most`: how many it has now; asked anew for each."""

    def __init__(self, most: Callable[[str], int]) -> None:
        self._most = most
        self._running: Counter[str] = Counter()
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}

    def running(self, key: str) -> int:
        """Slots that are taken."""
        return self._running[key]

    @contextlib.asynccontextmanager
    async def slot(self, key: str) -> AsyncIterator[None]:
        """Hold one; those that wait get theirs in the order in which they came."""
        line = self._waiting.setdefault(key, deque())
        if line or self._running[key] >= max(1, self._most(key)):
            await self._turn(key, line)
        else:
            self._running[key] += 1
        try:
            yield
        finally:
            self._leave(key)

    async def _turn(self, key: str, line: deque[asyncio.Future[None]]) -> None:
        """Wait in line; the slot is taken by who gives it."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        line.append(waiter)
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter.cancelled():
                with contextlib.suppress(ValueError):  # passed over already
                    line.remove(waiter)
            else:
                self._leave(key)
            raise

    def _leave(self, key: str) -> None:
        """Give the slot back: the next in line has it at once, as far as the key may have as many."""
        self._running[key] -= 1
        line = self._waiting.get(key)
        while line and self._running[key] < max(1, self._most(key)):
            waiter = line.popleft()
            if waiter.done():  # cancelled, and its task has not run yet
                continue
            self._running[key] += 1
            waiter.set_result(None)
        if not self._running[key] and not line:
            del self._running[key]
            self._waiting.pop(key, None)
