"""First come, first served."""

from __future__ import annotations

from collections.abc import Sequence

from sage.middleware.control_plane.policies.base import BasePolicy
from sage.middleware.control_plane.policy import Choice, EngineView, Wait
from sage.middleware.control_plane.records import Record

__all__ = ["Fifo"]


class Fifo(BasePolicy):
    """Requests go in the order of arrival to the first engine that has a free slot, and fill it first.

    It is right as the baseline to compare with, or where the other engines are to stay cold and be stopped.
    It is not right for latency, as one engine is full before the next one gets anything.
    """

    name = "fifo"

    def choose(self, record: Record, engines: Sequence[EngineView], now: float) -> Choice | Wait:  # noqa: ARG002
        """The first free engine in the order in which they became known."""
        for engine in engines:
            if engine.free > 0:
                return Choice(
                    engine.name, f"first free engine ({engine.running}/{engine.max_running} running)"
                )
        return Wait()
