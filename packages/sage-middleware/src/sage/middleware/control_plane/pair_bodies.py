"""What a request for scores asks for: a query with documents, or pairs of texts. Pure.

Bodies are strict: a field that is not known here would be ignored by some engine, and is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from sage.common.errors import BadRequestError
from sage.common.telemetry import Bound
from sage.middleware.control_plane.facts import (
    Facts,
    ParseLimits,
    bounded,
    convert,
    estimate,
    kind_of,
    within_tokens,
)
from sage.middleware.engines.port import Capability

__all__ = ["read_rerank", "read_score"]

_SCORES: Final = frozenset((Capability.RERANK,))


class _Rerank(msgspec.Struct, forbid_unknown_fields=True):
    model: str
    query: str
    documents: list[Any]
    top_n: int | None = None
    return_documents: bool | None = None


class _Score(msgspec.Struct, forbid_unknown_fields=True):
    model: str
    text_1: str | list[Any]
    text_2: str | list[Any]


def read_rerank(fields: dict[str, Any], body: bytes, limits: ParseLimits) -> Facts:
    """Judge a rerank body. Raises BadRequestError with `param` naming the field."""
    rerank = convert(fields, _Rerank)
    _filled("query", rerank.query)
    bounded("documents", len(rerank.documents), 1, limits.max_inputs, "documents", Bound.INPUTS)
    if rerank.top_n is not None:
        bounded("top_n", rerank.top_n, 1, None)
    documents = [_document(f"documents[{at}]", one) for at, one in enumerate(rerank.documents)]
    return _facts(rerank.model, body, [rerank.query], documents, "documents", limits)


def read_score(fields: dict[str, Any], body: bytes, limits: ParseLimits) -> Facts:
    """Judge a score body: one text with one or many, or as many of each. Errors as of `read_rerank`."""
    score = convert(fields, _Score)
    left = _texts("text_1", score.text_1, limits)
    right = _texts("text_2", score.text_2, limits)
    if len(left) not in (1, len(right)):
        raise BadRequestError(
            f"text_1 has {len(left)} texts and text_2 has {len(right)}; text_1 is one text, or as many.",
            param="text_1",
        )
    return _facts(score.model, body, left, right, "text_2", limits)


def _facts(
    model: str, body: bytes, left: Sequence[str], right: Sequence[str], param: str, limits: ParseLimits
) -> Facts:
    """The engine reads each pair: a query counts once for each document."""
    size = sum(len(text.encode()) for text in left) * (len(right) if len(left) == 1 else 1)
    size += sum(len(text.encode()) for text in right)
    tokens = estimate(size)
    within_tokens(param, tokens, limits)
    return Facts(
        model=model,
        body=body,
        needs=_SCORES,
        prompt_tokens=tokens,
        prompt_bytes=size,
        texts=len(right),
        batch_key=f"{model}|pairs",
    )


def _document(param: str, value: object) -> str:
    """A document's text, given as it is or as `{"text": …}`."""
    if isinstance(value, dict):
        if value.keys() != {"text"} or not isinstance(value["text"], str):
            raise BadRequestError(
                f"{param} is an object; valid is one with the field 'text' alone, a string.", param=param
            )
        value = value["text"]
    if not isinstance(value, str):
        raise BadRequestError(
            f"{param} is {kind_of(value)}; each document is a string or an object with 'text'.", param=param
        )
    return _filled(param, value)


def _texts(param: str, value: str | list[Any], limits: ParseLimits) -> list[str]:
    if isinstance(value, str):
        return [_filled(param, value)]
    bounded(param, len(value), 1, limits.max_inputs, "texts", Bound.INPUTS)
    for at, text in enumerate(value):
        if not isinstance(text, str):
            raise BadRequestError(
                f"{param}[{at}] is {kind_of(text)}; each text is a string.", param=f"{param}[{at}]"
            )
        _filled(f"{param}[{at}]", text)
    return value


def _filled(param: str, value: str) -> str:
    if not value:
        raise BadRequestError(f"{param} is an empty string; there is nothing to score.", param=param)
    return value
