"""Texts in flight: the same text, asked for by several calls at once, is computed once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import msgspec

from sage.middleware.control_plane.calls import Vector

__all__ = ["Compute", "Flight", "TextsInFlight"]

Compute = Callable[[list[bytes]], Awaitable[list[Vector]]]


class Flight(msgspec.Struct, eq=False):
    """One call that computes `texts` now. `vectors` is empty until it has landed, and if it failed.

    `waited_for` is made by the first that waits: most calls have none.
    """

    key: str
    texts: list[bytes]
    vectors: dict[bytes, Vector] = {}
    landed: bool = False
    waited_for: asyncio.Event | None = None

    def land(self) -> None:
        """Let those that wait for it go on."""
        self.landed = True
        if self.waited_for is not None:
            self.waited_for.set()

    async def wait(self) -> None:
        """Until it has landed."""
        if self.landed:
            return
        if self.waited_for is None:
            self.waited_for = asyncio.Event()
        await self.waited_for.wait()


class TextsInFlight:
    """Knows which call computes which text. Belongs to one event loop.

    A text whose call fails or is cancelled is computed by those that waited for it: nobody's answer depends
    on what becomes of somebody else's request.
    """

    __slots__ = ("_keys",)

    def __init__(self) -> None:
        self._keys: dict[str, dict[bytes, Flight]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._keys.values()))

    def take_off(self, key: str, texts: list[bytes]) -> Flight | None:
        """Whoever calls this computes all of `texts` from now on, and calls `land` once that is over.

        None, and nothing begins, where one of them is computed by another call or is there twice.
        """
        flight = Flight(key, texts)
        entered = dict.fromkeys(texts, flight)
        if len(entered) < len(texts):
            return None
        flights = self._keys.get(key)
        if flights is None:
            self._keys[key] = entered
            return flight
        if any(text in flights for text in texts):
            return None
        flights.update(entered)
        return flight

    def land(self, flight: Flight) -> None:
        """What began with `take_off` is over: its vectors are there, or it has failed."""
        flights = self._keys[flight.key]
        for text in flight.texts:
            del flights[text]
        if not flights:
            del self._keys[flight.key]
        flight.land()

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
            flights = self._keys.get(key, {})
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
        flight = self.take_off(key, texts)
        assert flight is not None  # they are distinct, and no other call computes them
        try:
            flight.vectors = dict(zip(texts, await compute(texts), strict=True))
        finally:
            self.land(flight)
        return flight.vectors
