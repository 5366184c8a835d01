"""The connection pool against real sockets: reuse, faults, bounds, backpressure, cancel."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from sage.common.errors import ConfigError, EngineError, UnreachableError
from sage.common.ports import find_free
from sage.common.telemetry import Bound
from sage.middleware.engines.connection import Connection
from sage.middleware.engines.http import HttpLimits, HttpPool
from sage.middleware.testing.engines import RecordingSink, Script, ScriptedEngine

BODY = b'{"model":"m","messages":[],"stream":true}'
PATH = "/v1/chat/completions"


class Raw(RecordingSink):
    """A receiver is a sink without an end; `drained` is set when the pool has stopped to wait for it."""

    def __init__(self, *, pause: bool = False) -> None:
        super().__init__(pause=pause)
        self.drained = asyncio.Event()

    async def drain(self) -> None:
        self.drained.set()
        await super().drain()


class Trusting(Raw):
    """Takes whatever comes, as the adapters' receivers do."""

    def head(self, status: int, content_type: str) -> None:
        self.status, self.content_type = status, content_type


@pytest.fixture
async def server() -> AsyncIterator[ScriptedEngine]:
    async with ScriptedEngine() as server:
        yield server


async def ask(pool: HttpPool, sink: Raw | None = None) -> Raw:
    sink = sink or Raw()
    await pool.request("POST", PATH, sink, body=BODY)
    return sink


