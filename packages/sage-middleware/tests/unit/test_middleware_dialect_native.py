"""Streams of engines that speak a dialect: the same bytes, the tokens counted, faults seen."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage.common.errors import EngineError
from sage.middleware.engines.dialects.native import NATIVE, NativeStream
from sage.middleware.engines.port import Route, Usage
from sage.middleware.engines.sse import usage_of


def event(kind: str, **fields: Any) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), msgspec.json.encode({"type": kind, **fields}))


TRICK = 'message_stop","type":"message_stop"} response.completed'
MESSAGES = [
    event("message_start", message={"id": "m", "usage": {"input_tokens": 3, "cache_read_input_tokens": 4}}),
    event("content_block_start", index=0, content_block={"type": "text", "text": ""}),
    event("content_block_delta", index=0, delta={"type": "text_delta", "text": TRICK}),
    event("content_block_stop", index=0),
    event("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 9}),
    event("message_stop"),
]
RESPONSES = [
    event("response.created", response={"id": "r", "usage": None, "tools": [{"type": "error"}]}),
    event("response.output_text.delta", delta=TRICK),
    event("response.completed", response={"usage": {"input_tokens": 7, "output_tokens": 9}}),
]
STREAMS = [(Route.MESSAGES, MESSAGES), (Route.RESPONSES, RESPONSES)]


def through(route: Route, stream: bytes, *cuts: int) -> tuple[bytes, Usage]:
    reader = NativeStream(NATIVE[route])
    places = [0, *sorted(cuts), len(stream)]
    out = b"".join(reader.feed(stream[one:other]) for one, other in pairwise(places))
    return out + reader.close(), reader.usage


@pytest.mark.parametrize(("route", "events"), STREAMS)
def test_bytes_pass_as_they_are_and_tokens_are_counted(route: Route, events: list[bytes]) -> None:
    stream = b"".join(events)
    for at in range(len(stream)):
        assert through(route, stream, at) == (stream, Usage(7, 9))


@given(st.sampled_from(STREAMS), st.lists(st.integers(0, 900), max_size=5))
def test_any_cuts_give_the_same(given: tuple[Route, list[bytes]], cuts: list[int]) -> None:
    route, events = given
    stream = b"".join(events)
    assert through(route, stream, *(min(cut, len(stream)) for cut in cuts)) == (stream, Usage(7, 9))


@pytest.mark.parametrize(("route", "events"), STREAMS)
def test_a_stream_without_its_last_event_is_not_whole(route: Route, events: list[bytes]) -> None:
    with pytest.raises(EngineError, match="before its last event"):
        through(route, b"".join(events[:-1]))


@pytest.mark.parametrize(("route", "events"), STREAMS)
def test_nothing_follows_the_end(route: Route, events: list[bytes]) -> None:
    stream = b"".join(events)
    assert through(route, stream + b"data: [DONE]\n\n" + events[0])[0] == stream
    assert through(route, stream + b"data: [DONE]\n\n", len(stream))[0] == stream


@pytest.mark.parametrize(
    ("route", "fault"),
    [
        (Route.MESSAGES, event("error", error={"type": "api_error", "message": "out of memory"})),
        (Route.RESPONSES, event("error", message="out of memory")),
        (Route.RESPONSES, event("response.failed", response={"error": {"message": "out of memory"}})),
        (Route.RESPONSES, b'data: {"type":"response.completed"\n\n'),
    ],
)
def test_a_fault_in_the_stream_is_the_engines(route: Route, fault: bytes) -> None:
    with pytest.raises(EngineError) as failed:
        through(route, fault)
    assert "out of memory" not in failed.value.message


def test_a_response_that_was_cut_short_ends_as_incomplete() -> None:
    response = {"status": "incomplete", "output": [{"text": TRICK}], "usage": {"output_tokens": 9}}
    told, right = (event(f"response.{end}", response=response) for end in ("completed", "incomplete"))
    begun = b"".join(RESPONSES[:-1])
    for last in (told, right):
        for at in range(len(begun), len(begun + last)):
            assert through(Route.RESPONSES, begun + last, at)[0] == begun + right
    whole = event("response.completed", response={**response, "status": "completed"})
    assert through(Route.RESPONSES, begun + whole)[0] == begun + whole


def test_tokens_have_two_names() -> None:
    assert usage_of(b'{"usage":{"input_tokens":3,"output_tokens":4}}') == Usage(3, 4)
    assert usage_of(b'{"usage":{"prompt_tokens":5,"completion_tokens":6,"input_tokens":5}}') == Usage(5, 6)
    cached = b'{"usage":{"input_tokens":3,"cache_creation_input_tokens":null,"cache_read_input_tokens":4}}'
    assert usage_of(cached) == Usage(7, 0)
