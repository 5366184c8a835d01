"""The client's sockets: bytes made beforehand go out, bytes that come in are stamped. No task per request."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import perf_counter
from typing import Final, cast
from urllib.parse import urlsplit

import httptools

from sage.benchmark.load.answer import Answer
from sage.benchmark.load.plan import Request, Target

__all__ = ["Endpoint"]

_KEPT: Final = (b"x-request-id", b"retry-after")


class Endpoint:
    """One target: as many connections as there are requests in flight, since a limit would close the loop.

    A connection is used again when its answer is complete. Built within a running loop.
    """

    def __init__(self, target: Target) -> None:
        self.target = target
        self._host, self._port = target.address
        self._loop = asyncio.get_running_loop()
        self._idle: list[_Connection] = []
        self._open: set[_Connection] = set()
        self._connecting: set[asyncio.Task[None]] = set()

    def wire(self, request: Request) -> bytes:
        """The bytes of a request."""
        base = urlsplit(self.target.base_url).path.rstrip("/")
        head = (
            f"POST {base}/{request.path} HTTP/1.1\r\nhost: {self._host}:{self._port}\r\n"
            f"authorization: Bearer {self.target.api_key}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(request.body)}\r\n\r\n"
        )
        return head.encode("latin-1") + request.body

    def send(self, payload: bytes, answer: Answer) -> None:
        """Send now; `answer` ends in every case, after `Target.timeout` at the latest."""
        timer = self._loop.call_later(self.target.timeout, self._expire, answer)
        ended = answer.on_end

        def end(answer: Answer) -> None:
            timer.cancel()
            ended(answer)

        answer.on_end = end
        self._start(payload, answer)

    def close(self) -> None:
        """Break off what is in flight."""
        for task in self._connecting:
            task.cancel()
        for connection in tuple(self._open):
            connection.drop()

    def _start(self, payload: bytes, answer: Answer) -> None:
        while self._idle:
            connection = self._idle.pop()
            if connection.usable:
                connection.send(payload, answer)
                return
        task = self._loop.create_task(self._connect(payload, answer))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    async def _connect(self, payload: bytes, answer: Answer) -> None:
        try:
            _, connection = await self._loop.create_connection(
                lambda: _Connection(self._free, self._lost), self._host, self._port
            )
        except OSError as error:
            answer.end("failed", f"{type(error).__name__}: {error}")
            return
        if answer.ended:  # it took longer than the whole request may
            connection.drop()
            return
        self._open.add(connection)
        connection.send(payload, answer)

    def _expire(self, answer: Answer) -> None:
        answer.end("timeout", f"no complete answer within {self.target.timeout:g} s")
        for connection in self._open:
            if connection.answer is answer:
                connection.drop()
                return

    def _free(self, connection: _Connection) -> None:
        self._idle.append(connection)

    def _lost(self, connection: _Connection) -> None:
        """A connection is gone. A request that went into one the server was just closing goes again."""
        self._open.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)
        answer = connection.answer
        if answer is None or answer.ended:
            return
        if connection.served and not answer.status:
            self._start(connection.payload, answer)
        else:
            answer.end("failed", "the connection was lost before the answer was complete")


class _Connection(asyncio.Protocol):
    """One socket with at most one request in flight."""

    def __init__(self, free: Callable[[_Connection], None], lost: Callable[[_Connection], None]) -> None:
        self.answer: Answer | None = None
        self.payload = b""
        self.served = 0
        self._free = free
        self._lost = lost
        self._transport: asyncio.Transport | None = None
        self._now = 0.0
        self._parser = httptools.HttpResponseParser(self)

    @property
    def usable(self) -> bool:
        """Whether a request can be sent here."""
        return self._transport is not None and not self._transport.is_closing()

    def send(self, payload: bytes, answer: Answer) -> None:
        """Write a request. `sent` stays that of the first try."""
        self.payload, self.answer = payload, answer
        if self._transport is not None:
            answer.sent = answer.sent or perf_counter()
            self._transport.write(payload)

    def drop(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()

    # ---- asyncio ----

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Stamp, then parse."""
        self._now = perf_counter()
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            if self.answer is not None:
                self.answer.end("failed", f"the answer is not HTTP: {error}")
            self.drop()

    def connection_lost(self, _exc: Exception | None) -> None:
        """Whoever waits is told."""
        self._transport = None
        self._lost(self)

    # ---- httptools ----

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep the two that are of use."""
        name = name.lower()
        if name not in _KEPT or self.answer is None:
            return
        if name == b"x-request-id":
            self.answer.request_id = value.decode("latin-1")
        elif value.isdigit():
            self.answer.retry_after = float(value)

    def on_headers_complete(self) -> None:
        """The status is known."""
        if self.answer is not None:
            self.answer.status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        """Keep a part of the answer with the time of its arrival."""
        if self.answer is not None:
            self.answer.chunks.append((self._now, body))

    def on_message_complete(self) -> None:
        """The answer is whole; the connection may serve again."""
        answer, self.answer = self.answer, None
        self.served += 1
        if not self._parser.should_keep_alive():
            self.drop()
        else:
            # A new parser: this one is inside its callback, and an answer that follows needs a fresh one.
            self._parser = httptools.HttpResponseParser(self)
            self._free(self)
        if answer is not None:
            answer.end()
