"""A small pool of keep-alive HTTP/1.1 connections to one engine, protocol to protocol.

Bytes go from the socket to the receiver inside one callback: one coroutine per request awaits one future, and
nothing is scheduled per chunk. (asyncio and uvloop both set TCP_NODELAY on every TCP socket.)
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Protocol, cast
from urllib.parse import urlsplit

import httptools

from sage.common.errors import ConfigError, EngineError, UnreachableError
from sage.middleware.engines.faults import UpstreamError

__all__ = ["HttpLimits", "HttpPool", "Receiver"]


LOOK_S: Final = 1.0  # at most so much late is a deadline noticed


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


class _StaleConnectionError(EngineError):
    """A reused connection was closed by the engine before any byte of an answer."""


class _Connection(asyncio.Protocol):
    """One socket to the engine; serves one request at a time."""

    def __init__(self, pool: HttpPool) -> None:
        self._pool = pool
        self._loop = asyncio.get_running_loop()
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._receiver: Receiver | None = None
        self._wake: asyncio.Future[bool] | None = None  # true = the reader is full
        self._error: Exception | None = None
        self._used = False
        self.idle_since = 0.0

    # ---- one request ----

    async def exchange(self, message: bytes, receiver: Receiver) -> None:
        """Send a request and pass its answer on. Leaves the connection idle, or closed after any fault."""
        transport = self._transport
        if transport is None:  # closed between its opening and now
            raise _StaleConnectionError("The engine closed the connection without an answer.")
        self._begin(receiver)
        try:
            transport.write(message)
            while await self._next():
                self._read(False)
                self._deadline = float("inf")  # the reader is slow, not the engine
                await receiver.drain()
                self._read(True)
                self._deadline = self._loop.time() + self._pool.limits.between_chunks_s
            if not self._keep_alive or self._receiver is None:
                self.abort()
        except BaseException:
            self.abort()  # at once, so that the engine sees it and frees what it holds
            raise
        finally:
            self._receiver = None
            self._used = True
            self._pool.idle(self)

    def _read(self, on: bool) -> None:
        """Go on reading, or pause; a connection that is gone meanwhile has its error told by `_next`."""
        if self._transport is None or self._transport.is_closing():
            return
        if on:
            self._transport.resume_reading()
        else:
            self._transport.pause_reading()

    def _begin(self, receiver: Receiver) -> None:
        limits, now = self._pool.limits, self._loop.time()
        self._receiver = receiver
        self._started = self._complete = self._keep_alive = self._framed = False
        self._wake = None
        self._content_type = ""
        self._head_bytes = self._body_bytes = 0
        self._deadline = now + limits.first_byte_s
        self._end = now + limits.total_s
        self._pool.busy(self)

    async def _next(self) -> bool:
        """Wait until the answer is complete; true when it is not, and the reader has to catch up first."""
        if self._error is not None:
            raise self._error
        if self._complete:
            return False
        self._wake = self._loop.create_future()
        return await self._wake

    def _wake_up(self, *, full: bool) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(full)

    def _fail(self, error: Exception) -> None:
        if self._error is None:
            self._error = error
        if self._wake is not None and not self._wake.done():
            self._wake.set_exception(self._error)
        self.abort()

    def abort(self) -> None:
        """Close the socket now, without sending what is buffered."""
        if self._transport is not None:
            self._transport.abort()

    @property
    def usable(self) -> bool:
        """Whether another request may be sent on it."""
        return self._transport is not None and not self._transport.is_closing()

    def check(self, now: float) -> None:
        """Enforce the deadlines; called while a request is under way."""
        if now >= self._end:
            self._fail(EngineError(f"The engine did not finish within {self._pool.limits.total_s:g} s."))
        elif now < self._deadline:
            return
        elif not self._started:
            self._fail(EngineError(f"The engine sent nothing for {self._pool.limits.first_byte_s:g} s."))
        else:
            self._fail(EngineError(f"The engine stalled for {self._pool.limits.between_chunks_s:g} s."))

    # ---- asyncio ----

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Parse; the callbacks below pass the body on."""
        receiver = self._receiver
        if receiver is None:  # an idle connection has nothing to say
            self.abort()
            return
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
            return
        if not self._started and self._head_bytes > self._pool.limits.header_bytes:
            self._fail(EngineError(f"The engine's headers exceed {self._pool.limits.header_bytes} bytes."))
            return
        if self._started:
            self._deadline = self._loop.time() + self._pool.limits.between_chunks_s
            if receiver.full:
                self._wake_up(full=True)

    def connection_lost(self, exc: Exception | None) -> None:
        """The engine closed the socket, or we did."""
        self._transport = None
        self._pool.forget(self)
        if self._receiver is None or self._complete or self._error is not None:
            return
        if self._started and not self._framed and exc is None:
            self._complete = True  # a body without a length ends with the connection
            self._wake_up(full=False)
        elif self._started or self._head_bytes:
            self._fail(EngineError("The engine closed the connection in the middle of its answer."))
        elif self._used:
            self._fail(_StaleConnectionError("The engine closed an idle connection."))
        else:
            self._fail(EngineError("The engine closed the connection without an answer."))

    # ---- httptools ----

    def on_message_begin(self) -> None:
        """A message after the answer was asked for by nobody: no one gets it, and the connection ends."""
        if self._complete:
            self._receiver = None

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header; only three matter here."""
        lower = name.lower()
        if lower == b"content-type":
            self._content_type = value.decode("latin-1")
        elif lower in (b"content-length", b"transfer-encoding"):
            self._framed = True

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
        if self._body_bytes > self._pool.limits.body_bytes and "event-stream" not in self._content_type:
            raise EngineError(f"The engine's answer exceeds {self._pool.limits.body_bytes} bytes.")
        if self._receiver is not None:
            self._receiver.data(body)

    def on_message_complete(self) -> None:
        """The answer is whole."""
        if self._receiver is None:
            return
        if not self._started:
            self._head_bytes = 0  # an interim answer; the real one follows
            return
        self._complete = True
        self._keep_alive = self._parser.should_keep_alive()
        self._wake_up(full=False)


class HttpPool:
    """Connections to the engine at `url` (`http[s]://host[:port][/prefix]`), reused last in, first out.

    `keep_idle_s` stays below the five seconds after which uvicorn closes an idle connection. Raises
    ConfigError for a URL that is not http or https.
    """

    def __init__(
        self, url: str, *, limits: HttpLimits = HttpLimits(), max_idle: int = 64, keep_idle_s: float = 4.0
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"Engine URL {url!r} is not one; give http://HOST:PORT or https://HOST.")
        self.limits = limits
        self.url = url
        self._host = parts.hostname
        self._port = parts.port or (443 if parts.scheme == "https" else 80)
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._netloc = parts.netloc.rpartition("@")[2]
        self._prefix = parts.path.rstrip("/")
        self._max_idle = max_idle
        self._keep_idle_s = keep_idle_s
        self._idle: list[_Connection] = []
        self._busy: set[_Connection] = set()
        self._look_s = min(LOOK_S, min(limits.first_byte_s, limits.between_chunks_s, limits.total_s) / 8)
        self._timer: asyncio.TimerHandle | None = None
        self._heads: dict[tuple[str, str], bytes] = {}
        self._closed = False

    async def request(
        self,
        method: str,
        path: str,
        receiver: Receiver,
        *,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Send one request and pass the answer to `receiver` until it is whole.

        A reused connection that turns out to be closed before any byte came is replaced once. Raises
        UnreachableError (no connection) or EngineError (broken, cut, too slow, too large), or what the
        receiver raised. Cancelling closes the connection at once.
        """
        message = self._message(method, path, body, headers or {})
        connection = self._take() or await self._connect()
        try:
            await connection.exchange(message, receiver)
        except _StaleConnectionError:
            connection = await self._connect()
            await connection.exchange(message, receiver)
        self._give(connection)

    def close(self) -> None:
        """Close idle connections; those in use close when their request ends."""
        self._closed = True
        for connection in list(self._idle):
            connection.abort()
        self._idle.clear()

    def busy(self, connection: _Connection) -> None:
        """Watch a request that begins. One timer serves all; a chunk only stores a number."""
        self._busy.add(connection)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._look_s, self._look)

    def idle(self, connection: _Connection) -> None:
        """Its request has ended."""
        self._busy.discard(connection)

    def _look(self) -> None:
        self._timer = None
        if self._busy:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self._look_s, self._look)
            now = loop.time()
            for connection in list(self._busy):
                connection.check(now)

    def forget(self, connection: _Connection) -> None:
        """Drop a connection that was lost while idle."""
        if connection in self._idle:
            self._idle.remove(connection)

    def _take(self) -> _Connection | None:
        oldest = asyncio.get_running_loop().time() - self._keep_idle_s
        while self._idle:
            connection = self._idle.pop()
            if connection.usable and connection.idle_since >= oldest:
                return connection
            connection.abort()
        return None

    def _give(self, connection: _Connection) -> None:
        if self._closed or not connection.usable or len(self._idle) >= self._max_idle:
            connection.abort()
            return
        connection.idle_since = asyncio.get_running_loop().time()
        self._idle.append(connection)

    async def _connect(self) -> _Connection:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self.limits.connect_s):
                _, connection = await loop.create_connection(
                    lambda: _Connection(self), self._host, self._port, ssl=self._tls
                )
        except TimeoutError as error:
            raise UnreachableError(
                f"No connection to {self._host}:{self._port} within {self.limits.connect_s:g} s."
            ) from error
        except OSError as error:
            reason = error.strerror or str(error)
            raise UnreachableError(f"Nothing answers at {self._host}:{self._port} ({reason}).") from error
        return connection

    def _message(self, method: str, path: str, body: bytes, headers: Mapping[str, str]) -> bytes:
        head = self._heads.get((method, path))
        if head is None:
            lines = (
                f"{method} {self._prefix}{path} HTTP/1.1",
                f"host: {self._netloc}",
                "accept-encoding: identity\r\n",
            )
            head = self._heads[method, path] = "\r\n".join(lines).encode("latin-1")
        more = "".join([f"{name}: {value}\r\n" for name, value in headers.items()]).encode("latin-1")
        if not body:
            return b"%b%b\r\n" % (head, more)
        form = b"%bcontent-type: application/json\r\ncontent-length: %d\r\n%b\r\n%b"
        return form % (head, len(body), more, body)
