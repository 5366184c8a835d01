"""Calls for scores: pairs of one request or of several in one body, and its answer split again. Pure.

A unit is a pair as JSON, `["query","document"]`. What is asked of an engine is scores alone: which results
a client gets, in what order and with which documents, is decided here, alike for every engine.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import Final, NamedTuple

import msgspec

from sage.common.errors import EngineError
from sage.middleware.control_plane.calls import Vector, share_tokens
from sage.middleware.engines.port import RERANK, SCORE, Route, Usage

__all__ = ["PairRequest", "assemble", "read_scores"]


class PairRequest(NamedTuple):
    """A client's body, taken apart once: its model and its pairs, as JSON, and how it wants its answer."""

    route: Route
    model: msgspec.Raw
    texts: list[bytes]
    top_n: int | None = None
    with_documents: bool = False

    @classmethod
    def decode(cls, route: Route, body: bytes) -> PairRequest:
        """Read a body of that route, as the parser leaves it."""
        fields = _FIELDS.decode(body)
        if route is SCORE:
            left, right = _texts(fields["text_1"]), _texts(fields["text_2"])
            if len(left) == 1:
                left *= len(right)
            return cls(route, fields["model"], [*map(_pair, left, right)])
        query = bytes(fields["query"])
        pairs = [_pair(query, bytes(_text_of(one))) for one in _RAWS.decode(fields["documents"])]
        options = _OPTIONS.decode(body)
        return cls(route, fields["model"], pairs, options.top_n, bool(options.return_documents))

    def merge(self, scores: Sequence[Vector], ident: str) -> bytes:
        """The answer to the client: every score by the place of its pair, or the best documents first."""
        results = _scored(scores) if self.route is SCORE else _reranked(self, scores)
        tokens = sum(one.tokens for one in scores)
        answer = {"id": ident, "model": self.model, **results, "usage": _Tokens(tokens, tokens)}
        return msgspec.json.encode(answer)


class _Options(msgspec.Struct):
    top_n: int | None = None
    return_documents: bool | None = None


class _Document(msgspec.Struct):
    text: msgspec.Raw


class _Scored(msgspec.Struct):
    index: int
    score: msgspec.Raw
    object: str = "score"


class _Ranked(msgspec.Struct):
    index: int
    relevance_score: msgspec.Raw


class _Result(_Ranked, omit_defaults=True):
    document: _Document | None = None


class _Tokens(msgspec.Struct):
    prompt_tokens: int = 0
    total_tokens: int = 0


class _ScoreAnswer(msgspec.Struct):
    data: list[_Scored]
    usage: _Tokens | None = None


class _RerankAnswer(msgspec.Struct):
    results: list[_Ranked]
    usage: _Tokens | None = None


_FIELDS: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_RAWS: Final = msgspec.json.Decoder(list[msgspec.Raw])
_DOCUMENT: Final = msgspec.json.Decoder(_Document)
_OPTIONS: Final = msgspec.json.Decoder(_Options)
_RERANKED: Final = msgspec.json.Decoder(_RerankAnswer)
_SCORED: Final = msgspec.json.Decoder(_ScoreAnswer)
_NUMBER: Final = msgspec.json.Decoder(float)


def assemble(route: Route, model: msgspec.Raw, pairs: Sequence[bytes]) -> tuple[Route, bytes]:
    """The route and the body of a call for the scores of `pairs`.

    Pairs of one query go out as they came in, by `route`; those of several as two lists, by `/v1/score`.
    """
    split = [_RAWS.decode(pair) for pair in pairs]
    left, right = [one for one, _ in split], [other for _, other in split]
    fields: Mapping[str, object]
    if len(set(map(bytes, left))) > 1:
        route, fields = SCORE, {"text_1": left, "text_2": right}
    elif route is RERANK:
        fields = {"query": left[0], "documents": right}
    else:
        fields = {"text_1": left[0], "text_2": right}
    return route, msgspec.json.encode({"model": model, **fields})


def read_scores(route: Route, body: bytes, pairs: Sequence[bytes]) -> tuple[list[Vector], Usage]:
    """The scores of `pairs`, in their order, of an answer to a call by `route`; and the tokens it counts.

    Raises EngineError unless there is exactly one number for each.
    """
    try:
        answer: _RerankAnswer | _ScoreAnswer
        if route is RERANK:
            answer = ranked = _RERANKED.decode(body)
            scores = [(one.index, one.relevance_score) for one in ranked.results]
        else:
            answer = scored = _SCORED.decode(body)
            scores = [(one.index, one.score) for one in scored.data]
        finite = all(math.isfinite(_NUMBER.decode(score)) for _, score in scores)
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise EngineError(f"The engine's scores cannot be read: {exc}.") from exc
    scores.sort(key=itemgetter(0))
    if [at for at, _ in scores] != list(range(len(pairs))) or not finite:
        raise EngineError(f"The engine was sent {len(pairs)} pairs and answered with {len(scores)} scores.")
    tokens = answer.usage or _Tokens()
    total = tokens.prompt_tokens or tokens.total_tokens
    shares = share_tokens(total, [len(pair) for pair in pairs])
    return [Vector(score, share) for (_, score), share in zip(scores, shares, strict=True)], Usage(total)


def _scored(scores: Sequence[Vector]) -> dict[str, object]:
    return {"object": "list", "data": [_Scored(at, one.value) for at, one in enumerate(scores)]}


def _reranked(request: PairRequest, scores: Sequence[Vector]) -> dict[str, object]:
    """The best first; of equal ones that which the client named first."""
    order = sorted(range(len(scores)), key=lambda at: -_NUMBER.decode(scores[at].value))
    results = [
        _Result(at, scores[at].value, _document(request.texts[at]) if request.with_documents else None)
        for at in order[: request.top_n]
    ]
    return {"results": results}


def _document(pair: bytes) -> _Document:
    return _Document(_RAWS.decode(pair)[1])


def _pair(left: bytes, right: bytes) -> bytes:
    return b"[%b,%b]" % (left, right)


def _texts(given: msgspec.Raw) -> list[bytes]:
    if bytes(given).startswith(b"["):
        return [bytes(text) for text in _RAWS.decode(given)]
    return [bytes(given)]


def _text_of(document: msgspec.Raw) -> msgspec.Raw:
    return _DOCUMENT.decode(document).text if bytes(document).startswith(b"{") else document
