"""The OpenAPI file: all routes of a listener, and bodies that the parser takes."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest

from sage.common.errors import BadRequestError
from sage.gateway.app import data_app
from sage.gateway.openapi import REQUESTS, describe
from sage.gateway.routes import ROUTES
from sage.gateway.testing import idle_handlers
from sage.gateway.watch import Watch
from sage.middleware.control_plane.classify import ParseLimits, parse
from sage.middleware.engines.port import FORMS, Route

RIGHT: dict[Route, dict[str, Any]] = {
    Route.CHAT: {"messages": [{"role": "user", "content": "hi"}], "n": 8, "stream": True, "top_logprobs": 20},
    Route.COMPLETIONS: {"prompt": [[1, 2], [3]], "max_tokens": 1},
    Route.MESSAGES: {"max_tokens": 1, "messages": [{"role": "user", "content": "hi"}], "system": "Be brief."},
    Route.COUNT_TOKENS: {"messages": [{"role": "user", "content": "hi"}]},
    Route.RESPONSES: {"input": "hi", "instructions": "Be brief.", "max_output_tokens": 1, "store": False},
    Route.SPEECH: {"input": "a", "voice": "alloy"},
    Route.IMAGES: {"prompt": "a", "n": 8},
    Route.EMBEDDINGS: {"input": ["a", "b"], "encoding_format": "base64", "dimensions": 1},
    Route.RERANK: {"query": "a", "documents": ["b", {"text": "c"}], "top_n": 1},
    Route.SCORE: {"text_1": "a", "text_2": ["b", "c"]},
    Route.TOKENIZE: {"prompt": "a"},
    Route.DETOKENIZE: {"tokens": [1, 2]},
}
WRONG: list[tuple[Route, dict[str, Any]]] = [
    (Route.CHAT, {"messages": []}),
    (Route.CHAT, {"messages": [{"content": "hi"}]}),
    (Route.CHAT, {"messages": [{"role": "user"}], "n": 9}),
    (Route.CHAT, {"messages": [{"role": "user"}], "top_logprobs": 21}),
    (Route.CHAT, {"messages": [{"role": "user"}], "max_tokens": 0}),
    (Route.MESSAGES, {"messages": [{"role": "user", "content": "hi"}]}),
    (Route.MESSAGES, {"max_tokens": 0, "messages": [{"role": "user", "content": "hi"}]}),
    (Route.COUNT_TOKENS, {"messages": []}),
    (Route.RESPONSES, {"input": 5}),
    (Route.SPEECH, {"voice": "alloy"}),
    (Route.IMAGES, {"prompt": "a", "n": 9}),
    (Route.COMPLETIONS, {"prompt": 5}),
    (Route.EMBEDDINGS, {"input": ""}),
    (Route.EMBEDDINGS, {"input": ["a"], "encoding_format": "hex"}),
    (Route.RERANK, {"query": "a", "documents": []}),
    (Route.RERANK, {"query": "a", "documents": [{"words": "c"}]}),
    (Route.SCORE, {"text_1": "a"}),
    (Route.TOKENIZE, {}),
    (Route.DETOKENIZE, {"tokens": "x"}),
]


def judge(route: Route, fields: dict[str, Any]) -> None:
    body = json.dumps({"model": "m", **fields}).encode()
    parse(route, body, limits=ParseLimits(), tenant="t", headers={"x-request-id": "r"})


def test_every_route_of_the_listener_is_there() -> None:
    document = describe(data_app(list, others=idle_handlers(), met=Watch().met), "data")
    listed = {(method.upper(), path) for path, entry in document["paths"].items() for method in entry}
    expected = {(one.method, one.path.replace(":path", "")) for one in ROUTES if one.listener == "data"}
    assert listed == expected
    assert set(REQUESTS) == set(Route)


def test_what_is_sent_as_a_form_says_so() -> None:
    paths = describe(data_app(list, others=idle_handlers(), met=Watch().met), "data")["paths"]
    for route in Route:
        (kind,) = paths[f"/v1/{route}"]["post"]["requestBody"]["content"]
        assert kind == ("multipart/form-data" if route in FORMS else "application/json")


@pytest.mark.parametrize("route", [route for route in Route if route not in FORMS])
def test_what_the_file_allows_is_taken(route: Route) -> None:
    jsonschema.validate({"model": "m", **RIGHT[route]}, REQUESTS[route])
    judge(route, RIGHT[route])


@pytest.mark.parametrize(("route", "fields"), WRONG)
def test_what_the_file_forbids_is_refused(route: Route, fields: dict[str, Any]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"model": "m", **fields}, REQUESTS[route])
    with pytest.raises(BadRequestError):
        judge(route, fields)
