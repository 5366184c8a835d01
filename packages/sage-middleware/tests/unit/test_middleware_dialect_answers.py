"""A chat's answer in other dialects: well-formed whatever the engine sends, and however its bytes come."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage.common.errors import EngineError
from sage.middleware.engines.aggregate import Aggregator
from sage.middleware.engines.dialects.chat import Call, Chunk, Delta, Function, Tokens
from sage.middleware.engines.dialects.interpreter import Scribe, StreamSink, WholeSink
from sage.middleware.engines.dialects.messages_answer import MessagesScribe, count_of, message_of
from sage.middleware.engines.dialects.responses_answer import ResponsesScribe, response_of
from sage.middleware.engines.dialects.responses_body import ResponsesBody
from sage.middleware.testing.dialects import events_of, read_message_stream, read_response_stream
from sage.middleware.testing.engines import RecordingSink

ASKED = ResponsesBody(model="m", input="hello", instructions="Be brief.", metadata={"a": "b"})
USAGE = {
    "prompt_tokens": 11,
    "completion_tokens": 7,
    "prompt_tokens_details": {"cached_tokens": 4},
    "completion_tokens_details": {"reasoning_tokens": 3},
}


def messages() -> MessagesScribe:
    return MessagesScribe("msg_1", "m")


def responses() -> ResponsesScribe:
    return ResponsesScribe("resp_1", ASKED, 1700000000)


def sse(chunks: list[dict[str, Any]]) -> bytes:
    return (
        b"".join(b"data: " + msgspec.json.encode(chunk) + b"\n\n" for chunk in chunks) + b"data: [DONE]\n\n"
    )


def chunk(finish: str | None = None, **delta: Any) -> dict[str, Any]:
    return {
        "object": "chat.completion.chunk",
        "choices": [{"index": 0, "delta": delta, "finish_reason": finish}],
    }


def call(index: int, name: str | None = None, arguments: str = "", **more: Any) -> dict[str, Any]:
    function = {"arguments": arguments} | ({"name": name} if name else {})
    return {"index": index, "function": function, **more}


def written(scribe: Scribe, stream: bytes, size: int | None = None) -> bytes:
    """What comes of a stream that arrives in pieces of this size."""
    sink = RecordingSink()
    through = StreamSink(sink, scribe)
    through.head(200, "text/event-stream")
    size = size or len(stream)
    for at in range(0, len(stream), size):
        through.data(stream[at : at + size])
    through.end()
    assert sink.ended
    return sink.body


def whole(stream: bytes) -> bytes:
    """The same answer, not as a stream."""
    aggregator = Aggregator()
    aggregator.feed(stream)
    return aggregator.result()


TEXT = [chunk(role="assistant", content=""), chunk(content="Hel"), chunk(content="lo"), chunk("stop")]
TOOLS = [
    chunk(role="assistant", content="Let me see."),
    chunk(tool_calls=[call(0, "look", id="call-a")]),
    chunk(tool_calls=[call(0, arguments='{"at":')]),
    chunk(tool_calls=[call(0, arguments="1}"), call(1, "paint", '{"c', id="call-b")]),
    chunk(tool_calls=[call(1, arguments='":"red"}')]),
    chunk("tool_calls"),
]


def with_usage(chunks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [*chunks, {"choices": [], "usage": USAGE}]


# ---- messages ----------------------------------------------------------------------------------------------


def test_a_text_becomes_a_message_of_one_block() -> None:
    message = read_message_stream(written(messages(), sse(with_usage(TEXT))))
    assert message["content"] == [{"type": "text", "text": "Hello"}]
    assert (message["id"], message["model"], message["stop_reason"]) == ("msg_1", "m", "end_turn")
    assert message["usage"] == {
        "input_tokens": 7,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 4,
        "output_tokens": 7,
    }


def test_calls_become_blocks_with_their_arguments_piece_by_piece() -> None:
    stream = written(messages(), sse(with_usage(TOOLS)))
    message = read_message_stream(stream)
    assert [block["type"] for block in message["content"]] == ["text", "tool_use", "tool_use"]
    assert [block.get("id") for block in message["content"]] == [None, "call-a", "call-b"]
    assert [json.loads(block["input"]) for block in message["content"][1:]] == [{"at": 1}, {"c": "red"}]
    pieces = [event["delta"] for event in events_of(stream) if event["type"] == "content_block_delta"]
    assert [one["partial_json"] for one in pieces[1:]] == ['{"at":', "1}", '{"c', '":"red"}']
    assert message["stop_reason"] == "tool_use"


def test_a_whole_message_says_the_same_as_its_stream() -> None:
    for chunks in (with_usage(TEXT), with_usage(TOOLS)):
        streamed = read_message_stream(written(messages(), sse(chunks)))
        for block in streamed["content"]:
            if block["type"] == "tool_use":
                block["input"] = json.loads(block["input"])
        assert json.loads(message_of("msg_1", "m", whole(sse(chunks)))) == streamed


@pytest.mark.parametrize(
    ("finish", "reason"),
    [
        ("stop", "end_turn"),
        ("length", "max_tokens"),
        ("tool_calls", "tool_use"),
        ("content_filter", "refusal"),
    ],
)
def test_why_a_message_ended(finish: str, reason: str) -> None:
    stream = sse([chunk(content="x"), chunk(finish)])
    assert read_message_stream(written(messages(), stream))["stop_reason"] == reason
    assert json.loads(message_of("i", "m", whole(stream)))["stop_reason"] == reason


def test_a_stop_sequence_is_told_where_the_engine_tells_it() -> None:
    last = chunk("stop")
    last["choices"][0]["stop_reason"] = "END"
    message = read_message_stream(written(messages(), sse([chunk(content="x"), last])))
    assert (message["stop_reason"], message["stop_sequence"]) == ("stop_sequence", "END")
    last["choices"][0]["stop_reason"] = 151645  # a token of the model's own
    message = read_message_stream(written(messages(), sse([chunk(content="x"), last])))
    assert (message["stop_reason"], message["stop_sequence"]) == ("end_turn", None)


def test_an_engine_that_says_stop_after_a_call_has_called() -> None:
    stream = sse([chunk(tool_calls=[call(0, "look", "{}", id="a")]), chunk("stop")])
    assert read_message_stream(written(messages(), stream))["stop_reason"] == "tool_use"
    response = read_response_stream(written(responses(), stream))
    assert [item["type"] for item in response["output"]] == ["function_call"]


def test_calls_that_are_not_numbered_come_whole() -> None:
    calls = [{"id": name, "function": {"name": name, "arguments": "{}"}} for name in ("one", "two")]
    stream = sse([chunk(tool_calls=[calls[0]]), chunk(tool_calls=[calls[1]]), chunk("tool_calls")])
    assert [block["name"] for block in read_message_stream(written(messages(), stream))["content"]] == [
        "one",
        "two",
    ]
    assert [item["name"] for item in read_response_stream(written(responses(), stream))["output"]] == [
        "one",
        "two",
    ]


def test_a_call_that_the_length_cut_off_is_left_out_of_a_whole_message() -> None:
    cut = {"message": {"tool_calls": [call(0, "look", '{"a', id="a")]}, "finish_reason": "length"}
    message = json.loads(message_of("i", "m", msgspec.json.encode({"choices": [cut]})))
    assert (message["content"], message["stop_reason"]) == ([], "max_tokens")
    with pytest.raises(EngineError, match="not a JSON object"):
        message_of("i", "m", msgspec.json.encode({"choices": [{**cut, "finish_reason": "tool_calls"}]}))


def test_a_count_is_read_from_the_tokens() -> None:
    assert json.loads(count_of(b'{"count":12,"tokens":[1]}')) == {"input_tokens": 12}
    with pytest.raises(EngineError):
        count_of(b'{"tokens":[1]}')


# ---- responses ---------------------------------------------------------------------------------------------


def test_a_text_becomes_a_response_of_one_message() -> None:
    response = read_response_stream(written(responses(), sse(with_usage(TEXT))))
    part = {"type": "output_text", "text": "Hello", "annotations": [], "logprobs": []}
    (item,) = response["output"]
    assert (item["type"], item["role"], item["status"], item["content"]) == (
        "message",
        "assistant",
        "completed",
        [part],
    )
    assert (response["status"], response["instructions"], response["metadata"]) == (
        "completed",
        "Be brief.",
        {"a": "b"},
    )
    assert response["usage"] == {
        "input_tokens": 11,
        "input_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 0},
        "output_tokens": 7,
        "output_tokens_details": {"reasoning_tokens": 3},
        "total_tokens": 18,
    }


def test_thoughts_words_and_calls_are_items_of_their_own() -> None:
    thinking = [chunk(reasoning_content="Hm"), chunk(reasoning="m.")]
    response = read_response_stream(written(responses(), sse([*thinking, *TOOLS])))
    assert [item["type"] for item in response["output"]] == [
        "reasoning",
        "message",
        "function_call",
        "function_call",
    ]
    assert response["output"][0]["content"] == [{"type": "reasoning_text", "text": "Hmm."}]
    assert [item["arguments"] for item in response["output"][2:]] == ['{"at":1}', '{"c":"red"}']
    assert [item["call_id"] for item in response["output"][2:]] == ["call-a", "call-b"]
    assert len({item["id"] for item in response["output"]}) == 4


def test_a_refusal_is_a_part_of_its_own() -> None:
    stream = sse([chunk(content="Well, "), chunk(refusal="no"), chunk(refusal="."), chunk("stop")])
    (item,) = read_response_stream(written(responses(), stream))["output"]
    assert [part["type"] for part in item["content"]] == ["output_text", "refusal"]
    assert item["content"][1]["refusal"] == "no."


@pytest.mark.parametrize(
    ("finish", "reason"), [("length", "max_output_tokens"), ("content_filter", "content_filter")]
)
def test_an_answer_that_was_cut_is_incomplete(finish: str, reason: str) -> None:
    stream = sse([chunk(content="x"), chunk(finish)])
    for response in (
        read_response_stream(written(responses(), stream)),
        json.loads(response_of("resp_1", ASKED, 1, whole(stream))),
    ):
        assert (response["status"], response["incomplete_details"]) == ("incomplete", {"reason": reason})
        assert response["output"][0]["status"] == "incomplete"


def test_a_whole_response_says_the_same_as_its_stream() -> None:
    for chunks in (with_usage(TEXT), with_usage(TOOLS)):
        streamed = read_response_stream(written(responses(), sse(chunks)))
        assert json.loads(response_of("resp_1", ASKED, 1700000000, whole(sse(chunks)))) == streamed


def test_nothing_is_written_before_the_engine_says_something() -> None:
    scribe = responses()
    assert scribe.feed(Chunk(Delta(content=""))) == b""
    assert scribe.feed(Chunk(Delta(content="x"))).startswith(b"event: response.created\n")


# ---- both --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [messages, responses])
def test_an_answer_without_a_reason_is_not_whole(make: Any) -> None:
    with pytest.raises(EngineError, match="finish reason"):
        written(make(), sse([chunk(content="x")]))
    body = msgspec.json.encode({"choices": [{"message": {"content": "x"}}]})
    with pytest.raises(EngineError, match="finish reason"):
        message_of("i", "m", body) if make is messages else response_of("i", ASKED, 1, body)


@pytest.mark.parametrize("make", [messages, responses])
def test_what_cannot_be_told_in_order_is_a_fault_of_the_engine(make: Any) -> None:
    back = [call(0, "a", id="a"), call(1, "b", id="b"), call(0, arguments="{")]
    with pytest.raises(EngineError, match="went back"):
        written(make(), sse([chunk(tool_calls=back)]))
    with pytest.raises(EngineError, match="without its name"):
        written(make(), sse([chunk(tool_calls=[call(0, id="a")])]))
    for junk in (b"data: 7\n\n", b"data: \xff\n\n", b'data: {"choices":3}\n\n'):
        with pytest.raises(EngineError, match="cannot be read"):
            written(make(), junk)


@pytest.mark.parametrize("body", [b"", b"7", b'{"choices":[]}', b'{"choices":[{"delta":{}}]}'])
def test_a_whole_answer_that_is_none_is_a_fault_of_the_engine(body: bytes) -> None:
    sink = RecordingSink()
    for translate in (
        lambda answer: message_of("i", "m", answer),
        lambda answer: response_of("i", ASKED, 1, answer),
    ):
        through = WholeSink(sink, translate)
        through.head(200, "application/json")
        through.data(body)
        with pytest.raises(EngineError):
            through.end()
    assert sink.status == 0


words = st.text(max_size=6)
pieces = st.one_of(
    st.builds(lambda text: Delta(content=text), words),
    st.builds(lambda text: Delta(refusal=text), words),
    st.builds(lambda text: Delta(reasoning_content=text), words),
    st.builds(
        lambda name, text: Delta(tool_calls=[Call(None, name, Function(name, text))]),
        st.sampled_from(["look", "paint"]),
        words,
    ),
    st.builds(lambda text: Delta(content=text, reasoning=text), words),
)
finishes = st.sampled_from(["stop", "length", "tool_calls", "content_filter"])


@given(st.lists(pieces, max_size=8), finishes)
def test_every_stream_is_well_formed_and_loses_nothing(deltas: list[Delta], finish: str) -> None:
    chunks = [Chunk(delta) for delta in deltas] + [Chunk(Delta(), finish, None, Tokens(1, 2))]

    def run(scribe: Scribe) -> bytes:
        return b"".join([scribe.feed(one) for one in chunks]) + scribe.close()

    said = "".join((delta.content or "") + (delta.refusal or "") for delta in deltas)
    calls = [one.function.arguments for delta in deltas for one in delta.tool_calls or ()]
    message = read_message_stream(run(messages()))
    blocks = message["content"]
    assert "".join(block["text"] for block in blocks if block["type"] == "text") == said
    assert [block["input"] for block in blocks if block["type"] == "tool_use"] == calls
    response = read_response_stream(run(responses()))
    parts = [part for item in response["output"] if item["type"] == "message" for part in item["content"]]
    assert "".join(part.get("text", part.get("refusal")) for part in parts) == said
    called = [item["arguments"] for item in response["output"] if item["type"] == "function_call"]
    assert called == calls
    thought = "".join(delta.reasoning or delta.reasoning_content or "" for delta in deltas)
    kept = [item["content"][0]["text"] for item in response["output"] if item["type"] == "reasoning"]
    assert "".join(kept) == thought


@pytest.mark.parametrize("make", [messages, responses])
@pytest.mark.parametrize("chunks", [with_usage(TEXT), with_usage(TOOLS)], ids=["text", "tools"])
def test_a_stream_split_at_every_byte_gives_the_same_events(make: Any, chunks: list[dict[str, Any]]) -> None:
    stream = sse(chunks)
    expected = written(make(), stream)
    for at in range(1, len(stream)):
        sink = RecordingSink()
        through = StreamSink(sink, make())
        through.head(200, "text/event-stream")
        through.data(stream[:at])
        through.data(stream[at:])
        through.end()
        assert sink.body == expected
    assert written(make(), stream, 1) == expected
