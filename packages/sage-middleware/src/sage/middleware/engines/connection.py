"""One keep-alive HTTP/1.1 connection to an engine, protocol to protocol.

Bytes go from the socket to the receiver inside one callback: one coroutine per request awaits one future, or
none does and the end is told in the same callback; nothing is scheduled per chunk. (asyncio and uvloop both
set TCP_NODELAY on every TCP socket.)
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic  # the loop's own time is not needed, and finding the loop costs more than this
from typing import Protocol, cast

import httptools

from sage.common.errors import EngineError
from sage.common.telemetry import Bound
from sage.middleware.engines.faults import LostConnectionError, UpstreamError
from sage.middleware.engines.heads import Head
from sage.middleware.engines.untasked import native_steps

__all__ = ["Connection", "Home", "HttpLimits", "Receiver", "StaleConnectionError"]


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """Bounds on one answer, in seconds and bytes. `body_bytes` bounds an answer that is not a stream."""

    connect_s: float = 5.0
    first_byte_s: float = 120.0
    between_chunks_s: float = 60.0
    total_s: float = 3600.0
    header_bytes: int = 64 * 1024
    body_bytes: int = 256 * 1024 * 1024


class Receiver(Protocol):
    """Where an answer goes. All but `drain` are called from the socket's callback and never block."""

    def head(self, status: int, content_type: str) -> None:
        """The status line and headers are here."""
        ...

    def data(self, chunk: bytes) -> None:
        """The next bytes of the body. What it raises ends the request."""
        ...

    @property
    def full(self) -> bool:
        """Stop reading from the engine and await `drain`."""
        ...

    async def drain(self) -> None:
        """Wait until more may come."""
        ...


class Home(Protocol):
    """The pool of a connection. `seen`: the head of the last whole answer of its engine, with its type."""

    limits: HttpLimits
    seen: tuple[Head, str] | None

    def watch(self) -> None:
        """A request begins: have its deadlines checked."""
        ...

    def forget(self, connection: Connection) -> None:
        """It was lost."""
        ...


class StaleConnectionError(EngineError):
    """A reused connection was closed by the engine before any byte of an answer."""


