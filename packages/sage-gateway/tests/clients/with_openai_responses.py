"""OpenAI's own client and the Responses API."""

from __future__ import annotations

import json
from typing import Any
from unittest import TestCase

import openai
from pydantic import BaseModel

raises = TestCase().assertRaises
ASK: Any = {"model": "talker", "input": "Say something."}
WEATHER: Any = {
    "type": "function",
    "name": "weather",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
        "required": ["city", "days"],
        "additionalProperties": False,
    },
    "strict": True,
}
NAMED: Any = {"type": "function", "name": "weather"}


class Colour(BaseModel):
    name: str
    strength: float


def check_response(base_url: str, key: str) -> None:
    with openai.OpenAI(base_url=base_url, api_key=key) as client:
        answer = client.responses.create(
            **ASK, instructions="Be brief.", max_output_tokens=64, temperature=0.5, metadata={"for": "test"}
        )
    assert (answer.output_text, answer.status, answer.model) == ("one two three", "completed", "talker")
    assert (answer.instructions, answer.metadata) == ("Be brief.", {"for": "test"})
    assert answer.usage is not None
    assert answer.usage.output_tokens == 3
    assert answer.usage.total_tokens == answer.usage.input_tokens + 3


def check_stream(base_url: str, key: str) -> None:
    with openai.OpenAI(base_url=base_url, api_key=key) as client:
        events: Any = list(client.responses.create(**ASK, stream=True))
        with client.responses.stream(**ASK) as stream:
            texts = [event.delta for event in stream if event.type == "response.output_text.delta"]
            final = stream.get_final_response()
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert (events[0].type, events[-1].type) == ("response.created", "response.completed")
    assert events[-1].response.output_text == final.output_text == "".join(texts) == "one two three"
    assert final.usage is not None
    assert final.usage.output_tokens == 3


async def check_conversation(base_url: str, key: str) -> None:
    async with openai.AsyncOpenAI(base_url=base_url, api_key=key) as client:
        first = await client.responses.create(**ASK)
        async with client.responses.stream(
            model="talker", input="And then?", previous_response_id=first.id
        ) as stream:
            more = await stream.get_final_response()
        assert more.previous_response_id == first.id
        assert more.usage is not None
        assert first.usage is not None
        assert more.usage.input_tokens > first.usage.input_tokens
        items = [item async for item in client.responses.input_items.list(more.id, order="asc", limit=1)]
        assert [getattr(item, "role", None) for item in items] == ["user", "assistant", "user"]


def check_stored_responses(base_url: str, key: str) -> None:
    with openai.OpenAI(base_url=base_url, api_key=key, max_retries=0) as client:
        kept = client.responses.create(**ASK)
        assert client.responses.retrieve(kept.id) == kept
        client.responses.delete(kept.id)
        raises(openai.NotFoundError, client.responses.retrieve, response_id=kept.id)
        raises(openai.NotFoundError, client.responses.create, **ASK, previous_response_id=kept.id)
        brief = client.responses.create(**ASK, store=False)
        raises(openai.NotFoundError, client.responses.input_items.list, response_id=brief.id)


def check_tools_and_their_results(base_url: str, key: str) -> None:
    """Once with all that was said in the input, once by the id of the response."""
    with openai.OpenAI(base_url=base_url, api_key=key) as client:
        asked = client.responses.create(**ASK, tools=[WEATHER], parallel_tool_calls=False)
        call: Any = asked.output[-1]
        assert (call.type, call.name) == ("function_call", "weather")
        assert json.loads(call.arguments) == {"city": "text", "days": 1}
        result: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
        said: Any = [{"role": "user", "content": ASK["input"]}, *asked.output, result]
        whole = client.responses.create(model="talker", input=said, tools=[WEATHER])
        by_id = client.responses.create(
            model="talker", input=[result], tools=[WEATHER], previous_response_id=asked.id
        )
        assert whole.output_text == by_id.output_text == "one two three"
        assert whole.usage == by_id.usage
        said += [*whole.output, {"role": "user", "content": "And then?"}]
        assert client.responses.create(model="talker", input=said).output_text == "one two three"


def check_streamed_tools(base_url: str, key: str) -> None:
    kind = "response.function_call_arguments.delta"
    with (
        openai.OpenAI(base_url=base_url, api_key=key) as client,
        client.responses.stream(**ASK, tools=[WEATHER], tool_choice=NAMED) as stream,
    ):
        events: Any = list(stream)
        final = stream.get_final_response()
    call: Any = final.output[0]
    deltas = [event.delta for event in events if event.type == kind]
    assert len(deltas) > 1
    assert json.loads("".join(deltas)) == json.loads(call.arguments) == {"city": "text", "days": 1}


def check_json_schema(base_url: str, key: str) -> None:
    with openai.OpenAI(base_url=base_url, api_key=key) as client:
        answer = client.responses.parse(**ASK, text_format=Colour)
        assert answer.output_parsed == Colour(name="text", strength=0.5)
        with client.responses.stream(**ASK, text_format=Colour) as stream:
            assert stream.get_final_response().output_parsed == answer.output_parsed
        said: Any = [
            {"role": "user", "content": "A colour."},
            *answer.output,
            {"role": "user", "content": "?"},
        ]
        assert client.responses.create(model="talker", input=said).output_text == "one two three"


def check_typed_tools(base_url: str, key: str) -> None:
    tool: Any = {**openai.pydantic_function_tool(Colour)["function"], "type": "function"}
    with openai.OpenAI(base_url=base_url, api_key=key) as client:
        answer = client.responses.parse(**ASK, tools=[tool])
        call: Any = answer.output[0]
        assert call.parsed_arguments in (Colour(name="text", strength=0.5), {"name": "text", "strength": 0.5})
        result: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "kept"}
        said: Any = [{"role": "user", "content": "A colour."}, *answer.output, result]
        assert client.responses.create(model="talker", input=said).output_text == "one two three"


def check_names_and_their_fallbacks(base_url: str, key: str) -> None:
    with openai.OpenAI(base_url=base_url, api_key=key, max_retries=0) as client:
        for name in ("gpt-4o-mini", "with-a-spare"):
            assert client.responses.create(**{**ASK, "model": name}).output_text == "one two three", name


def check_errors_are_the_client_s_own(base_url: str, key: str) -> None:
    with openai.OpenAI(base_url=base_url, api_key=key, max_retries=0) as client:
        raises(openai.NotFoundError, client.responses.create, **{**ASK, "model": "gpt-9"})
        raises(openai.BadRequestError, client.responses.create, **ASK, tools=[{"type": "web_search"}])
        raises(openai.BadRequestError, client.responses.create, **ASK, background=True)
