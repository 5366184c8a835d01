"""What a request of `/v1/responses` becomes as a chat, and what is refused by its name."""

from __future__ import annotations

from typing import Any

import pytest

from sage.common.errors import BadRequestError
from sage.middleware.engines.dialects import responses_chat

SCHEMA = {"type": "object", "properties": {"colour": {"type": "string"}}}
ASK = {"role": "user", "content": "hello"}


def responses(**fields: Any) -> dict[str, Any]:
    return responses_chat.chat_of({"model": "m", "input": "hello", **fields})


def test_a_plain_response() -> None:
    assert responses() == {"model": "m", "messages": [ASK]}


def test_what_steers_a_response_is_carried() -> None:
    chat = responses(
        instructions="Be brief.",
        max_output_tokens=9,
        temperature=0.5,
        top_p=0.9,
        stream=True,
        stream_options={"include_obfuscation": False},
        store=False,
        metadata={"a": "b"},
        user="u",
        parallel_tool_calls=False,
        reasoning={"effort": "low"},
        text={"format": {"type": "json_schema", "name": "n", "schema": SCHEMA, "strict": True}},
        truncation="disabled",
        background=False,
        include=[],
        service_tier="auto",
    )
    assert chat == {
        "model": "m",
        "messages": [{"role": "system", "content": "Be brief."}, ASK],
        "max_tokens": 9,
        "temperature": 0.5,
        "top_p": 0.9,
        "user": "u",
        "parallel_tool_calls": False,
        "reasoning_effort": "low",
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "n", "schema": SCHEMA, "strict": True},
        },
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    assert responses(text={"format": {"type": "json_object"}})["response_format"] == {"type": "json_object"}
    assert responses(text={"format": {"type": "text"}})["response_format"] == {"type": "text"}


def test_items_become_turns() -> None:
    call = {"type": "function_call", "call_id": "a", "name": "look", "arguments": '{"at":1}'}
    picture = {"type": "input_image", "image_url": "data:image/png;base64,aGVsbG8=", "detail": "low"}
    output = {"type": "output_text", "text": "I look.", "annotations": [], "logprobs": []}
    items = [
        {"role": "developer", "content": "Look well."},
        {"role": "user", "content": [{"type": "input_text", "text": "What is this?"}, picture]},
        {"type": "reasoning", "id": "rs_1", "summary": []},
        {"type": "message", "id": "msg_1", "status": "completed", "role": "assistant", "content": [output]},
        {**call, "id": "fc_1", "status": "completed"},
        {**call, "call_id": "b"},
        {"type": "function_call_output", "call_id": "a", "output": "a cat"},
        {
            "type": "function_call_output",
            "call_id": "b",
            "output": [{"type": "input_text", "text": "this"}, picture],
        },
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]},
        {**call, "call_id": "c"},
    ]
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGVsbG8=", "detail": "low"}}
    look = {"type": "function", "function": {"name": "look", "arguments": '{"at":1}'}}
    assert responses(input=items)["messages"] == [
        {"role": "system", "content": "Look well."},
        {"role": "user", "content": [{"type": "text", "text": "What is this?"}, image]},
        {"role": "assistant", "content": "I look.", "tool_calls": [{"id": "a", **look}, {"id": "b", **look}]},
        {"role": "tool", "tool_call_id": "a", "content": "a cat"},
        {"role": "tool", "tool_call_id": "b", "content": "this"},
        {"role": "user", "content": [image]},
        {"role": "assistant", "content": "No.", "tool_calls": [{"id": "c", **look}]},
    ]
    assert responses(input=[call])["messages"] == [
        {"role": "assistant", "content": None, "tool_calls": [{"id": "a", **look}]}
    ]


def test_what_a_client_has_read_from_an_answer_comes_back_with_it_and_says_nothing() -> None:
    part = {"type": "output_text", "text": '{"n":1}', "annotations": [], "parsed": {"n": 1}}
    item = {"type": "message", "role": "assistant", "content": [part]}
    assert responses(input=[item])["messages"] == [{"role": "assistant", "content": '{"n":1}'}]


@pytest.mark.parametrize(
    ("choice", "becomes"),
    [
        ("auto", "auto"),
        ("required", "required"),
        ("none", "none"),
        ({"type": "function", "name": "look"}, {"type": "function", "function": {"name": "look"}}),
    ],
)
def test_functions_and_their_choice(choice: Any, becomes: Any) -> None:
    tool = {"type": "function", "name": "look", "parameters": SCHEMA, "strict": False}
    chat = responses(tools=[tool], tool_choice=choice)
    function = {"name": "look", "parameters": SCHEMA, "strict": False}
    assert chat["tools"] == [{"type": "function", "function": function}]
    assert chat["tool_choice"] == becomes


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"background": True}, "background"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"include": ["reasoning.encrypted_content"]}, "include"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"max_tool_calls": 2}, "max_tool_calls"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"truncation": "auto"}, "truncation"),
        ({"service_tier": "flex"}, "service_tier"),
        ({"reasoning": {"summary": "auto"}}, "reasoning.summary"),
        ({"text": {"verbosity": "low"}}, "text.verbosity"),
        ({"text": {"format": {"type": "grammar"}}}, "text.format.type"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "function", "name": "f"}, {"type": "mcp"}]}, "tools[1].type"),
        ({"tool_choice": {"type": "web_search_preview"}}, "tool_choice.type"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type"),
        ({"input": [{"id": "x"}]}, "input[0].type"),
        ({"input": [{"role": "tool", "content": "x"}]}, "input[0].role"),
        ({"input": [{"role": "user", "content": [{"type": "input_file"}]}]}, "input[0].content[0].type"),
        (
            {"input": [{"role": "user", "content": [{"type": "output_text", "text": "x"}]}]},
            "input[0].content[0]",
        ),
        ({"input": 3}, "input"),
        ({"stop": ["x"]}, "stop"),
    ],
)
def test_what_no_chat_carries_is_refused_by_its_name(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequestError) as refused:
        responses(**fields)
    assert refused.value.param == param
    assert param in refused.value.message


def test_a_response_needs_an_input() -> None:
    with pytest.raises(BadRequestError) as refused:
        responses_chat.chat_of({"model": "m"})
    assert refused.value.param == "input"
