"""An engine behind a socket, asked in other dialects: translated, or passed on where it speaks them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest

from sage.common.errors import BadRequestError, ConfigError, EngineError, UnreachableError
from sage.middleware.engines.dialects.interpreter import Interpreter
from sage.middleware.engines.openai import KIND
from sage.middleware.engines.port import Call, Capability, Route, Usage
from sage.middleware.testing.dialects import read_message_stream, read_response_stream
from sage.middleware.testing.engines import RecordingSink, Script, ScriptedEngine

MESSAGES: dict[str, Any] = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 9}
RESPONSES: dict[str, Any] = {"input": "hello", "max_output_tokens": 9}
BOTH = [(Route.MESSAGES, MESSAGES), (Route.RESPONSES, RESPONSES)]


@asynccontextmanager
async def asked(*scripts: Script, **config: Any) -> AsyncIterator[tuple[ScriptedEngine, Interpreter]]:
    async with ScriptedEngine() as server:
        server.next_scripts.extend(scripts)
        engine = Interpreter(KIND.connect(server.config(**config), server.url))
        assert await engine.ready()
        yield server, engine
        await engine.close()


def call(route: Route, *, stream: bool = False, **fields: Any) -> Call:
    body = msgspec.json.encode({"model": "scripted", **fields, **({"stream": True} if stream else {})})
    return Call("req-1", route, body, stream, include_usage=stream)


async def ask(engine: Interpreter, one: Call) -> tuple[RecordingSink, Usage]:
    sink = RecordingSink()
    usage = await engine.send(one, sink)
    assert (sink.status, sink.ended) == (200, True)
    return sink, usage


async def test_a_message_is_a_chat_to_an_engine_that_chats() -> None:
    async with asked() as (server, engine):
        whole, used = await ask(engine, call(Route.MESSAGES, **MESSAGES))
        streamed, counted = await ask(engine, call(Route.MESSAGES, stream=True, **MESSAGES))
        assert [one.path for one in server.requests] == ["/v1/chat/completions"] * 2
        assert json.loads(server.requests[0].body) == {
            "model": "scripted",
            "messages": MESSAGES["messages"],
            "max_tokens": 9,
        }
    message, same = whole.json(), read_message_stream(streamed.body)
    assert message.pop("id") != same.pop("id")
    assert message == same
    assert message["content"] == [{"type": "text", "text": "one two three"}]
    assert used == counted == Usage(message["usage"]["input_tokens"], message["usage"]["output_tokens"])


async def test_a_response_is_a_chat_to_an_engine_that_chats() -> None:
    async with asked() as (server, engine):
        whole, used = await ask(engine, call(Route.RESPONSES, **RESPONSES))
        streamed, counted = await ask(engine, call(Route.RESPONSES, stream=True, **RESPONSES))
        assert [one.path for one in server.requests] == ["/v1/chat/completions"] * 2
    response, same = whole.json(), read_response_stream(streamed.body)
    assert response["output"][0]["content"] == same["output"][0]["content"]
    assert response["output"][0]["content"][0]["text"] == "one two three"
    assert response["id"].startswith("resp_")
    assert response["id"] != same["id"]
    assert used == counted == Usage(response["usage"]["input_tokens"], response["usage"]["output_tokens"])


async def test_a_named_tool_is_called_both_ways() -> None:
    schema = {"type": "object", "properties": {"at": {"type": "integer"}}}
    tool = {"name": "look", "input_schema": schema}
    asks = {**MESSAGES, "tools": [tool], "tool_choice": {"type": "tool", "name": "look"}}
    function = {"type": "function", "name": "look", "parameters": schema}
    wants = {**RESPONSES, "tools": [function], "tool_choice": {"type": "function", "name": "look"}}
    async with asked() as (_, engine):
        whole, _ = await ask(engine, call(Route.MESSAGES, **asks))
        streamed, _ = await ask(engine, call(Route.MESSAGES, stream=True, **asks))
        used = {"type": "tool_use", "id": "call-1", "name": "look"}
        assert whole.json()["content"] == [{**used, "input": {"at": 1}}]
        message = read_message_stream(streamed.body)
        assert message["content"] == [{**used, "input": '{"at": 1}'}]
        assert message["stop_reason"] == whole.json()["stop_reason"] == "tool_use"
        whole, _ = await ask(engine, call(Route.RESPONSES, **wants))
        streamed, _ = await ask(engine, call(Route.RESPONSES, stream=True, **wants))
        for response in (whole.json(), read_response_stream(streamed.body)):
            (item,) = response["output"]
            assert (item["call_id"], item["name"], item["arguments"]) == ("call-1", "look", '{"at": 1}')


SPOKEN = {
    Route.MESSAGES: b"event: message_start\n"
    b'data: {"type":"message_start","message":{"usage":{"input_tokens":3}}}\n\n'
    b'event: message_delta\ndata: {"type":"message_delta","usage":{"output_tokens":4}}\n\n'
    b'event: message_stop\ndata: {"type":"message_stop"}\n\n',
    Route.RESPONSES: b'event: response.created\ndata: {"type":"response.created","response":{}}\n\n'
    b'event: response.completed\ndata: {"type":"response.completed","response":'
    b'{"usage":{"input_tokens":3,"output_tokens":4}}}\n\n',
}


@pytest.mark.parametrize(("route", "fields"), BOTH)
async def test_an_engine_that_speaks_it_is_asked_as_it_is(route: Route, fields: dict[str, Any]) -> None:
    stream = SPOKEN[route]
    whole = b'{"id":"x","usage":{"input_tokens":3,"output_tokens":4}}'
    scripts = (Script(raw=stream, fragment=7), Script(raw=whole))
    async with asked(*scripts, speaks=(route.value,)) as (server, engine):
        one = call(route, stream=True, **fields)
        sink, usage = await ask(engine, one)
        assert (sink.body, usage) == (stream, Usage(3, 4))
        other, counted = await ask(engine, call(route, **fields))
        assert (other.body, counted) == (whole, Usage(3, 4))
        assert [request.path for request in server.requests] == [f"/v1/{route.value}"] * 2
        assert server.requests[0].body == one.body


def test_what_a_server_speaks_is_configured() -> None:
    async def spec(**config: Any) -> frozenset[Capability]:
        async with asked(**config) as (_, engine):
            return engine.spec.capabilities

    dialects = {Capability.MESSAGES, Capability.RESPONSES}
    assert not asyncio.run(spec()) & dialects
    assert asyncio.run(spec(speaks=("messages", "responses"))) >= dialects


@pytest.mark.parametrize(("route", "fields"), BOTH)
async def test_faults_before_and_in_a_stream(route: Route, fields: dict[str, Any]) -> None:
    async with asked(Script(status=500), Script(cut_at=500)) as (_, engine):
        sink = RecordingSink()
        with pytest.raises(EngineError, match="500"):
            await engine.send(call(route, stream=True, **fields), sink)
        assert sink.status == 0
        with pytest.raises(EngineError, match="in the middle"):
            await engine.send(call(route, stream=True, **fields), sink)
        assert not sink.ended
    with pytest.raises(UnreachableError):
        await engine.send(call(route, **fields), RecordingSink())


@pytest.mark.parametrize(("route", "fields"), BOTH)
async def test_what_the_chat_is_refused_for_is_told(route: Route, fields: dict[str, Any]) -> None:
    complaint = b'{"error":{"message":"no","param":"messages[1].content"}}'
    async with asked(Script(status=400, error=complaint)) as (_, engine):
        with pytest.raises(BadRequestError, match="As a chat it cannot be served") as refused:
            await engine.send(call(route, **fields), RecordingSink())
        assert refused.value.param == "messages"


@pytest.mark.parametrize(("route", "fields"), BOTH)
async def test_a_client_that_goes_away_frees_the_engine(route: Route, fields: dict[str, Any]) -> None:
    async with asked(Script(gate=asyncio.Event(), gate_after=1)) as (server, engine):
        sink = RecordingSink()
        task = asyncio.create_task(engine.send(call(route, stream=True, **fields), sink))
        await sink.first.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await server.until(lambda: server.cancelled == 1)


async def test_a_slow_reader_holds_the_engine_back() -> None:
    async with asked() as (_, engine):
        sink = RecordingSink(pause=True)
        task = asyncio.create_task(engine.send(call(Route.MESSAGES, stream=True, **MESSAGES), sink))
        await sink.first.wait()
        sink.resume()
        await task
        assert read_message_stream(sink.body)["content"][0]["text"] == "one two three"


async def test_tokens_of_a_prompt_are_asked_of_the_engines_tokenizer() -> None:
    count = b'{"tokens":[1,2,3],"count":3,"max_model_len":9}'
    fields = {"messages": MESSAGES["messages"], "system": "Be brief."}
    async with asked(Script(raw=count)) as (server, engine):
        sink, _ = await ask(engine, call(Route.COUNT_TOKENS, **fields))
        assert sink.json() == {"input_tokens": 3}
        assert server.requests[0].path == "/v1/tokenize"
        assert json.loads(server.requests[0].body)["messages"][0] == {
            "role": "system",
            "content": "Be brief.",
        }


async def test_other_routes_are_none_of_its_business() -> None:
    async with asked() as (server, engine):
        await ask(engine, call(Route.CHAT, messages=MESSAGES["messages"]))
        await ask(engine, call(Route.COMPLETIONS, prompt="hello"))
        assert [one.path for one in server.requests] == ["/v1/chat/completions", "/v1/completions"]


def test_a_server_cannot_speak_what_nobody_knows() -> None:
    with pytest.raises(ValueError, match="speaks"):
        ScriptedEngine(url="http://127.0.0.1:1").config(speaks=("esperanto",))
    with pytest.raises(ConfigError):
        KIND.spec(ScriptedEngine().config(speaks=("messages",)))
