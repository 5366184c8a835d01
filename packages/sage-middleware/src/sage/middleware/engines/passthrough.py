"""The dialect of engines that speak OpenAI's as it is: bytes in, the same bytes out."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from sage.common.errors import BadRequestError, EngineError
from sage.middleware.engines.dialects.native import NATIVE, NativeStream
from sage.middleware.engines.faults import UpstreamError, complaint_of
from sage.middleware.engines.forms import rename_form
from sage.middleware.engines.port import CHAT, EMBEDDINGS, Call, Usage
from sage.middleware.engines.sse import Splitter, data_of, decoded, usage_of

__all__ = ["PassThrough", "PassThroughDialect", "rename", "splice"]


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

    def plain(self, call: Call) -> bytes | None:
        """The body of what is no stream and no form."""
        if call.stream or call.content_type:
            return None
        return splice(call.body, **self._own) if self._own else call.body

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
