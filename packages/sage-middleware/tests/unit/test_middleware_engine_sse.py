"""Cutting streams into events, reading usage, and putting a stream together into one answer."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage.common.errors import EngineError
from sage.middleware import _native
from sage.middleware.engines.aggregate import Aggregator
from sage.middleware.engines.faults import UpstreamError
from sage.middleware.engines.passthrough import PassThrough
from sage.middleware.engines.port import Usage
from sage.middleware.engines.sse import _USAGE, MAX_EVENT_BYTES, Splitter, data_of, usage_of
from sage.middleware.engines.transformers import TransformersStream

STREAM = (
    b": keep-alive\n\n"
    b'data: {"choices":[{"index":0,"delta":{"content":"\xc3\xa9t\xc3\xa9 "}}]}\n\n'
    b"event: message\r\ndata: {\r\ndata: }\r\n\r\n"
    b'data:{"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}\n\r\n'
    b"data: [DONE]\n\n"
)


def chunk(choices: list[object], **more: object) -> bytes:
    body = {
        "id": "x",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "m",
        "choices": choices,
        **more,
    }
    return b"data: " + msgspec.json.encode(body) + b"\n\n"


def delta(index: int = 0, finish: str | None = None, **fields: object) -> dict[str, object]:
    return {"index": index, "delta": fields, "finish_reason": finish}


class TestSplitter:
    def test_events_of_a_whole_stream(self) -> None:
        events = Splitter().feed(STREAM)
        assert [data_of(event)[:9] for event in events] == [
            b"",
            b'{"choices',
            b"{\n}",
            b'{"choices',
            b"[DONE]",
        ]

    def test_every_offset_equals_unsplit(self) -> None:
        whole = Splitter().feed(STREAM)
        for at in range(len(STREAM) + 1):
            splitter = Splitter()
            assert splitter.feed(STREAM[:at]) + splitter.feed(STREAM[at:]) == whole, at
            assert not splitter.rest

    def test_byte_by_byte(self) -> None:
        splitter = Splitter()
        parts = [event for i in range(len(STREAM)) for event in splitter.feed(STREAM[i : i + 1])]
        assert parts == Splitter().feed(STREAM)

    @given(st.lists(st.sampled_from([b"data: a", b"\n", b"\r\n", b"\r", b":", b"x"]), max_size=40), st.data())
    def test_any_cuts_of_anything(self, pieces: list[bytes], data: st.DataObject) -> None:
        stream = b"".join(pieces)
        cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
        splitter, events = Splitter(), []
        for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
            events += splitter.feed(stream[start:end])
        whole = Splitter()
        assert events == whole.feed(stream)
        assert splitter.close() == whole.close()

    def test_what_goes_in_comes_out(self) -> None:
        splitter = Splitter()
        assert b"".join(splitter.feed(STREAM + b"data: half")) == STREAM
        assert splitter.rest
        assert splitter.close() == [b"data: half\n\n"]
        assert splitter.close() == []

    @pytest.mark.parametrize("end", [b"", b"\n\n"])
    def test_an_event_over_the_limit(self, end: bytes) -> None:
        splitter = Splitter()
        splitter.feed(b"data: " + b"x" * (MAX_EVENT_BYTES - 6))
        with pytest.raises(EngineError, match="more than 1048576 bytes"):
            splitter.feed(b"x" + end)


class TestUsage:
    def test_reads_usage(self) -> None:
        assert usage_of(b'{"usage":{"prompt_tokens":3,"completion_tokens":2,"other":{}}}') == Usage(3, 2)
        assert usage_of(b'{"usage":{"prompt_tokens":3}}') == Usage(3, 0)

    @pytest.mark.parametrize("body", [b"{}", b'{"usage":null}'])
    def test_without_usage(self, body: bytes) -> None:
        assert usage_of(body) is None

    @pytest.mark.parametrize("body", [b"", b"[1]", b"{", b'{"usage":{"prompt_tokens":"3"}}', b'"\xff"'])
    def test_unreadable(self, body: bytes) -> None:
        with pytest.raises(EngineError, match="cannot be read"):
            usage_of(body)


class TestAggregator:
    def test_text_usage_and_reason(self) -> None:
        aggregator = Aggregator()
        aggregator.feed(chunk([delta(role="assistant")]) + chunk([delta(content="Hello ")]))
        aggregator.feed(b": comment\n\n" + chunk([delta(content="wörld")]) + chunk([delta(finish="stop")]))
        usage = {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5}
        aggregator.feed(chunk([], usage=usage) + b"data: [DONE]\n\n")
        answer = msgspec.json.decode(aggregator.result())
        assert answer["object"] == "chat.completion"
        assert answer["id"] == "x"
        assert answer["usage"] == usage
        assert aggregator.usage == Usage(2, 3)
        message = {"role": "assistant", "content": "Hello wörld"}
        assert answer["choices"] == [
            {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
        ]

    def test_several_choices_interleaved(self) -> None:
        aggregator = Aggregator()
        aggregator.feed(
            chunk([delta(1, content="b")]) + chunk([delta(0, content="a"), delta(1, content="B")])
        )
        aggregator.feed(chunk([delta(0, finish="stop")]) + chunk([delta(1, finish="length")]))
        choices = msgspec.json.decode(aggregator.result())["choices"]
        assert [(c["index"], c["message"]["content"], c["finish_reason"]) for c in choices] == [
            (0, "a", "stop"),
            (1, "bB", "length"),
        ]

    def test_tool_calls_in_pieces(self) -> None:
        aggregator = Aggregator()
        first = {"index": 0, "id": "c1", "type": "function", "function": {"name": "paint", "arguments": ""}}
        aggregator.feed(chunk([delta(tool_calls=[first])]))
        for piece in ('{"colour"', ':"red"}'):
            aggregator.feed(chunk([delta(tool_calls=[{"index": 0, "function": {"arguments": piece}}])]))
        aggregator.feed(chunk([delta(finish="tool_calls")]))
        message = msgspec.json.decode(aggregator.result())["choices"][0]["message"]
        assert message["content"] is None
        function = {"name": "paint", "arguments": '{"colour":"red"}'}
        assert message["tool_calls"] == [{"id": "c1", "type": "function", "function": function}]

    def test_completions_and_logprobs(self) -> None:
        aggregator = Aggregator()
        base = {"object": "text_completion", "model": "m"}
        for text in ("a", "b"):
            choice = {"index": 0, "text": text, "logprobs": {"content": [{"token": text}]}}
            aggregator.feed(b"data: " + msgspec.json.encode({**base, "choices": [choice]}) + b"\n\n")
        answer = msgspec.json.decode(aggregator.result())
        assert answer["object"] == "text_completion"
        assert answer["choices"][0]["text"] == "ab"
        assert [each["token"] for each in answer["choices"][0]["logprobs"]["content"]] == ["a", "b"]

    def test_an_empty_stream_is_no_answer(self) -> None:
        with pytest.raises(EngineError, match="held no answer"):
            Aggregator().result()

    def test_a_broken_event(self) -> None:
        with pytest.raises(EngineError, match="cannot be read"):
            Aggregator().feed(b"data: {nonsense\n\n")


USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
OPENAI = (
    chunk([delta(content='say "usage":{ and [DONE]')])
    + chunk([delta(finish="stop")])
    + chunk([], usage=USAGE)
)


class TestPassThrough:
    @pytest.mark.parametrize("hide", [True, False])
    def test_every_offset_equals_unsplit(self, hide: bool) -> None:
        stream = OPENAI + b"data: [DONE]\n\n"
        expected = stream.replace(chunk([], usage=USAGE), b"") if hide else stream
        for at in range(len(stream) + 1):
            translator = PassThrough(hide_usage=hide)
            out = translator.feed(stream[:at]) + translator.feed(stream[at:]) + translator.close()
            assert out == expected, at
            assert translator.usage == Usage(3, 2)

    def test_ordinary_chunks_are_not_copied(self) -> None:
        event = chunk([delta(content="hello")])
        assert PassThrough(hide_usage=True).feed(event) is event

    def test_usage_on_a_chunk_with_choices_stays(self) -> None:
        translator = PassThrough(hide_usage=True)
        event = chunk([delta(finish="stop")], usage=USAGE)
        assert translator.feed(event) == event
        assert translator.usage == Usage(3, 2)

    def test_nothing_follows_the_end(self) -> None:
        assert PassThrough(hide_usage=False).feed(b"data: [DONE]\n\n" * 2) == b"data: [DONE]\n\n"

    def test_an_error_event(self) -> None:
        translator = PassThrough(hide_usage=True)
        with pytest.raises(
            UpstreamError, match=r"^The engine failed in the middle of its answer\.$"
        ) as caught:
            translator.feed(b'data: {"error":{"message":"out of memory","code":500}}\n\n')
        assert caught.value.told == "out of memory"

    def test_the_end_is_required(self) -> None:
        translator = PassThrough(hide_usage=True)
        translator.feed(OPENAI)
        with pytest.raises(EngineError, match=r"before `\[DONE\]`"):
            translator.close()


FOLDER = '/models/a "b"'


def upstream(choices: list[object], **more: object) -> bytes:
    return chunk(choices, **more).replace(b'"model":"m"', b'"model":' + msgspec.json.encode(FOLDER + "@main"))


class TestTransformersStream:
    STREAM = (
        upstream([delta(role="assistant")])
        + upstream([delta(content='"model":"x" "usage":{')])
        + upstream([delta(finish="length")], usage=USAGE)
    )

    @pytest.mark.parametrize("include_usage", [True, False])
    def test_every_offset_gives_openai_form(self, include_usage: bool) -> None:
        for at in range(len(self.STREAM) + 1):
            translator = TransformersStream(FOLDER, "tiny", include_usage=include_usage)
            out = translator.feed(self.STREAM[:at]) + translator.feed(self.STREAM[at:]) + translator.close()
            assert FOLDER.encode() not in out
            data = [data_of(event) for event in Splitter().feed(out)]
            assert data.pop() == b"[DONE]"
            events = [msgspec.json.decode(each) for each in data]
            assert {each["model"] for each in events} == {"tiny"}
            assert events[1]["choices"][0]["delta"]["content"] == '"model":"x" "usage":{'
            assert translator.usage == Usage(3, 2)
            counted = [each for each in events if "usage" in each]
            assert [(each["choices"], each["usage"]) for each in counted] == [([], USAGE)] * include_usage

    def test_its_unescaped_errors(self) -> None:
        translator = TransformersStream(FOLDER, "tiny", include_usage=False)
        with pytest.raises(
            UpstreamError, match=r"^The engine failed in the middle of its answer\.$"
        ) as caught:
            translator.feed(b'data: {"error": "no "blocks" left; no blocks"}\n\n')
        assert "no blocks" in caught.value.told

    def test_a_cut_stream(self) -> None:
        translator = TransformersStream(FOLDER, "tiny", include_usage=False)
        translator.feed(upstream([delta(content="a")]))
        with pytest.raises(EngineError, match="before its finish chunk"):
            translator.close()

    def test_a_broken_finish(self) -> None:
        translator = TransformersStream(FOLDER, "tiny", include_usage=False)
        with pytest.raises(EngineError, match="finish chunk cannot be read"):
            translator.feed(b'data: {"usage":{"prompt_tokens":1}}\n\n')


# ---- the native reader of usage ----------------------------------------------------------------------------

COUNTS = st.integers(-3, 3000) | st.sampled_from([None, 1.0, "1", 10**18, 10**30, True])
NAMES = [
    "prompt_tokens",
    "completion_tokens",
    "input_tokens",
    "output_tokens",
    "cache_read_input_tokens",
    "x",
]
USAGES: st.SearchStrategy[Any] = st.none() | st.just([]) | st.dictionaries(st.sampled_from(NAMES), COUNTS)
ANSWERS = st.dictionaries(st.sampled_from(["id", "choices", "usage", "usages"]), USAGES | st.text(max_size=4))


def closely(body: bytes) -> Usage | None:
    """As Python reads it."""
    try:
        found = _USAGE.decode(body).usage
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    return None if found is None else found.usage


def agree(body: bytes) -> bool:
    """Whether it was read natively, and then as Python would."""
    found = _native.read_usage(body)
    assert found is None or found == closely(body)
    return found is not None


@given(ANSWERS, st.booleans())
def test_the_usage_of_any_answer_is_read_alike(answer: dict[str, Any], escaped: bool) -> None:
    agree(json.dumps(answer, ensure_ascii=escaped).encode())


def test_every_flipped_byte_of_an_answer_is_read_alike() -> None:
    body = b'{"c":[{"m":"\\u00e9"}],"usage":{"prompt_tokens":12,"completion_tokens":3}}'
    assert agree(body)
    read = sum(
        agree(body[:at] + bytes((byte,)) + body[at + 1 :]) for at in range(len(body)) for byte in range(256)
    )
    assert read > 500


@pytest.mark.parametrize(
    "usage",
    [
        b'{"prompt_tokens":3,"completion_tokens":2}',
        b'{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5,"prompt_tokens_details":null}',
        b'{"completion_tokens":2,"completion_tokens_details":{"reasoning_tokens":1},"prompt_tokens":3}',
    ],
)
def test_usual_answers_are_read_natively(usage: bytes) -> None:
    body = b'{"id":"x","object":"chat.completion","created":1,"choices":[],"usage":' + usage + b"}"
    assert agree(body)
    assert usage_of(body) == Usage(3, 2)
