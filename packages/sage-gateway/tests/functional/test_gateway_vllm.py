"""The gateway before vLLM: what a client asks for reaches the engine, and its answer the client.

The model has random weights. What it says means nothing, but a grammar holds it to the form that was asked
for.
"""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from typing import Any, Literal

import openai
import pytest
import pytest_asyncio
from pydantic import BaseModel

from sage.middleware.random_models import random_model

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.vllm, pytest.mark.timeout(900)]

MESSAGES: Any = [{"role": "user", "content": "Paint the wall."}]


class Paint(BaseModel):
    colour: Literal["red", "blue"]
    coats: Literal[1, 2]


TOOL: Any = openai.pydantic_function_tool(Paint, name="paint")
NAMED: Any = {"type": "function", "function": {"name": "paint"}}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(
    module_spawner: Any, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[openai.AsyncOpenAI]:
    python = os.environ.get("SAGE_VLLM_PYTHON", "")
    if not python:
        pytest.skip("SAGE_VLLM_PYTHON names no interpreter with vLLM; ./manage.sh test-vllm makes one")
    model = random_model(tmp_path_factory.mktemp("cache"))
    engine = {"name": "vllm-0", "kind": "vllm", "model": str(model), "served_as": "tiny", "python": python}
    ports = {"gateway": 0, "admin": 0, "health": 0, "llm": [22201, 22289]}
    gateway = await module_spawner.start({"engines": [engine], "ports": ports})
    await gateway.until_ready(seconds=600)
    async with openai.AsyncOpenAI(base_url=gateway.run.base_url, api_key=gateway.keys.default) as client:
        yield client
    assert await gateway.stop() == 0


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
