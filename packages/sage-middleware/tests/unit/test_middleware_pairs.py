"""Calls for scores: what is assembled, read and merged is what the clients sent and the engine wrote."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage.common.errors import EngineError
from sage.middleware.control_plane.calls import Vector
from sage.middleware.control_plane.pairs import PairRequest, assemble, read_scores
from sage.middleware.engines.port import Route

MODEL = msgspec.Raw(b'"m"')
TEXTS = st.lists(st.text(min_size=1), min_size=1, max_size=8)
SCORES = st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=8)


def rerank_of(query: str, documents: Sequence[Any], **fields: Any) -> PairRequest:
    body = {"model": "m", "query": query, "documents": documents, **fields}
    return PairRequest.decode(Route.RERANK, json.dumps(body).encode())


def score_of(left: Any, right: Any) -> PairRequest:
    return PairRequest.decode(
        Route.SCORE, json.dumps({"model": "m", "text_1": left, "text_2": right}).encode()
    )


def pairs_of(request: PairRequest) -> list[Any]:
    return [tuple(json.loads(pair)) for pair in request.texts]


def merged(request: PairRequest, scores: Sequence[float]) -> Any:
    return json.loads(
        request.merge([Vector(msgspec.Raw(json.dumps(one).encode()), 2) for one in scores], "r-1")
    )


class TestRequest:
    @given(st.text(min_size=1), TEXTS)
    def test_a_query_goes_with_each_document(self, query: str, documents: list[str]) -> None:
        wanted = [(query, document) for document in documents]
        assert pairs_of(rerank_of(query, documents)) == wanted
        assert pairs_of(rerank_of(query, [{"text": one} for one in documents])) == wanted
        assert pairs_of(score_of(query, documents)) == pairs_of(score_of([query], documents)) == wanted

    @given(TEXTS)
    def test_as_many_of_each_go_side_by_side(self, texts: list[str]) -> None:
        assert pairs_of(score_of(texts, texts[::-1])) == list(zip(texts, texts[::-1], strict=True))


class TestAssemble:
    def test_pairs_of_one_query_go_by_the_route_they_came_by(self) -> None:
        route, body = assemble(Route.RERANK, MODEL, rerank_of("q", ["a", "b"], top_n=1).texts)
        assert (route, json.loads(body)) == (
            Route.RERANK,
            {"model": "m", "query": "q", "documents": ["a", "b"]},
        )
        route, body = assemble(Route.SCORE, MODEL, score_of("q", ["a", "b"]).texts)
        assert (route, json.loads(body)) == (Route.SCORE, {"model": "m", "text_1": "q", "text_2": ["a", "b"]})

    @given(st.lists(st.tuples(st.text(min_size=1), st.text(min_size=1)), min_size=1, max_size=8))
    def test_pairs_of_several_queries_become_two_lists(self, pairs: list[tuple[str, str]]) -> None:
        left, right = [["never one query alone", *column] for column in zip(*pairs, strict=True)]
        route, body = assemble(Route.RERANK, MODEL, score_of(left, right).texts)
        if set(left) == {left[0]}:
            assert route is Route.RERANK
        else:
            assert (route, json.loads(body)) == (Route.SCORE, {"model": "m", "text_1": left, "text_2": right})


class TestReadScores:
    def body(self, route: Route, scores: Sequence[Any], order: Sequence[int], **usage: int) -> bytes:
        name = "relevance_score" if route is Route.RERANK else "score"
        rows = [{"index": at, name: scores[at], "document": {"text": "x"}, "object": "score"} for at in order]
        return json.dumps(
            {"results" if route is Route.RERANK else "data": rows, "usage": usage or None}
        ).encode()

    @pytest.mark.parametrize("route", [Route.RERANK, Route.SCORE])
    @given(scores=SCORES, data=st.data())
    def test_scores_come_in_the_order_of_the_pairs(
        self, route: Route, scores: list[float], data: st.DataObject
    ) -> None:
        order = data.draw(st.permutations(range(len(scores))))
        pairs = [b'["q","%d"]' % at for at in range(len(scores))]
        found, usage = read_scores(route, self.body(route, scores, order, prompt_tokens=9), pairs)
        assert [json.loads(bytes(one.value)) for one in found] == scores
        assert sum(one.tokens for one in found) == usage.prompt_tokens == 9

    def test_a_total_stands_for_the_tokens_of_the_prompt(self) -> None:
        _, usage = read_scores(Route.RERANK, self.body(Route.RERANK, [1.0], [0], total_tokens=7), [b"[]"])
        assert usage.prompt_tokens == 7
        _, usage = read_scores(Route.SCORE, self.body(Route.SCORE, [1], [0]), [b"[]"])
        assert usage.prompt_tokens == 0

    @pytest.mark.parametrize("route", [Route.RERANK, Route.SCORE])
    @pytest.mark.parametrize(
        ("scores", "order"),
        [
            ([1.0], [0]),
            ([1.0, 2.0, 3.0], [0, 1, 2]),
            ([1.0, 2.0], [0, 0]),
            ([1.0, 2.0, 3.0], [1, 2]),
            ([1.0, None], [0, 1]),
            ([1.0, "2"], [0, 1]),
            ([1.0, [2]], [0, 1]),
            ([True, 1.0], [0, 1]),
        ],
    )
    def test_what_is_not_one_number_for_each_pair_is_the_engine_s_fault(
        self, route: Route, scores: list[Any], order: list[int]
    ) -> None:
        with pytest.raises(EngineError):
            read_scores(route, self.body(route, scores, order), [b'["q","a"]', b'["q","b"]'])

    @pytest.mark.parametrize(
        "body", [b"", b"no JSON", b"{}", b'{"data":[{"index":0,"score":1e999}]}', b"\xff"]
    )
    def test_what_cannot_be_read_is_the_engine_s_fault(self, body: bytes) -> None:
        with pytest.raises(EngineError):
            read_scores(Route.SCORE, body, [b'["q","a"]'])


class TestMerge:
    @given(SCORES, st.none() | st.integers(1, 10))
    def test_the_best_come_first_and_equal_ones_as_they_were_given(
        self, scores: list[float], top_n: int | None
    ) -> None:
        answer = merged(rerank_of("q", [str(at) for at in range(len(scores))], top_n=top_n), scores)
        order = sorted(range(len(scores)), key=lambda at: (-scores[at], at))[:top_n]
        assert [one["index"] for one in answer["results"]] == order
        assert [one["relevance_score"] for one in answer["results"]] == [scores[at] for at in order]
        assert (answer["id"], answer["model"]) == ("r-1", "m")
        assert answer["usage"] == {"prompt_tokens": 2 * len(scores), "total_tokens": 2 * len(scores)}

    def test_documents_are_there_when_they_are_asked_for(self) -> None:
        documents = ['ä "quoted"', {"text": "two"}]
        asked = merged(rerank_of("q", documents, return_documents=True), [1.0, 2.0])
        assert [one["document"] for one in asked["results"]] == [{"text": "two"}, {"text": 'ä "quoted"'}]
        for fields in ({}, {"return_documents": False}, {"return_documents": None}):
            plain = merged(rerank_of("q", documents, **fields), [1.0, 2.0])
            assert all("document" not in one for one in plain["results"])

    @given(SCORES)
    def test_scores_of_pairs_stay_in_their_order(self, scores: list[float]) -> None:
        answer = merged(score_of("q", ["d"] * len(scores)), scores)
        assert [(one["index"], one["score"]) for one in answer["data"]] == list(enumerate(scores))
        assert {one["object"] for one in answer["data"]} == {"score"}
        assert answer["object"] == "list"
