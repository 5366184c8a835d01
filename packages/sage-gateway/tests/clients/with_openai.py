"""OpenAI's own client."""

from __future__ import annotations

import json
from typing import Any
from unittest import TestCase

import openai
from pydantic import BaseModel

raises = TestCase().assertRaises
MESSAGES: Any = [{"role": "user", "content": "Say something."}]
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
            "required": ["city", "days"],
        },
    },
}


class Colour(BaseModel):
    name: str
    strength: float


def check_models(base_url: str, key: str) -> None:
    with openai.OpenAI(base_url=base_url, api_key=key) as client:
        ids = {model.id for model in client.models.list()}
        assert {"talker", "minilm", "gpt-4o-mini", "text-embedding-3-small"} <= ids, ids
        assert client.models.retrieve("talker").id == "talker"
        assert client.models.retrieve("gpt-4o-mini").id == "gpt-4o-mini"


def check_chat(base_url: str, key: str) -> None:
    with openai.OpenAI(base_url=base_url, api_key=key) as client:
        answer = client.chat.completions.create(model="talker", messages=MESSAGES)
    assert answer.choices[0].message.content == "one two three"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 3


def check_stream(base_url: str, key: str) -> None:
    with openai.OpenAI(base_url=base_url, api_key=key) as client:
        stream = client.chat.completions.create(
            model="talker", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
        )
        chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == "one two three"
    assert chunks[-1].usage is not None


async def check_async_chat_and_stream(base_url: str, key: str) -> None:
    async with openai.AsyncOpenAI(base_url=base_url, api_key=key) as client:
        answer = await client.chat.completions.create(model="talker", messages=MESSAGES)
        assert answer.choices[0].message.content == "one two three"
        async with client.chat.completions.stream(model="talker", messages=MESSAGES) as stream:
            final = await stream.get_final_completion()
        assert final.choices[0].message.content == "one two three"


def check_completions(base_url: str, key: str) -> None:
    with openai.OpenAI(base_url=base_url, api_key=key) as client:
        assert client.completions.create(model="talker", prompt="Once").choices[0].text == "one two three"


def check_tools_and_their_results(base_url: str, key: str) -> None:
    messages: Any = list(MESSAGES)
    with openai.OpenAI(base_url=base_url, api_key=key) as client:
        asked = client.chat.completions.create(model="talker", messages=messages, tools=[WEATHER])
        message = asked.choices[0].message
        assert asked.choices[0].finish_reason == "tool_calls"
        call: Any = (message.tool_calls or [])[0]
        assert json.loads(call.function.arguments) == {"city": "text", "days": 1}
        messages += [
            message.model_dump(exclude_none=True),
            {"role": "tool", "tool_call_id": call.id, "content": "sunny"},
        ]
        told = client.chat.completions.create(model="talker", messages=messages, tools=[WEATHER])
    assert told.choices[0].message.content == "one two three"


def check_streamed_tools(base_url: str, key: str) -> None:
    choice: Any = {"type": "function", "function": {"name": "weather"}}
    with openai.OpenAI(base_url=base_url, api_key=key) as client:
        stream = client.chat.completions.create(
            model="talker", messages=MESSAGES, tools=[WEATHER], tool_choice=choice, stream=True
        )
        calls = [call for chunk in stream for call in chunk.choices[0].delta.tool_calls or []]
    assert calls[0].function is not None
    assert calls[0].function.name == "weather"
    arguments = "".join(call.function.arguments or "" for call in calls if call.function)
    assert json.loads(arguments) == {"city": "text", "days": 1}


def check_json_schema(base_url: str, key: str) -> None:
    with openai.OpenAI(base_url=base_url, api_key=key) as client:
        answer = client.chat.completions.parse(model="talker", messages=MESSAGES, response_format=Colour)
    assert answer.choices[0].message.parsed == Colour(name="text", strength=0.5)


def check_embeddings(base_url: str, key: str) -> None:
    texts = ["a red apple", "the theory of sets"]
    with openai.OpenAI(base_url=base_url, api_key=key) as client:
        coded = client.embeddings.create(model="minilm", input=texts)  # base64 on the wire
        plain = client.embeddings.create(model="minilm", input=texts, encoding_format="float")
        short = client.embeddings.create(model="minilm", input=texts[0], dimensions=64)
    assert [len(item.embedding) for item in coded.data] == [384, 384]
    pairs = zip(coded.data[0].embedding, plain.data[0].embedding, strict=True)
    assert all(abs(one - other) < 1e-3 for one, other in pairs)
    assert len(short.data[0].embedding) == 64


def check_names_and_their_fallbacks(base_url: str, key: str) -> None:
    """The names of models that are elsewhere; the first target of one of them is dead."""
    with openai.OpenAI(base_url=base_url, api_key=key, max_retries=0) as client:
        for name in ("gpt-4o-mini", "with-a-spare"):
            answer = client.chat.completions.create(model=name, messages=MESSAGES)
            assert (answer.choices[0].message.content, answer.model) == ("one two three", "talker"), name
            with client.chat.completions.stream(model=name, messages=MESSAGES) as stream:
                final = stream.get_final_completion()
            assert final.choices[0].message.content == "one two three", name
        vectors = client.embeddings.create(model="text-embedding-3-small", input="a red apple")
    assert len(vectors.data[0].embedding) == 384


def check_errors_are_the_client_s_own(base_url: str, key: str) -> None:
    with openai.OpenAI(base_url=base_url, api_key=key, max_retries=0) as client:
        raises(openai.NotFoundError, client.chat.completions.create, model="gpt-9", messages=MESSAGES)
        raises(openai.BadRequestError, client.chat.completions.create, model="talker", messages=[])
    with openai.OpenAI(base_url=base_url, api_key="sk-no", max_retries=0) as client:
        raises(openai.AuthenticationError, client.models.list)
