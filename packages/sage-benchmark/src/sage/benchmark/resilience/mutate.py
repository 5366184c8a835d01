"""Requests that are nearly right: valid ones with a few things wrong. Pure: the dice are given."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final

__all__ = ["Draft", "mutated", "valid"]

LONG: Final = 9000  # bytes: more than a header or a request line may have
DEEP: Final = 200  # arrays in arrays
MESSAGES: Final = [{"role": "user", "content": "hello"}]
BODIES: Final[tuple[tuple[str, dict[str, Any]], ...]] = (
    ("/v1/chat/completions", {"model": "llm", "messages": MESSAGES, "max_tokens": 8, "stream": True}),
    ("/v1/chat/completions", {"model": "llm", "messages": MESSAGES, "tools": [], "n": 1, "temperature": 0.5}),
    ("/v1/completions", {"model": "llm", "prompt": "hello", "max_tokens": 8}),
    ("/v1/embeddings", {"model": "vectors", "input": ["a", "b"], "encoding_format": "float"}),
    ("/v1/rerank", {"model": "llm", "query": "a", "documents": ["b", "c"], "top_n": 1}),
    ("/v1/score", {"model": "llm", "text_1": "a", "text_2": ["b"]}),
    ("/v1/tokenize", {"model": "llm", "prompt": "hello"}),
    ("/v1/detokenize", {"model": "llm", "tokens": [1, 2]}),
)
_ODD_VALUES: Final[tuple[str, ...]] = (
    *("null", "true", "-1", "0", "1e999", "NaN", "Infinity", "123456789012345678901234567890", "1.5", '""'),
    *("[]", "{}", '"\\ud800"', '"\\u0000"', "[" * DEEP + "]" * DEEP, '{"a": 1, "a": 2}', '[null, "x", 3]'),
    json.dumps("x" * 100_000),
)
_ODD_BYTES: Final[tuple[bytes, ...]] = (
    *(
        b"\r\n",
        b"\r\n\r\n",
        b"\n",
        b"\r",
        b"\0",
        b"\xff\xfe",
        b" ",
        b"\t",
        b":",
        b",",
        b'"',
        b"{",
        b"%00",
        b"../",
    ),
    b"x" * LONG,
    "\u202e\u00e9".encode(),
)
_ODD_HEADERS: Final[tuple[tuple[str, str], ...]] = (
    *(
        ("transfer-encoding", value)
        for value in ("chunked", "gzip, chunked", "identity", " chunked", "chunked, chunked")
    ),
    *(
        ("content-length", value)
        for value in ("0", "5", "-1", "+4", "0x10", "4, 4", "99999999999999999999", "")
    ),
    *(("expect", "100-continue"), ("expect", "200-ok"), ("connection", "upgrade"), ("connection", "close")),
    *(("upgrade", "websocket"), ("host", "elsewhere.example"), ("origin", "http://elsewhere.example")),
    *(("content-type", "text/plain"), ("content-encoding", "gzip"), ("authorization", "Bearer wrong")),
    *(
        ("authorization", "Basic Og=="),
        ("x-api-key", "sk-sage-x.y"),
        ("x-request-id", "a b"),
        ("range", "bytes=0-"),
    ),
    *(
        (f"x-sage-{name}", value)
        for name in ("class", "deadline-ms", "priority", "slo-ttft-ms", "tenant", "parent")
        for value in ("batch", "-5", "nan", "1e309", "x" * 300)
    ),
)
_METHODS: Final = ("GET", "PUT", "DELETE", "HEAD", "OPTIONS", "TRACE", "CONNECT", "PATCH", "post", "BREW")
_TARGETS: Final = (
    *(
        "/",
        "/v1/models",
        "/v1/models/llm",
        "/v1/models/%2e%2e",
        "/v1/models/\u00e9",
        "*",
        "http://a/v1/models",
        "/v1//models",
    ),
    *("/v1/models?x=%zz", "/openapi.json", "/admin/v1/keys", "/metrics", "//", "/" + "a" * LONG),
)
_VERSIONS: Final = ("HTTP/1.0", "HTTP/1.1", "HTTP/2.0", "HTTP/0.9", "HTTP/1.1 ", "http/1.1")


@dataclass(frozen=True, slots=True)
class Draft:
    """A request in parts. `chunks`: the sizes in which its body is sent, where that is chunked."""

    method: str
    target: str
    version: str
    headers: tuple[tuple[str, str], ...]
    body: bytes
    chunks: tuple[int, ...] = ()

    def raw(self) -> bytes:
        """As it goes over the wire."""
        lines = [
            f"{self.method} {self.target} {self.version}",
            *(f"{name}: {value}" for name, value in self.headers),
        ]
        head = "\r\n".join([*lines, "", ""]).encode("utf-8", "surrogateescape")
        if not self.chunks:
            return head + self.body
        parts, at = [head], 0
        for size in self.chunks:
            piece = self.body[at : at + size]
            parts.append(b"%x\r\n%b\r\n" % (len(piece), piece) if piece else b"")
            at += size
        return b"".join([*parts, b"0\r\n\r\n"])


def valid(dice: random.Random, port: int, key: str) -> Draft:
    """A request that is right, though not every model here can do it."""
    path, fields = dice.choice(BODIES)
    return _with_body(Draft("POST", path, "HTTP/1.1", _headers(port, key), b""), json.dumps(fields).encode())


def _headers(port: int, key: str) -> tuple[tuple[str, str], ...]:
    return (
        ("host", f"127.0.0.1:{port}"),
        ("authorization", f"Bearer {key}"),
        ("content-type", "application/json"),
    )


def _with_body(draft: Draft, body: bytes) -> Draft:
    kept = tuple(one for one in draft.headers if one[0] != "content-length")
    return replace(draft, body=body, headers=(*kept, ("content-length", str(len(body)))))


# ---- what may be wrong ----


def _value(dice: random.Random, draft: Draft) -> Draft:
    """One value of the body is another."""
    try:
        fields = json.loads(draft.body)
        name = dice.choice([*fields, "extra"])
    except (ValueError, TypeError):
        return draft
    fields[name] = "@odd@"
    return _with_body(draft, json.dumps(fields).replace('"@odd@"', dice.choice(_ODD_VALUES)).encode())


def _missing(dice: random.Random, draft: Draft) -> Draft:
    """One header is not there."""
    at = dice.randrange(len(draft.headers))
    return replace(draft, headers=draft.headers[:at] + draft.headers[at + 1 :])


def _header(dice: random.Random, draft: Draft) -> Draft:
    """One header more, or in place of the one of that name."""
    name, value = dice.choice(_ODD_HEADERS)
    kept = draft.headers if dice.random() < 0.5 else tuple(one for one in draft.headers if one[0] != name)
    at = dice.randint(0, len(kept))
    return replace(draft, headers=(*kept[:at], (name, value), *kept[at:]))


def _line(dice: random.Random, draft: Draft) -> Draft:
    """Another method, target or version."""
    which = dice.randrange(3)
    if which == 0:
        return replace(draft, method=dice.choice(_METHODS))
    return (
        replace(draft, target=dice.choice(_TARGETS))
        if which == 1
        else replace(draft, version=dice.choice(_VERSIONS))
    )


def _chunked(dice: random.Random, draft: Draft) -> Draft:
    """The body comes in chunks."""
    kept = tuple(one for one in draft.headers if one[0] != "content-length")
    sizes = tuple(dice.randint(1, 40) for _ in range(len(draft.body) // 10 + 1))
    return replace(draft, headers=(*kept, ("transfer-encoding", "chunked")), chunks=sizes)


def _bytes(dice: random.Random, raw: bytes) -> bytes:
    """Somewhere bytes are changed, lost, doubled or put in."""
    at, end = sorted((dice.randrange(len(raw)), dice.randrange(len(raw))))
    kind = dice.randrange(5)
    if kind == 0:
        return raw[:at] + bytes([raw[at] ^ (1 << dice.randrange(8))]) + raw[at + 1 :]
    if kind == 1:
        return raw[:at] + raw[min(end, at + 20) :]
    if kind == 2:
        return raw[:end] + raw[at:end] + raw[end:]
    if kind == 3:
        return raw[: max(1, at)]
    return raw[:at] + dice.choice(_ODD_BYTES) + raw[at:]


_PARTS: Final[tuple[Callable[[random.Random, Draft], Draft], ...]] = (
    _value,
    _value,
    _missing,
    _header,
    _line,
    _chunked,
)


def mutated(dice: random.Random, port: int, key: str) -> bytes:
    """A request with one to three things wrong, sometimes with another one behind it."""
    draft = valid(dice, port, key)
    for _ in range(dice.randint(1, 3)):
        if draft.headers:
            draft = dice.choice(_PARTS)(dice, draft)
    raw = draft.raw()
    if dice.random() < 0.3:
        raw = _bytes(dice, raw)
    if dice.random() < 0.1:
        raw += valid(dice, port, key).raw()
    return raw
