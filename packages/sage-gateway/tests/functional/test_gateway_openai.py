"""The real process in front of a scripted engine, asked by the official client and by hand."""

from __future__ import annotations

import asyncio
import base64
import re
import struct
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlsplit

import openai
import pytest
import pytest_asyncio

from sage.common.telemetry import Bound
from sage.gateway.routes import ROUTES
from sage.middleware.testing.engines import Script, ScriptedEngine

pytestmark = pytest.mark.asyncio(loop_scope="module")

MESSAGES: Any = [{"role": "user", "content": "Say something."}]


class Stack:
    """One engine that chats and one that embeds, behind one gateway."""

    def __init__(self, gateway: Any, chat: ScriptedEngine, embed: ScriptedEngine) -> None:
        self.gateway = gateway
        self.chat = chat
        self.embed = embed

    @property
    def url(self) -> str:
        return str(self.gateway.run.base_url)

    @property
    def key(self) -> str:
        return str(self.gateway.keys.default)

    def client(self, key: str | None = None) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(base_url=self.url, api_key=key or self.key, max_retries=0)

    async def post(self, path: str, body: Any, *, key: str | None = None) -> Any:
        return await self.gateway.http("POST", f"{self.url}/{path}", key=key or self.key, body=body)


def entry(engine: ScriptedEngine, name: str, task: str) -> dict[str, Any]:
    return engine.config(name, task=task).model_dump(mode="json")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack(module_spawner: Any) -> AsyncIterator[Stack]:
    async with ScriptedEngine(model="talker") as chat, ScriptedEngine(model="embedder") as embed:
        config = {"engines": [entry(chat, "chat-0", "generate"), entry(embed, "embed-0", "embed")]}
        gateway = await module_spawner.start(config)
        await gateway.until_ready()
        yield Stack(gateway, chat, embed)
        assert await gateway.stop() == 0


async def test_models(stack: Stack) -> None:
    async with stack.client() as client:
        assert sorted([model.id async for model in client.models.list()]) == ["embedder", "talker"]
        assert (await client.models.retrieve("talker")).object == "model"
        with pytest.raises(openai.NotFoundError, match="embedder, talker"):
            await client.models.retrieve("org/none")


async def test_chat(stack: Stack) -> None:
    async with stack.client() as client:
        answer = await client.chat.completions.create(model="talker", messages=MESSAGES)
    assert answer.choices[0].message.content == "one two three"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 3


async def test_the_synchronous_client(stack: Stack) -> None:
    def ask() -> str:
        with openai.OpenAI(base_url=stack.url, api_key=stack.key, max_retries=0) as client:
            stream = client.chat.completions.create(model="talker", messages=MESSAGES, stream=True)
            return "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)

    assert await asyncio.to_thread(ask) == "one two three"


async def test_a_stream_with_and_without_usage(stack: Stack) -> None:
    async with stack.client() as client:
        with_usage = await client.chat.completions.create(
            model="talker", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in with_usage]
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.completion_tokens == 3
        plain = await client.chat.completions.create(model="talker", messages=MESSAGES, stream=True)
        assert all(chunk.usage is None for chunk in [c async for c in plain])


async def test_completions(stack: Stack) -> None:
    async with stack.client() as client:
        answer = await client.completions.create(model="talker", prompt="Once")
        assert answer.choices[0].text == "one two three"
        stream = await client.completions.create(model="talker", prompt="Once", stream=True)
        assert "".join([c.choices[0].text async for c in stream if c.choices]) == "one two three"


async def test_embeddings_in_each_form(stack: Stack) -> None:
    async with stack.client() as client:
        one = await client.embeddings.create(model="embedder", input="Hello world", encoding_format="float")
        default = await client.embeddings.create(model="embedder", input="Hello world")  # base64 on the wire
        some = await client.embeddings.create(model="embedder", input=["Hello world", "b"])
        ids = await client.embeddings.create(model="embedder", input=[9906, 1917])
        lists = await client.embeddings.create(model="embedder", input=[[9906, 1917], [65]])
    vector = one.data[0].embedding
    assert default.data[0].embedding == pytest.approx(vector)
    for answer in (some, ids, lists):
        assert answer.data[0].embedding == pytest.approx(vector)
    assert [item.index for item in lists.data] == [0, 1]


