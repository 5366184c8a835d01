"""All that is known, at once: predicted finish, goals, tenants, caches, devices."""

from __future__ import annotations

import random
from collections.abc import Sequence
from math import inf
from typing import Final

from sage.common.telemetry import RequestClass
from sage.middleware.control_plane.disciplines import Accounts, Fair
from sage.middleware.control_plane.policies.base import BasePolicy, least_loaded
from sage.middleware.control_plane.policies.chunks import tokens_beside
from sage.middleware.control_plane.policies.forecast import ENOUGH, EmbedForecast, LlmForecast, worth_waiting
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
from sage.middleware.control_plane.urgency import Feasible, Floor, Floored

__all__ = ["Hybrid"]

GRACE: Final = 0.15  # of its goal, that a request may be predicted late before it is given up
HOLD_S: Final = 0.002
HOLD: Final = 0.05  # of the goal


class Hybrid(BasePolicy):
    """It serves as many requests within their goals as can be, in an order fair between tenants, late bound.

    It is right for mixed classes and tenants on shared engines, above all where the load comes in bursts.
    It is not right where nothing has a goal and everything is alike: `least_load` does the same for less.
    """

    __slots__ = (
        "_accounts",
        "_embed",
        "_exploration",
        "_floor",
        "_llm",
        "_random",
    )

    name = "hybrid"
    traits = Traits(batches=True, prefixes=True, hedges=True, predicts=True)

    def __init__(self, options: PolicyOptions) -> None:
        super().__init__(options)
        self._exploration = options.exploration
        self._random = random.Random(options.seed)  # noqa: S311 - exploration, nothing secret
        self._accounts = Accounts(options.weights)
        self._floor = Floor()
        self._llm = LlmForecast(options.slos)
        self._embed = EmbedForecast(options.slos)

    def discipline(self) -> Discipline:
        """Interactive before bulk, tenants by credit, then by what can be met."""
        return Floored(_is_low, lambda: Fair(self._accounts, Feasible), self._floor)

    def admit(self, record: Record, engines: Sequence[EngineView], ahead: float, now: float) -> Shed | None:
        """Refuse what the p90 of its finish would make late, backlog included. O(engines).

        What must be complete by some time is late if nine in ten such answers would be, at the pace of the
        engine that now writes quickest.
        """
        if record.due == inf or record.job.tenant in self.options.best_effort:
            return None
        margin, busy = 1.0, inf
        for engine in engines:
            model = engine.llm if engine.generates else engine.embed
            if not engine.running or not model.trusted or model.samples < ENOUGH:
                return None  # what an idle engine could serve is never refused, nor by a model nobody trusts
            if model.margin > margin:
                margin = model.margin
            if engine.generates:
                busy = 0.0
            elif engine.busy_until - now < busy:
                busy = engine.busy_until - now
        wait = ahead / len(engines) + max(0.0, busy)
        first = now + wait + record.quick * margin
        late = first - record.due
        if record.ends_by < inf:
            pace = min(engine.llm.tpot(engine.running) for engine in engines)
            late = max(late, first + record.output_p90 * pace - record.ends_by)
        if late <= 0.0:
            return None
        return Shed(
            f"its answer would be {late:.2f} s late: {wait:.2f} s of work wait before it",
            max(1.0, late),
        )

    def choose(self, record: Record, engines: Sequence[EngineView], now: float) -> Choice | Wait | Shed:
        """The earliest predicted finish among engines whose queues are shallow; else it waits here.

        An engine that is not trusted gets what comes while it is the least loaded of all that have a free
        slot, whatever is predicted of it or of others; the rest is for those that are trusted.
        """
        if record.ends_by < inf and now == record.arrived and (shed := self.admit(record, engines, 0.0, now)):
            return shed
        model = self._embed if record.job.texts else self._llm
        forecast = model.of(record, engines, now)
        if forecast.untrusted:
            least = least_loaded([one for one in engines if one.name not in forecast.full])
            if isinstance(least, Wait) or least.engine in forecast.untrusted:
                return least
        engine, left = forecast.best, record.due - now
        if engine is None:
            hopeless = left < 0.0
        else:
            hopeless = (
                forecast.seconds > left
                and engine.running > 0
                and forecast.seconds > left + GRACE * max(0.0, record.due - record.arrived)
            )
        begun = record.running or record.left < record.units  # what was computed of it would be lost
        if hopeless and not begun and forecast.known and record.job.tenant not in self.options.best_effort:
            waited = now - record.queued
            return Shed(f"it can no longer be in time after waiting {waited:.2f} s", max(1.0, waited))
        if engine is None or (forecast.closed and worth_waiting(record, forecast, model, left, now)):
            return Wait(forecast.look_again)
        seconds = forecast.seconds
        if self._exploration and self._random.random() < self._exploration:
            engine, seconds = self.explore(forecast.open, seconds, left)
        reason = forecast.reason(engine, len(engines))
        return Choice(engine.name, reason, seconds, forecast.threads(engine) if forecast.lent else 0)

    def explore(
        self, engines: Sequence[tuple[EngineView, float]], seconds: float, left: float
    ) -> tuple[EngineView, float]:
        """One of the open engines at random; `seconds`: of the best, `left`: to the goal."""
        most = min(2.0 * seconds, max(left, seconds))  # never at the price of the goal
        return self._random.choice([one for one in engines if one[1] <= most])

    def batch(self, record: Record, engine: EngineView, now: float) -> BatchLimits:  # noqa: ARG002
        """Bulk is cut so that interactive requests need not wait long behind it; the rest is coalesced."""
        goal = self.options.slos[RequestClass.EMBED_INTERACTIVE].total or 1.0
        tokens = tokens_beside(goal, record, engine)
        hold = 0.0
        if not engine.spec.batches and record.due < inf:
            hold = record.queued + min(HOLD_S, HOLD * (record.due - record.arrived))
        return BatchLimits(2048, tokens, hold, min(tokens, engine.embed.knee))

    def charge(self, record: Record, seconds: float) -> None:
        """The tenant pays what is predicted, and so does the level."""
        self._accounts.charge(record, seconds)
        if self._floor.owed:
            self._floor.charge(record.job.model, int(_is_low(record)), seconds)

    def settle(self, record: Record, seconds: float) -> None:
        """The tenant pays, or gets back, what the prediction was wrong by."""
        self._accounts.settle(record, seconds)


_LOW: Final = frozenset((RequestClass.EMBED_BULK, RequestClass.BATCH))


def _is_low(record: Record) -> bool:
    return record.job.request_class in _LOW
