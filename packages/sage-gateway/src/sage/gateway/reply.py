"""One answer on one connection: bytes go straight to the transport, one write for each chunk."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import Final, Protocol

import msgspec

from sage.common.errors import SageError
from sage.middleware.control_plane.records import Record
from sage.middleware.engines.dialects.envelopes import Envelope
from sage.middleware.engines.media import is_events
from sage.middleware.engines.port import Sink

__all__ = ["Answer", "ExtraHeaders", "Flow", "Reply", "error_headers", "reason_of"]

_STATUS: Final = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus
}
_JSON: Final = "application/json"
_TYPES: Final = {
    kind: f"content-type: {kind}\r\n".encode() for kind in (_JSON, "text/event-stream; charset=utf-8")
}
ExtraHeaders = Callable[[], Sequence[tuple[str, str]]]


class Flow(Protocol):
    """The write side of a connection."""

    @property
    def write_paused(self) -> bool:
        """Whether the transport's buffer is above its high-water mark."""
        ...

    async def drain(self) -> None:
        """Wait until it is below its low-water mark."""
        ...


class Answer(Sink, Protocol):
    """What a request is answered into: over a connection, or for a line of a batch."""

    chunks: int  # of a stream, passed on
    paused: bool  # the reader was slower than the engine
    trace: bytes  # the `traceparent` that goes on to engines
    record: Record | None  # what was decided about it, once it has ended
    reason: str  # why it failed
    status: int  # that was sent

    def configure(self, *, stream: bool) -> None:
        """Say what kind of answer this will be, before `head`."""
        ...

    def explain(self, extra: ExtraHeaders) -> None:
        """Ask `extra` for more headers when the head is made."""
        ...

    def always(self, extra: ExtraHeaders) -> None:
        """Ask `extra` for headers of every head, that of an error too."""
        ...

    def remember(self, record: Record) -> None:
        """Keep what was decided about it."""
        ...

    def fail(self, error: SageError) -> None:
        """Answer with an error."""
        ...


def error_headers(error: SageError) -> list[tuple[str, str]]:
    """Headers that belong to an error: when to come back, what method, how to authenticate."""
    headers: list[tuple[str, str]] = []
    if error.retry_after is not None:
        headers.append(("retry-after", str(max(1, round(error.retry_after)))))
    elif error.final:
        headers.append(("x-should-retry", "false"))  # OpenAI's clients would try again by themselves
    if error.status == 401:
        headers.append(("www-authenticate", "Bearer"))
    if error.status == 405:
        headers.append(("allow", "POST"))
    return headers


def reason_of(error: SageError) -> str:
    """Why, without what a client or an engine wrote: messages may repeat a part of that."""
    return error.code if error.bound is None else f"{error.code}: {error.bound.value}"


