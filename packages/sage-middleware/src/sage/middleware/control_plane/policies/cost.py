"""Where a request costs the fewest engine-seconds."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

from sage.middleware.control_plane.policies.base import BasePolicy
from sage.middleware.control_plane.policy import Choice, EngineView, Traits, Wait
from sage.middleware.control_plane.records import Record

__all__ = ["Cost"]


class Cost(BasePolicy):
    """Each request goes to the free engine on which it is predicted to cost the fewest engine-seconds.

    It is right for work that can wait, on engines that differ in speed, or to leave some idle and stop them.
    It is not right for latency, as a further request costs least where many share each iteration already.
    """

    name = "cost"
    traits = Traits(predicts=True)

    def choose(self, record: Record, engines: Sequence[EngineView], now: float) -> Choice | Wait:  # noqa: ARG002
        """The free engine with the smallest marginal cost, the least recently used among equals."""
        best: EngineView | None = None
        least, turn = inf, 0
        for engine in engines:
            if engine.free > 0:
                seconds = _marginal(record, engine)
                if seconds < least or (seconds == least and engine.last_dispatch < turn):
                    best, least, turn = engine, seconds, engine.last_dispatch
        if best is None:
            return Wait()
        return Choice(best.name, f"cheapest of {len(engines)}: {least:.3f} engine-seconds predicted")


def _marginal(record: Record, engine: EngineView) -> float:
    """Engine-seconds: its prompt, and for each token of the answer its share of an iteration."""
    if record.job.texts:
        return engine.embed.seconds(record.prompt_tokens, record.units, engine.spec.cores)
    llm = engine.llm
    share = llm.iteration_slope + llm.iteration_base / (engine.running + 1)
    return llm.per_token * record.prompt_tokens + record.output_p50 * share
