"""The HTTP/1.1 protocol of every listener: uvicorn's httptools protocol with our guards and the hot routes.

Each request is collected whole, within limits, and put in line; answers leave in the order of arrival. A
request on a hot route is given to its handler, which writes to the transport; any other runs in the ASGI
application through uvicorn's own cycle. Reading is never paused, so a client that leaves is noticed at once;
but for an upload, which goes to the application as it comes, and no faster than that takes it.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import secrets
from collections import deque
from time import monotonic
from typing import Any, Final

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from sage.common.errors import BadRequestError, SageError
from sage.common.ids import new_id
from sage.common.telemetry import Bound
from sage.gateway.cold import Cycle, new_cycle
from sage.gateway.connections import Stall, tune
from sage.gateway.edge import (
    DECISIVE,
    Admission,
    check_length,
    fold_headers,
    request_id_of,
    too_large,
    too_slow,
    trace_of,
)
from sage.gateway.heads import SeenHead
from sage.gateway.hot import HotTask
from sage.gateway.keys import presented
from sage.gateway.reply import Reply
from sage.gateway.requests import HotRequest, Pending, Settings, reply_to, too_much
from sage.gateway.watch import GONE
from sage.middleware.engines.heads import Head

__all__ = ["Gate"]

log = logging.getLogger("sage.gateway")

LINGER_S: Final = 2.0
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
        self._upload: Cycle | None = None  # one whose body is still coming
        self._address = ""
        self._hot = HotTask(self.loop, settings.handler)
        self._passed: tuple[tuple[bytes | int | None, ...], bytes, Admission] | None = None
        self._seen: SeenHead | None = None
        self._standing: tuple[object, bytes] = (None, b"")  # the server's own headers, and their bytes
        self._last = False  # close once the line is empty
        self._head_bytes = self._raw_bytes = 0
        self._deadline = 0.0
        self._body_began = 0.0
        self._stall = Stall()

    # ---- connection ----------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the clock for the first head."""
        super().connection_made(transport)
        tune(transport)
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
        self._hot.cancel()

    def data_received(self, data: bytes) -> None:
        """Parse, with the bytes of an unfinished head or chunked body bounded."""
        state = self._state
        if state == _DISCARD:
            return
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
                self._refuse(self._settings.head.over(0, self._head_bytes))
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
            head, version = Head.of(data, item.size), self._settings.edge.version
            if head is not None:
                self._seen = SeenHead(head, item.headers, admission, own_id, version, item.trace)

    def _again(self, seen: SeenHead, data: bytes) -> bool:
        """Serve `data` if it is a whole request with the head of the last one; the parser is not needed."""
        body = seen.head.body(data, seen.admission.max_body)
        if body is None or seen.version != self._settings.edge.version:
            return False
        self._item = item = Pending(
            seen.own_id or new_id("req"), headers=seen.headers, admission=seen.admission, trace=seen.trace
        )
        self._start_hot(item, seen.admission, body)
        return True

    def _count_body(self, received: int) -> None:
        """Bound what a chunked body may carry beside its content, and push its idle deadline."""
        self._raw_bytes += received
        self._extend(self.loop.time())
        assert self._item.admission is not None
        if self._raw_bytes > 2 * self._item.admission.max_body + self._settings.head.total:
            self._refuse(too_large(self._item.admission.max_body))

    def _extend(self, now: float) -> None:
        self._deadline = self._settings.deadlines.of_body(now, self._body_began, self._item.size)

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
            self._refuse(self._settings.head.over_line())

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header; after the body it would be a trailer, which nothing here reads."""
        if self._state != _HEAD:
            return
        size = len(name) + len(value) + 4
        item = self._item
        item.raw_headers.append((name.lower(), value))
        item.size += size
        if refusal := self._settings.head.refusal(size, item.size, len(item.raw_headers)):
            self._refuse(refusal)

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
            item.trace = trace_of(item.headers)
            item.admission = self._admit(item)
        except SageError as error:
            self._turn_away(error)
            return
        item.size = 0
        self._raw_bytes = 0
        self._state = _BODY
        self._body_began = self.loop.time()
        self._deadline = self._body_began + self._settings.deadlines.body_idle
        if item.admission.upload and self._busy:
            self._refuse(BadRequestError("An upload is not pipelined.", hint="Await the answer before it."))
        elif item.admission.upload:
            self._line.append(item)
            self._advance()
        elif not self._busy:
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
        if self._upload is not None:
            self._upload.feed(body)
        else:
            item.parts.append(body)
        if item.size > item.admission.max_body:
            self._refuse(too_large(item.admission.max_body))

    def on_message_complete(self) -> None:
        """The request is whole: it takes its place in line."""
        if self._state != _BODY:
            return
        self._state = _DISCARD if self._item.close else _IDLE
        if self.parser.should_upgrade():
            return  # feed_data raises next, and that refuses it
        if self._upload is not None:
            self._upload.finish()
            self._upload = None
            return
        self._line.append(self._item)
        if not self._busy:
            self._advance()
        elif too_much(self._line):
            words = "Too much is pipelined on this connection."
            self._refuse(BadRequestError(words, hint="Await the answers.", bound=Bound.PIPELINED))

    # ---- the line ------------------------------------------------------------------------------------------

    def _refuse(self, error: SageError) -> None:
        """Answer the present request with `error` after those before it, then end the connection."""
        if self._state == _DISCARD and self._last:
            return
        item = self._item
        if not item.id:
            item.id = request_id_of(item.raw_headers)
        self._state = _DISCARD
        if self._upload is not None:
            self._upload.fail(error)
            return
        self._line.append(item.refused(error))
        if not self._busy:
            self._advance()

    def _advance(self) -> None:
        """Answer from the head of the line until one takes time."""
        while self._line and not self._busy and not self._last:
            item = self._line.popleft()
            if item.refusal is not None:
                reply = self._new_reply(item)
                reply.fail(item.refusal)
                self._settings.watch.refused(item.id, item.refusal)
                if reply.closes:
                    self._finish()
            elif item.admission is not None and item.admission.route is not None:
                self._start_hot(item, item.admission, b"".join(item.parts))
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
            lines = b"".join([b"%b: %b\r\n" % header for header in standing])
            self._standing = (standing, lines + b"x-request-id: ")
        return reply_to(item, self.transport, self.flow, self._standing[1] + item.id.encode() + b"\r\n")

    def _start_hot(self, item: Pending, admission: Admission, body: bytes) -> None:
        active = self._settings.active
        if item.id in active:  # a trace's id on several calls at once: keep ours apart
            item.id = f"{item.id[:100]}.{secrets.token_hex(4)}"
        active.add(item.id)
        self._busy = True
        request = HotRequest(item.id, admission, item.headers, body, monotonic())
        self._hot.start(request, self._new_reply(item), self._hot_done)

    def _hot_done(self, request: HotRequest, reply: Reply) -> None:
        """Whatever happened, the client has its answer and the line moves on."""
        self._settings.active.discard(request.id)
        self._busy = False
        gone = self.transport.is_closing()
        if not reply.done and not gone:
            reply.close_after()
            reply.fail(request.ending or SageError("The gateway failed to serve this request."))
        if (log := self._settings.watch.log) is not None:
            log.ended(request, reply, reply.status if reply.done else GONE, monotonic)
        if gone:
            return
        self.server_state.total_requests += 1
        if reply.closes:
            self._finish()
        self._advance()

    def _finish(self) -> None:
        """End the connection after its last answer; what still comes in is read for a moment and dropped.

        Closing at once would reset the connection, and the client would lose the answer.
        """
        self._last = True
        self._state = _DISCARD
        self._line.clear()
        self._deadline = self.loop.time() + LINGER_S
        self.transport.write_eof()

    def _start_cold(self, item: Pending) -> None:
        """Run the ASGI application through uvicorn's cycle."""
        admission = item.admission
        assert admission is not None
        try:
            standing = self._settings.standing(admission.principal.id)
            cycle = new_cycle(self, item, admission, standing, self._settings.watch.log)
        except BadRequestError as error:
            self._line.appendleft(item.refused(error))
            return
        self._busy = True
        self._upload = cycle if admission.upload else None
        self.cycle = cycle
        self._start_asgi_task(cycle, self.app)

    def on_response_complete(self) -> None:
        """The ASGI application has answered."""
        self.server_state.total_requests += 1
        self._busy = False
        self.flow.resume_reading()  # what was refused unread may have paused it
        if self._upload is not None:  # answered before its end
            self._upload = None
            self._finish()
        elif not self.transport.is_closing():
            self._advance()

    # ---- time and the end ----------------------------------------------------------------------------------

    def check(self, now: float) -> bool:
        """Enforce the deadlines; called about once a second for every connection. Whether one has passed."""
        if now < self._deadline and not (self.flow.write_paused or self._stall.begun):
            return False  # as a rule, and thousands are asked
        if self.transport.is_closing():
            return False
        unsent = self.transport.get_write_buffer_size() if self.flow.write_paused else 0
        if self._stall.seconds(now, unsent) > self._settings.deadlines.write_stall:
            self._settings.watch.bounds[Bound.WRITE_STALL] += 1
            self.transport.abort()
            return True
        if self.flow.read_paused and self._state == _BODY:  # it is us who are slow
            self._extend(now)
        if now < self._deadline:
            return False
        if self._state == _BODY or (self._state == _HEAD and not self._busy):
            self._refuse(too_slow(head=self._state == _HEAD))
        elif not self._busy:
            self.transport.close()
        else:
            return False
        return True

    def shutdown(self) -> None:
        """Take no further request: idle connections close now, busy ones after the last request they took."""
        self._item.close = True
        if self._state == _BODY:
            return  # this request was let in: it is served, and it is the last
        if self._line:
            self._line[-1].close = True
        elif self._hot.reply is not None:
            self._hot.reply.close_after()
        elif self._busy:
            self.cycle.keep_alive = False
        elif not self._last:
            self.transport.close()
        self._state = _DISCARD

    def end_now(self, error: SageError) -> None:
        """Answer what is under way with `error` and close."""
        if self._hot.request is not None and self._hot.reply is not None:
            self._hot.request.ending = error
            self._hot.reply.close_after()
            self._hot.cancel()
        elif self._state == _BODY and (self._upload is not None or not self._busy):
            self._refuse(error)
        elif not self._last:
            self.transport.close()
