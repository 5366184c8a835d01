"""All that is known, at once: predicted finish, goals, tenants, caches, devices."""

from __future__ import annotations

import random
from collections.abc import Sequence
from math import inf
from typing import Final

from sage.common.telemetry import RequestClass
from sage.middleware.control_plane.disciplines import Accounts, Fair
from sage.middleware.control_plane.policies.base import BasePolicy, least_loaded
from sage.middleware.control_plane.policies.forecast import EmbedForecast, Forecast, LlmForecast
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
from sage.middleware.control_plane.urgency import Feasible, Floored

__all__ = ["Hybrid"]

GRACE: Final = 0.15  # of its goal, that a request may be predicted late before it is given up
CHUNK: Final = 0.3  # of the interactive goal, that a bulk call may take
LEAN: Final = 8  # times the knee: beyond that a larger call gains nothing worth waiting for
HOLD_S: Final = 0.002
HOLD: Final = 0.05  # of the goal
JITTER: Final = 0.2


class Hybrid(BasePolicy):
    """It serves as many requests within their goals as can be, in an order fair between tenants, late bound.

    It is right for mixed classes and tenants on shared engines, above all where the load comes in bursts.
    It is not right where nothing has a goal and everything is alike: `least_load` does the same for less.
    """

    name = "hybrid"
    traits = Traits(batches=True, prefixes=True, hedges=True, predicts=True)

    def __init__(self, options: PolicyOptions) -> None:
        super().__init__(options)
        self._random = random.Random(options.seed)  # noqa: S311 - exploration, nothing secret
        self._accounts = Accounts(options.weights)
        self._lanes: list[Floored] = []
        self._llm = LlmForecast(options.slos)
        self._embed = EmbedForecast(options.slos)

    def discipline(self) -> Discipline:
        """Interactive before bulk, tenants by credit, then by what can be met."""
        return Floored(_is_low, lambda: Fair(self._accounts, Feasible))

    def admit(self, record: Record, engines: Sequence[EngineView], ahead: float, now: float) -> Shed | None:
        """Refuse what the p90 of its finish would make late everywhere, backlog included."""
        if record.due == inf or record.job.tenant in self.options.best_effort:
            return None
        forecast = self._forecast(record, engines, now)
        if not forecast.known or forecast.idle:
            return None
        wait = ahead / len(engines)
        late = now + wait + forecast.soonest * forecast.margin - record.due
        if late <= 0.0:
            return None
        return Shed(
            f"its answer would be {late:.2f} s late: {wait:.2f} s of work wait before it",
            max(1.0, late) * self._random.uniform(1.0 - JITTER, 1.0 + JITTER),
        )

    def choose(self, record: Record, engines: Sequence[EngineView], now: float) -> Choice | Wait | Shed:
        """The earliest predicted finish among engines whose queues are shallow; else it waits here."""
        forecast = self._forecast(record, engines, now)
        if not forecast.trusted:
            return least_loaded(engines)
        due, engine = record.due, forecast.best
        if engine is None or not engine.running:
            hopeless = engine is None and now > due
        else:
            hopeless = now + forecast.seconds > due + GRACE * (due - record.arrived)
        if hopeless and forecast.known and record.job.tenant not in self.options.best_effort:
            return Shed(
                f"it can no longer be in time after waiting {now - record.queued:.2f} s",
                max(1.0, now - record.queued),
            )
        if engine is None or self._worth_waiting(forecast, due - now):
            return Wait(forecast.look_again)
        if self.options.exploration and self._random.random() < self.options.exploration:
            near = [one for one, seconds in forecast.open if seconds <= 2.0 * forecast.seconds]
            engine = self._random.choice(near)
        return Choice(
            engine.name, forecast.reason(engine, len(engines)), forecast.seconds, forecast.threads(engine)
        )

    def batch(self, record: Record, engine: EngineView, now: float) -> BatchLimits:  # noqa: ARG002
        """Bulk is cut so that interactive requests need not wait long behind it; the rest is coalesced."""
        each = record.prompt_tokens / record.units
        lean = engine.embed.tokens_within
        goal = self.options.slos[RequestClass.EMBED_INTERACTIVE].total or 1.0
        tokens = min(LEAN * engine.embed.knee, lean(CHUNK * goal, each, engine.spec.cores or 1))
        hold = 0.0
        if not engine.spec.batches and record.due < inf:
            hold = record.queued + min(HOLD_S, HOLD * (record.due - record.arrived))
        return BatchLimits(2048, max(1, tokens), hold)

    def charge(self, record: Record, seconds: float) -> None:
        """The tenant pays what is predicted."""
        self._accounts.charge(record, seconds)

    def settle(self, record: Record, seconds: float) -> None:
        """The tenant pays, or gets back, what the prediction was wrong by."""
        self._accounts.settle(record, seconds)

    def _forecast(self, record: Record, engines: Sequence[EngineView], now: float) -> Forecast:
        return (self._embed if record.job.texts else self._llm).of(record, engines, now)

    @staticmethod
    def _worth_waiting(forecast: Forecast, left: float) -> bool:
        """Whether a busy engine is the better one: it would be in time, the open ones late or far behind."""
        return forecast.soonest <= left and (
            forecast.seconds > left or forecast.soonest < 0.5 * forecast.seconds
        )


def _is_low(record: Record) -> bool:
    return record.job.request_class in (RequestClass.EMBED_BULK, RequestClass.BATCH)
