"""The upstream calls: sends what the core dispatches, and tells it how each attempt went."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from msgspec import structs

from sage.common.clock import Clock
from sage.common.errors import (
    EngineError,
    OverloadedError,
    QuarantinedError,
    SageError,
    UnavailableError,
    UnreachableError,
)
from sage.middleware.control_plane.calls import Vector, read_answer
from sage.middleware.control_plane.pairs import read_scores
from sage.middleware.control_plane.records import CRASHES_TO_QUARANTINE
from sage.middleware.control_plane.relay import Collector, Relay
from sage.middleware.control_plane.sharing import Flight, TextsInFlight
from sage.middleware.control_plane.texts import Landed, body_of, key_of
from sage.middleware.control_plane.tickets import Part, Ticket, Upstream
from sage.middleware.control_plane.types import Dispatch, Event, Failed, Finished, FirstByte, GaveUp, Reject
from sage.middleware.engines.faults import LostConnectionError, LostEngineError
from sage.middleware.engines.port import CHAT, EMBEDDINGS, GENERATES, MEDIA, Begun, Call, Engine, Route, Usage

__all__ = ["Upstreams", "refusal"]

log: Final = logging.getLogger("sage.middleware.control_plane")


class Upstreams:
    """All attempts that are under way.

    A request's own task makes its call where that call is for it alone, or none does where that is not
    needed; other calls (texts of several requests or a part of one, a second attempt beside the first) run in
    tasks of their own. `handle` takes events; `is_live` says whether the core still holds a request to be
    open; `met` is told the error of each attempt that failed, and `parted` a ticket without a task whose call
    is over or broken off; `settle` does all for one that went well, if it can.
    """

    __slots__ = (
        "_clock",
        "_handle",
        "_is_live",
        "_met",
        "_parted",
        "_running",
        "_settle",
        "_tasks",
        "_texts",
    )

    def __init__(
        self,
        clock: Clock,
        handle: Callable[[Event], None],
        is_live: Callable[[str], bool],
        met: Callable[[SageError], None],
        parted: Callable[[Ticket], None],
        settle: Callable[[Upstream, Usage | Exception], bool],
    ) -> None:
        self._clock = clock
        self._handle = handle
        self._is_live = is_live
        self._met = met
        self._parted = parted
        self._settle = settle
        self._running: dict[int, Upstream] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._texts = TextsInFlight()

    def __len__(self) -> int:
        return len(self._running)

    def dispatch(self, action: Dispatch, engine: Engine, parts: Sequence[Part]) -> None:
        """Begin an attempt: at once, or as soon as the request's own task runs."""
        ticket = parts[0].ticket
        up = self._running[action.attempt] = Upstream(
            action.attempt, engine, parts, action.threads, action.hedge
        )
        if len(parts) == 1 and ticket.own is None and not action.hedge and parts[0].whole:
            ticket.own = up
            up.task = ticket.task
            if ticket.waiter is not None:
                ticket.wake()
            return
        ticket.hedged |= action.hedge
        task = up.task = asyncio.get_running_loop().create_task(self.run(up))
        self._tasks.add(task)
        task.add_done_callback(partial(self._over, up))

    def cancel(self, number: int) -> None:
        """Break an attempt off, if it still runs. Nothing is reported about it."""
        up = self._running.pop(number, None)
        if up is None:
            return
        untasked = up.untasked is not None
        up.break_off()
        if untasked:
            self._land(up)
            self._parted(up.parts[0].ticket)

    def moved(self) -> tuple[int, ...]:
        """Numbers of the attempts that have had bytes since this was asked last."""
        return tuple(number for number, up in self._running.items() if up.had_bytes())

    async def close(self) -> None:
        """End what is left; its requests have ended."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def begin(self, up: Upstream) -> bool:
        """Make a call without a task; False where something of it has to be awaited: then `run` it."""
        ticket = up.parts[0].ticket
        call = ticket.call
        if up.threads:
            call = structs.replace(call, threads=up.threads)
        try:
            if call.route is EMBEDDINGS:
                up.flight = self._texts.take_off(key_of(ticket), ticket.request.texts)
                if up.flight is None:
                    return False
            up.untasked = up.engine.begin(call, partial(self._told, up))
        except Exception:  # `run` meets it again, and tells
            up.untasked = None
        if up.untasked is not None:
            return True
        self._land(up)
        return False

    def _told(self, up: Upstream, came: Usage | Exception) -> None:
        """A call that no task made is over."""
        ticket = up.parts[0].ticket
        try:
            if self._settle(up, came):
                return
            answer, up.untasked = up.untasked, None
            self._forget(up)
            if up.flight is not None and answer is not None:
                came = self._read(up, up.flight, answer, came)
            if isinstance(came, Exception):
                self._failed(up, _as_error(came, up.engine))
            elif answer is not None:
                ticket.deliver("application/json", answer.body)
                self._handle(Finished(self._clock.now(), up.number, came))
        except Exception as fault:
            self._lost(up, fault)
        self._parted(ticket)

    def _read(
        self, up: Upstream, flight: Flight, answer: Begun, came: Usage | Exception
    ) -> Usage | Exception:
        """What came of an untasked call for vectors, of which whoever waits for the same texts gets some."""
        try:
            if not isinstance(came, Exception):
                vectors, came = read_answer(answer.body, flight.texts)
                flight.vectors = dict(zip(flight.texts, vectors, strict=True))
        except EngineError as error:
            came = error
        finally:
            self._land(up)
        return came

    def _land(self, up: Upstream) -> None:
        """Nothing computes its texts any more."""
        flight, up.flight = up.flight, None
        if flight is not None:
            self._texts.land(flight)

    async def run(self, up: Upstream) -> None:
        """Make the call, and account for its end. Raises CancelledError if its client has gone."""
        ticket = up.parts[0].ticket
        up.begun = True
        try:
            route = ticket.call.route
            if route is not CHAT and route not in GENERATES and route not in MEDIA:
                await self._embed(up)
                return
            call = ticket.call
            if up.threads:
                call = structs.replace(call, threads=up.threads)
            if call.stream or route in MEDIA:
                sink: Relay | Collector = Relay(ticket, up.number, self._first_byte, stream=call.stream)
            else:  # nothing goes out before all of it is there
                sink = Collector()
            up.sink = sink
            self._generated(up, sink, await up.engine.send(call, sink))
        except asyncio.CancelledError:
            self._forget(up)
            task = asyncio.current_task()
            if not up.broken or task is None or task.uncancel() > 0:
                raise  # not by us, or not by us alone
        except Exception as exc:
            self._forget(up)
            self._failed(up, _as_error(exc, up.engine))

    # ---- generation ----------------------------------------------------------------------------------

    def _generated(self, up: Upstream, sink: Relay | Collector, usage: Usage) -> None:
        if not sink.ended:
            raise _unended(up.engine)
        ticket = up.parts[0].ticket
        self._running.pop(up.number, None)
        if ticket.own is up:
            ticket.own = None
        if isinstance(sink, Collector):
            ticket.deliver(sink.content_type, sink.body)
        elif sink.committed:
            ticket.outcome = "done"
        self._handle(Finished(self._clock.now(), up.number, usage))
        if ticket.waiter is not None:
            ticket.wake()

    def _first_byte(self, number: int) -> None:
        self._handle(FirstByte(self._clock.now(), number))
        up = self._running.get(number)
        if up is not None and (ticket := up.parts[0].ticket).hedged and ticket.call.stream:
            self._drop_twins(up, ticket)

    def _drop_twins(self, winner: Upstream, ticket: Ticket) -> None:
        """A stream that has begun cannot be replaced: what runs beside it is of no use."""
        for up in [up for up in self._running.values() if up.parts[0].ticket is ticket and up is not winner]:
            up.break_off()
            self._forget(up)
            reason = "another attempt answered first"
            self._handle(Failed(self._clock.now(), up.number, reason, retryable=True, fault=False))

    # ---- vectors and scores ---------------------------------------------------------------------------

    async def _embed(self, up: Upstream) -> None:
        """Compute the texts of all parts; one request's bad text is told to that request alone."""
        refused: list[tuple[Ticket, SageError]] = []
        landed: list[Landed] = []
        parts = [part for part in up.parts if not part.ticket.over]
        if not parts:
            self._forget(up)
            return
        try:
            landed.append(await self._compute(up, parts))
        except SageError as error:
            if _is_fault(error) or len(parts) == 1:
                raise
            for part in parts:
                try:
                    landed.append(await self._compute(up, [part]))
                except SageError as own:
                    if _is_fault(own):
                        raise
                    refused.append((part.ticket, own))
        self._forget(up)
        for ticket, reason in refused:
            if not ticket.over:
                ticket.error = reason
                self._handle(GaveUp(self._clock.now(), ticket.job.id, str(reason)))
        for one in landed:
            one.deliver()
        self._handle(Finished(self._clock.now(), up.number, Usage(sum(one.tokens for one in landed))))
        for part in parts:
            part.ticket.wake()

    async def _compute(self, up: Upstream, parts: Sequence[Part]) -> Landed:
        """The vectors or scores of these parts; what other calls compute already is waited for."""
        landed = Landed(parts)
        ticket = parts[0].ticket
        wanted = list(dict.fromkeys(text for part in parts for text in part.texts))
        as_it_is = len(parts) == 1 and parts[0].whole and ticket.call.route is EMBEDDINGS
        units = ticket.units if as_it_is else 0

        async def compute(texts: list[bytes]) -> list[Vector]:
            whole = len(texts) == units
            route, body = (EMBEDDINGS, ticket.call.body) if whole else body_of(parts, texts)
            answer = await self._ask(up, ticket, route, body)
            read = read_answer if route is EMBEDDINGS else partial(read_scores, route)
            vectors, usage = read(answer, texts)
            landed.tokens += usage.prompt_tokens
            landed.untouched = answer if whole else None
            return vectors

        if up.hedge:  # what is in flight is late: that is why it is asked for again
            landed.vectors = dict(zip(wanted, await compute(wanted), strict=True))
            return landed
        landed.vectors = await self._texts.vectors(
            key_of(ticket), wanted, compute, on_wait=partial(setattr, up, "sharing")
        )
        return landed

    async def _ask(self, up: Upstream, ticket: Ticket, route: Route, body: bytes) -> bytes:
        collector = up.sink = Collector()
        call = Call(ticket.job.id, route, body, False, False, up.threads, ticket.call.trace)
        await up.engine.send(call, collector)
        if not collector.ended:
            raise _unended(up.engine)
        return collector.body

    # ---- how an attempt ends -------------------------------------------------------------------------

    def _forget(self, up: Upstream) -> None:
        self._running.pop(up.number, None)
        ticket = up.parts[0].ticket
        if ticket.own is up:
            ticket.own = None

    def _failed(self, up: Upstream, error: SageError) -> None:
        """Tell the core; whichever requests it ends for that end with this error."""
        self._met(error)
        fault = _is_fault(error) and not up.engine.spec.composed
        committed = isinstance(up.sink, Relay) and up.sink.committed
        for part in up.parts:
            part.ticket.fault = error
            part.ticket.lost += isinstance(error, LostConnectionError | LostEngineError)
        refused = isinstance(error, UnreachableError)
        self._handle(
            Failed(self._clock.now(), up.number, str(error), fault and not committed, fault, refused=refused)
        )
        for part in up.parts:
            ticket = part.ticket
            if not ticket.over and not self._is_live(ticket.job.id):
                ticket.error = error
            ticket.wake()

    def _over(self, up: Upstream, task: asyncio.Task[None]) -> None:
        """A call's own task has ended; a fault of ours in it must not leave its requests waiting."""
        self._tasks.discard(task)
        if task.cancelled() or (exc := task.exception()) is None:
            return
        self._lost(up, exc)

    @staticmethod
    def _lost(up: Upstream, fault: BaseException) -> None:
        """Something unforeseen of ours."""
        log.error("attempt %d was lost", up.number, exc_info=fault)
        for ticket in (part.ticket for part in up.parts):
            if not ticket.over:
                ticket.error = EngineError("The answer was lost by a fault of this server.")
                ticket.wake()


def refusal(action: Reject, ticket: Ticket) -> SageError:
    """What a refused request is answered with: as a rule the fault of its last attempt."""
    if action.status == 429:
        return OverloadedError(f"Refused: {action.reason}.", retry_after=action.retry_after)
    if action.status == 503:
        return UnavailableError(f"Refused: {action.reason}.", retry_after=action.retry_after)
    if ticket.lost >= CRASHES_TO_QUARANTINE:
        words = f"{ticket.lost} engines broke off while it ran there: it may be what ends them."
        return QuarantinedError(words, hint="Do not send it again as it is.")
    return ticket.fault or EngineError(f"Failed: {action.reason}.")


def _is_fault(error: SageError) -> bool:
    return error.status >= 500 or error.status == 429


def _unended(engine: Engine) -> EngineError:
    return EngineError(f"The engine {engine.spec.name!r} returned without ending its answer.")


def _as_error(exc: Exception, engine: Engine) -> SageError:
    if isinstance(exc, SageError):
        return exc
    log.error("engine %s failed unexpectedly", engine.spec.name, exc_info=exc)
    return EngineError(f"The engine {engine.spec.name!r} failed unexpectedly ({type(exc).__name__}).")
