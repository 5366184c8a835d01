"""`/v1/messages` and `/v1/responses` of the real process, in front of scripted engines."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
import pytest_asyncio

from sage.middleware.testing.dialects import events_of, read_message_stream, read_response_stream
from sage.middleware.testing.engines import Script, ScriptedEngine

pytestmark = pytest.mark.asyncio(loop_scope="module")

ASK = {"model": "talker", "max_tokens": 9, "messages": [{"role": "user", "content": "hello"}]}
INPUT = {"model": "talker", "input": "hello"}


class Stack:
    """One engine that chats, one that speaks the dialects itself, behind one gateway."""

    def __init__(self, gateway: Any, chat: ScriptedEngine, native: ScriptedEngine) -> None:
        self.gateway = gateway
        self.chat = chat
        self.native = native

    async def ask(self, method: str, path: str, body: Any = None, *, key: str | None = None) -> Any:
        url = f"{self.gateway.run.base_url}/{path}"
        return await self.gateway.http(method, url, key=self.key if key is None else key, body=body)

    async def post(self, path: str, body: Any) -> Any:
        return await self.ask("POST", path, body)

    @property
    def key(self) -> str:
        return str(self.gateway.keys.default)

    async def another_key(self, **fields: Any) -> str:
        made = await self.gateway.admin("POST", "/keys", fields)
        return str(made.json["secret"])


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack(module_spawner: Any) -> AsyncIterator[Stack]:
    async with ScriptedEngine(model="talker") as chat, ScriptedEngine(model="speaker") as native:
        speaks = native.config("native-0", speaks=("messages", "responses"))
        engines = [one.model_dump(mode="json") for one in (chat.config("chat-0"), speaks)]
        gateway = await module_spawner.start({"engines": engines})
        await gateway.until_ready()
        yield Stack(gateway, chat, native)
        assert await gateway.stop() == 0


# ---- messages ----------------------------------------------------------------------------------------------


async def test_a_message_whole_and_streamed(stack: Stack) -> None:
    whole = await stack.post("messages", ASK)
    assert (whole.status, whole.headers["request-id"]) == (200, whole.headers["x-request-id"])
    assert whole.json["content"] == [{"type": "text", "text": "one two three"}]
    streamed = await stack.post("messages", {**ASK, "stream": True})
    assert streamed.headers["content-type"].startswith("text/event-stream")
    message = read_message_stream(streamed.body)
    assert message["content"] == whole.json["content"]
    assert message["usage"] == whole.json["usage"]


async def test_tokens_are_counted_for_the_key(stack: Stack) -> None:
    key = await stack.another_key(name="counted")
    for path, body in (("messages", {**ASK, "stream": True}), ("responses", INPUT)):
        assert (await stack.ask("POST", path, body, key=key)).status == 200
    rows = (await stack.gateway.admin("GET", "/usage?key=counted")).json["rows"]
    assert sum(row["requests"] for row in rows) == 2
    assert sum(row["completion_tokens"] for row in rows) == 6
    assert {row["request_class"] for row in rows} == {"chat"}


@pytest.mark.parametrize(
    ("body", "status", "kind", "says"),
    [
        ({**ASK, "model": "none"}, 404, "not_found_error", "none"),
        ({**ASK, "thinking": {"type": "adaptive"}}, 400, "invalid_request_error", "thinking"),
        ({**ASK, "top_k": 3}, 400, "invalid_request_error", "top_k"),
        ({**ASK, "max_tokens": 0}, 400, "invalid_request_error", "max_tokens"),
        ({"x": "y" * 5_000_000}, 413, "request_too_large", "larger than the limit"),
    ],
)
async def test_errors_of_messages_are_anthropics(
    stack: Stack, body: Any, status: int, kind: str, says: str
) -> None:
    answer = await stack.post("messages", body)
    assert answer.status == status
    assert (answer.json["type"], answer.error["type"]) == ("error", kind)
    assert says in answer.error["message"]
    assert answer.json["request_id"] == answer.headers["request-id"]


async def test_errors_of_the_edge_are_anthropics_too(stack: Stack) -> None:
    for method, path, key, status, kind in (
        ("POST", "messages", "", 401, "authentication_error"),
        ("GET", "messages", None, 405, "invalid_request_error"),
        ("GET", "messages/none", None, 404, "not_found_error"),
        ("POST", "messages/count_tokens", "sk-sage-wrong.key", 401, "authentication_error"),
    ):
        answer = await stack.ask(method, path, ASK if method == "POST" else None, key=key)
        assert (answer.status, answer.json["type"], answer.error["type"]) == (status, "error", kind)
        assert answer.json["request_id"] == answer.headers["x-request-id"]
    key = await stack.another_key(name="slow", rpm=1)
    assert (await stack.ask("POST", "messages", ASK, key=key)).status == 200
    answer = await stack.ask("POST", "messages", ASK, key=key)
    assert (answer.status, answer.error["type"]) == (429, "rate_limit_error")
    assert "retry-after" in answer.headers


async def test_a_count_needs_an_engine_that_counts(stack: Stack) -> None:
    fields = {name: ASK[name] for name in ("model", "messages")}
    answer = await stack.post("messages/count_tokens", fields)
    assert (answer.status, answer.error["type"]) == (400, "invalid_request_error")
    assert "does not serve tokenize" in answer.error["message"]


@pytest.mark.parametrize(("path", "body"), [("messages", ASK), ("responses", INPUT)])
async def test_an_engine_that_breaks_in_a_stream_is_an_error_event(
    stack: Stack, path: str, body: Any
) -> None:
    stack.chat.next_scripts.append(Script(cut_at=400))
    answer = await stack.post(path, {**body, "stream": True})
    assert answer.status == 200
    *events, error = events_of(answer.body)
    assert (error["type"], bool(error["error"]["message"])) == ("error", True)
    if path == "responses":
        assert error["sequence_number"] == events[-1]["sequence_number"] + 1


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(("path", "body"), [("messages", ASK), ("responses", INPUT)])
async def test_a_client_that_goes_away_frees_the_engine(
    stack: Stack, path: str, body: Any, stream: bool
) -> None:
    before = stack.chat.cancelled
    stack.chat.next_scripts.append(Script(gate=asyncio.Event(), gate_after=1 if stream else -1))
    asking = asyncio.create_task(stack.post(path, {**body, "stream": stream}))
    await stack.chat.until(lambda: stack.chat.active == 1)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    await stack.chat.until(lambda: stack.chat.cancelled == before + 1)


async def test_an_engine_that_speaks_messages_is_asked_and_heard_as_it_is(stack: Stack) -> None:
    spoken = (
        b'event: message_start\ndata: {"type": "message_start", "message": {"usage": {"input_tokens":3}}}\n\n'
        b'event: message_delta\ndata: {"type": "message_delta", "usage": {"output_tokens": 4}}\n\n'
        b'event: message_stop\ndata: {"type": "message_stop"}\n\n'
    )
    stack.native.next_scripts.append(Script(raw=spoken, fragment=9))
    body = {**ASK, "model": "speaker", "stream": True, "top_p": 0.5}
    assert (await stack.post("messages", body)).body == spoken
    assert stack.native.requests[-1].path == "/v1/messages"
    assert json.loads(stack.native.requests[-1].body) == body


# ---- responses ---------------------------------------------------------------------------------------------


async def test_a_response_whole_and_streamed_by_the_official_client(stack: Stack) -> None:
    async with openai.AsyncOpenAI(
        base_url=stack.gateway.run.base_url, api_key=stack.key, max_retries=0
    ) as client:
        whole = await client.responses.create(model="talker", input="hello", instructions="Be brief.")
        assert (whole.output_text, whole.status) == ("one two three", "completed")
        assert whole.usage is not None
        assert whole.usage.output_tokens == 3
        async with client.responses.stream(
            model="talker", input="more", previous_response_id=whole.id
        ) as stream:
            pieces = [event.delta async for event in stream if event.type == "response.output_text.delta"]
            final = await stream.get_final_response()
        assert (pieces, final.output_text) == (["one ", "two ", "three"], "one two three")
        assert final.previous_response_id == whole.id
        assert (await client.responses.retrieve(final.id)).output_text == final.output_text
        items = [item async for item in client.responses.input_items.list(final.id, order="asc", limit=2)]
        assert [getattr(item, "role", None) for item in items] == ["user", "assistant", "user"]
        await client.responses.delete(whole.id)
        with pytest.raises(openai.NotFoundError, match=whole.id):
            await client.responses.retrieve(whole.id)
        assert (await client.responses.retrieve(final.id)).id == final.id
        with pytest.raises(openai.NotFoundError, match=whole.id):
            await client.responses.create(model="talker", input="x", previous_response_id=whole.id)


async def test_what_was_said_before_is_asked_again(stack: Stack) -> None:
    first = (await stack.post("responses", INPUT)).json
    await stack.post("responses", {**INPUT, "input": "more", "previous_response_id": first["id"]})
    asked = json.loads(stack.chat.requests[-1].body)
    assert asked["messages"] == [
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "one two three"},
        {"role": "user", "content": "more"},
    ]


async def test_a_response_is_its_keys_alone(stack: Stack) -> None:
    first = (await stack.post("responses", INPUT)).json
    other = await stack.another_key(name="other")
    path = f"responses/{first['id']}"
    for method, target in (("GET", path), ("DELETE", path), ("GET", f"{path}/input_items")):
        answer = await stack.ask(method, target, key=other)
        assert (answer.status, answer.error["code"]) == (404, "not_found")
    body = {**INPUT, "previous_response_id": first["id"]}
    assert (await stack.ask("POST", "responses", body, key=other)).status == 404
    assert (await stack.ask("GET", path)).json == first
    narrow = await stack.another_key(name="narrow", scopes=["embeddings"])
    assert (await stack.ask("GET", path, key=narrow)).status == 403


async def test_pages_of_input_items(stack: Stack) -> None:
    items = [{"role": "user", "content": str(at)} for at in range(5)]
    first = (await stack.post("responses", {**INPUT, "input": items})).json
    path = f"responses/{first['id']}/input_items"
    page = (await stack.ask("GET", f"{path}?limit=2&order=asc")).json
    assert [one["content"][0]["text"] for one in page["data"]] == ["0", "1"]
    assert (page["has_more"], page["last_id"]) == (True, page["data"][1]["id"])
    page = (await stack.ask("GET", f"{path}?order=asc&after={page['last_id']}")).json
    assert [one["content"][0]["text"] for one in page["data"]] == ["2", "3", "4"]
    assert not page["has_more"]
    newest = (await stack.ask("GET", path)).json["data"]
    assert newest[0]["content"][0]["text"] == "4"
    for query in ("limit=0", "limit=101", "limit=x", "order=up", "after=none", "before=x"):
        answer = await stack.ask("GET", f"{path}?{query}")
        assert (answer.status, answer.error["param"]) == (400, query.partition("=")[0])
    assert (await stack.ask("GET", f"responses/{first['id']}?stream=true")).status == 400


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"background": True}, "background"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"previous_response_id": "resp_none"}, "previous_response_id"),
    ],
)
async def test_errors_of_responses_name_the_field(stack: Stack, fields: Any, param: str) -> None:
    answer = await stack.post("responses", {**INPUT, **fields})
    assert answer.status in (400, 404)
    assert answer.error["param"] == param
    assert param in answer.error["message"] or "resp_none" in answer.error["message"]


async def test_an_engine_that_speaks_responses_keeps_nothing(stack: Stack) -> None:
    part = {"type": "output_text", "text": "hi", "annotations": []}
    said = {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "content": [part]}
    whole = {
        "id": "resp_engine",
        "object": "response",
        "status": "completed",
        "output": [said],
        "usage": None,
    }
    stack.native.next_scripts.append(Script(raw=json.dumps(whole).encode()))
    body = {**INPUT, "model": "speaker"}
    answer = await stack.post("responses", body)
    assert (answer.json["id"], answer.json["store"]) == ("resp_engine", True)
    created = {"type": "response.created", "sequence_number": 0, "response": {**whole, "output": []}}
    done = {"type": "response.completed", "sequence_number": 1, "response": {**whole, "id": "resp_next"}}
    raw = "".join(f"event: {one['type']}\ndata: {json.dumps(one)}\n\n" for one in (created, done))
    stack.native.next_scripts.append(Script(raw=raw.encode()))
    more = {**body, "input": "more", "previous_response_id": "resp_engine", "stream": True}
    events = events_of((await stack.post("responses", more)).body)
    assert [one["response"]["previous_response_id"] for one in events] == ["resp_engine"] * 2
    asked = json.loads(stack.native.requests[-1].body)
    assert (asked["store"], [item["role"] for item in asked["input"]]) == (
        False,
        ["user", "assistant", "user"],
    )
    assert "previous_response_id" not in asked
    assert (await stack.ask("GET", "responses/resp_next")).json == events[-1]["response"]


async def test_a_stream_that_is_stored_is_well_formed(stack: Stack) -> None:
    answer = await stack.post("responses", {**INPUT, "stream": True})
    response = read_response_stream(answer.body)
    assert (await stack.ask("GET", f"responses/{response['id']}")).json == response
    answer = await stack.post("responses", {**INPUT, "stream": True, "store": False})
    response = read_response_stream(answer.body)
    assert not response["store"]
    assert (await stack.ask("GET", f"responses/{response['id']}")).status == 404
