"""What plain bodies say, read by the native scanner in one call. Pure.

Nearly all bodies are plain: within every bound, each field of its kind, nothing twice. Whatever is not, valid
or not, is left to the readers in `bodies`, which say what is wrong with it; what both read they read alike.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Final, NamedTuple

from sage.middleware.control_plane.facts import Facts, Parsed, ParseLimits, batch_key, estimate
from sage.middleware.engines.port import CHAT, EMBEDDINGS, Capability, Route
from sage.middleware.native import uses_native

__all__ = ["parse_chat", "parse_embedding", "read_plain"]

# By what each bit of `needs` stands for in cpp/sage/requests.hpp.
_BITS: Final = (
    Capability.N,
    Capability.LOGPROBS,
    Capability.RESPONSE_FORMAT,
    Capability.TOOLS,
    Capability.TOOL_CHOICE,
)
CHAT_NEEDS: Final = [
    frozenset((Capability.CHAT, *(need for bit, need in enumerate(_BITS) if needs >> bit & 1)))
    for needs in range(1 << len(_BITS))
]
EMBEDDING_NEEDS: Final = frozenset((Capability.EMBEDDINGS,))


class _Readers(NamedTuple):
    """See `_native`."""

    chat: Callable[[bytes, bool], tuple[str, bool, bool, int | None, int, tuple[int, ...]] | None]
    whole_chat: Callable[[bytes, str, str, bool], Parsed | None]
    whole_embedding: Callable[[bytes, str, str, int, int], Parsed | None]
    embedding: Callable[[bytes], tuple[str, int, int, str, int | None, bool] | None]


@cache
def _readers() -> _Readers | None:
    if not uses_native():
        return None
    from sage.middleware import _native

    return _Readers(_native.read_chat, _native.parse_chat, _native.parse_embedding, _native.read_embedding)


def parse_chat(body: bytes, ident: str, tenant: str, *, blocks: bool) -> Parsed | None:
    """All that a plain chat asks for whose headers wish for nothing; None as of `read_plain`."""
    readers = _readers()
    return None if readers is None else readers.whole_chat(body, ident, tenant, blocks)


def parse_embedding(body: bytes, ident: str, tenant: str, limits: ParseLimits) -> Parsed | None:
    """What a plain embedding asks for without wishes in its headers; None of bulk, or as of `read_plain`."""
    readers = _readers()
    if readers is None:
        return None
    texts = min(limits.bulk_texts, limits.max_inputs)
    tokens = min(limits.bulk_tokens, limits.max_input_tokens)
    return readers.whole_embedding(body, ident, tenant, texts, tokens)


def read_plain(route: Route, body: bytes, limits: ParseLimits, *, blocks: bool) -> Facts | None:
    """The facts of a plain chat or embedding; None for what has to be looked at more closely.

    `blocks`: hash the text of a chat too. With `SAGE_NATIVE=0` nothing is plain.
    """
    readers = _readers()
    if readers is None:
        return None
    if route is CHAT:
        chat = readers.chat(body, blocks)
        if chat is None:
            return None
        model, stream, include_usage, max_tokens, needs, hashes = chat
        size = len(body)
        tokens = estimate(size)
        return Facts(
            model, body, CHAT_NEEDS[needs], tokens, size, max_tokens, 0, "", stream, include_usage, hashes
        )
    return _embedding(readers, body, limits) if route is EMBEDDINGS else None


def _embedding(readers: _Readers, body: bytes, limits: ParseLimits) -> Facts | None:
    embedding = readers.embedding(body)
    if embedding is None:
        return None
    model, texts, size, encoding_format, dimensions, alone = embedding
    tokens = estimate(size)
    if texts > limits.max_inputs or tokens > limits.max_input_tokens:
        return None
    key = "" if alone else batch_key(model, dimensions, encoding_format)
    return Facts(model, body, EMBEDDING_NEEDS, tokens, size, None, texts, key)
