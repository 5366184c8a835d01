"""What a chat becomes for a flow, and what a flow's reply becomes for a client."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage.common.errors import BadRequestError, ConfigError, EngineError
from sage.middleware.answers import ChatReader
from sage.middleware.client import Delta
from sage.middleware.engines.aggregate import Aggregator
from sage.middleware.engines.port import Usage
from sage.middleware.operators.records import Chat, Question
from sage.middleware.pipelines.answer import ChatWriter
from sage.middleware.pipelines.conversation import Told, asked_of, check_kind, text_of

TALK = [
    {"role": "developer", "content": "Be brief."},
    {"role": "user", "content": [{"type": "text", "text": "Who "}, {"type": "text", "text": "is it?"}]},
]


def asked(kind: Any, **fields: Any) -> Any:
    return asked_of("pipeline/docs", kind, {"model": "pipeline/docs", "messages": TALK, **fields})


def test_a_flow_of_words_gets_the_last_message() -> None:
    assert asked(str) == "Who is it?"
    assert asked(Question, stream=True, user="someone", temperature=None) == Question("Who is it?")


def test_a_flow_of_conversations_gets_all_of_it() -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who is it?"}]
    assert asked(dict, temperature=0.5) == {"messages": messages, "temperature": 0.5}
    assert asked(Chat, temperature=0.5) == Chat(tuple(messages), {"temperature": 0.5})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"temperature": 0.1}, "temperature", "pipeline/docs takes no temperature"),
        ({"messages": []}, "messages", "has to be the user's"),
        ({"messages": [*TALK, {"role": "assistant", "content": "Hm"}]}, "messages", "has to be the user's"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages", "messages[0].role is 'tool'"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages", "no text"),
        ({"messages": [{"role": "user", "content": None}]}, "messages", "no text"),
    ],
)
def test_what_would_be_ignored_is_refused(fields: dict[str, Any], param: str, words: str) -> None:
    with pytest.raises(BadRequestError) as caught:
        asked(str, **fields)
    assert words in str(caught.value)
    assert caught.value.param == param


def test_requests_that_no_chat_becomes_are_told_with_those_that_it_does() -> None:
    check_kind("docs", str)
    with pytest.raises(
        ConfigError, match="its requests are int, and a chat becomes one of: str, Question, Chat, dict"
    ):
        check_kind("docs", int)


def test_text_is_found_in_what_has_it() -> None:
    assert [text_of(one) for one in ("a", Delta("b"), Question("c"), {"content": "d"})] == list("abcd")
    with pytest.raises(EngineError, match="replied with 3"):
        text_of(3)


@given(st.lists(st.text()), st.text())
def test_a_stream_shows_all_of_a_reply_that_its_parts_begin(parts: list[str], more: str) -> None:
    told = Told()
    shown = "".join(told.add(part) for part in parts)
    assert shown + told.rest(shown + more) == shown + more


@given(st.lists(st.text()), st.text())
def test_a_reply_that_was_shown_already_is_not_repeated(before: list[str], reply: str) -> None:
    told = Told()
    shown = "".join(told.add(part) for part in (*before, reply))
    assert (shown + told.rest(reply)).endswith(reply)


def test_another_reply_follows_what_was_shown() -> None:
    told = Told()
    told.add("Looking it up …")
    assert told.rest("It is Ada.") == "\n\nIt is Ada."


@given(st.lists(st.text(min_size=1), max_size=5), st.integers(0, 9), st.integers(0, 9))
def test_the_events_are_a_chat_to_our_own_readers(pieces: list[str], prompt: int, completion: int) -> None:
    usage = Usage(prompt, completion)
    writer = ChatWriter("req-1", "pipeline/docs", 7)
    stream = b"".join(writer.piece(piece) for piece in pieces) + writer.end(usage, tell=True)
    reader = ChatReader()
    assert "".join(reader.feed(stream)) == "".join(pieces)
    reader.finish()
    assert reader.usage == usage
    aggregator = Aggregator()
    aggregator.feed(stream)
    whole = msgspec.json.decode(aggregator.result())
    body = msgspec.json.decode(ChatWriter("req-1", "pipeline/docs", 7).whole("".join(pieces), usage))
    assert whole["choices"][0]["message"] == body["choices"][0]["message"]
    assert whole["usage"] == body["usage"]
    assert (whole["id"], whole["created"]) == (body["id"], body["created"]) == ("chatcmpl-req-1", 7)


def test_usage_is_told_only_where_it_was_asked_for() -> None:
    stream = ChatWriter("req-1", "pipeline/docs", 7).end(Usage(1, 2), tell=False)
    assert b"usage" not in stream
    assert stream.endswith(b"data: [DONE]\n\n")
