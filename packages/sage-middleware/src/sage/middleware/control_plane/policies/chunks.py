"""How much a bulk embedding call may carry, so that what somebody waits for need not wait long behind it."""

from __future__ import annotations

from math import ceil
from typing import Final

from sage.middleware.control_plane.policy import EngineView
from sage.middleware.control_plane.records import Record

__all__ = ["CHUNK", "EFFICIENT", "LARGEST_CHUNK", "tokens_beside"]

CHUNK: Final = 0.3  # of the interactive goal, that a bulk call may take
LARGEST_CHUNK: Final = 0.5  # of it, for a call that would else be smaller than `EFFICIENT`
EFFICIENT: Final = 4  # texts: of fewer in a call each costs up to half as much again


def tokens_beside(goal: float, record: Record, engine: EngineView) -> int:
    """Tokens of one call with texts of `record`, at least 1; `goal` is the interactive one, in seconds."""
    each, model, own = record.prompt_tokens / record.units, engine.embed, engine.spec.cores or 1
    goal *= model.seconds(each, 1, own) / model.seconds(each, 1, own, engine.beside)
    tokens = model.tokens_within(CHUNK * goal, each, own)
    if tokens < EFFICIENT * each:
        most = model.tokens_within(LARGEST_CHUNK * goal, each, own)
        tokens = max(tokens, min(most, ceil(EFFICIENT * each)))  # rounded down, it held one text less
    return max(1, tokens)
