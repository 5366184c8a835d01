"""Each engine in turn."""

from __future__ import annotations

from collections.abc import Sequence

from sage.middleware.control_plane.policies.base import BasePolicy
from sage.middleware.control_plane.policy import Choice, EngineView, Wait
from sage.middleware.control_plane.records import Record

__all__ = ["RoundRobin"]


class RoundRobin(BasePolicy):
    """Each request goes to the free engine whose turn was longest ago, so that counts of requests are even.

    It is right for equal requests on equal engines, and an engine that comes up is next in turn.
    It is not right for unequal ones, as it looks neither at a request's size nor at an engine's load.
    """

    name = "round_robin"

    def choose(self, record: Record, engines: Sequence[EngineView], now: float) -> Choice | Wait:  # noqa: ARG002
        """The free engine that was used least recently."""
        best: EngineView | None = None
        for engine in engines:
            if engine.free > 0 and (best is None or engine.last_dispatch < best.last_dispatch):
                best = engine
        if best is None:
            return Wait()
        return Choice(best.name, f"next in turn of {len(engines)} engines")
