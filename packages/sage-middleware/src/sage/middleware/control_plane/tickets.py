"""The driver's side of what is live: a ticket for each request, an upstream call for each attempt."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Literal, cast

import msgspec

from sage.common.errors import SageError
from sage.middleware.control_plane.calls import EmbeddingRequest, Vector
from sage.middleware.control_plane.pairs import PairRequest
from sage.middleware.control_plane.records import Record
from sage.middleware.control_plane.relay import Collector, Relay
from sage.middleware.control_plane.sharing import Flight
from sage.middleware.control_plane.types import Job
from sage.middleware.engines.port import EMBEDDINGS, Begun, Call, Engine, Sink, WholeSink

__all__ = ["Part", "Ticket", "Upstream"]


class Ticket(msgspec.Struct, eq=False):
    """One request from `submit` to its end. Its answer is written by the task that submitted it.

    `own`: the upstream call that this task makes itself, now or when it runs next. `relay`: the one whose
    bytes have reached the client. `error`: what it ends with. `fault`: that of its last attempt, which
    explains a refusal. `lost`: attempts whose connection was lost, of which engines may have died. `answer`:
    a whole answer that is still to be written. `closed`: it is over. `waiter`: what wakes whoever serves it.
    `told` and `record`: see `Desk.begin`; such a ticket has no task as long as none is needed.
    """

    job: Job
    call: Call
    sink: Sink
    task: asyncio.Task[Any] | None
    units: int
    missing: int  # units without an answer
    own: Upstream | None = None
    relay: Relay | None = None
    error: SageError | None = None
    fault: SageError | None = None
    lost: int = 0
    answer: bytes | None = None
    outcome: Literal["done", "failed"] | None = None
    hedged: bool = False
    closed: bool = False
    waiter: asyncio.Future[None] | None = None
    told: Callable[[BaseException | None], None] | None = None
    record: Record | None = None
    vectors: list[Vector | None] = []
    _request: EmbeddingRequest | PairRequest | None = None

    @classmethod
    def of(cls, job: Job, call: Call, sink: Sink, task: asyncio.Task[Any] | None) -> Ticket:
        """A new one."""
        units = job.texts or 1
        return cls(job, call, sink, task, units, units)

    def deliver(self, content_type: str, answer: bytes) -> None:
        """Write a whole answer, unless another attempt has answered or nothing more is wanted."""
        if not self.over:
            self.write(content_type, answer)

    def write(self, content_type: str, answer: bytes) -> None:
        """Write a whole answer: with it the request is done."""
        sink, self.outcome = self.sink, "done"
        if self.told is not None:
            cast(WholeSink, sink).whole(content_type, answer)
            return
        sink.head(200, content_type)
        sink.data(answer)
        sink.end()

    @property
    def over(self) -> bool:
        """Nothing more is wanted of it: it has its answer or its error, or its client has gone."""
        return self.closed or self.outcome is not None or self.answer is not None or self.error is not None

    @property
    def request(self) -> EmbeddingRequest | PairRequest:
        """The body of a request for vectors or scores, taken apart at the first use."""
        if self._request is None:
            route, body = self.call.route, self.call.body
            embeds = route is EMBEDDINGS
            self._request = EmbeddingRequest.decode(body) if embeds else PairRequest.decode(route, body)
        return self._request

    def close(self) -> None:
        """It is over. What leads back here is let go of: a circle would wait for the garbage collector."""
        self.closed = True
        self.waiter = None
        if self.error is not None or self.fault is not None:
            self.error = self.fault = None

    def wake(self) -> None:
        """Let its task look at it."""
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)

    def accept(self, start: int, vectors: Sequence[Vector]) -> None:
        """Take the vectors or scores of its texts from `start` on; the last ones complete the answer."""
        if not self.vectors:
            self.vectors = [None] * self.units
        for at, vector in enumerate(vectors, start):
            self.missing -= self.vectors[at] is None
            self.vectors[at] = vector
        if not self.missing:
            self.answer = self.request.merge([one for one in self.vectors if one is not None], self.job.id)


class Part(msgspec.Struct, eq=False):
    """Texts `start` to `stop` of one request's input, in an upstream call; of a generation 0 to 1."""

    ticket: Ticket
    start: int
    stop: int

    @property
    def whole(self) -> bool:
        """Whether it is all that its request asks for."""
        return self.start == 0 and self.stop == self.ticket.units

    @property
    def texts(self) -> list[bytes]:
        """The texts or pairs, as JSON."""
        return self.ticket.request.texts[self.start : self.stop]


class Upstream(msgspec.Struct, eq=False):
    """One attempt at an engine.

    `task` makes the call; `begun` says that it has come to it. `sink` receives what the engine sends now.
    `untasked`: the call, where no task makes it; `flight`: the texts that it computes, if it is for vectors.
    `broken`: it was cancelled, and nobody is to be told. `sharing`: all that it lacks is computed by other
    calls.
    """

    number: int
    engine: Engine
    parts: Sequence[Part]
    threads: int
    hedge: bool
    task: asyncio.Task[Any] | None = None
    sink: Relay | Collector | None = None
    untasked: Begun | None = None
    flight: Flight | None = None
    begun: bool = False
    broken: bool = False
    sharing: bool = False

    def break_off(self) -> None:
        """Cancel the call; a request's own task goes on with what else there is for it."""
        ticket = self.parts[0].ticket
        self.broken = True
        if self.untasked is not None:
            self.untasked.abort()
            self.untasked = ticket.own = None
        elif ticket.own is self and not self.begun:
            ticket.own = None
        elif self.task is not None:
            self.task.cancel()

    def had_bytes(self) -> bool:
        """Whether bytes have come since this was asked last. One that waits for others does not stall."""
        if self.sink is None or not self.sink.fresh:
            return self.sharing
        self.sink.fresh = False
        return True