async def test_base64_is_little_endian_float32(stack: Stack) -> None:
    body = {"model": "embedder", "input": "a", "encoding_format": "base64"}
    raw = base64.b64decode((await stack.post("embeddings", body)).json["data"][0]["embedding"])
    floats = (await stack.post("embeddings", {"model": "embedder", "input": "a"})).json["data"][0][
        "embedding"
    ]
    assert list(struct.unpack(f"<{len(raw) // 4}f", raw)) == pytest.approx(floats)


@pytest.mark.parametrize("ids", [[-1], [999_999], [[1], [100_300]]])
async def test_token_ids_out_of_range(stack: Stack, ids: Any) -> None:
    answer = await stack.post("embeddings", {"model": "embedder", "input": ids})
    assert answer.status == 400
    assert "cl100k_base" in answer.error["message"]
    assert answer.error["param"].startswith("input")


async def test_an_unknown_model_names_those_there_are(stack: Stack) -> None:
    answer = await stack.post("chat/completions", {"model": "gpt-9", "messages": MESSAGES})
    assert answer.status == 404
    assert set(answer.error) == {"message", "type", "param", "code"}
    assert "talker" in answer.error["message"]


@pytest.mark.parametrize(
    "body", [b"{", b"", b"[]", b'{"model": "talker"}', b'{"model": "talker", "model": "x", "messages": []}']
)
async def test_what_is_no_request_is_a_400(stack: Stack, body: bytes) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", urlsplit(stack.url).port)
    head = f"host: localhost\r\nx-api-key: {stack.key}\r\ncontent-type: application/json\r\nconnection: close"
    line = f"POST /v1/chat/completions HTTP/1.1\r\n{head}\r\ncontent-length: {len(body)}\r\n\r\n"
    writer.write(line.encode() + body)
    answer = await reader.read()
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b'"type":"invalid_request_error"' in answer
    writer.close()


async def test_an_engines_own_words_stay_in_the_log(stack: Stack) -> None:
    stack.chat.next_scripts.extend([Script(status=500)] * 4)
    answer = await stack.post("chat/completions", {"model": "talker", "messages": MESSAGES})
    stack.chat.next_scripts.clear()
    assert answer.status in (502, 503)
    assert "scripted 500" not in answer.error["message"]


async def test_an_admin_sees_who_served_and_why(stack: Stack) -> None:
    body = {"model": "talker", "messages": MESSAGES}
    admin = await stack.post("chat/completions", body, key=stack.gateway.keys.admin)
    assert admin.headers["x-sage-engine"] == "chat-0"
    assert float(admin.headers["x-sage-queue-ms"]) >= 0
    assert admin.headers["x-sage-reason"]
    assert "x-sage-engine" not in (await stack.post("chat/completions", body)).headers
    stream = await stack.post("chat/completions", {**body, "stream": True}, key=stack.gateway.keys.admin)
    assert stream.headers["x-sage-engine"] == "chat-0"


async def test_the_decision_is_remembered(stack: Stack) -> None:
    answer = await stack.post("chat/completions", {"model": "talker", "messages": MESSAGES})
    ident = answer.headers["x-request-id"]
    decision = (await stack.gateway.admin("GET", f"/decisions/{ident}")).json
    assert (decision["engine"], decision["outcome"]) == ("chat-0", "done")
    newest = (await stack.gateway.admin("GET", "/decisions?limit=1")).json["decisions"]
    assert [one["request_id"] for one in newest] == [ident]
    assert (await stack.gateway.admin("GET", "/decisions/none")).status == 404
    assert (await stack.gateway.admin("GET", "/decisions?limit=0")).status == 400


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_goes_away_frees_the_engine(stack: Stack, stream: bool) -> None:
    for gate_after in (-1, 1) if stream else (-1,):
        gate = asyncio.Event()
        before = stack.chat.cancelled
        stack.chat.next_scripts.append(Script(gate=gate, gate_after=gate_after))
        body = {"model": "talker", "messages": MESSAGES, "stream": stream}
        asking = asyncio.create_task(stack.post("chat/completions", body))
        await stack.chat.until(lambda: stack.chat.active == 1)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        await stack.chat.until(lambda: stack.chat.cancelled == before + 1)  # noqa: B023 - awaited here


