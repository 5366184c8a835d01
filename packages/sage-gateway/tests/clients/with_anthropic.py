"""Anthropic's own client, whose base URL has no `/v1`."""

from __future__ import annotations

from typing import Any

import anthropic
from pydantic import BaseModel

MESSAGES: Any = [{"role": "user", "content": "Say something."}]
ASK: Any = {"model": "talker", "max_tokens": 64, "messages": MESSAGES}
WEATHER: Any = {
    "name": "weather",
    "description": "The weather of a city.",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
        "required": ["city", "days"],
    },
}
NAMED: Any = {"type": "tool", "name": "weather"}


class Colour(BaseModel):
    name: str
    strength: float


def connected(base_url: str, key: str) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=base_url.removesuffix("/v1"), api_key=key, max_retries=0)


def check_message(base_url: str, key: str) -> None:
    with connected(base_url, key) as client:
        answer = client.messages.create(**ASK, system="Be brief.", stop_sequences=["END"])
    assert [block.type for block in answer.content] == ["text"]
    assert (answer.content[0].text, answer.role, answer.model) == ("one two three", "assistant", "talker")
    assert (answer.stop_reason, answer.stop_sequence) == ("end_turn", None)
    assert answer.usage.output_tokens == 3
    assert answer.usage.input_tokens > 0
    assert answer._request_id


