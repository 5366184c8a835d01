"""What a puppet engine tells of itself."""

from __future__ import annotations

import msgspec

__all__ = ["Seen"]


class Seen(msgspec.Struct):
    """Counts of one engine. `closes`: the tags of calls whose client went away, and when (monotonic seconds).

    `active` calls and `texts` in them are under way, `open` counts connections, `sent` bytes of bodies.
    """

    requests: int = 0
    served: int = 0
    active: int = 0
    texts: int = 0
    open: int = 0
    sent: int = 0
    closes: list[tuple[list[str], float]] = []
