"""Calls for scores through the live control plane: coalesced, cut, merged by index, refused, retried."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import msgspec
import pytest

from sage.common.errors import BadRequestError, EngineError, UnavailableError
from sage.middleware.control_plane.core import Core
from sage.middleware.control_plane.options import CoreOptions
from sage.middleware.control_plane.policies.hybrid import Hybrid
from sage.middleware.control_plane.policy import PolicyOptions
from sage.middleware.engines.port import Call, Capability, Route
from sage.middleware.testing.bench import Bench, chat, embedding, rerank, score
from sage.middleware.testing.memory import Behaviour, MemoryEngine, pair_score
from sage.middleware.testing.virtual import virtual

RERANKS = frozenset({Capability.RERANK})
FAULT = EngineError("it broke")


def reranker(name: str = "r0", *, coalesces: bool = True) -> MemoryEngine:
    engine = MemoryEngine(name, max_running=1, capabilities=RERANKS)
    engine._spec = msgspec.structs.replace(engine.spec, coalesces=coalesces)
    return engine


def bench(*engines: MemoryEngine) -> Bench:
    """With the policy that coalesces and cuts."""
    made = Bench(0, core=Core(Hybrid(PolicyOptions(exploration=0.0)), CoreOptions()))
    for engine in engines or (reranker(),):
        made.engines.append(engine)
        made.plane.add_engine(engine)
    return made


def ranked(query: str, *documents: str) -> list[tuple[int, float]]:
    scores = [pair_score(query, one) for one in documents]
    return [(at, scores[at]) for at in sorted(range(len(scores)), key=lambda at: -scores[at])]


def results(made: Bench, ident: str) -> list[tuple[int, float]]:
    return [(one["index"], one["relevance_score"]) for one in made.body(ident)["results"]]


def body_of(call: Call) -> Any:
    return json.loads(call.body)


async def behind(made: Bench, *requests: Any) -> list[asyncio.Task[Any]]:
    """Let requests wait behind one that holds the only engine, then let that one go."""
    return await made.queued(rerank("first", "occupies", "the engine"), requests)


@virtual
async def test_documents_come_back_by_their_scores() -> None:
    async with bench() as made:
        await made.start(rerank("a", "q", "one", "two", "three", top_n=2, return_documents=True))
        assert results(made, "a") == ranked("q", "one", "two", "three")[:2]
        first = made.body("a")["results"][0]
        assert first["document"]["text"] == ("one", "two", "three")[first["index"]]
        (call,) = made.engines[0].calls
        wanted = {"model": "memory", "query": "q", "documents": ["one", "two", "three"]}
        assert (call.route, body_of(call)) == (Route.RERANK, wanted)
        assert made.body("a")["usage"]["prompt_tokens"] == made.engines[0].usages[0].prompt_tokens
        assert made.plane.queues()[4].completed == 1


@virtual
async def test_pairs_are_scored_in_their_order() -> None:
    async with bench() as made:
        await made.start(score("a", ["x", "y"], ["one", "two"]))
        data = made.body("a")["data"]
        assert [one["score"] for one in data] == [pair_score("x", "one"), pair_score("y", "two")]


@virtual
async def test_requests_with_several_queries_share_one_call_and_get_their_own_scores() -> None:
    async with bench() as made:
        requests = [rerank("a", "q", "one"), rerank("b", "p", "one", "two"), score("c", "q", ["one", "two"])]
        assert await asyncio.gather(*await behind(made, *requests)) == ["done"] * 3
        _, call = made.engines[0].calls
        assert call.route is Route.SCORE
        assert body_of(call)["text_1"] == ["q", "p", "p", "q"]  # the pair that two ask for is sent once
        assert body_of(call)["text_2"] == ["one", "one", "two", "two"]
        assert results(made, "a") == ranked("q", "one")
        assert results(made, "b") == ranked("p", "one", "two")
        scores = [one["score"] for one in made.body("c")["data"]]
        assert scores == [pair_score("q", one) for one in ("one", "two")]


@virtual
async def test_an_engine_of_one_query_at_a_time_gets_one_at_a_time() -> None:
    async with bench(reranker(coalesces=False)) as made:
        requests = [rerank("a", "q", "one"), rerank("b", "p", "one", "two")]
        assert await asyncio.gather(*await behind(made, *requests)) == ["done"] * 2
        assert [call.route for call in made.engines[0].calls] == [Route.RERANK] * 3
        assert results(made, "b") == ranked("p", "one", "two")


@virtual
async def test_many_documents_are_cut_and_merged_by_their_index() -> None:
    async with bench(reranker("r0"), reranker("r1")) as made:
        documents = [f"document {number} " + "word " * 400 for number in range(60)]
        assert await made.start(rerank("a", "q", *documents)) == "done"
        assert results(made, "a") == ranked("q", *documents)
        calls = [call for engine in made.engines for call in engine.calls]
        assert len(calls) > 2
        assert {call.route for call in calls} == {Route.RERANK}
        assert sorted(one for call in calls for one in body_of(call)["documents"]) == sorted(documents)


@virtual
async def test_a_call_that_breaks_is_sent_to_another_engine() -> None:
    async with bench(reranker("r0"), reranker("r1")) as made:
        made.engines[0].next_behaviours.append(Behaviour(fault=FAULT))
        assert await made.start(rerank("a", "q", "one", "two")) == "done"
        assert results(made, "a") == ranked("q", "one", "two")
        assert [len(engine.calls) for engine in made.engines] == [1, 1]


@virtual
async def test_one_bad_document_fails_its_own_request_alone() -> None:
    async with bench() as made:
        made.engines[0].behaviour = Behaviour(bad_text="bad")
        tasks = await behind(made, rerank("a", "q", "good"), rerank("b", "p", "bad"))
        done, failed = await asyncio.gather(*tasks, return_exceptions=True)
        assert (done, type(failed)) == ("done", BadRequestError)
        assert results(made, "a") == ranked("q", "good")


@virtual
async def test_a_client_that_goes_frees_the_engine() -> None:
    async with bench() as made:
        made.hold()
        task = made.start(rerank("a", "q", "one"))
        await made.engines[0].until_running(1)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await made.settled()
        assert (made.engines[0].cancelled, made.outcome("a")) == (1, "cancelled")


@virtual
async def test_no_engine_that_embeds_is_asked_for_scores() -> None:
    embedder = MemoryEngine("e0", "vectors", capabilities=frozenset({Capability.EMBEDDINGS}))
    async with bench(embedder, reranker()) as made:
        for ask in (rerank("a", "q", "one", model="vectors"), embedding("b", "text")):
            with pytest.raises(BadRequestError) as refused:
                await made.start(ask)
            assert refused.value.param == "model"
            wanted = "does not serve rerank. Engines that can: r0 (model memory)."
            other = "does not serve embeddings. Engines that can: e0 (model vectors)."
            assert (wanted if ask.job.id == "a" else other) in refused.value.message
        assert embedder.calls == []
        with pytest.raises(BadRequestError, match="does not serve chat"):
            await made.start(chat("c"))


@virtual
async def test_a_reranker_that_is_gone_is_not_replaced_by_vectors() -> None:
    embedder = MemoryEngine("e0", capabilities=frozenset({Capability.EMBEDDINGS}))
    async with bench(embedder, reranker()) as made:
        made.plane.engine_down("r0", "it stopped")
        with pytest.raises(UnavailableError):
            await made.start(rerank("a", "q", "one"))
        assert embedder.calls == []
