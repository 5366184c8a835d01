"""Model clients: both on one conformance suite; reading answers; asking again."""

from __future__ import annotations

import asyncio
import base64
import json
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import numpy as np
import pytest
from aiohttp import web

from sage.common.clock import SystemClock
from sage.common.config import ControlPlaneConfig
from sage.common.errors import (
    BadRequestError,
    EngineError,
    NotFoundError,
    OverloadedError,
    SageError,
    UnauthorizedError,
    UnavailableError,
    UnreachableError,
)
from sage.common.ports import find_free
from sage.common.tracing import TRACEPARENT
from sage.middleware.answers import ChatReader, error_from, read_embeddings, read_ranking
from sage.middleware.client import HttpClient, ModelClient
from sage.middleware.control_plane.driver import ControlPlane
from sage.middleware.control_plane.inprocess import FULL_AT, InProcessClient, _Pipe
from sage.middleware.engines.port import Usage
from sage.middleware.testing.clients import HELLO, Bench, ClientSuite
from sage.middleware.testing.engines import Script, ScriptedEngine
from sage.middleware.testing.memory import Behaviour, MemoryEngine


class TestHttpClient(ClientSuite):
    @pytest.fixture
    async def bench(self) -> AsyncIterator[Bench]:
        async with ScriptedEngine() as engine:
            client = HttpClient(engine.url + "/v1", "sk-test", batch_texts=4)

            def stall() -> None:
                engine.next_scripts.append(Script(gate=asyncio.Event(), gate_after=1))

            yield Bench(client, "scripted", stall, lambda: engine.until(lambda: engine.active == 0))
            await client.close()


class TestInProcessClient(ClientSuite):
    @pytest.fixture
    async def bench(self) -> AsyncIterator[Bench]:
        engine = MemoryEngine()
        plane = ControlPlane(ControlPlaneConfig(), SystemClock())
        plane.add_engine(engine)

        def stall() -> None:
            engine.next_behaviours.append(Behaviour(gate=asyncio.Event(), gate_after=1))

        yield Bench(InProcessClient(plane, batch_texts=4), "memory", stall, lambda: engine.until_running(0))
        await plane.close(1.0)
        assert [status.running for status in plane.engines()] == [0]

    async def test_faults_of_the_control_plane_are_raised(self, bench: Bench) -> None:
        with pytest.raises(NotFoundError, match="there are: memory"):
            await bench.client.embed(["a"], model="x")
        with pytest.raises(BadRequestError, match="empty string"):
            await bench.client.embed([""], model="memory")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b"\xff",
        b'{"results":[{"index":0,"relevance_score":1}]}',
        b'{"results":[{"index":0,"relevance_score":1},{"index":0,"relevance_score":1}]}',
        b'{"results":[{"index":0,"relevance_score":null},{"index":1,"relevance_score":1}]}',
    ],
)
def test_a_ranking_that_is_not_whole_is_a_fault(body: bytes) -> None:
    with pytest.raises(EngineError):
        read_ranking(body, 2)


async def test_an_in_process_stream_that_breaks_raises_the_error_of_its_event() -> None:
    engine = MemoryEngine()
    engine.behaviour = Behaviour(fault=EngineError("it broke"), fault_after=2)
    plane = ControlPlane(ControlPlaneConfig(), SystemClock())
    plane.add_engine(engine)
    stream = InProcessClient(plane).chat(HELLO, model="memory")
    assert [(await anext(stream)).text for _ in range(2)] == ["one ", "two "]
    with pytest.raises(EngineError, match="it broke"):
        await anext(stream)
    await plane.close(1.0)


async def test_an_in_process_refusal_is_tried_again_within_its_patience() -> None:
    engine = MemoryEngine()
    plane = ControlPlane(ControlPlaneConfig(), SystemClock())
    plane.announce(engine.spec)
    impatient = InProcessClient(plane, patience_s=0.5)
    with pytest.raises(UnavailableError):
        await impatient.embed(["a"], model="memory")
    asyncio.get_running_loop().call_later(0.01, plane.add_engine, engine)
    patient = InProcessClient(plane, patience_s=30.0)
    assert (await patient.embed(["a"], model="memory")).shape == (1, 8)
    await plane.close(1.0)


