"""One line as a request of its key: the same door, queues and accounts as any other, without a socket."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Final

import msgspec

from sage.common.api import Decision
from sage.common.errors import (
    BadRequestError,
    EngineError,
    OverloadedError,
    SageError,
    TimedOutError,
    UnauthorizedError,
    UnavailableError,
)
from sage.common.ids import new_id
from sage.common.telemetry import HEADER_CLASS, RequestClass
from sage.gateway.batch.batchstore import Result
from sage.gateway.batch.lines import Line
from sage.gateway.edge import Admission, too_large
from sage.gateway.keys import KeyRing
from sage.gateway.limits import LimitError
from sage.gateway.reply import ExtraHeaders, reason_of
from sage.gateway.requests import HotRequest, Server
from sage.gateway.routes import SCOPES
from sage.middleware.control_plane.records import Record
from sage.middleware.engines.dialects.envelopes import envelope_of
from sage.middleware.engines.port import Route

__all__ = ["ENDPOINTS", "LineCaller", "undone"]

log = logging.getLogger("sage.gateway")

# The routes that a batch can run, and its class there: one that interactive work goes before.
_CLASSES: Final = {
    Route.CHAT: RequestClass.BATCH,
    Route.COMPLETIONS: RequestClass.BATCH,
    Route.MESSAGES: RequestClass.BATCH,
    Route.RESPONSES: RequestClass.BATCH,
    Route.EMBEDDINGS: RequestClass.EMBED_BULK,
}
ENDPOINTS: Final = {f"/v1/{route.value}": route for route in _CLASSES}
FAULTS: Final = 3  # attempts that may end with a fault of an engine
CRASHES: Final = 2  # of engines under one line, after which nobody tries it again
FIRST_PAUSE_S: Final = 0.5
LONGEST_PAUSE_S: Final = 30.0


class _Response(msgspec.Struct):
    status_code: int
    request_id: str
    body: msgspec.Raw


class _Error(msgspec.Struct):
    code: str
    message: str


class _Output(msgspec.Struct):
    id: str
    custom_id: str
    response: _Response | None
    error: _Error | None


class LineAnswer:
    """Keeps what a request is answered with. Fits `Answer`."""

    def __init__(self) -> None:
        self.chunks = 0
        self.paused = False
        self.trace = b""
        self.record: Record | None = None
        self.reason = ""
        self.status = 0
        self.error: SageError | None = None
        self._parts: list[bytes] = []

    @property
    def body(self) -> bytes:
        """All of it."""
        return b"".join(self._parts)

    def configure(self, *, stream: bool) -> None:
        """Nothing to do: no line streams."""

    def explain(self, extra: ExtraHeaders) -> None:
        """Nothing to do: there are no headers."""

    def always(self, extra: ExtraHeaders) -> None:
        """Nothing to do: there are no headers."""

    def remember(self, record: Record) -> None:
        """Keep it for the log."""
        self.record = record

    def head(self, status: int, content_type: str) -> None:  # noqa: ARG002
        """Keep the status; it is 200."""
        self.status = status

    def data(self, chunk: bytes) -> None:
        """Keep the bytes."""
        self._parts.append(chunk)

    def end(self) -> None:
        """Nothing to do: whoever calls awaits the end of the request."""

    @property
    def full(self) -> bool:
        """Never."""
        return False

    async def drain(self) -> None:
        """Nothing to wait for."""

    def fail(self, error: SageError) -> None:
        """Keep the error."""
        self.error = error
        self.status, self.reason = error.status, reason_of(error)


class LineCaller:
    """Serves lines by `serve`, the handler of the hot routes. `bodies`: most bytes of one, by route.

    `decision` tells what became of a request.
    """

    def __init__(
        self,
        serve: Server,
        ring: KeyRing,
        bodies: Mapping[Route, int],
        decision: Callable[[str], Decision | None],
    ) -> None:
        self._serve = serve
        self._ring = ring
        self._bodies = bodies
        self._decision = decision

    async def call(self, owner: str, route: Route, line: Line, closing: asyncio.Event) -> Result | None:
        """Serve a line until it has its answer, whatever that is; None if `closing` comes first.

        A refusal because of load, or as no engine is ready, is tried again for as long as the caller waits.
        Raises UnauthorizedError once the key opens nothing any more.
        """
        if line.stream:
            error: SageError = BadRequestError("The lines of a batch cannot stream.", param="stream")
            return _refused(line, route, new_id("req"), error)
        if len(line.body) > self._bodies[route]:
            return _refused(line, route, new_id("req"), too_large(self._bodies[route]))
        faults = crashes = 0
        pause = FIRST_PAUSE_S
        while True:
            request_id = new_id("req")
            answer = await self._once(owner, route, line, request_id)
            if answer.error is None:
                return _answered(line, route, request_id, answer.body)
            error = answer.error
            if isinstance(error, UnauthorizedError):
                raise error
            if isinstance(error, EngineError | TimedOutError):
                faults += 1
                decision = self._decision(request_id)
                crashes += decision.crashes if decision else 0
                if error.final or faults >= FAULTS or crashes >= CRASHES:
                    return _refused(line, route, request_id, error)
            elif not _passes(error):
                return _refused(line, route, request_id, error)
            if await _set_within(closing, max(error.retry_after or 0.0, pause)):
                return None
            pause = min(2 * pause, LONGEST_PAUSE_S)

    async def _once(self, owner: str, route: Route, line: Line, request_id: str) -> LineAnswer:
        principal = self._ring.holder(owner)
        answer = LineAnswer()
        try:
            principal.check_scope(SCOPES[route])
        except SageError as error:
            answer.fail(error)
            return answer
        admission = Admission(principal, route, self._bodies[route], expect_continue=False)
        headers = {HEADER_CLASS.encode(): _CLASSES[route].value.encode()}
        request = HotRequest(request_id, admission, headers, line.body)
        # A task of its own: that is what ends if the key is revoked meanwhile.
        task = request.task = asyncio.create_task(self._serve(request, answer))
        try:
            await task
        except Exception as fault:
            log.error("a line of a batch failed in the gateway", exc_info=fault)
            answer.fail(SageError("The gateway failed to serve this request."))
        return answer


def undone(line: Line, code: str, message: str) -> bytes:
    """The result of a line that was not run to its end."""
    return _line(_Output(new_id("batch_req"), line.custom_id, None, _Error(code, message)))


def _answered(line: Line, route: Route, request_id: str, body: bytes) -> Result:
    try:
        msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return _refused(line, route, request_id, EngineError("The engine's answer is not JSON."))
    return _result(line, request_id, 200, body)


def _refused(line: Line, route: Route, request_id: str, error: SageError) -> Result:
    return _result(line, request_id, error.status, envelope_of(route, request_id).body(error))


def _result(line: Line, request_id: str, status: int, body: bytes) -> Result:
    one_line = body.replace(b"\n", b" ").replace(b"\r", b" ")  # in JSON only space can hold them
    response = _Response(status, request_id, msgspec.Raw(one_line))
    output = _Output(new_id("batch_req"), line.custom_id, response, None)
    return Result(line.number, status == 200, _line(output))


def _line(output: _Output) -> bytes:
    return msgspec.json.encode(output) + b"\n"


def _passes(error: SageError) -> bool:
    """Whether it may be gone when it is tried again."""
    if isinstance(error, LimitError):
        return not error.final
    return isinstance(error, OverloadedError | UnavailableError)


async def _set_within(event: asyncio.Event, seconds: float) -> bool:
    """Whether it is set within so many seconds."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return False
    return True