Speak = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def raw_server(speak: Speak) -> tuple[asyncio.Server, str]:
    """A server that answers each connection with what `speak` writes."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            await speak(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    return server, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


def says(data: bytes, *, hang: bool = False) -> Speak:
    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        await writer.drain()
        if hang:
            await reader.read()  # until the client goes away

    return speak


async def fault(data: bytes, *, hang: bool = False, **limits: float) -> EngineError:
    """The error that an answer of these bytes gives."""
    server, url = await raw_server(says(data, hang=hang))
    pool = HttpPool(url, limits=HttpLimits(**limits))  # type: ignore[arg-type]
    try:
        with pytest.raises(EngineError) as caught:
            await ask(pool)
    finally:
        pool.close()
        server.close()
        await asyncio.sleep(0)
    return caught.value


async def test_a_connection_is_reused(server: ScriptedEngine) -> None:
    pool = HttpPool(server.url)
    first, second = await ask(pool), await ask(pool)
    assert first.body == second.body
    assert first.status == 200
    assert server.connections == 1
    pool.close()


async def test_many_at_once_then_reused(server: ScriptedEngine) -> None:
    pool = HttpPool(server.url, max_idle=4)
    sinks = await asyncio.gather(*(ask(pool) for _ in range(20)))
    assert len({sink.body for sink in sinks}) == 1
    await server.until(lambda: len(server._open) == 4)
    pool.close()


async def test_nodelay_is_set(server: ScriptedEngine) -> None:
    pool = HttpPool(server.url)
    await ask(pool)
    transport = pool._idle[0]._transport
    assert transport is not None
    assert transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    pool.close()


async def test_a_stale_connection_is_replaced_once(server: ScriptedEngine) -> None:
    """The engine closes it just as the request is on its way: no byte came, so it is sent again."""
    pool = HttpPool(server.url)
    await ask(pool)
    server.drop_idle()  # the pool has not heard of it yet
    sink = await ask(pool)
    assert sink.status == 200
    assert (server.connections, len(server.requests)) == (2, 2)
    pool.close()


async def test_an_idle_connection_that_closes_is_forgotten(server: ScriptedEngine) -> None:
    pool = HttpPool(server.url)
    await ask(pool)
    server.drop_idle()
    async with asyncio.timeout(60):
        while pool._idle:  # noqa: ASYNC110 - the pool has no such event
            await asyncio.sleep(0)
    await ask(pool)
    pool.close()


async def test_an_old_connection_is_not_used(server: ScriptedEngine) -> None:
    pool = HttpPool(server.url, keep_idle_s=0.0)
    await ask(pool)
    await asyncio.sleep(0.01)
    await ask(pool)
    assert server.connections == 2
    pool.close()


async def test_nothing_listens() -> None:
    pool = HttpPool(f"http://127.0.0.1:{find_free((20000, 29999))}")
    with pytest.raises(UnreachableError, match="Nothing answers at"):
        await ask(pool)


@pytest.mark.parametrize("url", ["ftp://127.0.0.1", "127.0.0.1:80", "http://", ""])
def test_not_a_url(url: str) -> None:
    with pytest.raises(ConfigError, match="is not one"):
        HttpPool(url)


@pytest.mark.parametrize("at", [0, 1, 40, 160, 300])
async def test_a_cut_answer(server: ScriptedEngine, at: int) -> None:
    server.script = Script(cut_at=at)
    pool, sink = HttpPool(server.url), Raw()
    with pytest.raises(EngineError, match="closed the connection in the middle"):
        await ask(pool, sink)
    assert len(sink.body) == at
    pool.close()


async def test_answers_that_are_not_answers() -> None:
    assert "without an answer" in str(await fault(b""))
    assert "middle of its answer" in str(await fault(b"HTTP/1.1 200 O"))
    assert "not HTTP" in str(await fault(b"nonsense\r\n\r\n"))
    assert "middle of its answer" in str(await fault(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nabc"))


async def test_bounds_on_size() -> None:
    endless = b"HTTP/1.1 200 OK\r\n" + b"x: " + b"y" * 3000
    found = await fault(endless, hang=True, header_bytes=1000)
    assert ("headers exceed" in str(found), found.bound) == (True, Bound.ANSWER_HEAD_BYTES)
    long = b"HTTP/1.1 200 OK\r\ncontent-length: 3000\r\n\r\n" + b"z" * 3000
    found = await fault(long, body_bytes=1000)
    assert ("answer exceeds" in str(found), found.bound) == (True, Bound.ANSWER_BYTES)


async def test_bounds_on_time() -> None:
    head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
    found = await fault(b"", hang=True, first_byte_s=0.02, between_chunks_s=0.02)
    assert ("sent nothing" in str(found), found.bound) == (True, Bound.FIRST_BYTE_TIME)
    found = await fault(head, hang=True, between_chunks_s=0.02)
    assert ("stalled" in str(found), found.bound) == (True, Bound.CHUNK_TIME)
    found = await fault(head, hang=True, total_s=0.02, between_chunks_s=0.04)
    assert ("did not finish" in str(found), found.bound) == (True, Bound.ANSWER_TIME)


def test_the_bounds_are_those_that_are_documented() -> None:
    limits = HttpLimits()
    assert (limits.first_byte_s, limits.between_chunks_s, limits.total_s) == (120.0, 60.0, 3600.0)


async def test_a_body_that_ends_with_the_connection() -> None:
    server, url = await raw_server(says(b"HTTP/1.0 200 OK\r\ncontent-type: text/plain\r\n\r\nhello"))
    pool = HttpPool(url)
    sink = await ask(pool)
    assert (sink.status, sink.body, sink.content_type) == (200, b"hello", "text/plain")
    assert not pool._idle
    server.close()


async def test_interim_answers_are_skipped() -> None:
    answer = b"HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
    server, url = await raw_server(says(answer, hang=True))
    pool = HttpPool(url)
    sink = await ask(pool)
    assert (sink.status, sink.body) == (200, b"ok")
    pool.close()
    server.close()


@pytest.mark.parametrize(
    "second",
    [
        b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nstolen",
        b"HTTP/1.1 200 OK\r\ncontent-length: 60\r\n\r\nstolen",
        b"HTTP/1.1 200 OK\r\nx-half-a-head: ",
        b"nonsense",
    ],
)
async def test_what_follows_an_answer_reaches_nobody(second: bytes) -> None:
    """Not the one who asked, and not the next one either: the connection is not used again."""
    first = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\ngood"
    server, url = await raw_server(says(first + second, hang=True))
    pool = HttpPool(url)
    try:
        assert [(await ask(pool, Trusting())).body for _ in range(2)] == [b"good", b"good"]
        assert pool._idle == []
    finally:
        pool.close()
        server.close()
        await asyncio.sleep(0)


async def test_a_connection_that_is_lost_while_the_reader_is_slow_is_told_as_that() -> None:
    lost = asyncio.Event()

    class Slow(Raw):
        """Drained only when its connection has gone."""

        async def drain(self) -> None:
            await lost.wait()

    class Watched(HttpPool):
        def forget(self, connection: Connection) -> None:
            super().forget(connection)
            lost.set()

    half = b"HTTP/1.1 200 OK\r\ncontent-length: 999\r\n\r\nhalf"
    server, url = await raw_server(says(half, hang=True))
    pool = Watched(url, limits=HttpLimits(total_s=0.1, between_chunks_s=0.1))
    with pytest.raises(EngineError, match=r"did not finish within 0\.1 s"):
        await ask(pool, Slow(pause=True))
    pool.close()
    server.close()


async def test_a_connection_that_is_lost_before_its_first_request_is_replaced(server: ScriptedEngine) -> None:
    connections: list[Connection] = []

    class Unlucky(HttpPool):
        async def _connect(self) -> Connection:
            connections.append(await super()._connect())
            if len(connections) == 1:
                connections[0].abort()
                await server.until(lambda: not server._open)
            return connections[-1]

    pool = Unlucky(server.url)
    assert (await ask(pool)).status == 200
    assert len(connections) == 2
    pool.close()


async def test_what_the_receiver_raises_comes_out(server: ScriptedEngine) -> None:
    class Picky(Raw):
        def data(self, chunk: bytes) -> None:
            raise EngineError("not this")

    pool = HttpPool(server.url)
    with pytest.raises(EngineError, match="not this"):
        await ask(pool, Picky())
    assert not pool._idle
    await server.until(lambda: not server._open)


async def test_a_slow_reader_stops_the_reading(server: ScriptedEngine) -> None:
    """While the sink is full nothing is read, the engine's own buffers fill, and no deadline runs."""
    server.script = Script(words=("x" * 100_000,) * 400)
    pool = HttpPool(server.url, limits=HttpLimits(between_chunks_s=0.2))
    sink = Raw(pause=True)
    task = asyncio.create_task(pool.request("POST", PATH, sink, body=BODY))
    await sink.drained.wait()
    got = len(sink.body)
    for _ in range(100):  # turns of the loop in which the engine would send more
        await asyncio.sleep(0)
    for connection in pool._open:
        connection.check(time.monotonic() + 100.0)  # when the deadline between chunks is long past
    assert len(sink.body) == got <= 256 * 1024  # one read
    sink.resume()
    await task
    assert len(sink.body) > 40_000_000
    assert sink.drains >= 1
    pool.close()