async def test_a_slow_reader_holds_the_engine_back() -> None:
    pipe = _Pipe()
    for _ in range(FULL_AT):
        assert not pipe.full
        pipe.data(b"x")
    assert pipe.full
    drained = asyncio.create_task(pipe.drain())
    await asyncio.sleep(0)
    assert not drained.done()
    assert await pipe.get() == b"x"
    await drained


# ---- HTTP faults, from a server that answers as it is told ----

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Server:
    """Answers with `answers` in turn, the last one for ever."""

    def __init__(self) -> None:
        self.answers: list[Answer] = []
        self.requests: list[tuple[str, dict[str, str], Any]] = []
        self.url = ""

    def say(self, status: int, body: Any, **headers: str) -> None:
        async def answer(request: web.Request) -> web.StreamResponse:
            return web.Response(status=status, text=json.dumps(body), headers=headers)

        self.answers.append(answer)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.requests.append((request.path, dict(request.headers), await request.text()))
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return await answer(request)


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    one = Server()
    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", one.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    one.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    yield one
    await runner.cleanup()


@pytest.fixture
async def client(server: Server) -> AsyncIterator[ModelClient]:
    one = HttpClient(server.url, "sk-test", patience_s=5.0)
    yield one
    await one.close()


ONE = {"data": [{"index": 0, "embedding": [1.0, 2.0]}]}
BUSY = {"error": {"message": "busy", "type": "rate_limit_error", "param": None, "code": "overloaded"}}


async def test_the_key_and_the_path_are_sent(server: Server, client: ModelClient) -> None:
    server.say(200, ONE)
    np.testing.assert_array_equal(await client.embed(["a"], model="m"), [[1.0, 2.0]])
    ((path, headers, body),) = server.requests
    assert path == "/v1/embeddings"
    assert headers["Authorization"] == "Bearer sk-test"
    assert json.loads(body) == {"model": "m", "input": ["a"], "encoding_format": "base64"}


async def test_a_call_carries_the_trace_that_it_belongs_to(server: Server, client: ModelClient) -> None:
    server.say(200, ONE)
    token = TRACEPARENT.set("00-1-2-01")
    await client.embed(["a"], model="m", bulk=True)
    TRACEPARENT.reset(token)
    server.say(200, ONE)
    await client.embed(["a"], model="m")
    found = [headers.get("traceparent") for _, headers, _ in server.requests]
    assert found == ["00-1-2-01", None]
    assert server.requests[0][1]["x-sage-class"] == "embed_bulk"


@pytest.mark.parametrize("bulk", [True, False])
async def test_bulk_says_so_whatever_its_size(server: Server, client: ModelClient, bulk: bool) -> None:
    server.say(200, ONE)
    await client.embed(["a"], model="m", bulk=bulk)
    ((_, headers, _),) = server.requests
    assert headers.get("x-sage-class") == ("embed_bulk" if bulk else None)


@pytest.mark.parametrize("status", [429, 503])
async def test_busy_is_tried_again_when_it_says_when(
    server: Server, client: ModelClient, status: int
) -> None:
    for _ in range(2):
        server.say(status, BUSY, **{"retry-after": "0.01"})
    server.say(200, ONE)
    assert (await client.embed(["a"], model="m")).shape == (1, 2)
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    ("status", "headers", "kind"),
    [
        (429, {}, OverloadedError),
        (503, {"retry-after": "3600"}, UnavailableError),
        (400, {"retry-after": "0"}, BadRequestError),
        (401, {}, UnauthorizedError),
        (502, {}, EngineError),
        (418, {}, OverloadedError),  # an unusual status, told by its code
    ],
)
async def test_all_else_is_raised_at_once_as_what_it_is(
    server: Server, client: ModelClient, status: int, headers: dict[str, str], kind: type[SageError]
) -> None:
    server.say(status, BUSY, **headers)
    with pytest.raises(kind, match="busy") as caught:
        await client.embed(["a"], model="m")
    assert type(caught.value) is kind
    assert len(server.requests) == 1


