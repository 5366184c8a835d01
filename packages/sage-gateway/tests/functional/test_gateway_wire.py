"""The protocol on real sockets: limits, order, keep-alive, disconnects, deadlines, drain."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from sage.gateway.connections import Connections
from sage.gateway.edge import Deadlines, HeadLimits

CHAT = "/v1/chat/completions"


async def test_a_body_comes_back_whole_and_the_connection_stays(front: Any) -> None:
    wire = await front.connect()
    for body in (b'{"n": 1}', b'{"text": "longer than ten bytes"}'):
        await wire.send(front.post(body))
        answer = await wire.answer()
        assert (answer.status, answer.body) == (200, body)
        assert answer.headers["content-type"] == "application/json"
        assert "date" in answer.headers
        assert "connection" not in answer.headers


async def test_a_stream_leaves_in_chunks_and_the_connection_stays(front: Any) -> None:
    wire = await front.connect()
    await wire.send(front.post(b'{"do": "stream"}'))
    answer = await wire.answer()
    assert answer.chunks == [b"data: 1\n\n", b"data: [DONE]\n\n"]
    assert answer.headers["cache-control"] == "no-cache"
    await wire.send(front.request("GET", "/v1/models"))
    assert (await wire.answer()).json["data"][0]["id"] == "org/tiny"


async def test_a_body_may_come_byte_by_byte_and_chunked(front: Any) -> None:
    wire = await front.connect()
    raw = front.post(b"", content_length=None, transfer_encoding="chunked")
    for byte in raw + b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n":
        wire.writer.write(bytes([byte]))
        await asyncio.sleep(0)
    assert (await wire.answer()).body == b"abcde"


async def test_pipelined_requests_hot_cold_and_refused_are_answered_in_order(front: Any) -> None:
    wire = await front.connect()
    await wire.send(
        front.post(b'{"do": "wait"}', x_request_id="first")
        + front.request("GET", "/v1/models", x_request_id="second")
        + front.post(b'{"do": "stream"}', x_request_id="third")
        + front.request("GET", "/v1/models", authorization=None, x_request_id="fourth")
        + front.post(b'{"n": 5}', x_request_id="fifth")
    )
    await front.handler.until(lambda: len(front.handler.requests) == 1)
    front.handler.release.set()
    answers = [await wire.answer() for _ in range(5)]
    assert [a.headers["x-request-id"] for a in answers] == ["first", "second", "third", "fourth", "fifth"]
    assert [a.status for a in answers] == [200, 200, 200, 401, 200]


async def test_too_much_pipelining_is_refused_after_what_went_before(front: Any) -> None:
    wire = await front.connect()
    await wire.send(front.post(b'{"do": "wait"}') + front.post(b'{"n": 1}') * 40)
    await front.handler.until(lambda: len(front.handler.requests) == 1)
    front.handler.release.set()
    statuses: list[int] = []
    while not statuses or statuses[-1] == 200:
        statuses.append((await wire.answer()).status)
    assert statuses[-1] == 400
    assert len(statuses) == 35
    assert await wire.closed()


async def test_expect_100_continue_is_answered_before_the_body(front: Any) -> None:
    wire = await front.connect()
    raw = front.post(b'{"n": 1}', expect="100-continue")
    await wire.send(raw[: -len(b'{"n": 1}')])
    assert await wire.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    await wire.send(b'{"n": 1}')
    assert (await wire.answer()).status == 200


async def test_a_body_that_will_be_refused_is_not_asked_for(front: Any) -> None:
    answer = await front.ask(front.post(b"", expect="100-continue", content_length="99999999"))
    assert answer.status == 413
    assert (await front.ask(front.post(b"{}", expect="a miracle"))).status == 417


async def test_an_error_to_a_head_has_no_body_and_the_connection_stays(front: Any) -> None:
    """A body would be read as the next answer."""
    wire = await front.connect()
    for path, status, headers in ((CHAT, 405, {}), ("/v1/models", 401, {"authorization": None})):
        await wire.send(front.request("HEAD", path, content_type=None, content_length=None, **headers))
        found, fields = await wire.head()
        assert (found, int(fields["content-length"]) > 0) == (status, True)
        await wire.send(front.post(b'{"n": 1}'))
        assert (await wire.answer()).body == b'{"n": 1}'


async def test_http_1_0_gets_an_unframed_stream_and_a_close(front: Any) -> None:
    wire = await front.connect()
    await wire.send(front.post(b'{"do": "stream"}').replace(b"HTTP/1.1", b"HTTP/1.0"))
    answer = await wire.answer()
    assert answer.headers["connection"] == "close"
    assert answer.body == b"data: 1\n\ndata: [DONE]\n\n"


async def test_connection_close_is_honoured(front: Any) -> None:
    wire = await front.connect()
    await wire.send(front.post(b'{"n": 1}', connection="close"))
    assert (await wire.answer()).headers["connection"] == "close"
    assert await wire.closed()


# ---- limits ------------------------------------------------------------------------------------------------


async def test_head_limits(front: Any) -> None:
    cases = [
        (front.request("GET", "/v1/models?" + "q" * 8192), 431),
        (front.request("GET", "/v1/models", x_long="v" * 8192), 431),
        (front.request("GET", "/v1/models", **{f"x_{n}": "v" * 7000 for n in range(5)}), 431),
        (front.request("GET", "/v1/models", **{f"x_{n}": "v" for n in range(100)}), 431),
        (front.request("GET", "/v1/models", x_long="v" * 8000), 200),
        (front.request("GET", "/v1/models", **{f"x_{n}": "v" for n in range(98)}), 200),
    ]
    for raw, status in cases:
        assert (await front.ask(raw)).status == status, raw[:200]


@pytest.mark.parametrize("start", [b"GET /" + b"a" * 10, b"GET / HTTP/1.1\r\nx: ", b"GET / HTTP/1.1\r\nx"])
async def test_an_endless_head_is_cut_off(front: Any, start: bytes) -> None:
    wire = await front.connect()
    wire.writer.write(start)
    sent = 0
    while not wire.reader.at_eof() and sent < 4 * 1024 * 1024 and not wire.reader._buffer:
        wire.writer.write(b"a" * 4096)
        sent += 4096
        await asyncio.sleep(0.0005)
    assert (await wire.answer()).status == 431
    assert sent < 2 * 1024 * 1024


async def test_bodies_over_the_limit(front: Any) -> None:
    assert (await front.ask(front.post(b"x" * (64 * 1024)))).status == 200
    assert (await front.ask(front.post(b"x" * (64 * 1024 + 1)))).status == 413
    chunked = front.post(b"", content_length=None, transfer_encoding="chunked")
    over = chunked + b"".join(b"8000\r\n" + b"x" * 0x8000 + b"\r\n" for _ in range(3)) + b"0\r\n\r\n"
    assert (await front.ask(over)).status == 413


async def test_a_trailer_cannot_grow_without_end(front: Any) -> None:
    wire = await front.connect()
    await wire.send(front.post(b"", content_length=None, transfer_encoding="chunked") + b"0\r\nx: ")
    for _ in range(60):
        wire.writer.write(b"v" * 4096)
        await asyncio.sleep(0.0005)
    assert (await wire.answer()).status == 413


async def test_too_many_connections(make_front: Any) -> None:
    front = await make_front(connections=Connections(most=2))
    first, _second, third = [await front.connect() for _ in range(3)]
    assert (await third.answer()).status == 503
    await first.send(front.post(b'{"n": 1}'))
    assert (await first.answer()).status == 200


async def test_too_many_connections_from_one_address(make_front: Any) -> None:
    front = await make_front(connections=Connections(per_address=2))
    first, second, third = [await front.connect() for _ in range(3)]
    refused = await third.answer()
    assert (refused.status, refused.headers["retry-after"]) == (429, "1")
    assert "2 connections from this address" in refused.error["message"]
    await first.send(front.post(b'{"n": 1}'))
    assert (await first.answer()).status == 200
    for wire in (second, third):
        wire.writer.close()
        await wire.writer.wait_closed()
    await first.send(front.post(b'{"n": 1}'))  # by its answer the others are known to have gone
    assert (await first.answer()).status == 200
    fourth = await front.connect()
    await fourth.send(front.post(b'{"n": 2}'))
    assert (await fourth.answer()).status == 200


@pytest.mark.parametrize(
    "raw",
    [
        b"NONSENSE\r\n\r\n",
        b"GET /\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ncontent-length: 1\r\n\r\nx",
        b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: -1\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost : a\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: a\r\n b\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n",
    ],
)
async def test_what_is_not_a_request_gets_400_and_a_close(front: Any, raw: bytes) -> None:
    wire = await front.connect()
    await wire.send(raw)
    answer = await wire.answer()
    assert answer.status == 400
    assert answer.error["type"] == "invalid_request_error"
    assert await wire.closed()


# ---- time --------------------------------------------------------------------------------------------------


async def test_a_slow_head_is_ended_and_a_busy_connection_is_not(make_front: Any) -> None:
    front = await make_front(deadlines=Deadlines(head=1.0, body_idle=0.2, keep_alive=0.2))
    busy = await front.connect()
    await busy.send(front.post(b'{"do": "wait"}'))
    slow = await front.connect()
    await slow.send(b"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\n")
    assert (await slow.answer()).status == 408
    silent = await front.connect()
    assert await silent.closed()
    body = await front.connect()
    await body.send(front.post(b"{}", content_length="100"))
    assert (await body.answer()).status == 408
    front.handler.release.set()
    assert (await busy.answer()).status == 200
    assert await busy.closed()  # idle for longer than keep_alive


async def test_a_body_that_trickles_is_ended_in_total(make_front: Any) -> None:
    front = await make_front(deadlines=Deadlines(body_idle=0.3, body_total=0.5))
    wire = await front.connect()
    await wire.send(front.post(b"{", content_length="1000"))
    began = asyncio.get_running_loop().time()
    while not wire.reader._buffer:
        wire.writer.write(b" ")
        await asyncio.sleep(0.05)
    assert (await wire.answer()).status == 408
    assert asyncio.get_running_loop().time() - began < 5


async def test_a_client_that_does_not_read_is_dropped(make_front: Any) -> None:
    front = await make_front(deadlines=Deadlines(write_stall=0.2))
    wire = await front.connect()
    wire.writer.transport.pause_reading()
    await wire.send(front.post(b'{"do": "flood"}'))
    await front.handler.until(lambda: front.handler.cancelled == 1)


async def test_a_slow_reader_holds_the_engine_back_and_gets_everything(front: Any) -> None:
    wire = await front.connect()
    wire.writer.transport.pause_reading()
    await wire.send(front.post(b'{"do": "flood"}'))
    await front.handler.until(lambda: front.handler.written > 0)
    assert front.handler.written < 512 * 65536
    wire.writer.transport.resume_reading()
    assert len((await wire.answer()).body) == 512 * 65536


# ---- the client goes away ----------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["wait", "stall", "flood"])
async def test_a_disconnect_cancels_what_runs(front: Any, what: str) -> None:
    wire = await front.connect()
    if what == "flood":
        wire.writer.transport.pause_reading()
    await wire.send(front.post(b'{"do": "%b"}' % what.encode()))
    await front.handler.until(lambda: len(front.handler.requests) == 1)
    if what == "stall":
        await wire.head()
        await wire.chunk()
    wire.abort()
    await front.handler.until(lambda: front.handler.cancelled == 1)
    assert front.listener.server_state.connections == set()


async def test_a_disconnect_while_pipelining_cancels_too(front: Any) -> None:
    wire = await front.connect()
    await wire.send(front.post(b'{"do": "wait"}') + front.post(b'{"n": 2}') + b"POST /v1/ch")
    await front.handler.until(lambda: len(front.handler.requests) == 1)
    await wire.close()
    await front.handler.until(lambda: front.handler.cancelled == 1)
    assert len(front.handler.requests) == 1


async def test_a_disconnect_in_the_body_reaches_no_handler(front: Any) -> None:
    wire = await front.connect()
    await wire.send(front.post(b"{}", content_length="100"))
    await wire.close()
    assert (await front.ask(front.post(b'{"n": 1}'))).status == 200
    assert len(front.handler.requests) == 1


# ---- faults ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["boom", "nothing"])
async def test_a_fault_of_ours_is_a_500_that_says_nothing_of_it(front: Any, what: str) -> None:
    answer = await front.ask(front.post(b'{"do": "%b"}' % what.encode()))
    assert answer.status == 500
    assert "fault of ours" not in answer.error["message"]


async def test_retry_after_is_whole_seconds(front: Any) -> None:
    answer = await front.ask(front.post(b'{"do": "overloaded"}'))
    assert (answer.status, answer.headers["retry-after"]) == (429, "2")


# ---- drain -------------------------------------------------------------------------------------------------


async def test_a_drain_finishes_what_was_let_in_and_closes_what_is_idle(front: Any) -> None:
    idle, busy, sending = [await front.connect() for _ in range(3)]
    await idle.send(front.post(b'{"n": 0}'))
    await idle.answer()
    await busy.send(front.post(b'{"do": "stall"}') + front.post(b'{"n": 2}'))
    await busy.head()
    await sending.send(front.post(b"{", content_length="2"))
    await front.handler.until(lambda: len(front.handler.requests) == 2)
    front.listener.begin_drain(20.0)
    assert await idle.closed()
    with pytest.raises(ConnectionRefusedError):
        await front.connect()
    await sending.send(b"}")
    assert (await sending.answer()).status == 200
    front.handler.release.set()
    assert [await busy.chunk() for _ in range(3)][-1] == b""
    last = await busy.answer()
    assert (last.body, last.headers["connection"]) == (b'{"n": 2}', "close")
    await front.task


async def test_what_does_not_finish_in_time_gets_an_error(front: Any) -> None:
    stream, waiting = await front.connect(), await front.connect()
    await stream.send(front.post(b'{"do": "stall"}'))
    await stream.head()
    await stream.chunk()
    await waiting.send(front.post(b'{"do": "wait"}'))
    await front.handler.until(lambda: len(front.handler.requests) == 2)
    front.listener.begin_drain(0.1)
    event = await stream.chunk()
    assert event.startswith(b'data: {"error":')
    assert b"shutting down" in event
    assert await stream.chunk() == b""
    answer = await waiting.answer()
    assert answer.status == 503
    assert "retry-after" in answer.headers
    await front.task
    assert front.handler.cancelled == 2


async def test_hurry_ends_a_drain(front: Any) -> None:
    wire = await front.connect()
    await wire.send(front.post(b'{"do": "wait"}'))
    await front.handler.until(lambda: len(front.handler.requests) == 1)
    front.listener.begin_drain(3600.0)
    front.listener.hurry()
    assert (await wire.answer()).status == 503
    await front.task


async def test_one_id_on_two_calls_at_once_stays_two(front: Any) -> None:
    first, second = await front.connect(), await front.connect()
    for wire in (first, second):
        await wire.send(front.post(b'{"do": "wait"}', x_request_id="trace-1"))
    await front.handler.until(lambda: len(front.handler.requests) == 2)
    front.handler.release.set()
    ids = {(await wire.answer()).headers["x-request-id"] for wire in (first, second)}
    assert len(ids) == 2
    assert "trace-1" in ids
    assert all(name.startswith("trace-1") for name in ids)


async def test_header_limits_can_be_set(make_front: Any) -> None:
    front = await make_front(head=HeadLimits(count=3))
    assert (await front.ask(front.request("GET", "/v1/models", x_a="1", x_b="2"))).status == 431


async def test_another_method_on_a_route_of_the_application(front: Any) -> None:
    answer = await front.ask(front.request("DELETE", "/v1/models"))
    assert (answer.status, answer.error["code"]) == (405, "method_not_allowed")
    assert answer.headers["allow"] == "GET"


async def test_a_model_that_is_known_and_not_served_yet(front: Any) -> None:
    served = await front.ask(front.request("GET", "/v1/models/org/tiny"))
    coming = await front.ask(front.request("GET", "/v1/models/org/coming"))
    never = await front.ask(front.request("GET", "/v1/models/org/none"))
    assert (served.status, coming.status, never.status) == (200, 503, 404)
    assert coming.error["code"] == "engine_unavailable"
    assert "org/coming, org/tiny" in never.error["message"]
