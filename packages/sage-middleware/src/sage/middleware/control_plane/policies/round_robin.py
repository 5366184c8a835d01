"""Each engine in turn."""

from __future__ import annotations

from collections.abc import Sequence

from sage.middleware.control_plane.policy import Choice, EngineView
from sage.middleware.control_plane.types import Job

__all__ = ["RoundRobin"]


class RoundRobin:
    """Each request goes to the free engine whose turn was longest ago.

    Equal requests over equal idle engines are spread evenly, and an engine that comes up is next in turn.
    It does not look at the size of requests, so unequal ones load the engines unequally.
    """

    name = "round_robin"

    def choose(self, engines: Sequence[EngineView], job: Job, now: float) -> Choice | None:  # noqa: ARG002
        """The free engine that was used least recently."""
        free = [engine for engine in engines if engine.free > 0]
        if not free:
            return None
        engine = min(free, key=lambda one: one.last_dispatch)
        return Choice(engine.name, f"next in turn of {len(free)} free engines")
