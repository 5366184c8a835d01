"""Sound and pictures on their way from an engine to a sink."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage.common.errors import EngineError
from sage.middleware.control_plane.relay import Relay
from sage.middleware.engines.media import MAX_EVENT_BYTES, MediaAnswer, safe_type
from sage.middleware.engines.port import Call, Route, Usage
from sage.middleware.testing.engines import RecordingSink

EVENTS = (
    b'data: {"type": "transcript.text.delta", "delta": "one"}\n\n'
    b'data: {"type": "transcript.text.done", "usage": {"input_tokens": 3, "output_tokens": 2}}\n\n'
    b"data: [DONE]\n\n"
)


def answer(*, stream: bool) -> tuple[MediaAnswer, RecordingSink]:
    sink = RecordingSink()
    return MediaAnswer(Call("r", Route.SPEECH, b"{}", stream, True), sink), sink


@given(st.lists(st.binary(min_size=1, max_size=50), min_size=1))
def test_sound_is_passed_on_piece_by_piece(pieces: list[bytes]) -> None:
    receiver, sink = answer(stream=True)
    receiver.head(200, "audio/mpeg")
    for at, piece in enumerate(pieces, 1):
        receiver.data(piece)
        assert sink.chunks == pieces[:at]
    assert not sink.ended
    assert receiver.finish() == Usage()
    assert (sink.status, sink.content_type, sink.ended) == (200, "audio/mpeg", True)


@given(st.lists(st.integers(0, len(EVENTS)), max_size=6))
def test_events_are_the_same_bytes_however_they_are_cut(cuts: list[int]) -> None:
    receiver, sink = answer(stream=True)
    receiver.head(200, "text/event-stream")
    for start, stop in pairwise([0, *sorted(cuts), len(EVENTS)]):
        receiver.data(EVENTS[start:stop])
    assert receiver.finish() == Usage(3, 2)
    assert b"".join(sink.chunks) == EVENTS


@pytest.mark.parametrize(
    "event",
    [
        b'data: {"error": {"message": "secret"}}\n\n',
        b'event: error\ndata: {"type": "error", "message": "secret"}\n\n',
        b'data: {"usage": {"input_tokens": "many"}}\n\n',
    ],
)
def test_an_error_event_is_told_in_our_words(event: bytes) -> None:
    receiver, sink = answer(stream=True)
    receiver.head(200, "text/event-stream")
    receiver.data(EVENTS[:57])
    with pytest.raises(EngineError) as caught:
        receiver.data(event)
    assert "secret" not in str(caught.value)
    assert not sink.ended


def test_a_picture_is_one_large_event_and_there_is_a_largest() -> None:
    receiver, sink = answer(stream=True)
    receiver.head(200, "text/event-stream")
    picture = b'data: {"b64_json": "%b"}\n\n' % (b"A" * 3_000_000)
    receiver.data(picture)
    assert sink.chunks == [picture]
    with pytest.raises(EngineError, match=f"more than {MAX_EVENT_BYTES}"):
        receiver.data(b"x" * (MAX_EVENT_BYTES + 1))


def test_what_is_no_stream_is_held_until_it_is_whole() -> None:
    receiver, sink = answer(stream=False)
    receiver.head(200, "application/json")
    receiver.data(b'{"text": "a", "usage": {"input_tokens": 4, ')
    receiver.data(b'"output_tokens": 1}}')
    assert sink.status == 0
    assert receiver.finish() == Usage(4, 1)
    assert sink.content_type == "application/json"
    broken, nothing = answer(stream=False)
    broken.head(200, "application/json")
    broken.data(b'{"text": "a')
    with pytest.raises(EngineError):
        broken.finish()
    assert nothing.status == 0


def test_silence_has_an_empty_text_and_speech_is_never_empty() -> None:
    receiver, sink = answer(stream=False)
    receiver.head(200, "text/plain")
    receiver.finish()
    assert (sink.status, b"".join(sink.chunks), sink.ended) == (200, b"", True)
    silent, unheard = answer(stream=True)
    silent.head(200, "audio/mpeg")
    with pytest.raises(EngineError, match="nothing"):
        silent.finish()
    assert unheard.status == 0


def test_an_error_of_the_engine_reaches_no_sink() -> None:
    receiver, sink = answer(stream=True)
    receiver.head(500, "text/html")
    receiver.data(b"trouble")
    assert receiver.joined() == b"trouble"
    assert sink.status == 0


@pytest.mark.parametrize(
    ("said", "goes_out"),
    [
        ("audio/mpeg", "audio/mpeg"),
        ("Audio/X-WAV; rate=16000", "Audio/X-WAV; rate=16000"),
        ("application/json; charset=utf-8", "application/json; charset=utf-8"),
        ("text/vtt", "text/vtt"),
        ("application/x-subrip", "application/x-subrip"),
        ("text/html; charset=utf-8", "text/plain; charset=utf-8"),
        ("image/svg+xml", "application/octet-stream"),
        ("application/javascript", "application/octet-stream"),
        ("", "application/octet-stream"),
    ],
)
def test_nothing_goes_out_as_markup_or_script(said: str, goes_out: str) -> None:
    assert safe_type(said) == goes_out


class Listener:
    """Who an answer is for."""

    def __init__(self) -> None:
        self.sink = RecordingSink()
        self.call = Call("r", Route.SPEECH, b"{}", True, True)
        self.relay: Relay | None = None


@pytest.mark.parametrize(("kind", "tells"), [("audio/mpeg", False), ("text/event-stream", True)])
def test_a_fault_is_an_event_or_the_answer_has_no_end(kind: str, tells: bool) -> None:
    listener = Listener()
    relay = Relay(listener, 1, lambda _: None, stream=True)
    relay.head(200, kind)
    relay.data(b"\xff\xfb")
    relay.fail(EngineError("broken"))
    assert listener.sink.ended is tells
    assert (b"error" in b"".join(listener.sink.chunks)) is tells
    assert relay.ended
