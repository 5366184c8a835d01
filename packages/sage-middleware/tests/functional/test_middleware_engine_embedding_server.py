"""The embedding server's HTTP face and its batching, with a model that a test can hold."""

from __future__ import annotations

import asyncio
import base64
import json
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from sage.common.errors import ConfigError, EngineError, NotFoundError
from sage.middleware.engines.batching import Text, Work
from sage.middleware.engines.embedding_server import EmbeddingApp, main
from sage.middleware.engines.encoders import Task, load_model
from sage.middleware.engines.http import HttpPool
from sage.middleware.engines.server import ServerProtocol
from sage.middleware.engines.threads import THREADS_HEADER, Cores
from sage.middleware.random_models import random_reranker
from sage.middleware.testing.engines import RecordingSink


class Held:
    """A model whose batches wait for the test; a text's vector depends on the text alone."""

    dimensions = 4

    def __init__(self) -> None:
        self.batches: list[Sequence[Text]] = []
        self.threads: list[int] = []
        self.free = threading.Event()
        self.free.set()
        self.entered = threading.Event()

    def encode(self, texts: Sequence[Text], threads: int) -> tuple[np.ndarray[Any, Any], list[int]]:
        self.batches.append(texts)
        self.threads.append(threads)
        self.entered.set()
        assert self.free.wait(10)
        if "poison" in texts:
            raise RuntimeError("poisoned")
        if "short" in texts:
            return np.zeros((1, 4), dtype=np.float32), [1]
        rows = [self.row(text) for text in texts]
        words = [text if isinstance(text, str) else " ".join(text) for text in texts]
        return np.asarray(rows, dtype=np.float32), [len(text.split()) for text in words]

    def row(self, text: Text) -> Any:
        assert isinstance(text, str)
        return [len(text), ord(text[0]), 3.0, 4.0]


class HeldPairs(Held):
    """The same for pairs: a score is how many letters they share."""

    dimensions = 0

    def row(self, text: Text) -> Any:
        assert isinstance(text, tuple)
        return len(set(text[0]) & set(text[1]))


class Server:
    def __init__(self, model: Held, app: EmbeddingApp, pool: HttpPool) -> None:
        self.model, self.app, self.pool = model, app, pool

    async def post(
        self, body: bytes | None = None, path: str = "/v1/embeddings", **fields: Any
    ) -> tuple[int, dict[str, Any]]:
        sink = RecordingSink()
        raw = msgspec.json.encode({"model": "m", **fields}) if body is None else body
        await self.pool.request("POST", path, sink, body=raw)
        return sink.status, sink.json()

    async def rerank(self, query: str, *documents: str) -> tuple[int, dict[str, Any]]:
        return await self.post(path="/v1/rerank", query=query, documents=documents)

    async def score(self, left: Any, right: Any) -> tuple[int, dict[str, Any]]:
        return await self.post(path="/v1/score", text_1=left, text_2=right)

    async def embed(self, threads: str) -> tuple[int, dict[str, Any]]:
        sink = RecordingSink()
        raw = msgspec.json.encode({"model": "m", "input": "text"})
        headers = {THREADS_HEADER: threads}
        await self.pool.request("POST", "/v1/embeddings", sink, body=raw, headers=headers)
        return sink.status, sink.json()

    async def get(self, path: str) -> tuple[int, dict[str, Any]]:
        sink = RecordingSink()
        await self.pool.request("GET", path, sink)
        return sink.status, sink.json()

    async def entered(self) -> None:
        assert await asyncio.to_thread(self.model.entered.wait, 60)

    async def waiting(self, count: int) -> None:
        async with asyncio.timeout(60):
            while self.app._batcher.waiting != count:  # noqa: ASYNC110 - set by the worker thread
                await asyncio.sleep(0)


@asynccontextmanager
async def serving(model: Held, task: Task) -> AsyncIterator[Server]:
    loop = asyncio.get_running_loop()
    app = EmbeddingApp(model, "m", Cores(threads=2, most=4), task=task)
    listener = await loop.create_server(
        lambda: ServerProtocol(app.handle, lambda _protocol, _opened: None), "127.0.0.1", 0
    )
    pool = HttpPool(f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}")
    yield Server(model, app, pool)
    model.free.set()
    pool.close()
    listener.close()
    await asyncio.to_thread(app.close)


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with serving(Held(), "embed") as one:
        yield one