async def test_an_engine_that_breaks_in_a_stream_is_an_error_event(stack: Stack) -> None:
    stack.chat.next_scripts.append(Script(cut_at=300))
    answer = await stack.post("chat/completions", {"model": "talker", "messages": MESSAGES, "stream": True})
    assert answer.status == 200
    assert b'data: {"error":' in answer.body
    assert b"[DONE]" not in answer.body


# ---- who may ask -------------------------------------------------------------------------------------------


async def test_every_route_and_method_is_closed_without_a_key(stack: Stack) -> None:
    run = stack.gateway.run
    bases = {"data": run.base_url.removesuffix("/v1"), "admin": run.admin_url}
    paths: set[tuple[str, str]] = {(e.listener, re.sub(r"\{[a-z_:]+\}", "x", e.path)) for e in ROUTES}
    paths |= {
        (listener, path) for listener in bases for path in ("/nowhere", "/docs", "/openapi.json", "/metrics")
    }
    for listener, path in sorted(paths):
        for method in ("GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"):
            for key in ("", "sk-sage-wrong.key"):
                answer = await stack.gateway.http(method, bases[listener] + path, key=key)
                assert answer.status == 401, (method, path)
                assert answer.error["type"] == "authentication_error"
                assert "www-authenticate" in answer.headers


async def test_a_key_does_not_open_the_admin_listener(stack: Stack) -> None:
    run = stack.gateway.run
    for item in ROUTES:
        if item.listener == "admin":
            answer = await stack.gateway.http(item.method, run.admin_url + item.path, key=stack.key)
            assert answer.status == 403, item


async def test_errors_of_the_cold_routes_are_openais(stack: Stack) -> None:
    base = stack.url.removesuffix("/v1")
    for method, path, status in (
        ("GET", "/v1/nothing", 404),
        ("POST", "/v1/models", 405),
        ("GET", "/v1/embeddings", 405),
    ):
        answer = await stack.gateway.http(method, base + path, key=stack.key)
        assert (answer.status, answer.error["type"]) == (status, "invalid_request_error")
    assert (await stack.gateway.http("GET", f"{base}/", key=stack.key)).json["name"] == "sage"


# ---- admin -------------------------------------------------------------------------------------------------


async def test_admin_reads(stack: Stack) -> None:
    status = (await stack.gateway.admin("GET", "/status")).json
    assert [engine["name"] for engine in status["engines"]] == ["chat-0", "embed-0"]
    assert {queue["request_class"] for queue in status["queues"]} >= {"chat", "embed_interactive"}
    engines = (await stack.gateway.admin("GET", "/engines")).json["engines"]
    assert [engine["url"] for engine in engines] == [stack.chat.url, stack.embed.url]
    config = (await stack.gateway.admin("GET", "/config")).json
    assert config["config"]["ports"]["gateway"] == 0
    assert config["origin"]["ports.gateway"].endswith(":1")
    node = (await stack.gateway.admin("GET", "/nodes")).json["nodes"][0]
    assert node["cpus"]
    assert node["memory_total"] > 0


