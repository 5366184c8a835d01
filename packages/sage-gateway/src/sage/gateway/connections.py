"""How many connections a listener lets in, of all and from one address; and which of them stand still."""

from __future__ import annotations

from collections import Counter

from sage.common.errors import OverloadedError, SageError, UnavailableError
from sage.common.telemetry import Bound

__all__ = ["Connections", "Stall"]


class Connections:
    """The open connections of one listener, at most `most` in all and `per_address` from one address."""

    def __init__(self, most: int = 8192, per_address: int = 8192) -> None:
        self._most = most
        self._per_address = per_address
        self._open: Counter[str] = Counter()

    @property
    def open(self) -> int:
        """How many there are."""
        return self._open.total()

    def change(self, most: int, per_address: int) -> None:
        """Other bounds from now on; those that are open stay."""
        self._most = most
        self._per_address = per_address

    def enter(self, address: str) -> SageError | None:
        """Count one in, and say why it may not stay; every one has to `leave`, whatever was said."""
        self._open[address] += 1
        if self._open.total() > self._most:
            return UnavailableError("Too many connections.", retry_after=1.0, bound=Bound.CONNECTIONS)
        if self._open[address] <= self._per_address:
            return None
        return OverloadedError(
            f"There are {self._per_address} connections from this address, and no more are let in.",
            hint="Use the open ones again, or raise gateway.max_connections_per_address.",
            retry_after=1.0,
            bound=Bound.ADDRESS_CONNECTIONS,
        )

    def leave(self, address: str) -> None:
        """One has gone."""
        self._open[address] -= 1
        if not self._open[address]:
            del self._open[address]


class Stall:
    """For how long a client has read nothing of what waits for it."""

    def __init__(self) -> None:
        self._unsent = 0
        self._since = 0.0

    def seconds(self, now: float, unsent: int) -> float:
        """So long as of `now`, when `unsent` bytes wait; 0 = none wait, or there is movement."""
        if not unsent or unsent != self._unsent:
            self._unsent = unsent
            self._since = now
        return now - self._since
