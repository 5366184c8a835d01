"""Requests for scores: what is refused and why, what they cost, which class they have."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sage.common.errors import BadRequestError
from sage.common.telemetry import RequestClass
from sage.middleware.control_plane.classify import Parsed, ParseLimits, parse
from sage.middleware.control_plane.types import Slo
from sage.middleware.engines.port import Capability, Route

RERANK: dict[str, Any] = {"model": "m", "query": "what?", "documents": ["one", {"text": "two"}]}
SCORE: dict[str, Any] = {"model": "m", "text_1": "what?", "text_2": ["one", "two"]}
BODIES = {Route.RERANK: RERANK, Route.SCORE: SCORE}
BOTH = pytest.mark.parametrize("route", [Route.RERANK, Route.SCORE])


def read(route: Route, headers: dict[str, str] | None = None, **fields: Any) -> Parsed:
    body = json.dumps({**BODIES[route], **fields}).encode()
    return parse(route, body, limits=ParseLimits(), tenant="t", headers=headers or {}, blocks=True)


def refused(route: Route, headers: dict[str, str] | None = None, **fields: Any) -> BadRequestError:
    with pytest.raises(BadRequestError) as caught:
        read(route, headers, **fields)
    return caught.value


@BOTH
def test_a_request_for_scores_says_all_that_the_scheduler_needs(route: Route) -> None:
    job = read(route).job
    assert job.request_class is RequestClass.RERANK
    assert job.needs == {Capability.RERANK}
    assert (job.texts, job.blocks, job.stream, job.hedgeable) == (2, (), False, False)
    assert job.prompt_bytes == 2 * len("what?") + len("onetwo")  # the engine reads the query with each
    assert job.prompt_tokens == job.prompt_bytes // 4


def test_requests_of_both_routes_may_share_a_call_and_none_with_embeddings() -> None:
    keys = {read(route).job.batch_key for route in BODIES}
    assert keys == {"m|pairs"}
    embedding = parse(
        Route.EMBEDDINGS, b'{"model": "m", "input": "x"}', limits=ParseLimits(), tenant="t", headers={}
    )
    assert embedding.job.batch_key not in keys
    assert embedding.job.needs != {Capability.RERANK}


def test_pairs_one_by_one_count_each_text_once() -> None:
    job = read(Route.SCORE, text_1=["a", "bb"], text_2=["ccc", "dddd"]).job
    assert (job.texts, job.prompt_bytes) == (2, 10)
    assert read(Route.SCORE, text_1=["a"], text_2=["b", "c"]).job.texts == 2
    assert read(Route.SCORE, text_1="a", text_2="b").job.texts == 1


@pytest.mark.parametrize(
    ("route", "fields", "param", "says"),
    [
        (Route.RERANK, {"query": ""}, "query", "is an empty string"),
        (Route.RERANK, {"query": ["a"]}, "query", "Expected str"),
        (Route.RERANK, {"documents": []}, "documents", "is empty"),
        (Route.RERANK, {"documents": "one"}, "documents", "Expected array"),
        (Route.RERANK, {"documents": ["a", ""]}, "documents[1]", "is an empty string"),
        (Route.RERANK, {"documents": [3]}, "documents[0]", "is a number"),
        (Route.RERANK, {"documents": [None]}, "documents[0]", "is null"),
        (Route.RERANK, {"documents": [{"text": "a", "title": "b"}]}, "documents[0]", "'text' alone"),
        (Route.RERANK, {"documents": [{"title": "b"}]}, "documents[0]", "'text' alone"),
        (Route.RERANK, {"documents": [{"text": 7}]}, "documents[0]", "'text' alone"),
        (Route.RERANK, {"documents": [{"text": ""}]}, "documents[0]", "is an empty string"),
        (Route.RERANK, {"documents": ["a"] * 2049}, "documents", "between 1 and 2048"),
        (Route.RERANK, {"documents": ["x" * 1_200_400]}, "documents", "at most 300000"),
        (Route.RERANK, {"query": "x" * 4000, "documents": ["a"] * 301}, "documents", "at most 300000"),
        (Route.RERANK, {"top_n": 0}, "top_n", "at least 1"),
        (Route.RERANK, {"top_n": "2"}, "top_n", "Expected"),
        (Route.RERANK, {"return_documents": 1}, "return_documents", "Expected"),
        (Route.RERANK, {"rank_fields": ["a"]}, "rank_fields", "valid are: model, query, documents"),
        (Route.SCORE, {"text_1": ""}, "text_1", "is an empty string"),
        (Route.SCORE, {"text_2": []}, "text_2", "is empty"),
        (Route.SCORE, {"text_2": ["a", ""]}, "text_2[1]", "is an empty string"),
        (Route.SCORE, {"text_1": [1]}, "text_1[0]", "is a number"),
        (Route.SCORE, {"text_1": ["a"] * 3}, "text_1", "3 texts and text_2 has 2"),
        (Route.SCORE, {"text_1": ["a"] * 2, "text_2": "b"}, "text_1", "2 texts and text_2 has 1"),
        (Route.SCORE, {"text_2": ["a"] * 2049}, "text_2", "between 1 and 2048"),
        (Route.SCORE, {"top_n": 1}, "top_n", "valid are: model, text_1, text_2"),
    ],
    ids=str,
)
def test_what_is_wrong_is_refused_by_name(
    route: Route, fields: dict[str, Any], param: str, says: str
) -> None:
    error = refused(route, **fields)
    assert error.param == param
    assert says in error.message


def test_an_unknown_name_is_not_repeated_at_length() -> None:
    fields: dict[str, Any] = {"x" * 5000: 1}
    assert len(refused(Route.RERANK, **fields).message) < 200


@BOTH
def test_headers_mean_what_they_mean_for_embeddings(route: Route) -> None:
    parsed = read(route, {"x-sage-slo-ttft-ms": "300", "x-sage-deadline-ms": "200", "x-sage-parent": "req-1"})
    assert (parsed.job.slo, parsed.deadline, parsed.job.parent) == (Slo(total=0.2), 0.2, "req-1")
    assert read(route, {"x-sage-class": "rerank"}).job.request_class is RequestClass.RERANK
    lower = refused(route, {"x-sage-class": "batch"})
    assert (lower.param, lower.message.endswith("it can be rerank.")) == ("x-sage-class", True)
    assert refused(route, {"x-sage-slo-tpot-ms": "20"}).param == "x-sage-slo-tpot-ms"