async def test_the_policy_can_be_changed(stack: Stack) -> None:
    before = (await stack.gateway.admin("GET", "/policy")).json
    assert before["name"] in before["available"]
    assert (await stack.gateway.admin("PUT", "/policy", {"name": "round_robin"})).json[
        "name"
    ] == "round_robin"
    answer = await stack.post("chat/completions", {"model": "talker", "messages": MESSAGES})
    decision = (await stack.gateway.admin("GET", f"/decisions/{answer.headers['x-request-id']}")).json
    assert decision["policy"] == "round_robin"
    wrong = await stack.gateway.admin("PUT", "/policy", {"name": "astrology"})
    assert wrong.status == 400
    assert "least_load" in wrong.error["message"]
    assert (await stack.gateway.admin("PUT", "/policy", {"nam": "fifo"})).status == 400
    assert (await stack.gateway.admin("PUT", "/policy", {"name": before["name"]})).status == 200


async def test_the_policies_say_what_they_do(stack: Stack) -> None:
    found = (await stack.gateway.admin("GET", "/policy")).json
    assert found["name"] == "hybrid"
    assert sorted(found["summaries"]) == found["available"]
    assert all(summary.endswith(".") for summary in found["summaries"].values())


async def test_metrics_are_counted_and_served_in_two_forms(stack: Stack) -> None:
    assert (await stack.post("chat/completions", {"model": "talker", "messages": MESSAGES})).status == 200
    found = (await stack.gateway.admin("GET", "/metrics")).json["metrics"]
    metrics = {metric["name"]: metric["samples"] for metric in found}
    done = [s for s in metrics["sage_requests_total"] if s["labels"]["outcome"] == "done"]
    assert sum(sample["value"] for sample in done) >= 1
    assert metrics["sage_dispatch_overhead_seconds"][0]["count"] > 1
    assert {s["labels"]["engine"] for s in metrics["sage_engine_state"]} == {"chat-0", "embed-0"}
    assert {s["labels"]["limit"] for s in metrics["sage_limit_hits_total"]} == set(Bound)
    opened = {s["labels"]["listener"]: s["value"] for s in metrics["sage_connections_open"]}
    assert opened.keys() == {"data", "admin"}
    assert opened["admin"] >= 1  # this very request
    assert metrics["sage_event_loop_lag_seconds"][0]["count"] > 1
    assert metrics["sage_streams_open"][0]["value"] == 0
    tokens = {(s["labels"]["model"], s["labels"]["type"]): s["value"] for s in metrics["sage_tokens_total"]}
    assert tokens["talker", "output"] >= 3
    url = f"{stack.gateway.run.admin_url}/metrics"
    text = await stack.gateway.http("GET", url, key=stack.gateway.keys.admin)
    assert text.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    names = {line.split(" ")[2] for line in text.body.decode().splitlines() if line.startswith("# TYPE")}
    assert names == metrics.keys()
    classes = {
        one["request_class"]: one for one in (await stack.gateway.admin("GET", "/status")).json["classes"]
    }
    assert classes["chat"]["offered"] >= classes["chat"]["met"] >= 1


async def test_a_decision_says_what_was_asked_for_and_what_could_have_been(stack: Stack) -> None:
    async with stack.client() as client:
        answer = await client.chat.completions.with_raw_response.create(
            model="talker",
            messages=MESSAGES,
            extra_headers={"x-sage-explain": "1", "x-sage-slo-ttft-ms": "700", "x-sage-class": "batch"},
        )
    ident = answer.headers["x-request-id"]
    decision = (await stack.gateway.admin("GET", f"/decisions/{ident}")).json
    assert (decision["request_class"], decision["slo"]["ttft_s"], decision["outcome"]) == (
        "batch",
        0.7,
        "done",
    )
    assert [candidate["engine"] for candidate in decision["candidates"]] == ["chat-0"]


async def test_a_tenant_that_nobody_configured_is_refused(stack: Stack) -> None:
    async with stack.client() as client:
        with pytest.raises(openai.BadRequestError, match="x-sage-tenant is 'nobody'; this key may act for"):
            await client.chat.completions.create(
                model="talker", messages=MESSAGES, extra_headers={"x-sage-tenant": "nobody"}
            )
