"""Server-sent events, incrementally: where an event ends, what it carries, what tokens were used. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from typing import TypeVar

import msgspec

from sage.common.errors import EngineError
from sage.common.telemetry import Bound
from sage.middleware.engines.faults import UpstreamError
from sage.middleware.engines.port import Usage
from sage.middleware.native import uses_native

__all__ = ["DONE", "MAX_EVENT_BYTES", "Splitter", "Tokens", "data_of", "decoded", "usage_of"]

MAX_EVENT_BYTES = 1024 * 1024
DONE = b"data: [DONE]\n\n"

_T = TypeVar("_T")
_END = re.compile(rb"\n\r?\n")


class Splitter:
    """Cuts a byte stream into whole events; any split of the same bytes gives the same events.

    Lines end in LF or CRLF. Joined together the events are the bytes that went in. `rest`: the part of an
    event that is held back.
    """

    __slots__ = ("_most", "rest")

    def __init__(self, most: int = MAX_EVENT_BYTES) -> None:
        """`most`: bytes of one event."""
        self.rest = bytearray()
        self._most = most

    def feed(self, chunk: bytes) -> list[bytes]:
        """The events that `chunk` completes, with blank lines. Raises EngineError for a large one."""
        rest = self.rest
        search = max(0, len(rest) - 2)  # an end may begin in what was held back
        rest += chunk
        events: list[bytes] = []
        start = 0
        while (end := _END.search(rest, max(search, start))) is not None:
            self._check(end.end() - start)
            events.append(bytes(rest[start : end.end()]))
            start = end.end()
        del rest[:start]
        self._check(len(rest))
        return events

    def close(self) -> list[bytes]:
        """The last event, if the stream ended without its blank line."""
        rest = bytes(self.rest)
        self.rest.clear()
        return [rest.rstrip(b"\r\n") + b"\n\n"] if rest.strip() else []

    def _check(self, size: int) -> None:
        if size > self._most:
            raise EngineError(
                f"The engine sent an event of more than {self._most} bytes.", bound=Bound.EVENT_BYTES
            )


def data_of(event: bytes) -> bytes:
    """The data of one event: its `data:` lines joined by LF; empty for a comment."""
    if event.startswith(b"data: ") and event.find(b"\n") >= len(event) - 4:  # one line, the usual form
        return event[6:].rstrip(b"\r\n")
    lines = []
    for line in event.split(b"\n"):
        name, colon, value = line.rstrip(b"\r").partition(b":")
        if name == b"data":
            lines.append(value.removeprefix(b" ") if colon else b"")
    return b"\n".join(lines)


def decoded(decoder: msgspec.json.Decoder[_T], data: bytes) -> _T:
    """The data of an event as `decoder` has it. Raises EngineError for what cannot be read."""
    try:
        return decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UpstreamError("The engine's stream cannot be read.", str(error)) from error


class Tokens(msgspec.Struct):
    """Tokens by either of the two names that they have; by Anthropic's, a cache's are counted beside."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_creation_input_tokens: int | None = None
    cache_read_input_tokens: int | None = None

    @property
    def usage(self) -> Usage:
        """They, as they are counted here."""
        cached = (self.cache_creation_input_tokens or 0) + (self.cache_read_input_tokens or 0)
        prompt = self.prompt_tokens or (self.input_tokens or 0) + cached
        return Usage(prompt, self.completion_tokens or self.output_tokens or 0)


class _HasUsage(msgspec.Struct):
    usage: Tokens | None = None


_USAGE = msgspec.json.Decoder(_HasUsage)


@cache
def _reader() -> Callable[[bytes], Usage | None] | None:
    """Reads nearly all of them, in one native step."""
    if not uses_native():
        return None
    from sage.middleware import _native

    return _native.read_usage


def usage_of(body: bytes) -> Usage | None:
    """The `usage` of a chunk or of a whole JSON answer; None when it has none.

    Raises EngineError when `body` is not a JSON object or its usage is not made of integers.
    """
    plain = _reader()
    if plain is not None and (usage := plain(body)) is not None:
        return usage
    try:
        found = _USAGE.decode(body).usage
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UpstreamError("The engine's answer cannot be read.", str(error)) from error
    return None if found is None else found.usage
