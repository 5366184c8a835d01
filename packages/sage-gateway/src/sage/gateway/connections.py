"""How many connections a listener lets in, of all and from one address."""

from __future__ import annotations

from collections import Counter

from sage.common.errors import OverloadedError, SageError, UnavailableError

__all__ = ["Connections"]


class Connections:
    """The open connections of one listener, at most `most` in all and `per_address` from one address."""

    def __init__(self, most: int = 8192, per_address: int = 8192) -> None:
        self._most = most
        self._per_address = per_address
        self._open: Counter[str] = Counter()

    def change(self, most: int, per_address: int) -> None:
        """Other bounds from now on; those that are open stay."""
        self._most = most
        self._per_address = per_address

    def enter(self, address: str) -> SageError | None:
        """Count one in, and say why it may not stay; every one has to `leave`, whatever was said."""
        self._open[address] += 1
        if self._open.total() > self._most:
            return UnavailableError("Too many connections.", retry_after=1.0)
        if self._open[address] <= self._per_address:
            return None
        return OverloadedError(
            f"There are {self._per_address} connections from this address, and no more are let in.",
            hint="Use the open ones again, or raise gateway.max_connections_per_address.",
            retry_after=1.0,
        )

    def leave(self, address: str) -> None:
        """One has gone."""
        self._open[address] -= 1
        if not self._open[address]:
            del self._open[address]
