"""What the adapters share: one sender over HTTP, whatever dialect the engine speaks."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

from sage.common.errors import BadRequestError, EngineError, SageError
from sage.common.telemetry import HEADER_TRACE
from sage.middleware.engines.aggregate import Aggregator
from sage.middleware.engines.answer import Answer
from sage.middleware.engines.connection import Connection, StaleConnectionError
from sage.middleware.engines.faults import (
    UpstreamError,
    complaint_of,
    not_let_in,
    refused,
    seconds_of,
    too_busy,
)
from sage.middleware.engines.http import JSON, HttpPool
from sage.middleware.engines.media import MediaAnswer
from sage.middleware.engines.port import (
    CHAT,
    DETOKENIZE,
    MEDIA,
    MESSAGES,
    RERANK,
    RESPONSES,
    SCORE,
    TOKENIZE,
    Call,
    EngineSpec,
    Route,
    Sink,
    Usage,
)
from sage.middleware.engines.sse import usage_of

__all__ = [
    "Dialect",
    "HttpEngine",
    "Translator",
]

_log = logging.getLogger("sage.engines")
_NO_PATHS: Mapping[Route, str] = {}
# a server of one of these may lack another, and is none the worse
_OPTIONAL = MEDIA | {MESSAGES, RERANK, RESPONSES, SCORE, TOKENIZE, DETOKENIZE}
_MISSING = frozenset({404, 405, 501})
_NOT_LET_IN = frozenset({401, 403})  # our key there, never that of the client
_REFUSALS = frozenset({400, 413, 415, 422})  # the request's own fault; anything else is the engine's


class Translator(Protocol):
    """Turns an engine's stream into OpenAI's, bytes to bytes."""

    usage: Usage

    def feed(self, chunk: bytes) -> bytes:
        """Translate the next bytes; may hold back part of an event. Raises EngineError for an error event."""
        ...

    def close(self) -> bytes:
        """The rest, with `[DONE]`, when the engine has ended. Raises EngineError if it is not whole."""
        ...


class Dialect(Protocol):
    """How one kind of engine differs from OpenAI."""

    async def encode(self, call: Call) -> bytes:
        """The body to send. Raises BadRequestError for what this engine cannot do."""
        ...

    def plain(self, call: Call) -> bytes | None:
        """The same, where that takes no waiting and the engine answers with a whole body; else None."""
        ...

    def streams(self, call: Call) -> bool:
        """Whether the engine is asked for a stream, whatever the client asked for."""
        ...

    def translator(self, call: Call) -> Translator:
        """A fresh translator for the stream of one call."""
        ...


class HttpEngine:
    """An engine behind HTTP. `headers` go with every call (a remote engine's key).

    `paths`: where it has a route elsewhere than below `/v1/`.
    """

    def __init__(
        self,
        spec: EngineSpec,
        dialect: Dialect,
        pool: HttpPool,
        *,
        headers: Mapping[str, str] | None = None,
        ready_path: str = "/health",
        paths: Mapping[Route, str] = _NO_PATHS,
    ) -> None:
        self._spec = spec
        self._dialect = dialect
        self.pool = pool
        self._headers = dict(headers or {})
        self._ready_path = ready_path
        self._paths = {route: paths.get(route) or f"/v1/{route}" for route in Route}

    @property
    def spec(self) -> EngineSpec:
        """What it is."""
        return self._spec

    async def send(self, call: Call, sink: Sink) -> Usage:
        """Serve one call; see the port."""
        body = await self._dialect.encode(call)
        receiver: Answer
        if call.route is not CHAT and call.route in MEDIA:
            receiver = MediaAnswer(call, sink)
        elif call.stream:
            receiver = _Stream(sink, self._dialect.translator(call))
        elif self._dialect.streams(call):
            receiver = _Aggregated(sink, self._dialect.translator(call))
        else:
            receiver = _Whole(sink)
        return await self.exchange(call, body, receiver)

    def begin(self, call: Call, told: Callable[[Usage | Exception], None]) -> _Begun | None:
        """See the port."""
        body = self._dialect.plain(call)
        if body is None:
            return None
        begun = _Begun(self, call, body, told)
        connection = self.pool.start(
            "POST", self._paths[call.route], begun, begun.over, body=body, headers=self.headers(call)
        )
        if connection is None:
            return None
        begun.connection = connection
        return begun

    async def exchange(self, call: Call, body: bytes, receiver: Answer, *, stale: bool = False) -> Usage:
        """Send a body and await its answer. Raises as `send`. `stale`: see `HttpPool.request`."""
        try:
            path, headers = self._paths[call.route], self.headers(call)
            kind = call.content_type or JSON
            retry_after = await self.pool.request(
                "POST", path, receiver, body=body, headers=headers, content_type=kind, stale=stale
            )
            self.check(call, receiver, retry_after)
            return receiver.finish()
        except UpstreamError as error:
            self.logged(error)
            raise

    def check(self, call: Call, answer: Answer, retry_after: str) -> None:
        """Raise the engine's refusal in our words, if the answer is one."""
        if answer.status // 100 != 2:
            refusal = _Refusal(answer.status, answer.joined(), retry_after)
            raise _refused(self._spec.name, call.route, refusal)

    def logged(self, error: Exception) -> Exception:
        """The same error; what the engine itself has said of it goes to the log alone."""
        if isinstance(error, UpstreamError):
            _log.warning("engine %s: %s %s", self._spec.name, error.message, error.told)
        return error

    def headers(self, call: Call) -> Mapping[str, str]:
        """What goes with this call; for an adapter that adds to it."""
        return {**self._headers, HEADER_TRACE: call.trace} if call.trace else self._headers

    async def ready(self) -> bool:
        """Whether its health page answers 200."""
        answer = Answer()
        try:
            await self.pool.request("GET", self._ready_path, answer, headers=self._headers)
        except SageError:
            return False
        return answer.status == 200

    async def close(self) -> None:
        """Close idle connections."""
        self.pool.close()
        await asyncio.sleep(0)  # a transport closes its socket in the loop's next turn


# ---- receivers ---------------------------------------------------------------------------------------------


class _Whole(Answer):
    """A JSON body: nothing reaches the sink until it is whole, so that a broken one can be retried."""

    __slots__ = ("_sink",)

    def __init__(self, sink: Sink) -> None:
        self.status = self._size = 0
        self._parts = []
        self._sink = sink

    def finish(self) -> Usage:
        body = self.joined()
        return self._emit(body, usage_of(body) or Usage())

    def _emit(self, body: bytes, usage: Usage) -> Usage:
        self._sink.head(200, "application/json")
        self._sink.data(body)
        self._sink.end()
        return usage


class _Begun(Answer):
    """A JSON body that no task awaits; see `Begun`. `connection`: on which it comes."""

    __slots__ = ("_body", "_call", "_engine", "_task", "_told", "connection")

    connection: Connection

    def __init__(
        self, engine: HttpEngine, call: Call, body: bytes, told: Callable[[Usage | Exception], None]
    ) -> None:
        self.status = self._size = 0
        self._parts = []
        self._engine = engine
        self._call = call
        self._body = body
        self._told = told
        self._task: asyncio.Task[None] | None = None

    @property
    def body(self) -> bytes:
        return self.joined()

    def finish(self) -> Usage:
        return usage_of(self.joined()) or Usage()

    def abort(self) -> None:
        if self._task is None:
            self.connection.drop()
        else:
            self._task.cancel()

    def over(self, error: Exception | None) -> None:
        """The connection has the whole answer, or has failed."""
        if error is None:
            self._engine.pool.keep(self.connection)
            self._told(self._outcome())
        elif isinstance(error, StaleConnectionError):
            self._task = asyncio.get_running_loop().create_task(self._again())
        else:
            self._told(self._engine.logged(error))

    def _outcome(self) -> Usage | Exception:
        try:
            self._engine.check(self._call, self, self.connection.retry_after)
            return self.finish()
        except Exception as error:  # whatever it is, whoever waits has to be told
            return self._engine.logged(error)

    async def _again(self) -> None:
        """The engine had closed the connection before it answered anything: send it on a fresh one."""
        try:
            usage = await self._engine.exchange(self._call, self._body, self, stale=True)
        except Exception as error:
            self._told(error)
        else:
            self._told(usage)


class _Aggregated(_Whole):
    """A stream that the client wants as one body."""

    __slots__ = ("_aggregator", "_translator")

    def __init__(self, sink: Sink, translator: Translator) -> None:
        super().__init__(sink)
        self._translator = translator
        self._aggregator = Aggregator()

    def data(self, chunk: bytes) -> None:
        if self.status == 200:
            self._aggregator.feed(self._translator.feed(chunk))
        else:
            super().data(chunk)

    def finish(self) -> Usage:
        self._aggregator.feed(self._translator.close())
        return self._emit(self._aggregator.result(), self._translator.usage)


class _Stream(Answer):
    """A stream passed on as it comes. The head waits for the first bytes: until then a retry is possible."""

    __slots__ = ("_begun", "_feed", "_pass_on", "_sink", "_translator")

    def __init__(self, sink: Sink, translator: Translator) -> None:
        super().__init__()
        self._sink = sink
        self._translator = translator
        self._feed, self._pass_on = translator.feed, sink.data  # for each chunk: found once
        self._begun = False

    def data(self, chunk: bytes) -> None:
        if self.status != 200:
            super().data(chunk)
        elif out := self._feed(chunk):
            if not self._begun:
                self._begin()
            self._pass_on(out)

    def _begin(self) -> None:
        self._begun = True
        self._sink.head(200, "text/event-stream; charset=utf-8")

    @property
    def full(self) -> bool:  # type: ignore[override]
        return self._sink.full

    async def drain(self) -> None:
        await self._sink.drain()

    def finish(self) -> Usage:
        if rest := self._translator.close():
            if not self._begun:
                self._begin()
            self._pass_on(rest)
        self._sink.end()
        return self._translator.usage


class _Refusal(NamedTuple):
    """An answer that is no success."""

    status: int
    body: bytes
    retry_after: str


def _refused(engine: str, route: Route, refusal: _Refusal) -> SageError:
    """An engine's error in our words; its own go to the log alone."""
    complaint, status = complaint_of(refusal.body), refusal.status
    _log.warning("engine %s answered %d: %s", engine, status, complaint.words)
    if status in _REFUSALS:
        return refused(engine, status, complaint)
    if status in _NOT_LET_IN:
        return not_let_in(engine, status)
    if status == 429:
        return too_busy(engine, seconds_of(refusal.retry_after, time.time()))
    if status in _MISSING and route in _OPTIONAL:
        return BadRequestError(f"The engine {engine} answered {status}: it has no /v1/{route}.")
    return EngineError(f"The engine {engine} answered {status}.")
