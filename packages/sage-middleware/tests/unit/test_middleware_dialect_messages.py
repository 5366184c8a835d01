"""What a request of `/v1/messages` becomes as a chat, and what is refused by its name."""

from __future__ import annotations

from typing import Any

import pytest

from sage.common.errors import BadRequestError
from sage.middleware.engines.dialects import messages_chat

SCHEMA = {"type": "object", "properties": {"colour": {"type": "string"}}}
PNG = {"type": "base64", "media_type": "image/png", "data": "aGVsbG8="}
ASK = {"role": "user", "content": "hello"}


def messages(**fields: Any) -> dict[str, Any]:
    return messages_chat.chat_of({"model": "m", "max_tokens": 9, "messages": [ASK], **fields})


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


def test_instructions_between_turns_stay_where_they_are() -> None:
    told = {"role": "system", "content": [{"type": "text", "text": "Be brief."}]}
    chat = messages(system="Be kind.", messages=[ASK, told, {"role": "system", "content": "Now."}, ASK])
    assert [(one["role"], one["content"]) for one in chat["messages"]] == [
        ("system", "Be kind."),
        ("user", "hello"),
        ("system", "Be brief."),
        ("system", "Now."),
        ("user", "hello"),
    ]


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
        ({"thread": {"type": "create"}}, "thread"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
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
    ("role", "kind"),
    [
        ("user", "tool_use"),
        ("assistant", "tool_result"),
        ("assistant", "image"),
        ("system", "tool_use"),
        ("system", "image"),
    ],
)
def test_a_block_that_the_other_side_says_is_refused(role: str, kind: str) -> None:
    blocks: dict[str, dict[str, Any]] = {
        "tool_use": {"id": "a", "name": "b", "input": {}},
        "tool_result": {"tool_use_id": "a"},
        "image": {"source": PNG},
    }
    with pytest.raises(BadRequestError, match=kind) as refused:
        messages(messages=[{"role": role, "content": [{"type": kind, **blocks[kind]}]}, ASK])
    assert refused.value.param == "messages[0].content[0]"


def test_what_is_counted_is_the_prompt_of_the_chat() -> None:
    fields = {"model": "m", "messages": [ASK], "system": "Be brief.", "tools": [TOOL]}
    chat = messages_chat.chat_of({**fields, "max_tokens": 9})
    assert messages_chat.tokenize_of(fields) == {name: chat[name] for name in ("model", "messages", "tools")}
    with pytest.raises(BadRequestError) as refused:
        messages_chat.tokenize_of({**fields, "max_tokens": 9})
    assert refused.value.param == "max_tokens"
