"""What the scheduler is told of a request in another dialect, and what bounds it."""

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
ASK = {"role": "user", "content": "hello"}
TOOL = {"name": "look", "input_schema": SCHEMA}


def judged(route: Route, **fields: Any) -> Parsed:
    body = {"model": "m", **fields}
    return parse(
        route, json.dumps(body).encode(), limits=ParseLimits(), tenant="t", headers={"x-request-id": "r"}
    )


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
