"""What the door tells: the bounds that were met, and an event for each request without anybody's secrets."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, cast

import pytest
import structlog
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sage.common.errors import EngineError
from sage.common.log import configure
from sage.common.telemetry import Bound
from sage.common.testing import VirtualClock
from sage.gateway.accounts import Accounts
from sage.gateway.connections import Connections
from sage.gateway.conversations import Conversations
from sage.gateway.dataplane import DataPlane
from sage.gateway.edge import Deadlines
from sage.gateway.keys import new_default_key
from sage.gateway.limits import BudgetError, RateError
from sage.gateway.responsestore import ResponseStore
from sage.gateway.tokens import TokenDecoder
from sage.gateway.usage import Meter, UsageStore
from sage.gateway.watch import AccessLog, Watch
from sage.middleware.control_plane.classify import ParseLimits
from sage.middleware.control_plane.router import ModelRouter
from sage.middleware.testing.bench import Bench
from sage.middleware.testing.memory import Behaviour

WHOLE = b'{"model": "memory", "messages": [{"role": "user", "content": "hi"}]}'
CHAT = b'{"model": "memory", "stream": true, "messages": [{"role": "user", "content": "hi"}]}'


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    """Where the logs of this process go meanwhile, as JSON."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    out = io.StringIO()
    configure("debug", style="json", stream=out)
    yield out
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def events(stream: io.StringIO) -> list[dict[str, Any]]:
    return [line for line in map(json.loads, stream.getvalue().splitlines()) if line["event"] == "request"]


# ---- bounds at the door ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bound", "status", "target", "headers", "body"),
    [
        (Bound.REQUEST_LINE, 431, "/v1/" + "x" * 9000, {}, b""),
        (Bound.HEADER_BYTES, 431, "/", {"x": "y" * 9000}, b""),
        (Bound.HEADERS_BYTES, 431, "/", {f"x-{n}": "y" * 8000 for n in range(5)}, b""),
        (Bound.HEADER_COUNT, 431, "/", {f"x-{n}": "y" for n in range(100)}, b""),
        (Bound.BODY_BYTES, 413, "/v1/chat/completions", {}, b"x" * (64 * 1024 + 1)),
    ],
)
async def test_what_is_too_large_is_counted_by_its_bound(
    make_front: Any, bound: Bound, status: int, target: str, headers: dict[str, str], body: bytes
) -> None:
    watch = Watch()
    front = await make_front(watch=watch)
    method = "POST" if body else "GET"
    answer = await front.ask(front.request(method, target, body, **headers))
    assert answer.status == status
    assert watch.bounds == {bound: 1}


async def test_what_is_too_slow_is_counted_by_its_bound(make_front: Any, stream: io.StringIO) -> None:
    """And told, but for a head that never came: of those there may be thousands."""
    watch = Watch(AccessLog(every=False))
    front = await make_front(watch=watch, deadlines=Deadlines(head=0.2, body_idle=0.2))
    for sent in (b"GET / HTTP/1.1\r\n", front.post(b"{", content_length="9")):
        wire = await front.connect()
        await wire.send(sent)
        assert (await wire.answer()).status == 408
    assert watch.bounds == {Bound.HEAD_TIME: 1, Bound.BODY_TIME: 1}
    assert [one["reason"] for one in events(stream)] == ["request_timeout: body_time"]


@pytest.mark.parametrize(
    ("bound", "most"),
    [(Bound.CONNECTIONS, {"most": 1}), (Bound.ADDRESS_CONNECTIONS, {"per_address": 1})],
)
async def test_too_many_connections(make_front: Any, bound: Bound, most: dict[str, int]) -> None:
    watch, connections = Watch(), Connections(**most)
    front = await make_front(watch=watch, connections=connections)
    await front.connect()
    await (await front.connect()).answer()
    assert watch.bounds == {bound: 1}
    assert connections.open == 2  # the second one still reads its answer