def check_system_and_turns_in_blocks(base_url: str, key: str) -> None:
    """What applications send that mark what may be cached."""
    text = {"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}
    with connected(base_url, key) as client:
        first = client.messages.create(**ASK, system=[text])
        turns = [
            *MESSAGES,
            {"role": "assistant", "content": first.content},
            {"role": "user", "content": [text]},
            {"role": "system", "content": "Be briefer still."},
        ]
        more = client.messages.create(**{**ASK, "messages": turns}, system=[text])
    assert more.usage.input_tokens > first.usage.input_tokens


def check_stream(base_url: str, key: str) -> None:
    with connected(base_url, key) as client:
        with client.messages.stream(**ASK) as stream:
            assert list(stream.text_stream) == ["one ", "two ", "three"]
            final = stream.get_final_message()
        whole = client.messages.create(**ASK)
        events = [event.type for event in client.messages.create(**ASK, stream=True)]
    assert (final.content[0].text, final.stop_reason) == ("one two three", "end_turn")
    assert final.usage.output_tokens == whole.usage.output_tokens == 3
    assert final.usage.input_tokens == whole.usage.input_tokens
    assert events[0] == "message_start"
    assert events[-3:] == ["content_block_stop", "message_delta", "message_stop"]


async def check_async_message_and_stream(base_url: str, key: str) -> None:
    async with anthropic.AsyncAnthropic(base_url=base_url.removesuffix("/v1"), auth_token=key) as client:
        answer = await client.messages.create(**ASK)
        assert answer.content[0].text == "one two three"
        async with client.messages.stream(**ASK) as stream:
            assert [text async for text in stream.text_stream] == ["one ", "two ", "three"]
            assert await stream.get_final_text() == "one two three"


def check_tools_and_their_results(base_url: str, key: str) -> None:
    with connected(base_url, key) as client:
        asked = client.messages.create(**ASK, tools=[WEATHER])
        assert asked.stop_reason == "tool_use"
        call = asked.content[-1]
        assert (call.type, call.name, call.input) == ("tool_use", "weather", {"city": "text", "days": 1})
        result = {
            "type": "tool_result",
            "tool_use_id": call.id,
            "content": [{"type": "text", "text": "sunny"}],
        }
        turns = [
            *MESSAGES,
            {"role": "assistant", "content": asked.content},
            {"role": "user", "content": [result]},
        ]
        told = client.messages.create(**{**ASK, "messages": turns}, tools=[WEATHER])
    assert (told.content[0].text, told.stop_reason) == ("one two three", "end_turn")


def check_tool_choice(base_url: str, key: str) -> None:
    other = {**WEATHER, "name": "other"}
    with connected(base_url, key) as client:
        for choice, called in ((NAMED, "weather"), ({"type": "any"}, "other"), ({"type": "auto"}, "other")):
            choice = {**choice, "disable_parallel_tool_use": True}
            answer = client.messages.create(**ASK, tools=[other, WEATHER], tool_choice=choice)
            assert [block.name for block in answer.content] == [called]
        answer = client.messages.create(**ASK, tools=[other, WEATHER], tool_choice={"type": "none"})
    assert answer.stop_reason == "end_turn"


def check_streamed_tool_input_and_its_result(base_url: str, key: str) -> None:
    with connected(base_url, key) as client:
        with client.messages.stream(**ASK, tools=[WEATHER], tool_choice=NAMED) as stream:
            parts = [event.partial_json for event in stream if event.type == "input_json"]
            final = stream.get_final_message()
        assert len(parts) > 1
        assert (final.content[0].input, final.stop_reason) == ({"city": "text", "days": 1}, "tool_use")
        result = {
            "type": "tool_result",
            "tool_use_id": final.content[0].id,
            "content": "none",
            "is_error": True,
        }
        turns = [
            *MESSAGES,
            {"role": "assistant", "content": final.content},
            {"role": "user", "content": [result]},
        ]
        with client.messages.stream(**{**ASK, "messages": turns}, tools=[WEATHER]) as stream:
            assert stream.get_final_text() == "one two three"


def check_a_loop_of_tools(base_url: str, key: str) -> None:
    """The client's own runner asks for a thread, and goes on without where it is told that there is none."""
    asked = []

    def weather(city: str) -> str:
        """The weather of a city.

        Args:
            city: Its name.
        """
        asked.append(city)
        return "sunny"

    with connected(base_url, key) as client:
        final = client.beta.messages.tool_runner(**ASK, tools=[anthropic.beta_tool(weather)]).until_done()
    assert (asked, final.content[0].text) == (["text"], "one two three")


def check_json_schema(base_url: str, key: str) -> None:
    with connected(base_url, key) as client:
        answer = client.messages.parse(**ASK, output_format=Colour)
        assert answer.parsed_output == Colour(name="text", strength=0.5)
        with client.messages.stream(**ASK, output_format=Colour) as stream:
            final = stream.get_final_message()
        assert final.parsed_output == Colour(name="text", strength=0.5)
        turns = [*MESSAGES, {"role": "assistant", "content": final.content}, *MESSAGES]
        assert client.messages.create(**{**ASK, "messages": turns}).content[0].text == "one two three"


def check_names_and_their_fallbacks(base_url: str, key: str) -> None:
    with connected(base_url, key) as client:
        for name in ("claude-haiku", "with-a-spare"):
            answer = client.messages.create(**{**ASK, "model": name})
            assert (answer.content[0].text, answer.usage.output_tokens) == ("one two three", 3), name


def check_errors_are_the_client_s_own(base_url: str, key: str) -> None:
    with connected(base_url, key) as client:
        fault = raised(anthropic.NotFoundError, client.messages.create, **{**ASK, "model": "claude-9"})
        assert fault.body["error"]["type"] == "not_found_error"
        assert fault.request_id == fault.body["request_id"]
        thinking = {"type": "enabled", "budget_tokens": 1024}
        fault = raised(anthropic.BadRequestError, client.messages.create, **ASK, thinking=thinking)
        assert "thinking" in fault.body["error"]["message"]
        fault = raised(anthropic.BadRequestError, client.messages.create, **{**ASK, "messages": []})
        assert "messages" in fault.body["error"]["message"]
        count = client.messages.count_tokens
        fault = raised(anthropic.APIStatusError, count, model="talker", messages=MESSAGES)
        assert (fault.status_code, fault.body["error"]["type"]) == (400, "invalid_request_error")
    with connected(base_url, "sk-no") as client:
        fault = raised(anthropic.AuthenticationError, client.messages.create, **ASK)
        assert fault.body["error"]["type"] == "authentication_error"


def raised(kind: type[anthropic.APIStatusError], call: Any, **given: Any) -> Any:
    try:
        call(**given)
    except kind as fault:
        return fault
    raise AssertionError(f"{kind.__name__} was not raised")
