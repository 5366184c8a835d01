"""The HTTP/1.1 protocol of every listener: uvicorn's httptools protocol with our guards and the hot routes.

Each request is collected whole, within limits, and put in line; answers leave in the order of arrival. A
request on a hot route is given to its handler, which writes to the transport; any other runs in the ASGI
application through uvicorn's own cycle. Reading is never paused, so a client that leaves is noticed at once.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import secrets
import socket
from collections import deque
from typing import Any, Final

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from sage.common.errors import BadRequestError, SageError
from sage.common.ids import new_id
from sage.gateway.cold import new_cycle
from sage.gateway.edge import (
    DECISIVE,
    Admission,
    HeadersTooLargeError,
    RequestTimeoutError,
    check_length,
    fold_headers,
    request_id_of,
    too_large,
)
from sage.gateway.heads import SeenHead
from sage.gateway.keys import presented
from sage.gateway.reply import Reply
from sage.gateway.requests import HotRequest, Pending, Settings

__all__ = ["Gate"]

log = logging.getLogger("sage.gateway")

LINGER_S: Final = 2.0
MAX_PIPELINED: Final = 32
_IDLE, _HEAD, _BODY, _DISCARD = range(4)


class Gate(HttpToolsProtocol):
    """One connection. `Settings` says what is guarded and who serves the hot routes."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        settings: Settings,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._settings = settings
        self._state = _IDLE
        self._item = Pending()
        self._line: deque[Pending] = deque()
        self._busy = False
        self._reply: Reply | None = None
        self._hot_id = ""
        self._address = ""
        self._task: asyncio.Task[None] | None = None
        self._ending: SageError | None = None  # why the task was told to end, if not by the client
        self._passed: tuple[tuple[bytes | int | None, ...], bytes, Admission] | None = None
        self._seen: SeenHead | None = None
        self._standing: tuple[object, bytes] = (None, b"")  # the server's own headers, and their bytes
        self._last = False  # close once the line is empty
        self._head_bytes = self._raw_bytes = 0
        self._deadline = 0.0
        self._body_began = 0.0
        self._stalled_since = 0.0
        self._unsent = 0

    # ---- connection ----------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the clock for the first head."""
        super().connection_made(transport)
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._deadline = self.loop.time() + self._settings.deadlines.head
        self._address = self.client[0] if self.client else ""
        if refusal := self._settings.connections.enter(self._address):
            self._refuse(refusal)

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone: whatever is under way for it ends now."""
        super().connection_lost(exc)
        self._settings.connections.leave(self._address)
        self._state = _DISCARD
        self._line.clear()
        if self._task is not None:
            self._task.cancel()

    def data_received(self, data: bytes) -> None:
        """Parse, with the bytes of an unfinished head or chunked body bounded."""
        state = self._state
        if state == _DISCARD:
            return
        if self._task is not None and self._task.done():  # a quick client is here before the loop's turn
            self._hot_done(self._task)
        if state == _IDLE and not self._busy and self._seen is not None and self._again(self._seen, data):
            return
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._refuse(BadRequestError("Upgrade is not supported.", hint="Speak plain HTTP/1.1."))
            return
        except httptools.HttpParserError as error:
            log.info("unreadable request: %s", error)
            self._refuse(BadRequestError("This is not a valid HTTP/1.1 request."))
            return
        if state == self._state == _HEAD:
            self._head_bytes += len(data)
            if self._head_bytes > self._settings.head.total + self._settings.head.line:
                self._refuse(HeadersTooLargeError("The headers are too large."))
        elif state == self._state == _BODY:
            self._count_body(len(data))
        elif state == self._state == _IDLE:
            self._remember(data)

    def _remember(self, data: bytes) -> None:
        """Keep the head of a hot request that came whole in `data`, for the next one."""
        item = self._item
        admission = item.admission
        if admission is not None and admission.route and not item.close and b"expect" not in item.headers:
            own_id = item.id if b"x-request-id" in item.headers else ""
            version = self._settings.edge.version
            self._seen = SeenHead.of(data, item.size, item.headers, admission, own_id, version)

    def _again(self, seen: SeenHead, data: bytes) -> bool:
        """Serve `data` if it is a whole request with the head of the last one; the parser is not needed."""
        body = seen.body(data) if seen.version == self._settings.edge.version else None
        if body is None:
            return False
        item = Pending(seen.own_id or new_id("req"), headers=seen.headers, admission=seen.admission)
        item.parts, item.size = [body], len(body)
        self._item = item
        self._start_hot(item, seen.admission)
        return True

    def _count_body(self, received: int) -> None:
        """Bound what a chunked body may carry beside its content, and push its idle deadline."""
        self._raw_bytes += received
        self._deadline = self._body_deadline()
        assert self._item.admission is not None
        if self._raw_bytes > 2 * self._item.admission.max_body + self._settings.head.total:
            self._refuse(too_large(self._item.admission.max_body))

    def _body_deadline(self) -> float:
        times = self._settings.deadlines
        total = self._body_began + times.body_total + self._item.size / times.body_rate
        return min(self.loop.time() + times.body_idle, total)

    # ---- parser callbacks ----------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """A request begins."""
        if self._state == _DISCARD:
            return
        self._state = _HEAD
        self._item = Pending()
        self._head_bytes = 0
        self._deadline = self.loop.time() + self._settings.deadlines.head

    def on_url(self, url: bytes) -> None:
        """A part of the request target."""
        if self._state != _HEAD:
            return
        self._item.target += url
        if len(self._item.target) > self._settings.head.line:
            self._refuse(HeadersTooLargeError(f"The request line is over {self._settings.head.line} bytes."))

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header; after the body it would be a trailer, which nothing here reads."""
        if self._state != _HEAD:
            return
        limits = self._settings.head
        size = len(name) + len(value) + 4
        item = self._item
        item.raw_headers.append((name.lower(), value))
        item.size += size
        if size > limits.header:
            self._refuse(HeadersTooLargeError(f"A header is over {limits.header} bytes."))
        elif item.size > limits.total:
            self._refuse(HeadersTooLargeError(f"The headers are over {limits.total} bytes."))
        elif len(item.raw_headers) > limits.count:
            self._refuse(HeadersTooLargeError(f"There are more than {limits.count} headers."))

    def on_headers_complete(self) -> None:
        """Judge the head before any of the body."""
        if self._state != _HEAD:
            return
        item = self._item
        item.method = self.parser.get_method()
        item.version = self.parser.get_http_version()
        item.close = item.version != "1.1" or not self.parser.should_keep_alive()
        item.id = request_id_of(item.raw_headers)
        try:
            item.headers = fold_headers(item.raw_headers)
            item.admission = self._admit(item)
        except SageError as error:
            self._turn_away(error)
            return
        item.size = 0
        self._raw_bytes = 0
        self._state = _BODY
        self._body_began = self.loop.time()
        self._deadline = self._body_began + self._settings.deadlines.body_idle
        if not self._busy:
            self._invite_body()

    def _invite_body(self) -> None:
        """Answer `Expect: 100-continue`, once the answers before it are out."""
        item = self._item
        if item.admission is not None and item.admission.expect_continue and not item.parts:
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _admit(self, item: Pending) -> Admission:
        """Ask the edge, but for a head that is the last one again in all that the edge looks at."""
        headers, edge = item.headers, self._settings.edge
        key = presented(headers)
        decisive = (edge.version, item.method, item.target, *[headers.get(name) for name in DECISIVE])
        passed = self._passed
        if passed is not None and decisive == passed[0] and hmac.compare_digest(key, passed[1]):
            check_length(headers.get(b"content-length"), passed[2].max_body)
            return passed[2]
        admission = edge.admit(item.method, item.target, headers)
        self._passed = (decisive, key, admission)
        return admission

    def _turn_away(self, error: SageError) -> None:
        """Refuse a head. With a body behind it the connection cannot be kept: its end is not awaited."""
        headers = self._item.headers
        if b"transfer-encoding" in headers or headers.get(b"content-length", b"0") != b"0" or not headers:
            self._refuse(error)
            return
        self._item.refusal = error
        self._state = _BODY

    def on_body(self, body: bytes) -> None:
        """A part of the body."""
        item = self._item
        if self._state != _BODY or item.admission is None:
            return
        item.size += len(body)
        item.parts.append(body)
        if item.size > item.admission.max_body:
            self._refuse(too_large(item.admission.max_body))

    def on_message_complete(self) -> None:
        """The request is whole: it takes its place in line."""
        if self._state != _BODY:
            return
        self._state = _IDLE
        if self.parser.should_upgrade():
            return  # feed_data raises next, and that refuses it
        self._line.append(self._item)
        if self._item.close:
            self._state = _DISCARD
        if not self._busy:
            self._advance()
        elif len(self._line) > MAX_PIPELINED or self._too_much_waits():
            self._refuse(
                BadRequestError("Too much is pipelined on this connection.", hint="Await the answers.")
            )

    def _too_much_waits(self) -> bool:
        most = max((item.admission.max_body for item in self._line if item.admission), default=0)
        return sum(item.size for item in self._line) > most

    # ---- the line ------------------------------------------------------------------------------------------

    def _refuse(self, error: SageError) -> None:
        """Answer the present request with `error` after those before it, then end the connection."""
        if self._state == _DISCARD and self._last:
            return
        item = self._item
        if not item.id:
            item.id = request_id_of(item.raw_headers)
        self._state = _DISCARD
        self._line.append(Pending(item.id, item.method, version=item.version, close=True, refusal=error))
        if not self._busy:
            self._advance()

    def _advance(self) -> None:
        """Answer from the head of the line until one takes time."""
        while self._line and not self._busy and not self._last:
            item = self._line.popleft()
            if item.refusal is not None:
                reply = self._new_reply(item)
                reply.fail(item.refusal)
                self._after(reply.closes)
            elif item.admission is not None and item.admission.route is not None:
                self._start_hot(item, item.admission)
            else:
                self._start_cold(item)
        if self._busy:
            return
        if self._state == _IDLE:
            self._deadline = self.loop.time() + self._settings.deadlines.keep_alive
        elif self._state == _BODY:
            self._invite_body()

    def _new_reply(self, item: Pending) -> Reply:
        standing = self.server_state.default_headers  # another list each second, for the date
        if standing is not self._standing[0]:
            self._standing = (standing, b"".join([b"%b: %b\r\n" % header for header in standing]))
        common = b"%bx-request-id: %b\r\n" % (self._standing[1], item.id.encode())
        old, bare = item.version == "1.0", item.method == b"HEAD"
        return Reply(self.transport, self.flow, common=common, close=item.close, http10=old, bare=bare)

    def _start_hot(self, item: Pending, admission: Admission) -> None:
        assert self._settings.handler is not None
        body = item.parts[0] if len(item.parts) == 1 else b"".join(item.parts)
        if item.id in self._settings.active:  # a trace's id on several calls at once: keep ours apart
            item.id = f"{item.id[:100]}.{secrets.token_hex(4)}"
        self._settings.active.add(item.id)
        self._hot_id = item.id
        request = HotRequest(item.id, admission, item.headers, body)
        self._reply = self._new_reply(item)
        self._busy = True
        self._task = request.task = self.loop.create_task(self._settings.handler(request, self._reply))
        self._task.add_done_callback(self._hot_done)

    def _hot_done(self, task: asyncio.Task[None]) -> None:
        """Whatever happened, the client has its answer and the line moves on."""
        if task is not self._task:  # that was seen already
            return
        self._settings.active.discard(self._hot_id)
        reply, self._reply, self._task = self._reply, None, None
        self._busy = False
        assert reply is not None
        if not task.cancelled() and (fault := task.exception()) is not None:
            log.error("request failed in the gateway", exc_info=fault)
        if self.transport.is_closing():
            return
        if not reply.done:
            reply.close_after()
            reply.fail(self._ending or SageError("The gateway failed to serve this request."))
        self.server_state.total_requests += 1
        self._after(reply.closes)
        self._advance()

    def _after(self, close: bool) -> None:
        """End the connection after its last answer; what still comes in is read for a moment and dropped.

        Closing at once would reset the connection, and the client would lose the answer.
        """
        if not close:
            return
        self._last = True
        self._state = _DISCARD
        self._line.clear()
        self._deadline = self.loop.time() + LINGER_S
        if self.transport.can_write_eof():
            self.transport.write_eof()
        else:
            self.transport.close()

    def _start_cold(self, item: Pending) -> None:
        """Run the ASGI application through uvicorn's cycle, with a body that is already here."""
        self._busy = True
        try:
            url = httptools.parse_url(item.target)
        except httptools.HttpParserInvalidURLError:
            self._busy = False
            item.refusal, item.close = BadRequestError("The URL is not valid."), True
            self._line.appendleft(item)
            return
        assert item.admission is not None
        standing = self._settings.standing(item.admission.principal.id)
        self.cycle = new_cycle(self, item, item.admission, url, standing)
        self._start_asgi_task(self.cycle, self.app)

    def on_response_complete(self) -> None:
        """The ASGI application has answered."""
        self.server_state.total_requests += 1
        self._busy = False
        if not self.transport.is_closing():
            self._advance()

    # ---- time and the end ----------------------------------------------------------------------------------

    def check(self, now: float) -> None:
        """Enforce the deadlines; called a few times a second for every connection."""
        if self.transport.is_closing():
            return
        unsent = self.transport.get_write_buffer_size()
        if not self.flow.write_paused or unsent != self._unsent:
            self._unsent = unsent
            self._stalled_since = now
        elif now - self._stalled_since > self._settings.deadlines.write_stall:
            self.transport.abort()
            return
        if now < self._deadline:
            return
        if self._state == _BODY or (self._state == _HEAD and not self._busy):
            self._refuse(RequestTimeoutError("The request did not arrive in time."))
        elif not self._busy:
            self.transport.close()

    def shutdown(self) -> None:
        """Take no further request: idle connections close now, busy ones after the last request they took."""
        self._item.close = True
        if self._state == _BODY:
            return  # this request was let in: it is served, and it is the last
        if self._line:
            self._line[-1].close = True
        elif self._reply is not None:
            self._reply.close_after()
        elif self._busy:
            self.cycle.keep_alive = False
        elif not self._last:
            self.transport.close()
        self._state = _DISCARD

    def end_now(self, error: SageError) -> None:
        """Answer what is under way with `error` and close."""
        self._ending = error
        if self._task is not None:
            self._task.cancel()
        elif not self._busy and self._state == _BODY:
            self._refuse(error)
        elif not self._last:
            self.transport.close()
