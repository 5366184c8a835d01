"""Rerankers: our server around a cross-encoder, and what kinds of engines say of those that they start."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from sage.common.config import EngineConfig
from sage.common.errors import BadRequestError, ConfigError
from sage.common.paths import SagePaths
from sage.middleware.engines.encoders import load_model
from sage.middleware.engines.port import Capability, Route
from sage.middleware.engines.registry import engine_kind
from sage.middleware.engines.threads import Cores
from sage.middleware.models import RANDOM_RERANKER, minilm_folder
from sage.middleware.random_models import random_reranker
from sage.middleware.testing.engines import RecordingSink, Script, ScriptedEngine, call_for
from sage.middleware.testing.served import Held, HeldPairs, Server, serving


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with serving(Held(), "embed") as one:
        yield one


@pytest.fixture
async def reranker() -> AsyncIterator[Server]:
    async with serving(HeldPairs(), "rerank") as one:
        yield one


async def test_documents_come_back_by_their_scores(reranker: Server) -> None:
    status, answer = await reranker.rerank("abc", "xyz", "a", "cab", "a b", "b")
    assert (status, answer["model"]) == (200, "m")
    ranked = [(one["index"], one["relevance_score"]) for one in answer["results"]]
    assert ranked == [(2, 3.0), (3, 2.0), (1, 1.0), (4, 1.0), (0, 0.0)]
    assert answer["usage"] == {"prompt_tokens": 11, "total_tokens": 11}


@pytest.mark.parametrize(
    ("left", "right", "scores"),
    [("ab", "abc", [2.0]), ("ab", ["a", "ab"], [1.0, 2.0]), (["x", "ab"], ["x", "a"], [1.0, 1.0])],
)
async def test_pairs_are_scored_in_their_order(
    reranker: Server, left: Any, right: Any, scores: list[float]
) -> None:
    status, answer = await reranker.score(left, right)
    assert status == 200
    assert [one["score"] for one in answer["data"]] == scores
    assert [one["index"] for one in answer["data"]] == list(range(len(scores)))
    assert {one["object"] for one in answer["data"]} == {"score"}


async def test_pairs_of_many_connections_share_a_batch(reranker: Server) -> None:
    reranker.model.free.clear()
    first = asyncio.create_task(reranker.rerank("first", "one"))
    await reranker.entered()
    rest = [asyncio.create_task(reranker.rerank(f"query {i}", "a", "b")) for i in range(8)]
    rest += [asyncio.create_task(reranker.score("left", "right"))]
    await reranker.waiting(9)
    reranker.model.free.set()
    answers = await asyncio.gather(first, *rest)
    assert {status for status, _ in answers} == {200}
    assert [len(batch) for batch in reranker.model.batches] == [1, 17]


@pytest.mark.parametrize(
    ("path", "fields", "param", "says"),
    [
        ("/v1/rerank", {"query": "", "documents": ["a"]}, "query", "is empty"),
        ("/v1/rerank", {"query": "q", "documents": []}, "documents", "0 texts"),
        ("/v1/rerank", {"query": "q", "documents": ["a", ""]}, "documents", "documents[1] is empty"),
        ("/v1/rerank", {"query": "q", "documents": ["a"] * 2049}, "documents", "2049 texts"),
        ("/v1/rerank", {"query": "q", "documents": ["a"], "top_n": 1}, None, "top_n"),
        ("/v1/rerank", {"query": "q"}, None, "documents"),
        ("/v1/score", {"text_1": ["a", "b"], "text_2": ["a"]}, "text_1", "2 texts"),
        ("/v1/score", {"text_1": "a", "text_2": []}, "text_2", "0 texts"),
        ("/v1/score", {"text_1": "a", "text_2": [1]}, None, "not a score request"),
    ],
    ids=str,
)
async def test_bad_requests_for_scores(
    reranker: Server, path: str, fields: dict[str, Any], param: str | None, says: str
) -> None:
    status, answer = await reranker.post(path=path, **fields)
    assert (status, answer["error"]["param"]) == (400, param)
    assert says in answer["error"]["message"]


async def test_a_server_has_the_routes_of_its_task_alone(server: Server, reranker: Server) -> None:
    status, answer = await reranker.post(input="x")
    assert (status, "POST /v1/rerank and POST /v1/score" in answer["error"]["message"]) == (404, True)
    assert (await server.rerank("q", "d"))[0] == 404
    assert (await reranker.score("a", "b"))[0] == 200
    status, answer = await reranker.post(path="/v1/score", model="other", text_1="a", text_2="b")
    assert (status, answer["error"]["code"]) == (404, "model_not_found")


async def test_a_reranker_warms_up_on_a_pair(reranker: Server) -> None:
    await reranker.app.warm_up()
    assert reranker.model.batches == [[("warm-up", "warm-up")]]


def test_the_random_reranker_scores_a_pair_alike_in_any_batch(tmp_path: Path) -> None:
    model = load_model(str(random_reranker(tmp_path)), Cores(), "rerank")
    pairs = [("what is served?", "The engine serves the next token."), ("a", "word " * 900), ("b", "c")]
    together, tokens = model.encode(pairs, 1)
    singly = [float(model.encode([pair], 1)[0][0]) for pair in pairs]
    assert together.tolist() == pytest.approx(singly, abs=1e-5)
    assert len({*singly}) == 3
    assert all(0 < score < 1 for score in singly)
    assert tokens[1] == 512  # cut to the model's window
    assert float(model.encode([pairs[0][::-1]], 1)[0][0]) != pytest.approx(singly[0], abs=1e-5)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"architectures": ["BertModel"]}, "is no cross-encoder: its config.json names BertModel"),
        ({"architectures": None}, "names no architecture"),
        ({"id2label": {"0": "no", "1": "yes"}, "label2id": {"no": 0, "yes": 1}}, "gives 2 numbers"),
    ],
)
def test_a_model_that_would_give_noise_for_scores_is_refused(
    tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    config = random_reranker(tmp_path) / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **changes}))
    with pytest.raises(ConfigError, match=says):
        load_model(str(config.parent), Cores(), "rerank")


# ---- kinds of engines ----


class TestKinds:
    def test_who_reranks_does_nothing_else(self) -> None:
        base = EngineConfig(name="a", kind="x", model="o/m", url="http://127.0.0.1:1", task="rerank")
        specs = {kind: engine_kind(kind).spec(base) for kind in ("vllm", "openai", "embedding")}
        others = {Capability.RERANK, Capability.TOKENIZE}
        assert all(Capability.RERANK in spec.capabilities <= others for spec in specs.values())
        assert {kind: spec.coalesces for kind, spec in specs.items()} == {
            "vllm": True,
            "openai": False,  # it may know /v1/rerank alone, which takes one query
            "embedding": True,
        }
        for kind in ("vllm", "openai"):
            writes = engine_kind(kind).spec(base.model_copy(update={"task": "generate"}))
            assert not writes.capabilities & {Capability.RERANK, Capability.EMBEDDINGS}

    @pytest.mark.parametrize("kind", ["embedding", "vllm"])
    def test_vectors_are_not_taken_for_a_reranker(self, kind: str, sage_home: Path) -> None:
        config = EngineConfig(name="r", kind=kind, model=str(minilm_folder()), task="rerank")
        with pytest.raises(ConfigError, match=r"r: task rerank needs a cross-encoder; .* holds a BertModel"):
            engine_kind(kind).spec(config)
        folder = random_reranker(SagePaths.default().cache)
        assert engine_kind(kind).spec(config.model_copy(update={"model": str(folder)})).task == "rerank"

    def test_a_converted_model_is_vllm_s_to_judge(self) -> None:
        config = EngineConfig(
            name="r",
            kind="vllm",
            model=str(minilm_folder()),
            task="rerank",
            args=("--hf-overrides", '{"architectures": ["BertForSequenceClassification"]}'),
        )
        assert engine_kind("vllm").spec(config).task == "rerank"

    def test_rerank_command(self, sage_home: Path) -> None:
        config = EngineConfig(name="r", kind="embedding", model=RANDOM_RERANKER, task="rerank")
        spec = engine_kind("embedding").service(config, 8090, (1,))
        assert spec is not None
        assert spec.argv[spec.argv.index("--task") + 1] == "rerank"
        assert spec.argv[spec.argv.index("--served-as") + 1] == "sage-random-reranker"
        assert engine_kind("embedding").spec(config).random_weights

    @pytest.mark.parametrize("status", [404, 405, 501])
    @pytest.mark.parametrize("route", [Route.RERANK, Route.SCORE])
    async def test_a_route_that_a_server_lacks_is_no_fault_of_it(self, route: Route, status: int) -> None:
        async with ScriptedEngine(script=Script(status=status)) as server:
            engine = engine_kind("openai").connect(server.config(task="rerank"), server.url)
            with pytest.raises(BadRequestError, match=rf"answered {status}: it has no /v1/{route}\."):
                await engine.send(call_for(engine, route, query="q"), RecordingSink())
            await engine.close()