@pytest.fixture
async def reranker() -> AsyncIterator[Server]:
    async with serving(HeldPairs(), "rerank") as one:
        yield one


async def test_input_order_usage_and_forms(server: Server) -> None:
    texts = ["a much longer text", "b", "cc"]
    status, answer = await server.post(input=texts)
    assert status == 200
    assert [each["index"] for each in answer["data"]] == [0, 1, 2]
    assert [each["embedding"][:2] for each in answer["data"]] == [[18.0, 97.0], [1.0, 98.0], [2.0, 99.0]]
    assert answer["usage"] == {"prompt_tokens": 6, "total_tokens": 6}
    _, coded = await server.post(input=texts[2], encoding_format="base64")
    raw = base64.b64decode(coded["data"][0]["embedding"])
    assert np.frombuffer(raw, dtype="<f4").tolist() == [2.0, 99.0, 3.0, 4.0]


async def test_dimensions_are_cut_and_normalised(server: Server) -> None:
    _, answer = await server.post(input="abc", dimensions=2)
    vector = answer["data"][0]["embedding"]
    assert len(vector) == 2
    assert np.linalg.norm(vector) == pytest.approx(1.0)
    _, whole = await server.post(input="abc", dimensions=4)
    assert whole["data"][0]["embedding"] == [3.0, 97.0, 3.0, 4.0]


@pytest.mark.parametrize(
    ("fields", "param", "says"),
    [
        ({"input": []}, "input", "0 texts"),
        ({"input": [""]}, "input", "is empty"),
        ({"input": ""}, "input", "is empty"),
        ({"input": ["x"] * 2049}, "input", "2049 texts"),
        ({"input": [1, 2]}, "input", "not a string"),
        ({"input": [[1, 2]]}, "input", "not a string"),
        ({"input": 3}, None, "not an embeddings request"),
        ({}, None, "input"),
        ({"input": "x", "dimensions": 0}, "dimensions", "1 to 4"),
        ({"input": "x", "dimensions": 5}, "dimensions", "1 to 4"),
        ({"input": "x", "encoding_format": "hex"}, "encoding_format", "float, base64"),
        ({"input": "x", "colour": 1}, None, "colour"),
    ],
    ids=str,
)
async def test_bad_requests(server: Server, fields: dict[str, Any], param: str | None, says: str) -> None:
    status, answer = await server.post(**fields)
    assert status == 400
    assert answer["error"]["param"] == param
    assert says in answer["error"]["message"]


async def test_other_errors(server: Server) -> None:
    assert (await server.post(b"{"))[0] == 400
    status, answer = await server.post(input="x", model="other")
    assert (status, answer["error"]["code"]) == (404, "model_not_found")
    assert "there is 'm'" in answer["error"]["message"]
    assert (await server.get("/nothing"))[0] == 404
    assert (await server.get("/health")) == (200, {"status": "ok", "running": 0})
    assert (await server.get("/v1/models"))[1]["data"][0]["id"] == "m"


async def test_requests_of_many_connections_share_a_batch(server: Server) -> None:
    server.model.free.clear()
    first = asyncio.create_task(server.post(input="first"))
    await server.entered()
    rest = [asyncio.create_task(server.post(input=f"text {i}")) for i in range(20)]
    await server.waiting(20)
    server.model.free.set()
    answers = await asyncio.gather(first, *rest)
    assert {status for status, _ in answers} == {200}
    assert [len(batch) for batch in server.model.batches] == [1, 20]


async def test_a_batch_has_the_most_threads_that_a_request_in_it_asked_for(server: Server) -> None:
    server.model.free.clear()
    first = asyncio.create_task(server.post(input="first"))
    await server.entered()
    rest = [asyncio.create_task(server.embed(threads)) for threads in ("1", "3", "0")]
    await server.waiting(3)
    server.model.free.set()
    await asyncio.gather(first, *rest)
    assert server.model.threads == [2, 3]
    for threads in ("1", "0", "", "9"):
        assert (await server.embed(threads))[0] == 200
    assert server.model.threads[2:] == [1, 2, 2, 4]


