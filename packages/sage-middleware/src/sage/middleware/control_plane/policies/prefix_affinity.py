"""Where the beginning of the prompt is cached."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import Final

from sage.middleware.control_plane.policies.base import BasePolicy, least_loaded, load_of
from sage.middleware.control_plane.policy import Choice, EngineView, Traits, Wait
from sage.middleware.control_plane.records import Record

__all__ = ["PrefixAffinity"]

BOUND: Final = 1.25  # times its even share of what runs: more an engine is not given for its cache


class PrefixAffinity(BasePolicy):
    """Each request goes where most of its prompt is cached, within a bounded load (Mirrokni and others 2018).

    It is right for conversations, agents and few-shot prompts, whose beginnings repeat.
    It is not right when prompts have nothing in common, where it is `least_load` with an index to keep.
    """

    name = "prefix_affinity"
    traits = Traits(prefixes=True)

    def choose(self, record: Record, engines: Sequence[EngineView], now: float) -> Choice | Wait:  # noqa: ARG002
        """The free engine with the most cached tokens that is not over its share, else the least loaded."""
        cached = record.cached
        if not cached:
            return least_loaded(engines)
        running = slots = 0
        for engine in engines:
            running += engine.running
            slots += engine.max_running
        share = BOUND * (running + 1) / slots
        best: EngineView | None = None
        most = 0
        for engine in engines:
            tokens = cached.get(engine.name, 0)
            if tokens < most or not tokens or engine.free <= 0:
                continue
            if engine.running >= ceil(share * engine.max_running):
                continue
            if best is None or tokens > most or load_of(engine) < load_of(best):
                best, most = engine, tokens
        if best is None:
            return least_loaded(engines)
        return Choice(best.name, f"{most} of {record.prompt_tokens} prompt tokens are cached there")
