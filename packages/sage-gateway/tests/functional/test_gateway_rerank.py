"""Scores through the real process: a cross-encoder of random weights behind a gateway, beside vectors."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from sage.middleware.testing.engines import ScriptedEngine

pytestmark = [
    pytest.mark.engine,
    pytest.mark.timeout(400),
    pytest.mark.asyncio(loop_scope="module"),
]

GOAL_S = 60.0  # with that of every day a busy machine would refuse what comes at once
DOCUMENTS = ["a red apple", "the theory of sets", "an engine that serves tokens", "a queue"]


class Stack:
    """One engine that reranks and one that embeds, behind one gateway."""

    def __init__(self, gateway: Any, embed: ScriptedEngine) -> None:
        self.gateway = gateway
        self.embed = embed

    async def post(self, path: str, **body: Any) -> Any:
        run, key = self.gateway.run, self.gateway.keys.default
        return await self.gateway.http("POST", f"{run.base_url}/{path}", key=key, body=body)

    async def rerank(self, query: str, documents: list[Any], **fields: Any) -> Any:
        return await self.post("rerank", model="ranker", query=query, documents=documents, **fields)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack(module_spawner: Any) -> AsyncIterator[Stack]:
    async with ScriptedEngine(model="embedder") as embed:
        reranker = {
            "name": "rerank-0",
            "kind": "embedding",
            "model": "random-reranker",
            "served_as": "ranker",
            "task": "rerank",
        }
        engines = [reranker, embed.config("embed-0", task="embed").model_dump(mode="json")]
        span = {"llm": [21201, 21289], "embedding": [21290, 21399]}
        gateway = await module_spawner.start(
            {
                "engines": engines,
                "ports": {"gateway": 0, "admin": 0, "health": 0, **span},
                "control_plane": {"slos": {"rerank": {"total_s": GOAL_S}}},
            }
        )
        await gateway.until_ready()
        yield Stack(gateway, embed)
        assert await gateway.stop() == 0


async def test_documents_come_back_best_first(stack: Stack) -> None:
    answer = await stack.rerank("fruit", DOCUMENTS)
    assert answer.status == 200
    assert sorted(one["index"] for one in answer.json["results"]) == [0, 1, 2, 3]
    scores = [one["relevance_score"] for one in answer.json["results"]]
    assert scores == sorted(scores, reverse=True)
    assert len({*scores}) == 4
    assert answer.json["id"] == answer.headers["x-request-id"]
    assert answer.json["usage"]["prompt_tokens"] > 10
    few = await stack.rerank("fruit", [{"text": one} for one in DOCUMENTS], top_n=2, return_documents=True)
    assert [one["index"] for one in few.json["results"]] == [
        one["index"] for one in answer.json["results"][:2]
    ]
    for one in few.json["results"]:
        assert one["document"] == {"text": DOCUMENTS[one["index"]]}


async def test_a_score_is_that_of_the_rerank(stack: Stack) -> None:
    ranked = (await stack.rerank("fruit", DOCUMENTS)).json["results"]
    by_index = {one["index"]: one["relevance_score"] for one in ranked}
    for left in ("fruit", ["fruit"] * 4):
        answer = await stack.post("score", model="ranker", text_1=left, text_2=DOCUMENTS)
        scores = [one["score"] for one in answer.json["data"]]
        assert scores == pytest.approx([by_index[at] for at in range(4)], abs=1e-5)
    single = await stack.post("score", model="ranker", text_1="fruit", text_2=DOCUMENTS[1])
    assert single.json["data"][0]["score"] == pytest.approx(by_index[1], abs=1e-5)


async def test_requests_of_many_clients_get_their_own_scores(stack: Stack) -> None:
    queries = [f"question {number}" for number in range(12)]
    alone = [(await stack.rerank(query, DOCUMENTS)).json["results"] for query in queries]
    together = await asyncio.gather(*(stack.rerank(query, DOCUMENTS) for query in queries))
    for one, answer in zip(alone, together, strict=True):
        assert answer.status == 200, answer.json
        assert {each["index"]: pytest.approx(each["relevance_score"], abs=1e-5) for each in one} == {
            each["index"]: each["relevance_score"] for each in answer.json["results"]
        }


async def test_many_documents_are_merged_by_their_index(stack: Stack) -> None:
    documents = [f"document {number} " + "and a word " * 60 for number in range(300)]
    answer = await stack.rerank("which number?", documents)
    assert sorted(one["index"] for one in answer.json["results"]) == list(range(300))
    worst = answer.json["results"][-1]
    alone = await stack.rerank("which number?", [documents[worst["index"]]])
    assert alone.json["results"][0]["relevance_score"] == pytest.approx(worst["relevance_score"], abs=1e-5)


async def test_a_model_of_vectors_is_never_asked_for_scores(stack: Stack) -> None:
    body = {"model": "embedder", "query": "fruit", "documents": DOCUMENTS}
    answer = await stack.post("rerank", **body)
    assert (answer.status, answer.error["param"]) == (400, "model")
    assert "does not serve rerank. Engines that can: rerank-0 (model ranker)." in answer.error["message"]
    assert (await stack.post("embeddings", model="ranker", input="x")).status == 400
    assert stack.embed.requests == []


async def test_what_is_wrong_is_named(stack: Stack) -> None:
    for fields, param in (
        ({"documents": []}, "documents"),
        ({"documents": ["a", ""]}, "documents[1]"),
        ({"query": ""}, "query"),
        ({"colour": "red"}, "colour"),
        ({"documents": ["x"] * 2049}, "documents"),
    ):
        answer = await stack.post("rerank", **{"model": "ranker", "query": "q", "documents": ["d"], **fields})
        assert (answer.status, answer.error["param"]) == (400, param)


async def test_tokens_are_told_and_turned_back(stack: Stack) -> None:
    answer = await stack.post("tokenize", model="ranker", prompt="The engine serves")
    assert answer.status == 200
    assert answer.json["count"] == len(answer.json["tokens"]) > 3
    assert answer.json["max_model_len"] == 512
    back = await stack.post("detokenize", model="ranker", tokens=answer.json["tokens"])
    assert "The engine serves" in back.json["prompt"]
    beyond = await stack.post("detokenize", model="ranker", tokens=[1, 99999])
    assert beyond.status == 400
    refused = await stack.post("tokenize", model="embedder", prompt="a")
    assert (refused.status, refused.error["param"]) == (400, "model")
    assert "Engines that can: rerank-0 (model ranker)." in refused.error["message"]
    no_chat = await stack.post("tokenize", model="ranker", messages=[{"role": "user", "content": "a"}])
    assert (no_chat.status, "does not serve chat" in no_chat.error["message"]) == (400, True)


async def test_its_class_and_its_weights_are_told(stack: Stack) -> None:
    await stack.rerank("fruit", DOCUMENTS)
    status = (await stack.gateway.admin("GET", "/status")).json
    engine = next(one for one in status["engines"] if one["name"] == "rerank-0")
    assert (engine["task"], engine["random_weights"]) == ("rerank", True)
    queue = next(one for one in status["queues"] if one["request_class"] == "rerank")
    assert queue["completed"] > 0
    decision = (await stack.gateway.admin("GET", "/decisions?limit=1")).json["decisions"][0]
    assert (decision["request_class"], decision["route"], decision["engine"]) == (
        "rerank",
        "rerank",
        "rerank-0",
    )
    assert decision["slo"]["total_s"] == GOAL_S
