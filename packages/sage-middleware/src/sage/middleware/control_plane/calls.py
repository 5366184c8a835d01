"""Embedding calls: one body made of the texts of several requests, and its answer split again. Pure.

Texts and vectors stay the JSON that they came as: nothing is decoded that is only passed on, so that a vector
reaches its client bit for bit as the engine wrote it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from typing import Final, NamedTuple

import msgspec

from sage.common.errors import EngineError
from sage.middleware.engines.port import Usage
from sage.middleware.native import uses_native

__all__ = ["EmbeddingRequest", "Vector", "assemble", "merge", "read_answer", "share_tokens"]

_SHARED: Final = ("model", "encoding_format", "dimensions")  # what a batch key stands for


class EmbeddingRequest(NamedTuple):
    """A client's body, taken apart once: its top-level fields and its texts, both as JSON.

    What `PairRequest` has too is what the driver asks for: `texts`, and `merge`.
    """

    fields: Mapping[str, msgspec.Raw]
    texts: list[bytes]

    @classmethod
    def decode(cls, body: bytes) -> EmbeddingRequest:
        """Read a body whose `input` is a string or a list of strings, as the parser leaves it."""
        fields = _FIELDS.decode(body)
        given = fields["input"]
        if bytes(given).startswith(b"["):
            return cls(fields, [bytes(text) for text in _RAWS.decode(given)])
        return cls(fields, [bytes(given)])

    def merge(self, vectors: Sequence[Vector], _ident: str) -> bytes:
        """The answer to the client: its vectors in the order of its input."""
        return merge(vectors, self.fields["model"])


class Vector(msgspec.Struct, frozen=True, gc=False):
    """One embedding as the engine wrote it, and the prompt tokens that are counted for it."""

    value: msgspec.Raw
    tokens: int


class _Item(msgspec.Struct):
    index: int
    embedding: msgspec.Raw
    object: str = "embedding"


class _Tokens(msgspec.Struct):
    prompt_tokens: int = 0
    total_tokens: int = 0


class _Answer(msgspec.Struct):
    data: list[_Item]
    usage: _Tokens | None = None


class _Merged(msgspec.Struct):
    object: str
    data: list[_Item]
    model: msgspec.Raw
    usage: _Tokens


_FIELDS: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_RAWS: Final = msgspec.json.Decoder(list[msgspec.Raw])
_ANSWER: Final = msgspec.json.Decoder(_Answer)
_ENCODER: Final = msgspec.json.Encoder()


def assemble(requests: Sequence[EmbeddingRequest], texts: Iterable[bytes]) -> bytes:
    """The body of a call for `texts`, on behalf of `requests` that share a batch key.

    A call for one request keeps all of its other fields, one for several those that they have in common.
    """
    fields = requests[0].fields
    if len(requests) > 1:
        fields = {name: fields[name] for name in _SHARED if name in fields}
    return _ENCODER.encode({**fields, "input": [msgspec.Raw(text) for text in texts]})


def read_answer(body: bytes, texts: list[bytes]) -> tuple[list[Vector], Usage]:
    """The vectors for `texts`, in their order, and the tokens that the engine counted.

    Raises EngineError unless there is exactly one vector for each, all of one kind and length.
    """
    plain = _plain()
    if plain is not None and (found := plain(body, texts)) is not None:
        return found
    try:
        if not body.isascii():
            body.decode()  # what is only passed on is not looked at by the decoder
        answer = _ANSWER.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise EngineError(f"The engine's embeddings answer cannot be read: {exc}.") from exc
    items = sorted(answer.data, key=_index)
    if [item.index for item in items] != list(range(len(texts))):
        raise EngineError(f"The engine was sent {len(texts)} texts and answered with {len(items)} vectors.")
    shapes = {_shape(bytes(item.embedding)) for item in items}
    if len(shapes) > 1:
        raise EngineError("The engine's vectors are not all of one length.")
    tokens = answer.usage or _Tokens()
    shares = share_tokens(tokens.prompt_tokens, [len(text) for text in texts])
    vectors = [Vector(item.embedding, share) for item, share in zip(items, shares, strict=True)]
    return vectors, Usage(tokens.prompt_tokens)


def merge(vectors: Sequence[Vector], model: msgspec.Raw) -> bytes:
    """The answer to one request: its vectors in the order of its input, and the sum of their tokens."""
    tokens = sum(vector.tokens for vector in vectors)
    data = [_Item(index, vector.value) for index, vector in enumerate(vectors)]
    return _ENCODER.encode(_Merged("list", data, model, _Tokens(tokens, tokens)))


def share_tokens(total: int, weights: Sequence[int]) -> list[int]:
    """Split `total` by `weights`. It is the running sum that is rounded, so that the shares add up."""
    whole = sum(weights)
    shares = []
    passed = given = 0
    for weight in weights:
        passed += weight
        upto = total * passed // whole
        shares.append(upto - given)
        given = upto
    return shares


@cache
def _plain() -> Callable[[bytes, list[bytes]], tuple[list[Vector], Usage] | None] | None:
    """Reads what nearly all answers are, natively: each number once."""
    if not uses_native():
        return None
    from sage.middleware import _native

    return _native.read_vectors


def _index(item: _Item) -> int:
    return item.index


def _shape(value: bytes) -> tuple[bytes, int]:
    """What vectors of one call have in common: base64 text of one length, or as many numbers."""
    kind = value[:1]
    if not value.isascii() or kind not in (b"[", b'"'):
        raise EngineError("The engine's answer holds an embedding that is neither numbers nor base64.")
    return kind, value.count(b",") if kind == b"[" else len(value)
