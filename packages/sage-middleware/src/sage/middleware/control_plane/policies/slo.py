"""By predicted finish, and not at all where the goal cannot be met."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import TYPE_CHECKING, Final

from sage.middleware.control_plane.policies.base import BasePolicy, by_due, predictions
from sage.middleware.control_plane.policy import Choice, Discipline, EngineView, Shed, Traits, Wait
from sage.middleware.control_plane.records import Record

if TYPE_CHECKING:
    from sage.middleware.control_plane.cost import EmbedCost, LlmCost

__all__ = ["Slo"]

SAMPLES: Final = 5  # before so many an engine's times are assumed, and nothing is refused by them


class Slo(BasePolicy):
    """Each request goes where its finish is predicted earliest; what can meet its goal nowhere is refused.

    It is right under overload when a late answer is worth nothing and the engines' times have been learned.
    It is not right when late is better than never, or for floods of embeddings, which it does not batch.
    """

    name = "slo"
    traits = Traits(predicts=True)

    def discipline(self) -> Discipline:
        """Earliest due first."""
        return by_due()

    def admit(self, record: Record, engines: Sequence[EngineView], ahead: float, now: float) -> Shed | None:
        """Refuse what would be late even if it were served next; back when what waits has been worked off."""
        if not self._hopeless(record, engines, predictions(record, engines, now), now):
            return None
        return Shed("no engine can meet its goal, even if it were next", max(1.0, ahead / len(engines)))

    def choose(self, record: Record, engines: Sequence[EngineView], now: float) -> Choice | Wait | Shed:
        """The free engine with the earliest predicted finish, the least recently used among equals."""
        seconds = predictions(record, engines, now)
        best: EngineView | None = None
        least, turn = inf, 0
        for engine, one in zip(engines, seconds, strict=True):
            if one <= least and engine.free > 0 and (one < least or engine.last_dispatch < turn):
                best, least, turn = engine, one, engine.last_dispatch
        # most are in time: only those that would be late where they go are looked at again
        if now + least > record.due and self._hopeless(record, engines, seconds, now):
            waited = now - record.queued  # so long the queue is
            return Shed(f"waited for {waited:.1f} s and can no longer meet its goal", max(1.0, waited))
        if best is None:
            return Wait()
        return Choice(best.name, f"earliest predicted finish of {len(engines)}: {least:.3f} s", least)

    def _hopeless(
        self, record: Record, engines: Sequence[EngineView], seconds: Sequence[float], now: float
    ) -> bool:
        """Whether every engine would be late, is known well enough to say so, and has other work to do."""
        if record.job.tenant in self.options.best_effort:
            return False
        embeds = record.job.texts > 0
        for engine, one in zip(engines, seconds, strict=True):
            if now + one <= record.due or not engine.running:
                return False
            model: EmbedCost | LlmCost = engine.embed if embeds else engine.llm
            if not model.trusted or model.samples < SAMPLES:
                return False
        return True
