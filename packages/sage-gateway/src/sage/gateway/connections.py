"""How many connections a listener lets in, of all and from one address; and which of them stand still."""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from typing import Final

from sage.common.errors import OverloadedError, SageError, UnavailableError
from sage.common.telemetry import Bound

__all__ = ["Connections", "Stall", "tune"]

# Of an answer, so much waits for its client before the engine is read no further. One read of uvloop has up
# to 256,000 bytes, which are in hand already: with both a stream holds at most 256 KiB.
UNSENT: Final = 4 * 1024


def tune(transport: asyncio.Transport) -> None:
    """Send each piece at once, and keep little of what the client is too slow for."""
    transport.set_write_buffer_limits(high=UNSENT)
    sock = transport.get_extra_info("socket")
    if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


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
        self.begun = False  # something waited when it was asked last

    def seconds(self, now: float, unsent: int) -> float:
        """So long as of `now`, when `unsent` bytes wait; 0 = none wait, or there is movement."""
        if not unsent or unsent != self._unsent:
            self._unsent = unsent
            self._since = now
            self.begun = unsent > 0
        return now - self._since
