"""The embedding server's HTTP face and its batching, with a model that a test can hold."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import numpy as np
import pytest

from sage.common.errors import EngineError, NotFoundError
from sage.middleware.engines.asks import Task
from sage.middleware.engines.batching import Work
from sage.middleware.engines.embedding_server import main
from sage.middleware.engines.encoders import load_model
from sage.middleware.engines.threads import Cores
from sage.middleware.testing.served import Held, Server, serving


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with serving(Held(), "embed") as one:
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


@pytest.mark.parametrize("task", ["embed", "rerank"])
def test_a_model_that_is_not_one(tmp_path: Any, task: Task) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(NotFoundError, match="cannot be loaded"):
        load_model(str(tmp_path), Cores(), task)
    with pytest.raises(SystemExit, match="cannot be loaded"):
        main(["--model", str(tmp_path), "--served-as", "x", "--port", "0"])