class Reply(msgspec.Struct, eq=False):
    """The `Sink` of one request, and the writer of its errors.

    A stream's head leaves with its first bytes, in one write; a whole body leaves with its length at the end.
    So a fault before the first byte can still become a proper error; `started` says whether that is over, and
    `closes` whether the connection ends with this answer. `common`: header lines of every answer. `trace`:
    the `traceparent` that goes out with it and on to engines. `bare`: it is the answer to a HEAD, and has no
    body: what follows would be taken for another answer.
    """

    _transport: asyncio.Transport
    _flow: Flow
    _envelope: Envelope
    _common: bytes
    closes: bool = False
    _http10: bool = False
    trace: bytes = b""
    _bare: bool = False
    _stream: bool = False
    _extra: ExtraHeaders | None = None
    _always: ExtraHeaders | None = None
    _head: bytes = b""
    _parts: list[bytes] = []
    _last: bytes = b""
    _kind: str = ""  # its content type
    chunks: int = 0  # of a stream, passed on
    paused: bool = False  # the client was slower than the engine
    record: Record | None = None  # what was decided about it, once it has ended
    reason: str = ""  # why it failed
    status: int = 0  # that was sent
    started: bool = False
    done: bool = False

    def configure(self, *, stream: bool) -> None:
        """Say what kind of answer this will be, before `head`."""
        self._stream = stream

    def explain(self, extra: ExtraHeaders) -> None:
        """Ask `extra` for more headers when the head is made."""
        self._extra = extra

    def always(self, extra: ExtraHeaders) -> None:
        """Ask `extra` for headers of every head, that of an error too."""
        self._always = extra

    def close_after(self) -> None:
        """Do not keep the connection for another request."""
        self.closes = True

    def remember(self, record: Record) -> None:
        """Keep what was decided about it."""
        self.record = record

    # ---- Sink ----------------------------------------------------------------------------------------------

    def head(self, status: int, content_type: str) -> None:
        """Begin the answer."""
        self._kind = content_type
        self._head = self._line(status, content_type, () if self._extra is None else self._extra())

    def data(self, chunk: bytes) -> None:
        """Pass on the next bytes."""
        if not chunk or self.done:
            return
        if not self._stream:
            self._parts.append(chunk)
            return
        self.chunks += 1
        self._last = chunk
        framed = chunk if self._http10 else b"%x\r\n%b\r\n" % (len(chunk), chunk)
        if self.started:
            self._transport.write(framed)
        else:
            self._start(framed)

    def end(self) -> None:
        """Finish the answer."""
        if self.done:
            return
        if not self._stream:
            self._whole(self._head, b"".join(self._parts))
            return
        last = b"" if self._http10 else b"0\r\n\r\n"
        if not self.started:
            self._start(last)
        elif last:
            self._transport.write(last)
        self.done = True

    def whole(self, content_type: str, body: bytes) -> None:
        """Answer with status 200 and all of a body."""
        if not self.done:
            self._kind = content_type
            extra = () if self._extra is None else self._extra()
            self._whole(self._line(200, content_type, extra), body)

    @property
    def full(self) -> bool:
        """The client is slower than the engine."""
        return self._flow.write_paused

    async def drain(self) -> None:
        """Wait until the client has caught up."""
        self.paused = True
        await self._flow.drain()

    # ---- errors --------------------------------------------------------------------------------------------

    def fail(self, error: SageError) -> None:
        """Answer with an error: a whole body while nothing is out, else an event of the stream and no end.

        Of sound, where an event would be noise, the connection breaks off: so the client knows.
        """
        if self.done:
            return
        self.reason = reason_of(error)
        if self.started and not is_events(self._kind):
            self._transport.abort()
            self.closes = self.done = True
            return
        if self.started:
            self.data(self._envelope.event(error, self._last))
            self.end()
            return
        self._whole(self._line(error.status, _JSON, error_headers(error)), self._envelope.body(error))

    # ---- bytes ---------------------------------------------------------------------------------------------

    def _line(self, status: int, content_type: str, extra: Sequence[tuple[str, str]]) -> bytes:
        kind = _TYPES.get(content_type) or b"content-type: %b\r\n" % content_type.encode()
        head = (_STATUS.get(status) or _STATUS[500]) + self._common + kind
        self.status = status
        if self.trace:
            head += b"traceparent: %b\r\n" % self.trace
        if self._always is not None:
            extra = (*extra, *self._always())
        if extra:
            head += "".join(f"{name}: {value}\r\n" for name, value in extra).encode("latin-1", "replace")
        return head + b"connection: close\r\n" if self.closes else head

    def _start(self, framed: bytes) -> None:
        framing = b"\r\n" if self._http10 else b"transfer-encoding: chunked\r\n\r\n"
        self._transport.write(
            self._head + b"cache-control: no-cache\r\nx-accel-buffering: no\r\n" + framing + framed
        )
        self.started = True

    def _whole(self, head: bytes, body: bytes) -> None:
        shown = b"" if self._bare else body
        self._transport.write(b"%bcontent-length: %d\r\n\r\n%b" % (head, len(body), shown))
        self.started = True
        self.done = True
