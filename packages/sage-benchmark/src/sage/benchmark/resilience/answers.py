"""What a puppet engine answers: right answers as OpenAI forms them, and wrong ones."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, Final

import msgspec

__all__ = ["NONSENSE", "event", "framed", "head", "parts", "vector", "vectors", "whole"]

DIMENSIONS: Final = 8
OVERSIZE: Final = 2 * 1024 * 1024  # an event may have 1 MiB


def head(status: int, content_type: str, *more: str) -> bytes:
    """A status line and headers, to their end."""
    lines = (f"HTTP/1.1 {status} {HTTPStatus(status).phrase}", f"content-type: {content_type}", *more)
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def whole(body: bytes, status: int = 200) -> bytes:
    """An answer with its length."""
    return head(status, "application/json", f"content-length: {len(body)}") + body


def framed(data: bytes) -> bytes:
    """One chunk of a chunked body."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def event(name: str, choices: list[dict[str, Any]], **more: Any) -> bytes:
    """One event of a stream; `name` is the engine's."""
    chunk = {"id": name, "object": "chat.completion.chunk", "created": 0, "model": "llm", "choices": choices}
    return b"data: " + msgspec.json.encode({**chunk, **more}) + b"\n\n"


def parts(name: str, words: int, *, stream: bool) -> list[bytes]:
    """The body of an answer: a stream's events, or all of a plain one."""
    usage = {"prompt_tokens": 4, "completion_tokens": words, "total_tokens": 4 + words}
    spoken = [f"word{number} " for number in range(words)]
    if not stream:
        message = {"role": "assistant", "content": "".join(spoken)}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        fields = {"id": name, "object": "chat.completion", "created": 0, "model": "llm"}
        return [msgspec.json.encode({**fields, "choices": [choice], "usage": usage})]
    pieces = [
        event(name, [{"index": 0, "delta": {"content": word}, "finish_reason": None}]) for word in spoken
    ]
    last = event(name, [{"index": 0, "delta": {}, "finish_reason": "stop"}])
    return [*pieces, last, event(name, [], usage=usage), b"data: [DONE]\n\n"]


def vector(text: str) -> list[float]:
    """A vector that depends on the text alone."""
    return [byte / 256 for byte in hashlib.shake_256(text.encode()).digest(DIMENSIONS)]


def vectors(texts: list[str]) -> bytes:
    """The body that answers an embedding request."""
    data = [{"object": "embedding", "index": at, "embedding": vector(one)} for at, one in enumerate(texts)]
    usage = {"prompt_tokens": len(texts), "total_tokens": len(texts)}
    return msgspec.json.encode({"object": "list", "data": data, "model": "vectors", "usage": usage})


# ---- what an engine should not say -------------------------------------------------------------------------

_STREAM: Final = head(200, "text/event-stream", "transfer-encoding: chunked")
_PLAIN: Final = whole(parts("puppet", 3, stream=False)[0])
_WORD: Final = event("puppet", [{"index": 0, "delta": {"content": "word"}, "finish_reason": None}])


def _lengths(*lengths: int) -> bytes:
    return head(200, "application/json", *(f"content-length: {length}" for length in lengths)) + b"{}{}{}"


def _late(wrong: bytes) -> bytes:
    return _STREAM + framed(_WORD) + wrong


_BIG: Final = framed(b"data: " + b"x" * OVERSIZE)

# By name: the bytes, and whether they are a stream of which a part is right.
NONSENSE: Final[dict[str, Callable[[], bytes]]] = {
    "no http": lambda: b"SSH-2.0-OpenSSH_9.9\r\n\r\n",
    "two lengths": lambda: _lengths(2, 4),
    "negative length": lambda: _lengths(-1),
    "length and chunks": lambda: (
        head(200, "application/json", "content-length: 2", "transfer-encoding: chunked") + b"{}"
    ),
    "broken chunk": lambda: head(200, "application/json", "transfer-encoding: chunked") + b"zz\r\n{}\r\n",
    "endless head": lambda: b"HTTP/1.1 200 OK\r\nx: " + b"x" * 100_000,
    "no json": lambda: whole(b"<html>busy</html>"),
    "short body": lambda: head(200, "application/json", "content-length: 900") + b'{"id": "',
    "no answer": lambda: b"",
    "second answer": lambda: _PLAIN + whole(b'{"stolen": true}'),
    "oversized event": lambda: _STREAM + _BIG,
    "broken utf-8": lambda: _STREAM + framed(b'data: {"error": "\xff"}\n\n') + b"0\r\n\r\n",
    "no end": lambda: _STREAM + b"0\r\n\r\n",
    "late oversized event": lambda: _late(_BIG),
    "late broken chunk": lambda: _late(b"zz\r\n"),
    "late error": lambda: _late(framed(b'data: {"error": {"message": "my secret"}}\n\n') + b"0\r\n\r\n"),
    "late no end": lambda: _late(b"0\r\n\r\n"),
    "late cut": lambda: _late(b""),
}