async def test_too_much_in_one_line_and_a_client_that_does_not_read(make_front: Any) -> None:
    watch = Watch()
    front = await make_front(watch=watch, deadlines=Deadlines(write_stall=0.2))
    wire = await front.connect()
    await wire.send(front.post(b'{"do": "wait"}') + front.post(b"{}") * 40)
    await front.handler.until(lambda: len(front.handler.requests) == 1)
    front.handler.release.set()
    while (await wire.answer()).status == 200:
        pass
    assert watch.bounds == {Bound.PIPELINED: 1}
    wire = await front.connect()
    wire.writer.transport.pause_reading()
    await wire.send(front.post(b'{"do": "flood"}'))
    await front.handler.until(lambda: front.handler.cancelled == 1)
    assert watch.bounds[Bound.WRITE_STALL] == 1


@pytest.mark.parametrize("limit", ["max_concurrent", "rpm", "tpm", "day_tokens", "total_tokens"])
@pytest.mark.parametrize("kind", [RateError, BudgetError])
def test_each_limit_of_a_key_is_a_bound(kind: Any, limit: str) -> None:
    assert kind("No.", limit=limit).bound == f"key_{limit}"


# ---- the data plane in front of a control plane ------------------------------------------------------------


class Nowhere:
    """A store that nobody asks."""


class Door:
    """A front door whose hot routes are served by a control plane of this process."""

    def __init__(self, make_front: Callable[..., Awaitable[Any]], bench: Bench, *, every: bool) -> None:
        self.make_front, self.bench = make_front, bench
        self.watch = Watch(AccessLog(every=every))
        self.accounts = Accounts(VirtualClock(), Meter(cast(UsageStore, Nowhere())), lambda _: True)

    async def open(self) -> Any:
        front = await self.make_front(watch=self.watch)
        accounts = self.accounts
        for ident in ("admin", front.keys.default.partition(".")[0].removeprefix("sk-sage-")):
            accounts.put(ident)
        conversations = Conversations(cast(ResponseStore, Nowhere()), 4096)
        plane = DataPlane(
            ModelRouter(self.bench.plane, VirtualClock()),
            ParseLimits(),
            TokenDecoder(),
            lambda: False,
            accounts,
            self.watch,
            conversations,
        )
        object.__setattr__(front.listener.settings, "handler", plane)
        return front


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    bench = Bench()
    yield bench
    bench.gate.set()
    await bench.plane.close(5.0)


@pytest.mark.parametrize("body", [CHAT, WHOLE], ids=["stream", "whole"])
async def test_an_event_says_who_asked_for_what_and_how_it_went(
    make_front: Any, bench: Bench, stream: io.StringIO, body: bytes
) -> None:
    front = await Door(make_front, bench, every=True).open()
    assert (await front.ask(front.post(body, x_request_id="my-1"))).status == 200
    (event,) = events(stream)
    assert event["request_id"] == "my-1"
    assert (event["status"], event["outcome"], event["route"]) == (200, "done", "/v1/chat/completions")
    assert (event["model"], event["request_class"], event["engine"]) == ("memory", "chat", "e0")
    assert event["key"] in front.keys.default
    assert event["total_s"] >= event.get("ttft_s", 0.0) >= event["queue_s"] >= 0
    assert ("ttft_s" in event) == (body is CHAT)
    assert event["completion_tokens"] > 0
    assert "reason" not in event


async def test_only_what_went_wrong_is_told_unless_every_request_is(
    make_front: Any, bench: Bench, stream: io.StringIO
) -> None:
    front = await Door(make_front, bench, every=False).open()
    assert (await front.ask(front.post(CHAT))).status == 200
    assert (await front.ask(front.post(WHOLE))).status == 200
    assert (await front.ask(front.request("GET", "/v1/models"))).status == 200
    assert events(stream) == []
    assert (await front.ask(front.post(b'{"model": "memory", "messages": []}'))).status == 400
    assert (await front.ask(front.request("GET", "/v1/models/none"))).status == 404
    assert (await front.ask(front.request("GET", "/", authorization=None))).status == 401
    told = [(one["status"], one["outcome"], one.get("reason"), one.get("route")) for one in events(stream)]
    assert told == [
        (400, "refused", "invalid_request", "/v1/chat/completions"),
        (404, "answered", None, "/v1/models/{model:path}"),
        (401, "refused", "invalid_api_key", None),
    ]