class Connection(asyncio.Protocol):
    """One socket to the engine; serves one request at a time."""

    __slots__ = (
        "_between_s",
        "_body_bytes",
        "_complete",
        "_content_type",
        "_deadline",
        "_end",
        "_error",
        "_first_s",
        "_framed",
        "_head_bytes",
        "_keep_alive",
        "_loop",
        "_most",
        "_over",
        "_parsed",
        "_parser",
        "_pool",
        "_receiver",
        "_started",
        "_take",
        "_total_s",
        "_transport",
        "_untouched",
        "_used",
        "_wake",
        "idle_since",
        "retry_after",
    )

    def __init__(self, pool: Home) -> None:
        self._pool = pool
        self._loop = asyncio.get_running_loop()
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._receiver: Receiver | None = None
        self._wake: asyncio.Future[bool] | None = None  # true = the reader is full
        self._over: Callable[[Exception | None], None] | None = None  # told how it went, where nobody awaits
        self._error: Exception | None = None
        self._used = False
        limits = pool.limits
        self._take = native_steps().take_answer
        self._first_s, self._between_s = limits.first_byte_s, limits.between_chunks_s
        self._total_s = limits.total_s
        self.idle_since = 0.0
        self._clear()

    # ---- one request ----

    async def exchange(self, message: bytes, receiver: Receiver) -> None:
        """Send a request and pass its answer on. Leaves the connection idle, or closed after any fault."""
        transport = self._transport
        if transport is None:  # closed between its opening and now
            raise StaleConnectionError("The engine closed the connection without an answer.")
        self._begin(receiver)
        try:
            transport.write(message)
            while not self._complete:
                if self._error is not None:
                    raise self._error
                wake = self._wake = self._loop.create_future()
                if not await wake:  # it is complete, or has failed
                    continue
                self._read(False)
                self._deadline = float("inf")  # the reader is slow, not the engine
                await receiver.drain()
                self._read(True)
                self._deadline = monotonic() + self._between_s
            if not self._keep_alive:
                self.abort()
        except BaseException:
            self.abort()  # at once, so that the engine sees it and frees what it holds
            raise
        finally:
            self._receiver = None
            self._used = True

    def start(self, message: bytes, receiver: Receiver, over: Callable[[Exception | None], None]) -> None:
        """As `exchange`, without a task: for a `usable` connection and a receiver that is never full.

        `over` is told once, after this returns, None or what `exchange` would raise.
        """
        transport = self._transport
        assert transport is not None
        self._begin(receiver)
        self._over = over
        transport.write(message)

    def drop(self) -> None:
        """Nobody wants what was started any more: close at once, and tell nobody."""
        self._over = self._receiver = None
        self.abort()

    def _read(self, on: bool) -> None:
        """Go on reading, or pause; a connection that is gone meanwhile has its error told by `exchange`."""
        if self._transport is None or self._transport.is_closing():
            return
        if on:
            self._transport.resume_reading()
        else:
            self._transport.pause_reading()

    def _begin(self, receiver: Receiver) -> None:
        now = monotonic()
        self._receiver = receiver
        self._started = self._complete = self._keep_alive = False
        self._untouched = True  # the parser is between two answers
        self._wake = None
        if self._parsed:
            self._clear()
        self._deadline = now + self._first_s
        self._end = now + self._total_s
        self._pool.watch()

    def _clear(self) -> None:
        """Forget what was parsed of the answer before."""
        self._parsed = self._framed = False
        self._content_type = ""
        self.retry_after = ""  # the header of the last answer
        self._head_bytes = self._body_bytes = 0
        self._most: float = self._pool.limits.body_bytes

    def _settle(self, error: Exception | None = None) -> None:
        """Tell whoever waits for the end, as the last thing that a callback does: a new request may begin."""
        over, wake = self._over, self._wake
        if over is not None:
            self._over = self._receiver = None
            self._used = True
            if error is not None or not self._keep_alive:
                self.abort()
            over(error)
        elif wake is not None and not wake.done():
            if error is None:
                wake.set_result(False)
            else:
                wake.set_exception(error)

    def _fail(self, error: Exception) -> None:
        """A fault. After a whole answer it only ends the connection."""
        self.abort()
        if self._complete:
            self._keep_alive = False
            self._settle()
            return
        if self._error is None:
            self._error = error
        self._settle(self._error)

    def abort(self) -> None:
        """Close the socket now, without sending what is buffered."""
        if self._transport is not None:
            self._transport.abort()

    @property
    def usable(self) -> bool:
        """Whether another request may be sent on it."""
        return self._transport is not None and not self._transport.is_closing()

    @property
    def busy(self) -> bool:
        """Whether a request is under way."""
        return self._receiver is not None

    def check(self, now: float) -> None:
        """Enforce the deadlines; called while a request is under way."""
        limits = self._pool.limits
        if now >= self._end:
            words, bound = f"did not finish within {limits.total_s:g} s", Bound.ANSWER_TIME
        elif now < self._deadline:
            return
        elif not self._started:
            words, bound = f"sent nothing for {limits.first_byte_s:g} s", Bound.FIRST_BYTE_TIME
        else:
            words, bound = f"stalled for {limits.between_chunks_s:g} s", Bound.CHUNK_TIME
        self._fail(EngineError(f"The engine {words}.", bound=bound))

    # ---- asyncio ----

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Parse; the callbacks below pass the body on."""
        if self._over is not None and self._take(self, data):
            return
        receiver, first = self._receiver, self._untouched
        if receiver is None:  # an idle connection has nothing to say
            self.abort()
            return
        if first and self._again(data, receiver):
            return
        self._parsed = True
        if not self._started:
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserCallbackError as error:
            cause = error.__context__ if isinstance(error.__context__, Exception) else error
            self._fail(cause)
            return
        except httptools.HttpParserError as error:
            self._fail(UpstreamError("The engine's answer is not HTTP.", str(error)))
            return
        if self._complete:
            if first and self._keep_alive and self._parser.get_status_code() == 200:
                head = Head.of(data, self._body_bytes)
                self._pool.seen = None if head is None else (head, self._content_type)
            self._settle()
            return
        if not self._started and self._head_bytes > self._pool.limits.header_bytes:
            words = f"The engine's headers exceed {self._pool.limits.header_bytes} bytes."
            self._fail(EngineError(words, bound=Bound.ANSWER_HEAD_BYTES))
            return
        if self._started:
            self._deadline = monotonic() + self._between_s
            if receiver.full:
                self._read(False)  # now: until the task runs, the loop would read many times more
                if self._wake is not None and not self._wake.done():
                    self._wake.set_result(True)

    def _again(self, data: bytes, receiver: Receiver) -> bool:
        """Take `data` if it is a whole answer with the head of an earlier one; the parser is not needed."""
        pool = self._pool
        if pool.seen is None:
            return False
        head, content_type = pool.seen
        body = head.body(data, pool.limits.body_bytes)
        if body is None:
            return False
        self._untouched, self._started = False, True
        try:
            receiver.head(200, content_type)
            receiver.data(body)
        except Exception as error:
            self._fail(error)
            return True
        self._complete = self._keep_alive = True
        self._settle()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        """The engine closed the socket, or we did."""
        self._transport = None
        del self._parser  # it leads back to us: what goes round waits for the garbage collector
        self._pool.forget(self)
        if self._receiver is None or self._complete or self._error is not None:
            return
        if self._started and not self._framed and exc is None:
            self._complete = True  # a body without a length ends with the connection
            self._settle()
        elif self._started or self._head_bytes:
            self._fail(LostConnectionError("The engine closed the connection in the middle of its answer."))
        elif self._used:
            self._fail(StaleConnectionError("The engine closed an idle connection."))
        else:
            self._fail(LostConnectionError("The engine closed the connection without an answer."))

    # ---- httptools ----

    def on_message_begin(self) -> None:
        """An answer begins. After the one that was asked for there is none."""
        if self._complete:
            raise EngineError("The engine sent more than its answer.")
        self._untouched = False

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header; only four matter here."""
        lower = name.lower()
        if lower == b"content-type":
            self._content_type = value.decode("latin-1")
            endless = "event-stream" in self._content_type
            self._most = float("inf") if endless else self._pool.limits.body_bytes
        elif lower in (b"content-length", b"transfer-encoding"):
            self._framed = True
        elif lower == b"retry-after":
            self.retry_after = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        """Pass the head on; interim (1xx) answers are skipped."""
        status = self._parser.get_status_code()
        if status < 200 or self._receiver is None:
            return
        self._started = True
        self._framed = self._framed or status in (204, 304)
        self._receiver.head(status, self._content_type)

    def on_body(self, body: bytes) -> None:
        """Pass bytes on at once."""
        self._body_bytes += len(body)
        if self._body_bytes > self._most:
            words = f"The engine's answer exceeds {self._pool.limits.body_bytes} bytes."
            raise EngineError(words, bound=Bound.ANSWER_BYTES)
        if self._receiver is not None:
            self._receiver.data(body)

    def on_message_complete(self) -> None:
        """The answer is whole."""
        if not self._started:
            self._head_bytes = 0  # an interim answer; the real one follows
            return
        self._complete = True
        self._keep_alive = self._parser.should_keep_alive()
