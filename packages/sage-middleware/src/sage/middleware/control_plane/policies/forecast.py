"""When each engine would have a request's first token or answer, and which of them may be sent it now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from math import inf
from typing import Final

import msgspec

from sage.common.telemetry import RequestClass
from sage.middleware.control_plane.policy import EngineView
from sage.middleware.control_plane.records import Record
from sage.middleware.control_plane.types import Slo

__all__ = ["ENOUGH", "EmbedForecast", "Forecast", "LlmForecast", "elsewhere", "first_of", "worth_waiting"]

SHALLOW: Final = 0.35  # of the tightest TTFT goal, that the prefill backlog of an engine may take
SHALLOW_FOR_LOW: Final = 0.15
HEADROOM: Final = 0.7  # of an engine's slots, beyond which low classes hold back
TIGHT: Final = 0.95  # of the TPOT goal, that one more sequence may lead to
BEHIND: Final = 2  # calls at an embedding engine: one runs, one is ready behind it
QUICK_S: Final = 0.001  # calls that take no longer are as quick as a place in line, and need none …
SOON_OVER_S: Final = 0.01  # … while all of them are predicted to be over by then
EARLY_S: Final = 0.003  # before the predicted end of a bulk call the next one is sent
WORTH: Final = 0.9  # of the time on its own cores: what lent ones must bring it down to
TIE: Final = 0.01  # what differs by less is equal, and goes to the engine used least recently
_LESS: Final = 1.0 - TIE
_MORE: Final = 1.0 + TIE
ENOUGH: Final = 10  # samples of a model, before work is refused by what it says
SOON_S: Final = 0.001  # no look sooner than that: times add up only so exactly
BATCH: Final = RequestClass.BATCH
EMBED_BULK: Final = RequestClass.EMBED_BULK
GIVE_WAY_S: Final = 0.02  # between two looks at whether a generation leaves room for bulk beside it


class Forecast(msgspec.Struct):
    """One request's chances. Seconds count from now.

    `best`: of the engines that are open, the one that has it soonest, in `seconds`. `open`: those that are,
    with their seconds. `closed`: the others. `untrusted`: names of engines whose models are off too often to
    be forecast by: they are in none of these; `full`: those of them that must not be sent more all the same.
    `known`: all models are trusted and have seen enough to refuse work by them. `look_again`: an absolute
    time at which a closed engine opens. `lent`: threads beside an engine's own that idle neighbours leave it.
    """

    untrusted: list[str] = []
    full: list[str] = []
    known: bool = True
    best: EngineView | None = None
    seconds: float = inf
    open: list[tuple[EngineView, float]] = []
    closed: list[EngineView] = []
    look_again: float | None = None
    lent: dict[str, int] = {}

    def offer(self, engine: EngineView, seconds: float) -> None:
        """An engine that is open."""
        self.open.append((engine, seconds))
        best, least = self.best, self.seconds
        if (
            best is None
            or seconds < least * _LESS
            or (seconds < least * _MORE and engine.last_dispatch < best.last_dispatch)
        ):
            self.best, self.seconds = engine, seconds

    def threads(self, engine: EngineView) -> int:
        """How many to use there; 0 = its own."""
        lent = self.lent.get(engine.name, 0)
        return engine.spec.cores + lent if lent else 0

    def reason(self, engine: EngineView, count: int) -> str:
        """Why this engine, in words."""
        if engine is not self.best:
            return elsewhere(self.seconds)
        lent = self.lent.get(engine.name, 0)
        return first_of(count, round(self.seconds, 3), lent)


def elsewhere(seconds: float) -> str:
    """Why an engine was chosen that is not the best one, which would have it in `seconds`."""
    return f"to learn how it does: {seconds:.3f} s were predicted elsewhere"


@lru_cache(1024)
def first_of(count: int, seconds: float, lent: int) -> str:
    """The same words for many requests, of which thousands are remembered."""
    beside = f", on {lent} idle cores beside its own" if lent else ""
    return f"first to have it of {count}: {seconds:.3f} s predicted{beside}"


class LlmForecast:
    """Time to first token, prefix caches counted; open while the queue is shallow and tokens flow in time."""

    __slots__ = ("_tightest",)

    def __init__(self, slos: Mapping[RequestClass, Slo]) -> None:
        goals = [slo.ttft for slo in slos.values() if slo.ttft is not None]
        self._tightest = min(goals, default=2.0)

    def of(self, record: Record, engines: Sequence[EngineView], now: float) -> Forecast:  # noqa: ARG002
        """The forecast for one generation."""
        found = Forecast()
        tokens, cached = record.prompt_tokens, record.cached
        low = record.job.request_class is BATCH
        backlog = (SHALLOW_FOR_LOW if low else SHALLOW) * self._tightest
        headroom = HEADROOM if low else 1.0
        tpot = inf if record.slo.tpot is None else TIGHT * record.slo.tpot
        for engine in engines:
            llm = engine.llm
            if not llm.trusted:
                found.known = False
                found.untrusted.append(engine.name)
                continue
            if llm.samples < ENOUGH:
                found.known = False
            if engine.free <= 0:
                found.closed.append(engine)
                continue
            running, ahead = engine.running, engine.prefill_tokens
            if running and not (  # an idle one is never locked out by a bad estimate
                llm.per_token * ahead <= backlog
                and running < headroom * engine.max_running
                and llm.tpot_base + llm.tpot_slope * (running + 1) <= tpot
            ):
                found.closed.append(engine)
                continue
            work = ahead + tokens
            if cached:
                work -= cached.get(engine.name, 0)
            iterations = work / llm.chunk
            if iterations < 1.0:
                iterations = 1.0
            iteration = llm.iteration_base + llm.iteration_slope * running
            found.offer(engine, iterations * iteration + llm.per_token * work)
        return found

    def busy(self, record: Record, engine: EngineView, now: float) -> float:  # noqa: ARG002
        """Seconds until a closed engine would have it: when one of those that run there has ended."""
        llm, running = engine.llm, engine.running
        seconds = llm.ttft(engine.prefill_tokens + record.prompt_tokens, running)
        return seconds + record.output_p50 * llm.tpot(running) / max(1, running)


class EmbedForecast:
    """Time to the answer; open while at most one call is ready behind the running one."""

    def __init__(self, slos: Mapping[RequestClass, Slo]) -> None:
        goals = [slo.tpot for slo in slos.values() if slo.tpot is not None]
        self._tpot = TIGHT * min(goals, default=inf)

    def of(self, record: Record, engines: Sequence[EngineView], now: float) -> Forecast:
        """The forecast for what waits of an embedding request."""
        found = Forecast()
        bulk = record.job.request_class is EMBED_BULK
        for engine in engines:
            if not engine.embed.trusted:
                # Its queue stays short, whatever it is worth: of many calls at once nobody could learn.
                found.known = False
                shut = engine.running >= (1 if bulk else BEHIND)
                (found.full if shut else found.untrusted).append(engine.name)
                continue
            if engine.embed.samples < ENOUGH:
                found.known = False
            seconds = self.busy(record, engine, now)
            opens = self._opens(engine, now, seconds, bulk=bulk)
            if opens is None:
                found.offer(engine, seconds)
                if bulk and engine.spec.elastic:
                    found.lent[engine.name] = _worth_lending(engine)
            else:
                found.closed.append(engine)
                if opens < inf:
                    found.look_again = min(opens, found.look_again or inf)
        return found

    def busy(self, record: Record, engine: EngineView, now: float) -> float:
        """Seconds until it would have the answer, behind what runs there."""
        texts = record.waiting_units
        tokens = record.prompt_tokens * texts / record.units
        ahead = max(0.0, engine.busy_until - now) if engine.running else 0.0
        return ahead + engine.embed.seconds(tokens, texts, engine.spec.cores or 1, engine.beside)

    def _opens(self, engine: EngineView, now: float, seconds: float, *, bulk: bool) -> float | None:
        """None when it may be sent a call now, which it would answer in `seconds`.

        Else the time to look again, inf = when something ends.
        """
        ahead = engine.busy_until - now if engine.running else 0.0
        quick = ahead <= SOON_OVER_S and seconds - max(0.0, ahead) <= QUICK_S
        if engine.free <= 0 or (engine.running >= BEHIND and (bulk or not quick)):
            return inf
        if not bulk:
            return None
        if ahead > EARLY_S:
            return now + max(ahead - EARLY_S, SOON_S)
        for other in engine.device:
            if other.generates and other.running and other.llm.tpot(other.running, 0.0, 1.0) > self._tpot:
                return now + GIVE_WAY_S
        return None


def worth_waiting(
    record: Record, forecast: Forecast, model: EmbedForecast | LlmForecast, left: float, now: float
) -> bool:
    """Whether a busy engine is better: in time where the open ones are late, or far ahead of them.

    There are `closed` ones. `left`: seconds to the goal. No engine is quicker than `record.quick`, so that
    the busy ones are seldom looked at.
    """
    if forecast.seconds <= min(left, 2.0 * record.quick):
        return False
    soonest = min(model.busy(record, engine, now) for engine in forecast.closed)
    return soonest <= left and (forecast.seconds > left or soonest < 0.5 * forecast.seconds)


def _worth_lending(engine: EngineView) -> int:
    """Idle cores of its device, if it has learned that so many more make it quicker: they may be shared.

    A neighbour that gets work while they are lent slows both down, and so that is in what was learned.
    """
    idle, own = _idle_cores(engine), engine.spec.cores
    alone = engine.embed.seconds(1000.0, 10.0, own)
    return idle if engine.embed.seconds(1000.0, 10.0, own + idle) < WORTH * alone else 0


def _idle_cores(engine: EngineView) -> int:
    """Cores of the same device whose engines have nothing to do."""
    return sum(other.spec.cores for other in engine.device if other is not engine and not other.running)
