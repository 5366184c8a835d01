"""First come, first served."""

from __future__ import annotations

from collections.abc import Sequence

from sage.middleware.control_plane.policy import Choice, EngineView
from sage.middleware.control_plane.types import Job

__all__ = ["Fifo"]


class Fifo:
    """Requests go in the order of arrival to the first engine that has a free slot.

    It fills one engine before it uses the next, which keeps the others cold and free for scaling down.
    It is the baseline to compare with, not a good choice for equal engines.
    """

    name = "fifo"

    def choose(self, engines: Sequence[EngineView], job: Job, now: float) -> Choice | None:  # noqa: ARG002
        """The first free engine in the order in which they came up."""
        for engine in engines:
            if engine.free > 0:
                return Choice(
                    engine.name, f"first free engine ({engine.running}/{engine.max_running} running)"
                )
        return None
