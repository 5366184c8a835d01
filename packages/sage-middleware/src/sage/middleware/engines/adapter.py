"""What the adapters share: one sender over HTTP, and the dialect of engines that speak OpenAI's as it is."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import msgspec

from sage.common.errors import BadRequestError, EngineError, SageError
from sage.common.telemetry import HEADER_TRACE
from sage.middleware.engines.aggregate import Aggregator
from sage.middleware.engines.answer import Answer
from sage.middleware.engines.dialects.native import NATIVE, NativeStream
from sage.middleware.engines.faults import (
    UpstreamError,
    complaint_of,
    not_let_in,
    refused,
    seconds_of,
    too_busy,
)
from sage.middleware.engines.forms import rename_form
from sage.middleware.engines.http import JSON, HttpPool
from sage.middleware.engines.media import MediaAnswer
from sage.middleware.engines.port import (
    CHAT,
    DETOKENIZE,
    EMBEDDINGS,
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
from sage.middleware.engines.sse import Splitter, data_of, decoded, usage_of

__all__ = [
    "Dialect",
    "HttpEngine",
    "PassThrough",
    "PassThroughDialect",
    "Translator",
    "rename",
    "splice",
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
        self._pool = pool
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
        try:
            path, headers = self._paths[call.route], self.headers(call)
            kind = call.content_type or JSON
            retry_after = await self._pool.request(
                "POST", path, receiver, body=body, headers=headers, content_type=kind
            )
            if receiver.status // 100 != 2:
                refusal = _Refusal(receiver.status, receiver.joined(), retry_after)
                raise _refused(self._spec.name, call.route, refusal)
            return receiver.finish()
        except UpstreamError as error:
            _log.warning("engine %s: %s %s", self._spec.name, error.message, error.told)
            raise

    def headers(self, call: Call) -> Mapping[str, str]:
        """What goes with this call; for an adapter that adds to it."""
        return {**self._headers, HEADER_TRACE: call.trace} if call.trace else self._headers

    async def ready(self) -> bool:
        """Whether its health page answers 200."""
        answer = Answer()
        try:
            await self._pool.request("GET", self._ready_path, answer, headers=self._headers)
        except SageError:
            return False
        return answer.status == 200

    async def close(self) -> None:
        """Close idle connections."""
        self._pool.close()
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


# ---- OpenAI's own dialect ----------------------------------------------------------------------------------


def splice(body: bytes, **fields: Any) -> bytes:
    """Replace or add top-level fields of a JSON object; the other values keep their very bytes."""
    try:
        top = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    except msgspec.DecodeError as error:
        raise BadRequestError(f"The body is not a JSON object: {error}.") from error
    return msgspec.json.encode({**top, **fields})


def rename(call: Call, model: str) -> bytes:
    """The body of a call for a model of that name, JSON or a form; all other bytes as they are."""
    if call.content_type:
        return rename_form(call.body, call.content_type, model)
    return splice(call.body, model=model)


class _Options(msgspec.Struct):
    stream_options: dict[str, Any] | None = None


_OPTIONS = msgspec.json.Decoder(_Options)


class PassThroughDialect:
    """Bodies go through unchanged but for `model` and, in a stream, `stream_options`.

    `model`: the engine's own name of it; empty where that is the one that clients use.
    """

    def __init__(self, model: str = "") -> None:
        self._own: dict[str, Any] = {"model": model} if model else {}

    async def encode(self, call: Call) -> bytes:
        """Name the engine's own model and ask for usage."""
        own = self._own
        if call.content_type:
            return rename(call, own["model"]) if own else call.body
        if call.stream and call.route is not EMBEDDINGS and not call.include_usage:
            options = _OPTIONS.decode(call.body).stream_options or {}
            own = {**own, "stream_options": {**options, "include_usage": True}}
        return splice(call.body, **own) if own else call.body

    def streams(self, call: Call) -> bool:
        """As the client asked."""
        return call.stream

    def translator(self, call: Call) -> PassThrough | NativeStream:
        """Hide the usage chunk of a chat unless the client asked for it; other dialects have none."""
        ends = None if call.route is CHAT else NATIVE.get(call.route)
        if ends is not None:
            return NativeStream(ends)
        return PassThrough(hide_usage=not call.include_usage)


class _Chunk(msgspec.Struct):
    choices: list[msgspec.Raw] = []
    error: Any = None


_CHUNK = msgspec.json.Decoder(_Chunk)
# In a JSON string every quote is escaped, so that generated text cannot look like the first two.
_SPECIAL = re.compile(rb'"usage"\s*:\s*\{|"error"\s*:\s*[^n\s]|\[DONE\]')


def _is_special(events: bytes) -> bool:
    """Whether there may be something to look at: the words alone are quicker to look for than the pattern."""
    if b'"usage"' in events or b'"error"' in events or b"[DONE]" in events:
        return _SPECIAL.search(events) is not None
    return False


class PassThrough:
    """Bytes in, the same bytes out, but for the usage chunk. Only that one, errors and the end are parsed."""

    def __init__(self, *, hide_usage: bool) -> None:
        self.usage = Usage()
        self._hide_usage = hide_usage
        self._splitter = Splitter()
        self._done = False

    def feed(self, chunk: bytes) -> bytes:
        """Pass on; whole events without anything to look at are not even copied."""
        if not self._splitter.rest and chunk.endswith(b"\n\n") and not _is_special(chunk):
            return chunk
        return b"".join(map(self._event, self._splitter.feed(chunk)))

    def close(self) -> bytes:
        """Raises EngineError unless `[DONE]` has come."""
        rest = b"".join(map(self._event, self._splitter.close()))
        if not self._done:
            raise EngineError("The engine's stream ended before `[DONE]`.")
        return rest

    def _event(self, event: bytes) -> bytes:
        if self._done:
            return b""  # nothing may follow the end
        if not _is_special(event):
            return event
        data = data_of(event)
        if data == b"[DONE]":
            self._done = True
            return event
        chunk = decoded(_CHUNK, data)
        if chunk.error is not None:
            raise UpstreamError("The engine failed in the middle of its answer.", complaint_of(data).words)
        usage = usage_of(data)
        if usage is None:
            return event
        self.usage = usage
        return b"" if self._hide_usage and not chunk.choices else event
