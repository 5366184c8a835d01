"""The gateway before vLLM: what a client asks for reaches the engine, and its answer the client.

The model has random weights. What it says means nothing, but a grammar holds it to the form that was asked
for.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import AsyncIterator
from typing import Any, Literal

import openai
import pytest
import pytest_asyncio
from pydantic import BaseModel

from sage.middleware.random_models import random_model
from sage.middleware.testing.dialects import read_message_stream

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.vllm, pytest.mark.timeout(900)]

MESSAGES: Any = [{"role": "user", "content": "Paint the wall."}]


class Paint(BaseModel):
    colour: Literal["red", "blue"]
    coats: Literal[1, 2]


TOOL: Any = openai.pydantic_function_tool(Paint, name="paint")
NAMED: Any = {"type": "function", "function": {"name": "paint"}}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(module_spawner: Any, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Any]:
    python = os.environ.get("SAGE_VLLM_PYTHON", "")
    if not python:
        pytest.skip("SAGE_VLLM_PYTHON names no interpreter with vLLM; ./manage.sh test-vllm makes one")
    model = random_model(tmp_path_factory.mktemp("cache"))
    engine = {"name": "vllm-0", "kind": "vllm", "model": str(model), "served_as": "tiny", "python": python}
    ports = {"gateway": 0, "admin": 0, "health": 0, "llm": [22201, 22289]}
    gateway = await module_spawner.start({"engines": [engine], "ports": ports})
    await gateway.until_ready(seconds=600)
    yield gateway
    assert await gateway.stop() == 0


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(gateway: Any) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=gateway.run.base_url, api_key=gateway.keys.default) as client:
        yield client


async def test_a_json_schema_is_kept(client: openai.AsyncOpenAI) -> None:
    answer = await client.chat.completions.parse(
        model="tiny", messages=MESSAGES, response_format=Paint, max_tokens=60
    )
    assert answer.choices[0].message.parsed is not None


async def test_a_named_tool_is_called(client: openai.AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(
        model="tiny", messages=MESSAGES, tools=[TOOL], tool_choice=NAMED, max_tokens=250, temperature=0
    )
    call: Any = (answer.choices[0].message.tool_calls or [])[0]
    assert call.function.name == "paint"
    Paint.model_validate_json(call.function.arguments)


async def test_a_tool_s_arguments_are_streamed(client: openai.AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(
        model="tiny",
        messages=MESSAGES,
        tools=[TOOL],
        tool_choice=NAMED,
        max_tokens=250,
        temperature=0,
        stream=True,
    )
    calls = [call async for chunk in stream for call in chunk.choices[0].delta.tool_calls or []]
    arguments = "".join(call.function.arguments or "" for call in calls if call.function)
    Paint.model_validate(json.loads(arguments))


async def test_n_seed_and_logprobs(client: openai.AsyncOpenAI) -> None:
    async def ask() -> Any:
        return await client.chat.completions.create(
            model="tiny", messages=MESSAGES, n=2, seed=7, logprobs=True, top_logprobs=2, max_tokens=6
        )

    one, other = await ask(), await ask()
    assert [choice.message.content for choice in one.choices] == [
        choice.message.content for choice in other.choices
    ]
    assert len(one.choices) == 2
    assert len(one.choices[0].logprobs.content[0].top_logprobs) == 2


async def test_usage_of_a_stream(client: openai.AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(
        model="tiny",
        messages=MESSAGES,
        max_tokens=6,
        stream=True,
        stream_options={"include_usage": True},
    )
    usages = [chunk.usage async for chunk in stream if chunk.usage]
    assert [usage.completion_tokens for usage in usages] == [6]


# ---- its own routes for other dialects: nothing is translated ----------------------------------------------


def served(gateway: Any, path: str) -> int:
    """How often the engine was asked by that path, by its own account."""
    log = (gateway.state / "logs" / "vllm-0.log").read_text(errors="replace")
    return len(re.findall(rf"POST {re.escape(path)} HTTP", log))


async def message(gateway: Any, path: str = "messages", **fields: Any) -> Any:
    body = {"model": "tiny", "messages": MESSAGES, **fields}
    url = f"{gateway.run.base_url}/{path}"
    answer = await gateway.http("POST", url, key=gateway.keys.default, body=body)
    assert answer.status == 200, answer.body
    return answer


ANTHROPIC_TOOL: Any = {"name": "paint", "input_schema": Paint.model_json_schema(), "strict": True}
ANTHROPIC_NAMED: Any = {"type": "tool", "name": "paint"}


async def test_a_message_whole_and_streamed(gateway: Any) -> None:
    before = served(gateway, "/v1/messages"), served(gateway, "/v1/chat/completions")
    ask: Any = {"max_tokens": 6, "temperature": 0, "top_k": 1, "system": "Be brief."}
    whole = (await message(gateway, **ask)).json
    streamed = read_message_stream((await message(gateway, **ask, stream=True)).body)
    for told in (whole, streamed):
        assert (told["stop_reason"], told["usage"]["output_tokens"]) == ("max_tokens", 6)
    assert whole["content"][0]["text"] == streamed["content"][0]["text"]
    assert whole["usage"]["input_tokens"] > 0
    after = served(gateway, "/v1/messages"), served(gateway, "/v1/chat/completions")
    assert after == (before[0] + 2, before[1])


async def test_tokens_of_a_message_are_those_that_are_counted(gateway: Any) -> None:
    more = {"system": "Be brief."}
    told = (await message(gateway, max_tokens=1, **more)).json["usage"]["input_tokens"]
    assert (await message(gateway, "messages/count_tokens", **more)).json == {"input_tokens": told}


async def test_a_message_calls_a_tool_and_keeps_a_schema(gateway: Any) -> None:
    ask: Any = {"max_tokens": 250, "temperature": 0}
    tools: Any = {"tools": [ANTHROPIC_TOOL], "tool_choice": ANTHROPIC_NAMED}
    call = (await message(gateway, **ask, **tools)).json["content"][-1]
    assert (call["type"], call["name"]) == ("tool_use", "paint")
    Paint.model_validate(call["input"])
    streamed = read_message_stream((await message(gateway, **ask, **tools, stream=True)).body)
    Paint.model_validate_json(streamed["content"][-1]["input"])
    form = {"format": {"type": "json_schema", "schema": Paint.model_json_schema()}}
    text = (await message(gateway, **ask, output_config=form)).json["content"][0]["text"]
    Paint.model_validate_json(text)


async def test_responses_follow_one_another(gateway: Any, client: openai.AsyncOpenAI) -> None:
    """The engine answers each as if it were the first; the gateway keeps what was said."""
    before = served(gateway, "/v1/responses"), served(gateway, "/v1/chat/completions")
    first = await client.responses.create(
        model="tiny", input="Paint the wall.", instructions="Be brief.", max_output_tokens=6
    )
    assert (first.status, first.usage and first.usage.output_tokens) == ("incomplete", 6)
    async with client.responses.stream(
        model="tiny", input="And the door.", previous_response_id=first.id, max_output_tokens=6
    ) as stream:
        texts = [event.delta async for event in stream if event.type == "response.output_text.delta"]
    more: Any = await client.responses.retrieve(first.id)
    assert more.output_text == first.output_text
    assert texts
    after = served(gateway, "/v1/responses"), served(gateway, "/v1/chat/completions")
    assert after == (before[0] + 2, before[1])


async def test_a_response_keeps_a_schema_and_calls_a_function(client: openai.AsyncOpenAI) -> None:
    answer = await client.responses.parse(
        model="tiny", input="Paint the wall.", text_format=Paint, max_output_tokens=60
    )
    assert answer.output_parsed is not None
    tool: Any = {**TOOL["function"], "type": "function"}
    called: Any = await client.responses.create(
        model="tiny",
        input="Paint the wall.",
        tools=[tool],
        tool_choice={"type": "function", "name": "paint"},
        max_output_tokens=250,
        temperature=0,
    )
    assert (called.output[-1].type, called.output[-1].name) == ("function_call", "paint")
    Paint.model_validate_json(called.output[-1].arguments)