@pytest.mark.parametrize("threads", ["-1", "two", "1.5", "²"])
async def test_a_thread_count_that_is_none(server: Server, threads: str) -> None:
    status, answer = await server.embed(threads)
    assert status == 400
    assert "whole number" in answer["error"]["message"]
    assert server.model.batches == []


async def test_warming_up_runs_the_model_or_says_why_not(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    await server.app.warm_up()
    assert (server.model.batches, server.model.threads) == ([["warm-up"]], [2])
    monkeypatch.setattr(server.model, "encode", lambda _texts, _threads: 1 / 0)
    with pytest.raises(EngineError, match="failed on its first text: division by zero"):
        await server.app.warm_up()


async def test_a_cancelled_request_is_not_computed(server: Server) -> None:
    server.model.free.clear()
    first = asyncio.create_task(server.post(input="first"))
    await server.entered()
    gone = asyncio.create_task(server.post(input=["gone"] * 500))
    stays = asyncio.create_task(server.post(input="stays"))
    await server.waiting(2)
    gone.cancel()
    await server.waiting(1)
    server.model.free.set()
    await asyncio.gather(first, stays)
    assert server.model.batches == [["first"], ["stays"]]
    assert (await server.get("/health"))[1]["running"] == 0


async def test_a_batch_that_fails_fails_its_requests_only(server: Server) -> None:
    status, answer = await server.post(input="poison")
    assert status == 502
    assert "poisoned" in answer["error"]["message"]
    assert (await server.post(input="fine"))[0] == 200


@pytest.mark.parametrize("failed_too", [False, True])
async def test_a_request_that_cannot_take_its_vectors_leaves_the_worker(
    server: Server, failed_too: bool
) -> None:
    told: list[Exception] = []

    def done(_vectors: list[object], _tokens: int) -> None:
        raise ValueError("cannot take them")

    def failed(error: Exception) -> None:
        told.append(error)
        if failed_too:
            raise error

    server.app._batcher.submit(Work(["x"], done, failed))
    assert (await server.post(input="fine"))[0] == 200
    assert [str(error) for error in told] == ["cannot take them"]
    assert (await server.get("/health"))[0] == 200


async def test_a_model_that_gives_too_few_rows_fails_its_request(server: Server) -> None:
    status, _ = await server.post(input=["short", "rows"])
    assert status == 502
    assert (await server.post(input="fine"))[0] == 200


async def test_a_worker_that_has_ended_is_not_healthy(server: Server) -> None:
    await asyncio.to_thread(server.app.close)
    assert (await server.get("/health")) == (503, {"status": "the worker has ended", "running": 0})


async def test_malformed_http(server: Server) -> None:
    host, port = server.pool.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"NONSENSE\r\n\r\n")
    assert (await reader.read()).startswith(b"HTTP/1.1 400")
    writer.close()
    await writer.wait_closed()


async def test_pipelined_requests_are_answered_in_order(server: Server) -> None:
    host, port = server.pool.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    body = msgspec.json.encode({"model": "m", "input": "x"})
    post = b"POST /v1/embeddings HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
    writer.write(post + b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n" + b"GET /none HTTP/1.1\r\nhost: x\r\n\r\n")
    got = b""
    while b"There is no" not in got:
        got += await reader.read(4096)
    assert [got.index(part) for part in (b'"embedding"', b'"status"', b"404")] == sorted(
        [got.index(part) for part in (b'"embedding"', b'"status"', b"404")]
    )
    writer.close()
    await writer.wait_closed()


# ---- scores of pairs ----


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


@pytest.mark.parametrize("task", ["embed", "rerank"])
def test_a_model_that_is_not_one(tmp_path: Any, task: Task) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(NotFoundError, match="cannot be loaded"):
        load_model(str(tmp_path), Cores(), task)
    with pytest.raises(SystemExit, match="cannot be loaded"):
        main(["--model", str(tmp_path), "--served-as", "x", "--port", "0"])