async def test_nobody_listening_is_unreachable_after_patience() -> None:
    client = HttpClient(f"http://127.0.0.1:{find_free((20000, 29999))}/v1", "k", patience_s=0.15)
    with pytest.raises(UnreachableError, match="Nothing answers at"):
        await client.models()
    await client.close()


async def test_a_stream_that_breaks_off_is_an_engine_error() -> None:
    async with ScriptedEngine(script=Script(cut_at=150)) as engine:
        client = HttpClient(engine.url + "/v1", "k")
        with pytest.raises(EngineError, match="broke off"):
            _ = [delta async for delta in client.chat(HELLO, model="scripted")]
        await client.close()


async def test_an_answer_that_is_not_json_is_an_engine_error(server: Server, client: ModelClient) -> None:
    server.say(200, "hello")
    with pytest.raises(EngineError, match="cannot be read"):
        await client.embed(["a"], model="m")
    with pytest.raises(EngineError, match="list of models"):
        await client.models()


# ---- reading ----


def test_embeddings_are_read_from_lists_and_base64_and_put_in_order() -> None:
    packed = base64.b64encode(struct.pack("<2f", 3.0, 4.0)).decode()
    data = [{"index": 1, "embedding": packed}, {"index": 0, "embedding": [1, 2]}]
    matrix = read_embeddings(json.dumps({"data": data}).encode(), 2)
    np.testing.assert_array_equal(matrix, np.array([[1, 2], [3, 4]], np.float32))


@pytest.mark.parametrize(
    "data",
    [
        [],
        [{"index": 1, "embedding": [1.0]}],
        [{"index": 0, "embedding": [1.0]}, {"index": 1, "embedding": [1.0, 2.0]}],
        [{"index": 0, "embedding": "!!!"}, {"index": 1, "embedding": "AAAA"}],
        [{"index": 0, "embedding": "AAA="}, {"index": 1, "embedding": "AAA="}],
        [{"index": 0}, {"index": 1}],
    ],
)
def test_embeddings_that_are_not_what_was_asked_for_are_refused(data: list[Any]) -> None:
    with pytest.raises(EngineError):
        read_embeddings(json.dumps({"data": data}).encode(), 2)


STREAM = (
    b': comment\n\ndata: {"choices":[{"delta":{"role":"assistant"}}]}\n\n'
    b'data: {"choices":[{"delta":{"content":"gr\xc3\xbc"}}]}\r\n\r\n'
    b'data: {"choices":[{"delta":{"content":"\xc3\x9fe"}}]}\n\n'
    b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}\n\ndata: [DONE]\n\n'
)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 50, 1000])
def test_a_stream_reads_the_same_however_it_is_split(size: int) -> None:
    reader = ChatReader()
    texts: list[str] = []
    for start in range(0, len(STREAM), size):
        texts += reader.feed(STREAM[start : start + size])
    reader.finish()
    assert texts == ["grü", "ße"]
    assert reader.usage == Usage(3, 2)


def test_an_error_event_is_raised_as_what_it_is() -> None:
    event = b'data: {"error":{"message":"slow","type":"x","code":"overloaded"}}\n\n'
    with pytest.raises(OverloadedError, match="slow"):
        list(ChatReader().feed(event))
    with pytest.raises(EngineError, match="plain words"):
        list(ChatReader().feed(b'data: {"error":"plain words"}\n\n'))


def test_a_chunk_that_is_not_json_is_an_engine_error() -> None:
    with pytest.raises(EngineError, match="cannot be read"):
        list(ChatReader().feed(b"data: {oops\n\n"))


def test_a_stream_without_its_end_is_an_engine_error() -> None:
    with pytest.raises(EngineError, match="broke off"):
        ChatReader().finish()


@pytest.mark.parametrize("body", [b"", b"<html>", b'{"error":null}', b'{"detail":"x"}'])
def test_an_error_without_words_still_has_its_class(body: bytes) -> None:
    error = error_from(404, body)
    assert type(error) is NotFoundError
    assert "404" in error.message
