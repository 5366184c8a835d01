"""The bytes of an answer."""

from __future__ import annotations

import asyncio

import httptools
from hypothesis import given
from hypothesis import strategies as st

from sage.common.errors import (
    BadRequestError,
    EngineError,
    OverloadedError,
    QuarantinedError,
    UnauthorizedError,
)
from sage.gateway.edge import MethodError
from sage.gateway.reply import Reply, error_headers
from sage.middleware.engines.dialects.envelopes import envelope_of
from sage.middleware.engines.port import Route


class Recorder(asyncio.Transport):
    def __init__(self) -> None:
        super().__init__()
        self.writes: list[bytes] = []

        self.aborted = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.writes.append(bytes(data))

    def abort(self) -> None:
        self.aborted = True


class Open:
    write_paused = False

    async def drain(self) -> None:
        return


class Parsed:
    """What an HTTP client reads from the bytes."""

    def __init__(self, data: bytes) -> None:
        self.headers: dict[bytes, bytes] = {}
        self.body = b""
        self.complete = 0
        parser = httptools.HttpResponseParser(self)
        parser.feed_data(data)
        self.status = parser.get_status_code()

    def on_header(self, name: bytes, value: bytes) -> None:
        assert name not in self.headers
        self.headers[name] = value

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.complete += 1


def make(*, stream: bool, close: bool = False) -> tuple[Reply, Recorder]:
    transport = Recorder()
    reply = Reply(transport, Open(), envelope_of(Route.CHAT, "r"), b"x-request-id: r\r\n", close)
    reply.configure(stream=stream)
    return reply, transport


@given(st.lists(st.binary(max_size=300)), st.booleans())
def test_any_chunks_arrive_as_they_were(chunks: list[bytes], stream: bool) -> None:
    reply, transport = make(stream=stream)
    reply.head(200, "application/json")
    for chunk in chunks:
        reply.data(chunk)
    reply.end()
    parsed = Parsed(b"".join(transport.writes))
    assert (parsed.status, parsed.body, parsed.complete) == (200, b"".join(chunks), 1)
    assert len(transport.writes) <= (1 + len(chunks) if stream else 1)


def test_a_streams_head_leaves_with_its_first_bytes() -> None:
    reply, transport = make(stream=True)
    reply.head(200, "text/event-stream")
    assert transport.writes == []
    assert not reply.started
    reply.data(b"a")
    assert len(transport.writes) == 1
    reply.data(b"b")
    assert transport.writes[1] == b"1\r\nb\r\n"


def test_a_fault_before_the_first_byte_is_a_status() -> None:
    for stream in (True, False):
        reply, transport = make(stream=stream)
        reply.head(200, "text/event-stream")
        reply.fail(EngineError("It broke."))
        parsed = Parsed(b"".join(transport.writes))
        assert parsed.status == 502
        assert parsed.headers[b"content-type"] == b"application/json"
        assert reply.done


def test_half_of_a_whole_body_can_still_become_an_error() -> None:
    reply, transport = make(stream=False)
    reply.head(200, "application/json")
    reply.data(b'{"half":')
    reply.fail(EngineError("It broke."))
    assert Parsed(b"".join(transport.writes)).status == 502
    assert b"half" not in b"".join(transport.writes)


def test_a_fault_in_a_stream_is_an_event_without_done() -> None:
    reply, transport = make(stream=True)
    reply.head(200, "text/event-stream")
    reply.data(b"data: 1\n\n")
    reply.fail(EngineError("It broke."))
    reply.fail(EngineError("Twice."))
    reply.data(b"late")
    reply.end()
    parsed = Parsed(b"".join(transport.writes))
    assert parsed.body.startswith(b'data: 1\n\ndata: {"error":{"message":"It broke."')
    assert b"[DONE]" not in parsed.body
    assert b"late" not in parsed.body
    assert parsed.complete == 1


def test_a_fault_in_sound_breaks_the_connection_off() -> None:
    reply, transport = make(stream=True)
    reply.head(200, "audio/mpeg")
    reply.data(b"\xff\xfb")
    assert not transport.aborted
    reply.fail(EngineError("It broke."))
    parsed = Parsed(b"".join(transport.writes))
    assert (parsed.body, parsed.complete, transport.aborted) == (b"\xff\xfb", 0, True)
    assert (reply.done, reply.closes, reply.reason) == (True, True, "engine_error")


def test_more_headers_are_asked_for_when_the_head_is_made() -> None:
    reply, transport = make(stream=False)
    reply.explain(lambda: [("x-sage-engine", "llm-0"), ("x-sage-reason", "least loaded — of 2")])
    reply.head(200, "application/json")
    reply.end()
    headers = Parsed(b"".join(transport.writes)).headers
    assert headers[b"x-sage-engine"] == b"llm-0"
    assert headers[b"x-sage-reason"] == b"least loaded ? of 2"
    assert headers[b"x-request-id"] == b"r"


def test_headers_of_errors() -> None:
    assert error_headers(OverloadedError("x", retry_after=0.2)) == [("retry-after", "1")]
    assert error_headers(UnauthorizedError("x")) == [("www-authenticate", "Bearer")]
    assert error_headers(MethodError("x")) == [("allow", "POST")]
    assert error_headers(QuarantinedError("x")) == [("x-should-retry", "false")]
    assert error_headers(EngineError("x")) == error_headers(BadRequestError("x")) == []


def test_an_unknown_status_is_a_500() -> None:
    reply, transport = make(stream=False)
    reply.head(799, "application/json")
    reply.end()
    assert Parsed(b"".join(transport.writes)).status == 500


async def test_backpressure_is_the_connections() -> None:
    reply, _ = make(stream=True)
    assert not reply.full
    await reply.drain()
