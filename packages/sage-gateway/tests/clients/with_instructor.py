"""instructor, on top of OpenAI's client and of Anthropic's."""

from __future__ import annotations

from typing import Any

import anthropic
import instructor
import openai
from pydantic import BaseModel

MESSAGES: Any = [{"role": "user", "content": "A colour."}]


class Colour(BaseModel):
    """A colour."""

    name: str
    strength: float


def check_by_tools(base_url: str, key: str) -> None:
    client = instructor.from_openai(openai.OpenAI(base_url=base_url, api_key=key))
    answer = client.chat.completions.create(model="talker", messages=MESSAGES, response_model=Colour)
    assert answer.model_dump() == {"name": "text", "strength": 0.5}


def check_by_schema(base_url: str, key: str) -> None:
    client = instructor.from_openai(
        openai.OpenAI(base_url=base_url, api_key=key), mode=instructor.Mode.JSON_SCHEMA
    )
    answer = client.chat.completions.create(model="talker", messages=MESSAGES, response_model=Colour)
    assert answer.model_dump() == {"name": "text", "strength": 0.5}


def check_by_responses_and_messages(base_url: str, key: str) -> None:
    client: Any = instructor.from_openai(
        openai.OpenAI(base_url=base_url, api_key=key), mode=instructor.Mode.RESPONSES_TOOLS
    )
    answer = client.responses.create(model="talker", input="A colour.", response_model=Colour)
    assert answer.model_dump() == {"name": "text", "strength": 0.5}
    client = instructor.from_anthropic(
        anthropic.Anthropic(base_url=base_url.removesuffix("/v1"), api_key=key)
    )
    answer = client.messages.create(model="talker", max_tokens=64, messages=MESSAGES, response_model=Colour)
    assert answer.model_dump() == {"name": "text", "strength": 0.5}


async def check_partial_stream(base_url: str, key: str) -> None:
    client = instructor.from_openai(openai.AsyncOpenAI(base_url=base_url, api_key=key))
    stream: Any = client.chat.completions.create_partial(
        model="talker", messages=MESSAGES, response_model=Colour
    )
    parts = [part async for part in stream]
    assert parts[-1].model_dump() == {"name": "text", "strength": 0.5}
