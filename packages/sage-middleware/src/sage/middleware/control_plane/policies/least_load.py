"""The engine with the least to do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from sage.middleware.control_plane.policy import Choice, EngineView
from sage.middleware.control_plane.types import Job

__all__ = ["LeastLoad"]

TOKENS_PER_REQUEST: Final = 1000  # so many outstanding tokens weigh as much as one more running request


class LeastLoad:
    """Each request goes to the free engine with the fewest running requests and tokens for its size.

    Its size is the number of requests that the engine takes at once, so that a larger one gets more.
    Among equals the one that was used least recently wins, which spreads equal requests evenly.
    """

    name = "least_load"

    def choose(self, engines: Sequence[EngineView], job: Job, now: float) -> Choice | None:  # noqa: ARG002
        """The free engine with the smallest load, the least recently used among equals."""
        best: EngineView | None = None
        best_key = (0.0, 0)
        for engine in engines:
            if engine.free > 0:
                key = (_load(engine), engine.last_dispatch)
                if best is None or key < best_key:
                    best, best_key = engine, key
        if best is None:
            return None
        return Choice(
            best.name,
            f"least loaded of {len(engines)}: {best.running}/{best.max_running} running, "
            f"{best.outstanding_tokens} tokens outstanding",
        )


def _load(engine: EngineView) -> float:
    return (engine.running + engine.outstanding_tokens / TOKENS_PER_REQUEST) / engine.max_running