@pytest.mark.parametrize("after", [-1, 1])
async def test_cancel_closes_at_once(server: ScriptedEngine, after: int) -> None:
    server.script = Script(gate=asyncio.Event(), gate_after=after)
    pool, sink = HttpPool(server.url), Raw()
    task = asyncio.create_task(ask(pool, sink))
    await server.until(lambda: server.active == 1)
    if after > 0:
        await sink.first.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await server.until(lambda: server.active == 0 and not server._open)
    assert server.cancelled == 1
    assert not pool._idle


async def test_cancel_while_the_reader_is_slow(server: ScriptedEngine) -> None:
    server.script = Script(words=("x" * 100_000,) * 400)
    pool, sink = HttpPool(server.url), Raw(pause=True)
    task = asyncio.create_task(ask(pool, sink))
    await sink.drained.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await server.until(lambda: server.active == 0 and not server._open)


@pytest.mark.parametrize("module", ["asyncio", "uvloop"])
def test_who_leaves_in_the_moment_of_connecting_leaves_nothing(module: str) -> None:
    """The loop that the gateway uses closes such a connection and does not say so to its protocol."""
    loops = pytest.importorskip(module)

    async def run() -> int:
        asking: list[asyncio.Task[Raw]] = []

        class Accepting(asyncio.Protocol):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                asking[-1].cancel()  # which has a connection now, and has not been told yet

        server = await asyncio.get_running_loop().create_server(Accepting, "127.0.0.1", 0)
        pool = HttpPool(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        for _ in range(50):
            asking.append(asyncio.create_task(ask(pool)))
            await asyncio.wait(asking[-1:])
        assert all(task.cancelled() for task in asking)
        server.close()
        for _ in range(10):
            await asyncio.sleep(0)  # until each has heard of its end that ever will
        return len(pool._open)

    with asyncio.Runner(loop_factory=loops.new_event_loop) as runner:
        assert runner.run(run()) == 0


async def test_a_thousand_random_cancels_leave_nothing(server: ScriptedEngine) -> None:
    pool = HttpPool(server.url)
    for turn in range(250):
        tasks = [asyncio.create_task(ask(pool)) for _ in range(4)]
        for _ in range(turn % 12):
            await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    await server.until(lambda: server.active == 0)
    pool.close()
    await server.until(lambda: not server._open)
    assert (await ask(HttpPool(server.url, max_idle=0))).status == 200
