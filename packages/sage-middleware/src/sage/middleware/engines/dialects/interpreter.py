"""An engine that is asked in dialects which it does not speak: both ways are translated."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Final, Protocol

import msgspec
from msgspec import structs

from sage.common.errors import BadRequestError
from sage.middleware.engines.dialects import messages_chat, responses_chat
from sage.middleware.engines.dialects.chat import Chunk, read_chunk
from sage.middleware.engines.dialects.messages_answer import MessagesScribe, count_of, message_of
from sage.middleware.engines.dialects.responses_answer import ResponsesScribe, response_of
from sage.middleware.engines.dialects.responses_body import read_responses
from sage.middleware.engines.port import (
    CHAT,
    COUNT_TOKENS,
    MESSAGES,
    RESPONSES,
    TOKENIZE,
    Begun,
    Call,
    Capability,
    Engine,
    EngineSpec,
    Route,
    Sink,
    Usage,
)
from sage.middleware.engines.sse import Splitter, data_of

__all__ = ["Interpreter", "Scribe", "StreamSink", "WholeSink"]

_SPOKEN: Final[Mapping[Route, Capability]] = {
    MESSAGES: Capability.MESSAGES,
    RESPONSES: Capability.RESPONSES,
}


class Scribe(Protocol):
    """Writes the events of one stream from the chunks of a chat."""

    def feed(self, chunk: Chunk) -> bytes:
        """The events that a chunk makes. Raises EngineError."""
        ...

    def close(self) -> bytes:
        """The last events. Raises EngineError for a stream that is not whole."""
        ...


class Interpreter:
    """Wraps an engine. Fits `Engine`. A call by a route that the engine has goes to it as it is."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @property
    def spec(self) -> EngineSpec:
        """See the port."""
        return self._engine.spec

    def send(self, call: Call, sink: Sink) -> Coroutine[Any, Any, Usage]:
        """See the port. Raises BadRequestError, too, for what a chat cannot carry."""
        route = call.route
        if route is CHAT:
            return self._engine.send(call, sink)
        if route is COUNT_TOKENS:
            return self._count(call, sink)
        spoken = _SPOKEN.get(route)
        if spoken is None or spoken in self._engine.spec.capabilities:
            return self._engine.send(call, sink)
        return self._translate(call, sink)

    def begin(self, call: Call, told: Callable[[Usage | Exception], None]) -> Begun | None:
        """See the port. What has to be translated is awaited."""
        return None if call.route in _SPOKEN else self._engine.begin(call, told)

    async def ready(self) -> bool:
        """See the port."""
        return await self._engine.ready()

    async def close(self) -> None:
        """See the port."""
        await self._engine.close()

    async def _translate(self, call: Call, sink: Sink) -> Usage:
        fields = msgspec.json.decode(call.body)
        ident, now = secrets.token_hex(16), int(time.time())
        scribe: Scribe
        if call.route is MESSAGES:
            chat, ident, model = messages_chat.chat_of(fields), f"msg_{ident}", fields["model"]
            scribe = MessagesScribe(ident, model)
            whole = WholeSink(sink, lambda answer: message_of(ident, model, answer))
        else:
            chat, ident, body = responses_chat.chat_of(fields), f"resp_{ident}", read_responses(fields)
            scribe = ResponsesScribe(ident, body, now)
            whole = WholeSink(sink, lambda answer: response_of(ident, body, now, answer))
        asked = structs.replace(call, route=CHAT, body=msgspec.json.encode(chat), include_usage=call.stream)
        return await self._ask(asked, StreamSink(sink, scribe) if call.stream else whole)

    async def _count(self, call: Call, sink: Sink) -> Usage:
        body = msgspec.json.encode(messages_chat.tokenize_of(msgspec.json.decode(call.body)))
        return await self._ask(structs.replace(call, route=TOKENIZE, body=body), WholeSink(sink, count_of))

    async def _ask(self, call: Call, sink: Sink) -> Usage:
        try:
            return await self._engine.send(call, sink)
        except BadRequestError as error:  # in the words of a chat, whose messages have other places
            field = (error.param or "").partition(".")[0].partition("[")[0]
            raise BadRequestError(
                f"As a chat it cannot be served: {error.message}", hint=error.hint, param=field or None
            ) from error


class WholeSink:
    """Collects a whole answer, and passes on what `translate` makes of it. Fits `Sink`."""

    full = False

    def __init__(self, sink: Sink, translate: Callable[[bytes], bytes]) -> None:
        self._sink = sink
        self._translate = translate
        self._parts: list[bytes] = []

    def head(self, status: int, content_type: str) -> None:
        """Nothing goes out before the answer is whole."""

    def data(self, chunk: bytes) -> None:
        """Keep it."""
        self._parts.append(chunk)

    def end(self) -> None:
        """Translate and pass on. Raises EngineError for an answer that cannot be read."""
        answer = self._translate(b"".join(self._parts))
        self._sink.head(200, "application/json")
        self._sink.data(answer)
        self._sink.end()

    async def drain(self) -> None:
        """Nothing to wait for."""


class StreamSink:
    """Passes on the events that `scribe` writes. Fits `Sink`."""

    def __init__(self, sink: Sink, scribe: Scribe) -> None:
        self._sink = sink
        self._scribe = scribe
        self._splitter = Splitter()

    def head(self, status: int, content_type: str) -> None:
        """Pass it on."""
        self._sink.head(status, content_type)

    def data(self, chunk: bytes) -> None:
        """Translate the events that are whole. Raises EngineError for one that cannot be read."""
        self._pass(self._splitter.feed(chunk))

    def end(self) -> None:
        """Write the last events. Raises EngineError for a stream that is not whole."""
        self._pass(self._splitter.close())
        self._sink.data(self._scribe.close())
        self._sink.end()

    @property
    def full(self) -> bool:
        """Whether the reader is slower than the engine."""
        return self._sink.full

    async def drain(self) -> None:
        """Wait for the reader."""
        await self._sink.drain()

    def _pass(self, events: list[bytes]) -> None:
        out = b""
        for event in events:
            data = data_of(event)
            if data and data != b"[DONE]":
                out += self._scribe.feed(read_chunk(data))
        if out:
            self._sink.data(out)
