"""litellm as a client."""

from __future__ import annotations

import json
from typing import Any

import litellm

MESSAGES = [{"role": "user", "content": "Say something."}]


def check_chat(base_url: str, key: str) -> None:
    answer: Any = litellm.completion(model="openai/talker", messages=MESSAGES, api_base=base_url, api_key=key)
    assert answer.choices[0].message.content == "one two three"
    assert answer.usage.completion_tokens == 3


async def check_stream(base_url: str, key: str) -> None:
    stream: Any = await litellm.acompletion(
        model="openai/talker", messages=MESSAGES, api_base=base_url, api_key=key, stream=True
    )
    pieces = [piece async for piece in stream]
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == "one two three"


def check_json_schema(base_url: str, key: str) -> None:
    schema = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
    form = {"type": "json_schema", "json_schema": {"name": "colour", "schema": schema}}
    answer: Any = litellm.completion(
        model="openai/talker", messages=MESSAGES, api_base=base_url, api_key=key, response_format=form
    )
    assert json.loads(answer.choices[0].message.content) == {"name": "text"}


async def check_responses(base_url: str, key: str) -> None:
    given = {"model": "openai/talker", "input": "Say something.", "api_base": base_url, "api_key": key}
    answer: Any = litellm.responses(**given)
    assert answer.output[0].content[0].text == "one two three"
    stream: Any = await litellm.aresponses(**given, stream=True, previous_response_id=answer.id)
    events = [event async for event in stream]
    assert events[-1].response.output[0].content[0].text == "one two three"


async def check_messages(base_url: str, key: str) -> None:
    """As a client of Anthropic's API."""
    answer: Any = litellm.completion(
        model="anthropic/talker",
        messages=MESSAGES,
        api_base=base_url.removesuffix("/v1"),
        api_key=key,
    )
    assert answer.choices[0].message.content == "one two three"
    stream: Any = await litellm.acompletion(
        model="anthropic/talker",
        messages=MESSAGES,
        api_base=base_url.removesuffix("/v1"),
        api_key=key,
        stream=True,
    )
    pieces = [piece async for piece in stream]
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == "one two three"


def check_embeddings(base_url: str, key: str) -> None:
    answer: Any = litellm.embedding(
        model="openai/minilm", input=["a red apple", "a"], api_base=base_url, api_key=key
    )
    assert [len(item["embedding"]) for item in answer.data] == [384, 384]
