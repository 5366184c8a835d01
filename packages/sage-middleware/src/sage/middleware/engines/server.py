"""The server side of HTTP/1.1 for loopback: callbacks in, bytes out, no task per request.

It serves our embedding server and the scripted engine of the tests. It is not an edge: clients are our own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import cast

import httptools

__all__ = ["Exchange", "Handler", "Request", "ServerProtocol"]

MAX_HEADER_BYTES = 32 * 1024
MAX_BODY_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Request:
    """One whole request. Header names are lower case; `path` is without the query."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


class Exchange:
    """One request and its answer. `on_close` is called if the client goes away before it is complete."""

    __slots__ = ("_chunked", "_protocol", "closed", "on_close", "request")

    def __init__(self, protocol: ServerProtocol, request: Request) -> None:
        self.request = request
        self.closed = False
        self.on_close: Callable[[], object] | None = None
        self._protocol = protocol
        self._chunked = False

    def respond(self, status: int, body: bytes, content_type: str = "application/json") -> None:
        """Answer at once with a whole body."""
        if not self.closed:
            self._protocol.write(_head(status, content_type, f"content-length: {len(body)}") + body)
            self._complete()

    def begin(self, status: int, content_type: str) -> None:
        """Begin an answer of unknown length."""
        self._chunked = True
        if not self.closed:
            self._protocol.write(_head(status, content_type, "transfer-encoding: chunked"))

    def write(self, chunk: bytes) -> None:
        """Send the next part of a begun answer."""
        if chunk and not self.closed:
            self._protocol.write(b"%x\r\n%b\r\n" % (len(chunk), chunk))

    def finish(self) -> None:
        """End a begun answer."""
        if not self.closed:
            self._protocol.write(b"0\r\n\r\n")
            self._complete()

    def abort(self) -> None:
        """Close the connection in the middle of the answer."""
        if not self.closed:
            self.closed = True
            self._protocol.drop()

    def _complete(self) -> None:
        self.closed = True
        self._protocol.answered()


Handler = Callable[[Exchange], None]


class ServerProtocol(asyncio.Protocol):
    """One connection. Requests are answered one after the other; reading pauses while one is served."""

    def __init__(self, handler: Handler, on_connection: Callable[[ServerProtocol, bool], None]) -> None:
        self._handler = handler
        self._on_connection = on_connection
        self._transport: asyncio.Transport | None = None
        self._exchange: Exchange | None = None
        self._waiting: list[Request] = []  # pipelined requests
        self._begin_message()
        self._parser = httptools.HttpRequestParser(self)

    def _begin_message(self) -> None:
        self._url = b""
        self._headers: dict[str, str] = {}
        self._header_bytes = 0
        self._body: list[bytes] = []
        self._body_bytes = 0

    # ---- asyncio ----

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast(asyncio.Transport, transport)
        self._on_connection(self, True)

    def connection_lost(self, _exc: Exception | None) -> None:
        """Tell the exchange in progress that nobody waits for it any more."""
        self._transport = None
        self._on_connection(self, False)
        exchange, self._exchange = self._exchange, None
        if exchange is not None and not exchange.closed:
            exchange.closed = True
            if exchange.on_close is not None:
                exchange.on_close()

    def data_received(self, data: bytes) -> None:
        """Parse; a malformed message ends the connection with 400."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.write(_head(400, "application/json", "content-length: 2", "connection: close") + b"{}")
            self.drop()

    # ---- httptools ----

    def on_url(self, url: bytes) -> None:
        """Part of the request target."""
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header."""
        self._header_bytes += len(name) + len(value)
        if self._header_bytes > MAX_HEADER_BYTES:
            raise ValueError("headers too large")
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_body(self, body: bytes) -> None:
        """Part of the body."""
        self._body_bytes += len(body)
        if self._body_bytes > MAX_BODY_BYTES:
            raise ValueError("body too large")
        self._body.append(body)

    def on_message_complete(self) -> None:
        """Hand the request to the handler, or queue it behind the one in progress."""
        request = Request(
            method=self._parser.get_method().decode("latin-1"),
            path=self._url.decode("latin-1").partition("?")[0],
            headers=self._headers,
            body=b"".join(self._body),
        )
        self._begin_message()
        if self._exchange is None:
            self._serve(request)
        else:
            self._waiting.append(request)
            if self._transport is not None:
                self._transport.pause_reading()

    # ---- for Exchange ----

    def write(self, data: bytes) -> None:
        """Write unless the client is gone."""
        if self._transport is not None:
            self._transport.write(data)

    def drop(self) -> None:
        """Send what is buffered and close."""
        if self._transport is not None:
            self._transport.close()

    def answered(self) -> None:
        """The exchange is over: serve the next one."""
        self._exchange = None
        if self._waiting:
            self._serve(self._waiting.pop(0))
        elif self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def _serve(self, request: Request) -> None:
        self._exchange = Exchange(self, request)
        self._handler(self._exchange)


def _head(status: int, content_type: str, *more: str) -> bytes:
    lines = (f"HTTP/1.1 {status} {HTTPStatus(status).phrase}", f"content-type: {content_type}", *more)
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