async def test_a_stream_that_breaks_and_a_client_that_leaves(
    make_front: Any, bench: Bench, stream: io.StringIO
) -> None:
    front = await Door(make_front, bench, every=True).open()
    bench.engines[0].next_behaviours.append(Behaviour(fault=EngineError("it broke"), fault_after=1))
    assert b'"error"' in (await front.ask(front.post(CHAT))).body
    bench.hold(after=1)
    wire = await front.connect()
    await wire.send(front.post(CHAT))
    await bench.engines[0].until_running(1)
    wire.abort()
    await bench.engines[0].until_running(0)
    await bench.settled()
    told = [(one["status"], one["outcome"], one["engine"]) for one in events(stream)]
    assert told == [(200, "failed", "e0"), (499, "cancelled", "e0")]


async def test_a_whole_answer_that_fails_and_a_client_that_leaves(
    make_front: Any, bench: Bench, stream: io.StringIO
) -> None:
    front = await Door(make_front, bench, every=True).open()
    bench.engines[0].next_behaviours.extend([Behaviour(fault=EngineError("it broke"))] * 2)
    assert (await front.ask(front.post(WHOLE))).status == 502
    bench.hold()
    wire = await front.connect()
    await wire.send(front.post(WHOLE))
    await bench.engines[0].until_running(1)
    wire.abort()
    await bench.engines[0].until_running(0)
    await bench.settled()
    told = [(one["status"], one["outcome"], one["engine"]) for one in events(stream)]
    assert told == [(502, "failed", "e0"), (499, "cancelled", "e0")]
    assert bench.engines[0].cancelled == 1


async def test_what_the_body_meets_is_counted_once(make_front: Any, bench: Bench) -> None:
    door = Door(make_front, bench, every=False)
    front = await door.open()
    many = {"model": "memory", "messages": [{"role": "user", "content": "x"}], "n": 9}
    assert (await front.ask(front.post(json.dumps(many).encode()))).status == 400
    assert door.watch.bounds == {Bound.N: 1}
    assert not bench.plane.core.books.bounds


async def test_what_a_response_meets_is_counted_once(make_front: Any, bench: Bench) -> None:
    door = Door(make_front, bench, every=False)
    front = await door.open()
    deep = b'{"model": "memory", "input": %b%b}' % (b"[" * 70, b"]" * 70)
    assert (await front.ask(front.post(deep, "/v1/responses"))).status == 400
    assert door.watch.bounds == {Bound.JSON_DEPTH: 1}
    long = json.dumps({"model": "memory", "input": "x" * 5000}).encode()
    assert (await front.ask(front.post(long, "/v1/responses"))).status == 413
    assert door.watch.bounds == {Bound.JSON_DEPTH: 1, Bound.BODY_BYTES: 1}


@pytest.mark.parametrize("ending", ["drain", "revoked"])
@pytest.mark.parametrize(("body", "after"), [(CHAT, 0), (CHAT, 1), (WHOLE, 0)])
async def test_what_we_end_is_told_with_its_reason(
    make_front: Any, bench: Bench, stream: io.StringIO, ending: str, body: bytes, after: int
) -> None:
    """Before the first byte it is answered by a status, later by an event: neither client has left."""
    door = Door(make_front, bench, every=False)
    front = await door.open()
    bench.hold(after=after)
    wire = await front.connect()
    await wire.send(front.post(body))
    await bench.engines[0].until_running(1)
    if after:
        await wire.head()
        await wire.chunk()
    if ending == "drain":
        front.listener.begin_drain(0.0)
    else:
        door.accounts.drop(front.keys.default.partition(".")[0].removeprefix("sk-sage-"))
    said = await wire.chunk() if after else (await wire.answer()).body
    status, reason = (503, "engine_unavailable") if ending == "drain" else (401, "invalid_api_key")
    assert reason.encode() in said
    await bench.engines[0].until_running(0)
    told = [(one["status"], one["reason"]) for one in events(stream)]
    assert told == [(200 if after else status, reason)]


