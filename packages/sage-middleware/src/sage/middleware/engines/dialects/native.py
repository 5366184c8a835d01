"""Streams of engines that speak a dialect themselves: the same bytes out, the tokens counted. Pure.

But for one event: vLLM tells of a response that it has cut short as completed, and clients go by that name.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

from sage.common.errors import EngineError
from sage.middleware.engines.faults import UpstreamError, complaint_of
from sage.middleware.engines.port import MESSAGES, Route, Usage
from sage.middleware.engines.sse import Splitter, Tokens, data_of, decoded

__all__ = ["NATIVE", "NativeStream"]


class _Holder(msgspec.Struct):
    usage: Tokens | None = None
    status: str | None = None


class _Event(_Holder):
    """What is looked at. The tokens are in the event, in its message or in its response."""

    type: str = ""
    message: _Holder | str | None = None
    response: _Holder | None = None


_EVENT: Final = msgspec.json.Decoder(_Event)
_MESSAGES: Final = frozenset(("message_stop",))
_RESPONSES: Final = frozenset(("response.completed", "response.incomplete"))
_FAILED: Final = frozenset(("error", "response.failed"))
# In a JSON string every quote is escaped, so that generated text cannot look like one of these.
_SPECIAL: Final = re.compile(
    rb'"type"\s*:\s*"(?:message_start|message_delta|message_stop|error|response\.(?:completed|incomplete|failed))"'
)

_COMPLETED: Final = re.compile(rb'(^event:\s*|"type"\s*:\s*")response\.completed(?=["\r\n])', re.MULTILINE)

NATIVE: Final = {MESSAGES: _MESSAGES, Route.RESPONSES: _RESPONSES}
"""The events that end a stream, by route."""


class NativeStream:
    """One stream. `ends`: the types of its last event. Only events that say something of it are parsed."""

    def __init__(self, ends: frozenset[str]) -> None:
        self.usage = Usage()
        self._ends = ends
        self._splitter = Splitter()
        self._done = False

    def feed(self, chunk: bytes) -> bytes:
        """Pass on; whole events without anything to look at are not even copied. Raises EngineError."""
        if self._plain(chunk):
            return chunk
        return b"".join(map(self._pass, self._splitter.feed(chunk)))

    def close(self) -> bytes:
        """Raises EngineError unless the last event has come."""
        rest = b"".join(map(self._pass, self._splitter.close()))
        if not self._done:
            raise EngineError("The engine's stream ended before its last event.")
        return rest

    def _plain(self, chunk: bytes) -> bool:
        whole = not self._splitter.rest and chunk.endswith(b"\n\n")
        return whole and not self._done and _SPECIAL.search(chunk) is None

    def _pass(self, event: bytes) -> bytes:
        if self._done:
            return b""  # nothing may follow the end
        if _SPECIAL.search(event) is None:
            return event
        data = data_of(event)
        found = decoded(_EVENT, data)
        if found.type in _FAILED:
            raise UpstreamError("The engine failed in the middle of its answer.", complaint_of(data).words)
        for holder in (found.message, found, found.response):
            if isinstance(holder, _Holder) and holder.usage is not None:
                self._count(holder.usage.usage)
        self._done = found.type in self._ends
        if self._done and found.response is not None and found.response.status == "incomplete":
            return _COMPLETED.sub(rb"\1response.incomplete", event)
        return event

    def _count(self, usage: Usage) -> None:
        """Later counts hold all of the earlier ones; those of the prompt may be told once."""
        self.usage = Usage(usage.prompt_tokens or self.usage.prompt_tokens, usage.completion_tokens)
