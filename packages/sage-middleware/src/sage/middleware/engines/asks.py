"""What a request asks of the embedding server: the texts to compute, and how its answer is written. Pure.

It judges its input itself, although the gateway has done so: it is a server of its own.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple, TypeVar

import msgspec
import numpy as np

from sage.common.errors import BadRequestError, ModelNotFoundError
from sage.middleware.engines.batching import Text

__all__ = ["FACES", "Ask", "Face", "Read", "Task", "check_model", "decode"]

Task = Literal["embed", "rerank"]

MAX_INPUTS: Final = 2048

_T = TypeVar("_T")


class Ask(NamedTuple):
    """The texts or pairs of one request; `answer` makes its body of what was computed and the tokens."""

    texts: Sequence[Text]
    answer: Callable[[list[Any], int], bytes]


Read = Callable[[bytes, str, int], Ask]
"""Body, the id that the model is served as, the length of its vectors. Raises BadRequestError."""


class Face(NamedTuple):
    """What a model of one task is asked by: a reader for each path, and a first text to warm up with."""

    reads: Mapping[str, Read]
    sample: Text


class _Body(msgspec.Struct, forbid_unknown_fields=True):
    """The request, as OpenAI has it."""

    model: str
    input: str | list[Any]
    encoding_format: str = "float"
    dimensions: int | None = None
    user: str | None = None


class _Rerank(msgspec.Struct, forbid_unknown_fields=True):
    model: str
    query: str
    documents: list[str]


class _Score(msgspec.Struct, forbid_unknown_fields=True):
    model: str
    text_1: str | list[str]
    text_2: str | list[str]


_BODY: Final = msgspec.json.Decoder(_Body)
_RERANK: Final = msgspec.json.Decoder(_Rerank)
_SCORE: Final = msgspec.json.Decoder(_Score)


def _read_embedding(raw: bytes, served_as: str, dimensions: int) -> Ask:
    body = decode(_BODY, raw, "an embeddings request")
    check_model(body.model, served_as)
    if body.encoding_format not in ("float", "base64"):
        raise BadRequestError(
            f"encoding_format {body.encoding_format!r} is not one of float, base64.", param="encoding_format"
        )
    if body.dimensions is not None and not 1 <= body.dimensions <= dimensions:
        raise BadRequestError(
            f"dimensions is {body.dimensions}; this model gives 1 to {dimensions}.", param="dimensions"
        )
    texts = [body.input] if isinstance(body.input, str) else body.input
    _check_texts("input", texts)
    return Ask(texts, lambda vectors, tokens: _embeddings(vectors, tokens, body))


def _read_rerank(raw: bytes, served_as: str, _dimensions: int) -> Ask:
    """All documents, the best first; which of them a client gets is the gateway's to say."""
    body = decode(_RERANK, raw, "a rerank request")
    check_model(body.model, served_as)
    _check_texts("query", [body.query])
    _check_texts("documents", body.documents)

    def answer(scores: list[Any], tokens: int) -> bytes:
        order = sorted(range(len(scores)), key=lambda at: -scores[at])
        results = [{"index": at, "relevance_score": float(scores[at])} for at in order]
        return msgspec.json.encode({"model": body.model, "results": results, "usage": _usage(tokens)})

    return Ask([(body.query, document) for document in body.documents], answer)


def _read_score(raw: bytes, served_as: str, _dimensions: int) -> Ask:
    """One text with one or many, or as many of each."""
    body = decode(_SCORE, raw, "a score request")
    check_model(body.model, served_as)
    left = [body.text_1] if isinstance(body.text_1, str) else body.text_1
    right = [body.text_2] if isinstance(body.text_2, str) else body.text_2
    _check_texts("text_1", left)
    _check_texts("text_2", right)
    if len(left) not in (1, len(right)):
        raise BadRequestError(
            f"text_1 has {len(left)} texts and text_2 has {len(right)}; text_1 is one text, or as many.",
            param="text_1",
        )

    def answer(scores: list[Any], tokens: int) -> bytes:
        data = [{"index": at, "object": "score", "score": float(one)} for at, one in enumerate(scores)]
        return msgspec.json.encode(
            {"object": "list", "data": data, "model": body.model, "usage": _usage(tokens)}
        )

    return Ask(list(zip(left * len(right) if len(left) == 1 else left, right, strict=True)), answer)


FACES: Final[Mapping[Task, Face]] = {
    "embed": Face({"/v1/embeddings": _read_embedding}, "warm-up"),
    "rerank": Face({"/v1/rerank": _read_rerank, "/v1/score": _read_score}, ("warm-up", "warm-up")),
}


def decode(decoder: msgspec.json.Decoder[_T], raw: bytes, what: str) -> _T:
    """Read a body. Raises BadRequestError for one that is not `what`."""
    try:
        return decoder.decode(raw)
    except msgspec.DecodeError as error:
        raise BadRequestError(f"The body is not {what}: {error}.") from error


def check_model(model: str, served_as: str) -> None:
    """Raise ModelNotFoundError for another model than the one that is here."""
    if model != served_as:
        raise ModelNotFoundError(f"There is no model {model!r}; there is {served_as!r}.", param="model")


def _check_texts(name: str, texts: Sequence[Any]) -> None:
    if not 1 <= len(texts) <= MAX_INPUTS:
        raise BadRequestError(f"{name} has {len(texts)} texts; give 1 to {MAX_INPUTS}.", param=name)
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise BadRequestError(
                f"{name}[{index}] is not a string; token ids are decoded by the gateway.", param=name
            )
        if not text:
            raise BadRequestError(f"{name}[{index}] is empty.", param=name)


def _embeddings(vectors: list[Any], tokens: int, body: _Body) -> bytes:
    rows = np.asarray(vectors, dtype="<f4")
    if body.dimensions is not None and body.dimensions < rows.shape[1]:
        rows = rows[:, : body.dimensions]
        rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    coded: list[Any]
    if body.encoding_format == "base64":
        coded = [base64.b64encode(row.tobytes()).decode("ascii") for row in rows]
    else:
        coded = rows.tolist()
    data = [{"object": "embedding", "index": index, "embedding": row} for index, row in enumerate(coded)]
    return msgspec.json.encode({"object": "list", "data": data, "model": body.model, "usage": _usage(tokens)})


def _usage(tokens: int) -> dict[str, int]:
    return {"prompt_tokens": tokens, "total_tokens": tokens}