@pytest.mark.parametrize("model", ["memory", "none"])
async def test_a_line_of_whole_chats_is_answered_in_its_order(
    make_front: Any, bench: Bench, model: str
) -> None:
    """Also where each is refused in the very step that takes it up."""
    front = await Door(make_front, bench, every=False).open()
    body = WHOLE.replace(b"memory", model.encode())
    wire = await front.connect()
    await wire.send(b"".join(front.post(body, x_request_id=f"r{number}") for number in range(30)))
    answers = [await wire.answer() for _ in range(30)]
    assert {one.status for one in answers} == {200 if model == "memory" else 404}
    assert [one.headers["x-request-id"] for one in answers] == [f"r{number}" for number in range(30)]


async def test_a_traceparent_goes_on_to_the_engine_and_comes_back(make_front: Any, bench: Bench) -> None:
    front = await Door(make_front, bench, every=False).open()
    trace = f"00-{'a' * 32}-{'b' * 16}-01"
    assert (await front.ask(front.post(CHAT, traceparent=trace))).headers["traceparent"] == trace
    assert "traceparent" not in (await front.ask(front.post(CHAT, traceparent="00-nonsense"))).headers
    assert [call.trace for call in bench.engines[0].calls] == [trace, ""]
    for path, key, status in (("/v1/models", "", 200), ("/v1/models", None, 401), ("/nowhere", "", 404)):
        more = {"authorization": None} if key is None else {}
        answer = await front.ask(front.request("GET", path, traceparent=trace, x_request_id="r-1", **more))
        assert (answer.status, answer.headers["traceparent"]) == (status, trace)
        assert answer.headers["x-request-id"] == "r-1"


# ---- secrets -----------------------------------------------------------------------------------------------

_WORD = st.text("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789", min_size=12, max_size=24)


def shots(front: Any, secret: str, key: str) -> list[bytes]:
    """Requests with a secret in each place where a client can put one."""
    says = {"model": "memory", "messages": [{"role": "user", "content": secret}]}
    asks: list[dict[str, Any]] = [
        says,
        {**says, "stream": True},
        {**says, "model": secret},
        {**says, secret: secret},
        {**says, "n": secret},
        {**says, "messages": [{secret: secret}]},
        {**says, "tools": [{"type": secret}]},
    ]
    found = [front.post(json.dumps(one).encode()) for one in asks]
    return [
        *found,
        front.post(secret.encode()),
        front.post(json.dumps(says).encode(), x_sage_class=secret),
        front.post(json.dumps(says).encode(), x_sage_tenant=secret),
        front.post(json.dumps(says).encode(), traceparent=secret),
        front.post(json.dumps(says).encode(), content_type=secret),
        front.request("GET", f"/{secret}?key={secret}"),
        front.request("GET", f"/v1/models/{secret}"),
        front.request("GET", "/", host=secret),
        front.request("GET", "/", authorization=f"Bearer {secret}"),
        front.request("GET", "/", authorization=f"Bearer {key}"),
        front.request("GET", "/", authorization=None, x_api_key=key),
        front.request("GET", "/", cookie=secret, expect=secret),
        f"GET /{secret} HTTP/9.9\r\n\r\n".encode(),
        f"{secret} / HTTP/1.1\r\nhost: a\r\n\r\n".encode(),
    ]


@given(secret=_WORD)
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_no_log_holds_what_a_client_sent(
    make_front: Any, bench: Bench, stream: io.StringIO, secret: str
) -> None:
    """At the level of debug, in front of an engine that serves and one that fails."""
    front = await Door(make_front, bench, every=True).open()
    key = new_default_key()
    before = len(events(stream))
    sent = shots(front, secret, key)
    for shot in sent:
        await front.ask(shot)
    bench.engines[0].behaviour = Behaviour(fault=EngineError("it broke"))
    await front.ask(sent[0])
    bench.engines[0].behaviour = Behaviour()
    said = stream.getvalue()
    assert len(events(stream)) == before + len(sent) + 1
    for hidden in (secret, key.partition(".")[2], front.keys.default.partition(".")[2]):
        assert hidden not in said
