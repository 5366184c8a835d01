"""What a request in another dialect becomes as a chat, and what is refused by its name."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage.common.errors import BadRequestError
from sage.common.telemetry import RequestClass
from sage.middleware.control_plane.classify import Parsed, ParseLimits, parse
from sage.middleware.engines.dialects import messages_chat, responses_chat
from sage.middleware.engines.port import Capability, Route

SCHEMA = {"type": "object", "properties": {"colour": {"type": "string"}}}
PNG = {"type": "base64", "media_type": "image/png", "data": "aGVsbG8="}
ASK = {"role": "user", "content": "hello"}


def messages(**fields: Any) -> dict[str, Any]:
    return messages_chat.chat_of({"model": "m", "max_tokens": 9, "messages": [ASK], **fields})


def responses(**fields: Any) -> dict[str, Any]:
    return responses_chat.chat_of({"model": "m", "input": "hello", **fields})


def judged(route: Route, **fields: Any) -> Parsed:
    body = {"model": "m", **fields}
    return parse(
        route, json.dumps(body).encode(), limits=ParseLimits(), tenant="t", headers={"x-request-id": "r"}
    )


# ---- messages ----------------------------------------------------------------------------------------------


def test_a_plain_request() -> None:
    assert messages() == {"model": "m", "messages": [ASK], "max_tokens": 9}


def test_what_steers_the_answer_is_carried() -> None:
    chat = messages(
        system="Be brief.",
        stop_sequences=["END"],
        temperature=0.5,
        top_p=0.9,
        top_k=3,
        stream=True,
        metadata={"user_id": "u"},
        output_config={"format": {"type": "json_schema", "schema": SCHEMA}},
        thinking={"type": "disabled"},
        service_tier="auto",
    )
    schema = {"name": "output", "schema": SCHEMA, "strict": True}
    assert chat == {
        "model": "m",
        "messages": [{"role": "system", "content": "Be brief."}, ASK],
        "max_tokens": 9,
        "stop": ["END"],
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 3,
        "user": "u",
        "response_format": {"type": "json_schema", "json_schema": schema},
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def test_a_system_prompt_may_have_parts_and_wishes_to_cache_are_taken() -> None:
    wish = {"cache_control": {"type": "ephemeral"}}
    parts = [{"type": "text", "text": "One.", **wish}, {"type": "text", "text": "Two."}]
    chat = messages(system=parts, **wish)
    system = [{"type": "text", "text": "One."}, {"type": "text", "text": "Two."}]
    assert chat["messages"][0] == {"role": "system", "content": system}
    assert messages(system=parts[:1])["messages"][0] == {"role": "system", "content": "One."}


def test_pictures_become_urls() -> None:
    content = [
        {"type": "text", "text": "What is this?"},
        {"type": "image", "source": PNG},
        {"type": "image", "source": {"type": "url", "url": "https://example.com/a.png"}},
    ]
    (message,) = messages(messages=[{"role": "user", "content": content}])["messages"]
    assert message["content"] == [
        {"type": "text", "text": "What is this?"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGVsbG8="}},
        {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}},
    ]


def test_a_loop_with_tools() -> None:
    thought = {"type": "thinking", "thinking": "Hm.", "signature": "s"}
    used = {"type": "tool_use", "id": "a", "name": "look", "input": {"at": 1}}
    failed = {"type": "tool_result", "tool_use_id": "b", "content": "no light", "is_error": True}
    seen = [{"type": "text", "text": "this"}, {"type": "image", "source": PNG}]
    turns = [
        ASK,
        {
            "role": "assistant",
            "content": [thought, {"type": "text", "text": "I look."}, used, {**used, "id": "b"}],
        },
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "Go on."},
                {"type": "tool_result", "tool_use_id": "a", "content": seen},
                failed,
            ],
        },
    ]
    look = {"type": "function", "function": {"name": "look", "arguments": '{"at":1}'}}
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGVsbG8="}}
    assert messages(messages=turns)["messages"] == [
        ASK,
        {"role": "assistant", "content": "I look.", "tool_calls": [{"id": "a", **look}, {"id": "b", **look}]},
        {"role": "tool", "tool_call_id": "a", "content": "this"},
        {"role": "tool", "tool_call_id": "b", "content": "Error: no light"},
        {"role": "user", "content": [{"type": "text", "text": "Go on."}, image]},
    ]


def test_an_answer_of_calls_alone_has_no_content_and_one_of_thoughts_an_empty_one() -> None:
    used = {"type": "tool_use", "id": "a", "name": "look", "input": {}}
    result = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "a"}]}
    chat = messages(messages=[ASK, {"role": "assistant", "content": [used]}, result])
    assert chat["messages"][1]["content"] is None
    assert chat["messages"][2:] == [{"role": "tool", "tool_call_id": "a", "content": ""}]
    redacted = {"role": "assistant", "content": [{"type": "redacted_thinking", "data": "x"}]}
    assert messages(messages=[redacted, ASK])["messages"][0] == {"role": "assistant", "content": ""}


TOOL = {"name": "look", "input_schema": SCHEMA, "description": "Look.", "type": "custom", "strict": True}


@pytest.mark.parametrize(
    ("choice", "becomes"),
    [
        ({"type": "auto"}, "auto"),
        ({"type": "any"}, "required"),
        ({"type": "none"}, "none"),
        ({"type": "tool", "name": "look"}, {"type": "function", "function": {"name": "look"}}),
    ],
)
def test_tools_and_their_choice(choice: dict[str, Any], becomes: Any) -> None:
    chat = messages(tools=[TOOL], tool_choice=choice)
    function = {"name": "look", "parameters": SCHEMA, "description": "Look.", "strict": True}
    assert chat["tools"] == [{"type": "function", "function": function}]
    assert chat["tool_choice"] == becomes
    assert "parallel_tool_calls" not in chat


def test_one_call_at_a_time() -> None:
    choice = {"type": "auto", "disable_parallel_tool_use": True}
    assert messages(tools=[TOOL], tool_choice=choice)["parallel_tool_calls"] is False


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "thinking"),
        ({"thinking": {"type": "adaptive"}}, "thinking"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0].type"),
        ({"tools": [TOOL, {**TOOL, "defer_loading": True}]}, "tools[1].defer_loading"),
        ({"mcp_servers": []}, "mcp_servers"),
        ({"container": "c"}, "container"),
        ({"output_config": {"effort": "high"}}, "output_config.effort"),
        ({"service_tier": "priority"}, "service_tier"),
        ({"messages": [{"role": "system", "content": "x"}]}, "messages[0].role"),
        ({"messages": [ASK, {"role": "assistant", "content": "I"}]}, "messages[1]"),
        ({"messages": [{"role": "user", "content": [{"type": "document"}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
        ({"messages": 3}, "messages"),
        ({"max_tokens": "9"}, "max_tokens"),
        ({"tool_choice": {"type": "tool"}}, "tool_choice.name"),
    ],
)
def test_what_a_chat_cannot_carry_is_refused_by_its_name(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequestError) as refused:
        messages(**fields)
    assert refused.value.param == param
    assert param in refused.value.message


@pytest.mark.parametrize(
    ("role", "kind"), [("user", "tool_use"), ("assistant", "tool_result"), ("assistant", "image")]
)
def test_a_block_that_the_other_side_says_is_refused(role: str, kind: str) -> None:
    block: dict[str, Any] = {
        "tool_use": {"id": "a", "name": "b", "input": {}},
        "tool_result": {"tool_use_id": "a"},
        "image": {"source": PNG},
    }[kind]
    with pytest.raises(BadRequestError, match=kind) as refused:
        messages(messages=[{"role": role, "content": [{"type": kind, **block}]}, ASK])
    assert refused.value.param == "messages[0].content[0]"


def test_what_is_counted_is_the_prompt_of_the_chat() -> None:
    fields = {"model": "m", "messages": [ASK], "system": "Be brief.", "tools": [TOOL]}
    chat = messages_chat.chat_of({**fields, "max_tokens": 9})
    assert messages_chat.tokenize_of(fields) == {name: chat[name] for name in ("model", "messages", "tools")}
    with pytest.raises(BadRequestError) as refused:
        messages_chat.tokenize_of({**fields, "max_tokens": 9})
    assert refused.value.param == "max_tokens"


# ---- responses ---------------------------------------------------------------------------------------------


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


# ---- what the scheduler is told ----------------------------------------------------------------------------


def test_both_are_chats_to_the_scheduler_and_go_on_as_they_are() -> None:
    for parsed, route in (
        (judged(Route.MESSAGES, messages=[ASK], max_tokens=9, stream=True), Route.MESSAGES),
        (judged(Route.RESPONSES, input="hello", max_output_tokens=9, stream=True), Route.RESPONSES),
    ):
        job, call = parsed.job, parsed.call
        assert (job.request_class, job.max_tokens, job.stream) == (RequestClass.CHAT, 9, True)
        assert job.needs == {Capability.CHAT}
        assert (call.route, call.stream, call.include_usage) == (route, True, True)
        assert json.loads(call.body)["model"] == "m"


def test_what_they_ask_for_is_needed_of_the_engine() -> None:
    tool = {"name": "f", "input_schema": SCHEMA}
    parsed = judged(
        Route.MESSAGES,
        messages=[ASK],
        max_tokens=9,
        top_k=3,
        tools=[tool],
        tool_choice={"type": "any"},
        output_config={"format": {"type": "json_schema", "schema": SCHEMA}},
    )
    assert parsed.job.needs == {
        Capability.CHAT,
        Capability.TOP_K,
        Capability.TOOLS,
        Capability.TOOL_CHOICE,
        Capability.RESPONSE_FORMAT,
    }
    parsed = judged(Route.RESPONSES, input="x", text={"format": {"type": "json_object"}})
    assert parsed.job.needs == {Capability.CHAT, Capability.RESPONSE_FORMAT}
    assert judged(Route.RESPONSES, input="x", text={"format": {"type": "text"}}).job.needs == {
        Capability.CHAT
    }
    counted = judged(Route.COUNT_TOKENS, messages=[ASK])
    assert counted.job.needs == {Capability.TOKENIZE, Capability.CHAT}


@pytest.mark.parametrize(
    ("route", "fields", "param"),
    [
        (Route.MESSAGES, {"messages": [ASK] * 2049, "max_tokens": 1}, "messages"),
        (Route.MESSAGES, {"messages": [], "max_tokens": 1}, "messages"),
        (Route.MESSAGES, {"messages": [ASK], "max_tokens": 0}, "max_tokens"),
        (Route.MESSAGES, {"messages": [ASK], "max_tokens": 1, "tools": [TOOL] * 129}, "tools"),
        (Route.COUNT_TOKENS, {"messages": [ASK] * 2049}, "messages"),
        (Route.RESPONSES, {"input": [ASK] * 2049}, "input"),
        (Route.RESPONSES, {"input": []}, "input"),
        (Route.RESPONSES, {"input": "x", "tools": [{"type": "function", "name": "f"}] * 129}, "tools"),
    ],
)
def test_the_bounds_of_a_chat_hold(route: Route, fields: dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequestError) as refused:
        judged(route, **fields)
    assert refused.value.param == param


def test_a_conversation_begins_with_what_was_said_in_it_before() -> None:
    def blocks(turns: list[dict[str, Any]]) -> tuple[int, ...]:
        body = {"model": "m", "max_tokens": 9, "system": "s" * 300, "messages": turns}
        parsed = parse(
            Route.MESSAGES,
            json.dumps(body).encode(),
            limits=ParseLimits(),
            tenant="t",
            headers={},
            blocks=True,
        )
        return parsed.job.blocks

    said = [{"role": "user", "content": "x" * 600}, {"role": "assistant", "content": "y" * 600}]
    before, after = (
        blocks([*said, ASK]),
        blocks([*said, ASK, {"role": "assistant", "content": "z" * 600}, ASK]),
    )
    assert len(before) > 4
    assert after[: len(before) - 1] == before[:-1]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=6,
)
NAMES = [
    "messages",
    "input",
    "tools",
    "tool_choice",
    "system",
    "text",
    "thinking",
    "stream",
    "max_tokens",
    "role",
]


@given(st.dictionaries(st.sampled_from(NAMES), json_values))
def test_whatever_comes_is_served_or_refused(fields: dict[str, Any]) -> None:
    for read in (messages_chat.chat_of, messages_chat.tokenize_of, responses_chat.chat_of):
        try:
            chat = read({"model": "m", **fields})
        except BadRequestError:
            continue
        assert msgspec.json.encode(chat)
