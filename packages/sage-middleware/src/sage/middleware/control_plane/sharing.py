"""Texts in flight: the same text, asked for by several calls at once, is computed once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from sage.middleware.control_plane.calls import Vector

__all__ = ["Compute", "TextsInFlight"]

Compute = Callable[[list[bytes]], Awaitable[list[Vector]]]


class _Flight:
    """One call that computes texts now. `vectors` is empty until it has landed, and if it failed."""

    __slots__ = ("_landed", "_waited_for", "vectors")

    def __init__(self) -> None:
        self.vectors: dict[bytes, Vector] = {}
        self._landed = False
        self._waited_for: asyncio.Event | None = None  # made by the first that waits: most calls have none

    def land(self) -> None:
        self._landed = True
        if self._waited_for is not None:
            self._waited_for.set()

    async def wait(self) -> None:
        if self._landed:
            return
        if self._waited_for is None:
            self._waited_for = asyncio.Event()
        await self._waited_for.wait()


class TextsInFlight:
    """Knows which call computes which text. Belongs to one event loop.

    A text whose call fails or is cancelled is computed by those that waited for it: nobody's answer depends
    on what becomes of somebody else's request.
    """

    def __init__(self) -> None:
        self._keys: dict[str, dict[bytes, _Flight]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._keys.values()))

    async def vectors(
        self, key: str, texts: Sequence[bytes], compute: Compute, *, on_wait: Callable[[bool], None]
    ) -> dict[bytes, Vector]:
        """The vectors of distinct `texts`; `compute` is asked for those that no other call computes.

        Only texts of one `key` are the same. `on_wait(True)` is called when all that is missing is computed
        elsewhere, `on_wait(False)` when that is over. Raises what `compute` raises.
        """
        found: dict[bytes, Vector] = {}
        missing = list(texts)
        while missing:
            flights = self._keys.setdefault(key, {})
            mine = [text for text in missing if text not in flights]
            others = {flights[text] for text in missing if text in flights}  # before ours are entered
            if mine:
                found.update(await self._fly(key, mine, compute))
            on_wait(True)
            for flight in others:
                await flight.wait()
                found.update(flight.vectors)
            on_wait(False)
            missing = [text for text in missing if text not in found]
        return found

    async def _fly(self, key: str, texts: list[bytes], compute: Compute) -> dict[bytes, Vector]:
        flights = self._keys[key]
        flight = _Flight()
        flights.update(dict.fromkeys(texts, flight))
        try:
            flight.vectors = dict(zip(texts, await compute(texts), strict=True))
        finally:
            for text in texts:
                del flights[text]
            if not flights and self._keys.get(key) is flights:
                del self._keys[key]
            flight.land()
        return flight.vectors
