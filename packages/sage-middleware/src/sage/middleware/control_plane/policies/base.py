"""What the shipped policies share: defaults for what a simple one does not care about, load, predictions.

A policy of one's own may start from `BasePolicy` too: it is then `name`, `choose`, and what it wants changed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from math import inf
from typing import Final

from sage.middleware.control_plane.disciplines import PATIENCE_S, Fifo, Keyed
from sage.middleware.control_plane.policy import (
    BatchLimits,
    Choice,
    Discipline,
    EngineView,
    PolicyOptions,
    Shed,
    Traits,
    Wait,
)
from sage.middleware.control_plane.records import Record

__all__ = ["BasePolicy", "by_due", "least_loaded", "load_of", "predictions"]

TOKENS_PER_REQUEST: Final = 1000  # so many outstanding tokens weigh as much as one more running request


class BasePolicy(ABC):
    """Arrival order, nothing refused, nothing coalesced. A subclass names itself and places."""

    name: str
    traits = Traits()

    def __init__(self, options: PolicyOptions) -> None:
        self.options = options

    def discipline(self) -> Discipline:
        """A new empty queue for one lane."""
        return Fifo()

    def admit(
        self,
        record: Record,  # noqa: ARG002
        engines: Sequence[EngineView],  # noqa: ARG002
        ahead: float,  # noqa: ARG002
        now: float,  # noqa: ARG002
    ) -> Shed | None:
        """Let every newcomer in: only the bounds of the queues refuse."""
        return None

    @abstractmethod
    def choose(self, record: Record, engines: Sequence[EngineView], now: float) -> Choice | Wait | Shed:
        """Where the head of a lane goes now."""

    def batch(self, record: Record, engine: EngineView, now: float) -> BatchLimits:  # noqa: ARG002
        """One whole request."""
        return BatchLimits(record.waiting_units, record.prompt_tokens)

    def charge(self, record: Record, seconds: float) -> None:  # noqa: B027
        """Nobody pays."""

    def settle(self, record: Record, seconds: float) -> None:  # noqa: B027
        """Nobody has paid."""


def by_due() -> Keyed:
    """Earliest due first; what is due whenever goes after `PATIENCE_S`, so that it does not starve."""
    return Keyed(_due)


def _due(record: Record) -> float:
    return record.due if record.due < inf else record.arrived + PATIENCE_S


def load_of(engine: EngineView) -> float:
    """What runs there, in tokens, for its size; its size is the number of requests that it takes at once."""
    return (engine.running * TOKENS_PER_REQUEST + engine.outstanding_tokens) / engine.max_running


def least_loaded(engines: Sequence[EngineView]) -> Choice | Wait:
    """The free engine with the smallest load, the least recently used among equals."""
    best: EngineView | None = None
    least, turn = inf, 0
    for engine in engines:
        if engine.free > 0:
            # `load_of`, without a call for each engine: this runs for every request
            load = (engine.running * TOKENS_PER_REQUEST + engine.outstanding_tokens) / engine.max_running
            if load < least or (load == least and engine.last_dispatch < turn):
                best, least, turn = engine, load, engine.last_dispatch
    if best is None:
        return Wait()
    return Choice(
        best.name,
        f"least loaded of {len(engines)}: {best.running}/{best.max_running} running, "
        f"{best.outstanding_tokens} tokens outstanding",
    )


def predictions(record: Record, engines: Sequence[EngineView], now: float) -> list[float]:
    """For each engine the seconds until it would give the first token (generation) or the answer (the rest).

    For an engine whose slots are all taken it is a lower bound: as if a slot became free now.
    """
    if record.job.texts:
        texts = record.waiting_units
        tokens = record.prompt_tokens * texts / record.units
        return [
            (engine.busy_until - now if engine.busy_until > now else 0.0)
            + engine.embed.seconds(tokens, texts, engine.spec.cores)
            for engine in engines
        ]
    computed = record.prompt_tokens
    if not record.cached:
        return [engine.llm.ttft(engine.prefill_tokens + computed, engine.running) for engine in engines]
    cached = record.cached.get
    return [
        engine.llm.ttft(engine.prefill_tokens + computed - cached(engine.name, 0), engine.running)
        for engine in engines
    ]
