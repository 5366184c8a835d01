"""Sound and pictures from an engine: passed on as they come, by the type that the engine gives them.

Whether such an answer is whole is told by HTTP alone: sound has no last event.
"""

from __future__ import annotations

import re
from typing import Any, Final

import msgspec

from sage.common.errors import EngineError
from sage.middleware.engines.answer import Answer
from sage.middleware.engines.faults import UpstreamError, complaint_of
from sage.middleware.engines.port import Call, Sink, Usage
from sage.middleware.engines.sse import Splitter, Tokens, data_of, decoded, usage_of

__all__ = ["MediaAnswer", "is_events", "safe_type"]

MAX_EVENT_BYTES: Final = 32 * 1024 * 1024  # a picture is one event
_JSON: Final = "application/json"
_EVENTS: Final = "text/event-stream"
_BYTES: Final = "application/octet-stream"
_KNOWN: Final = frozenset((_JSON, _EVENTS, "application/x-subrip", "text/plain", "text/srt", "text/vtt"))
# In a JSON string every quote is escaped, so that text cannot look like one of these.
_SPECIAL: Final = re.compile(rb'"usage"\s*:\s*\{|"error"\s*:\s*[^n\s]|"type"\s*:\s*"error"')


def is_events(content_type: str) -> bool:
    """Whether it is a stream of events, in which a fault can be told."""
    return content_type.startswith(_EVENTS)


def safe_type(content_type: str) -> str:
    """The type that an answer goes out with: what is neither sound nor data is never shown as what it says.

    Servers send plain transcripts as `text/html`, which a browser would run.
    """
    media = content_type.partition(";")[0].strip().lower()
    kind = media.partition("/")[0]
    if media in _KNOWN or kind in ("audio", "video"):
        return content_type
    return "text/plain; charset=utf-8" if kind == "text" else _BYTES


class MediaAnswer(Answer):
    """One answer. A stream reaches the sink byte for byte, anything else when it is whole."""

    __slots__ = ("_begun", "_events", "_sink", "_stream", "_type")

    def __init__(self, call: Call, sink: Sink) -> None:
        super().__init__()
        self._stream = call.stream
        self._sink = sink
        self._type = ""
        self._events: _Events | None = None
        self._begun = False

    def head(self, status: int, content_type: str) -> None:
        """Remember it; it goes out with the first bytes."""
        super().head(status, content_type)
        self._type = safe_type(content_type)
        self._events = _Events() if self._stream and is_events(self._type) else None

    def data(self, chunk: bytes) -> None:
        """Pass on, or keep. Raises EngineError for an event that says one."""
        if self.status != 200 or not self._stream:
            super().data(chunk)
        elif out := chunk if self._events is None else self._events.feed(chunk):
            self._pass(out)

    @property
    def full(self) -> bool:  # type: ignore[override]
        """Whether the reader is slower than the engine."""
        return self._stream and self._sink.full

    async def drain(self) -> None:
        """Wait for the reader."""
        await self._sink.drain()

    def finish(self) -> Usage:
        """The rest. Raises EngineError for a stream of nothing, or JSON that is none."""
        usage = Usage()
        if self._events is not None:
            if rest := self._events.close():
                self._pass(rest)
            usage = self._events.usage
        elif not self._stream:
            body = self.joined()
            if self._type.startswith(_JSON):
                usage = usage_of(body) or usage
            self._pass(body)  # of silence the text is empty
        if not self._begun:
            raise EngineError("The engine answered with nothing.")
        self._sink.end()
        return usage

    def _pass(self, out: bytes) -> None:
        if not self._begun:
            self._begun = True
            self._sink.head(200, self._type)
        self._sink.data(out)


class _Told(msgspec.Struct):
    type: str = ""
    error: Any = None
    usage: Tokens | None = None


_TOLD: Final = msgspec.json.Decoder(_Told)


class _Events:
    """Whole events in, the same bytes out. Only errors and the tokens used are looked at."""

    def __init__(self) -> None:
        self.usage = Usage()
        self._splitter = Splitter(MAX_EVENT_BYTES)

    def feed(self, chunk: bytes) -> bytes:
        return b"".join(map(self._event, self._splitter.feed(chunk)))

    def close(self) -> bytes:
        return b"".join(map(self._event, self._splitter.close()))

    def _event(self, event: bytes) -> bytes:
        if _SPECIAL.search(event) is None:
            return event
        data = data_of(event)
        told = decoded(_TOLD, data)
        if told.error is not None or told.type == "error":
            raise UpstreamError("The engine failed in the middle of its answer.", complaint_of(data).words)
        if told.usage is not None:
            self.usage = told.usage.usage
        return event
