"""Engines on real sockets that fail in every way there is, through the live control plane.

Each fault ends in one of four ways: the answer comes from the other engine, it comes unharmed after all, the
stream ends in an error event without `[DONE]`, or the request gets an error. Each is seen twice: whole chats
are awaited by a task, and begun without one.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from sage.common.clock import SystemClock
from sage.common.config import ControlPlaneConfig
from sage.common.errors import EngineError, SageError, UnavailableError
from sage.common.ports import find_free
from sage.middleware.control_plane.driver import ControlPlane
from sage.middleware.engines.adapter import HttpEngine
from sage.middleware.engines.http import HttpLimits, HttpPool
from sage.middleware.engines.passthrough import PassThroughDialect
from sage.middleware.engines.port import Capability, EngineSpec
from sage.middleware.testing.bench import Bench, chat, embedding, submit
from sage.middleware.testing.memory import MemorySink
from sage.middleware.testing.scripted import Flaw, Script, ScriptedEngine

PATIENT = HttpLimits()
SILENT = HttpLimits(first_byte_s=0.1)
STALLED = HttpLimits(between_chunks_s=0.1)
BOUNDED = HttpLimits(total_s=1.5)
WORDS = ("uno ", "dos ", "tres")


def connect(name: str, url: str, limits: HttpLimits) -> HttpEngine:
    spec = EngineSpec(name, "openai", "memory", frozenset(Capability), 4)
    return HttpEngine(spec, PassThroughDialect("memory"), HttpPool(url, limits=limits))


class World:
    """A control plane over a faulty engine, which is asked first, and a healthy one."""

    def __init__(self, urls: list[str], limits: HttpLimits) -> None:
        self.plane = ControlPlane(ControlPlaneConfig(policy="fifo"), SystemClock())
        every = [limits, PATIENT]  # of the healthy one nothing is asked that a busy machine cannot keep
        self.engines = [connect(f"e{at}", url, every[at]) for at, url in enumerate(urls)]
        for engine in self.engines:
            self.plane.add_engine(engine)
        self.sink = MemorySink()

    async def ask(self, *, stream: bool = True) -> str:
        """Send one chat; how it ended, or the error's class."""
        parsed = chat("a", stream=stream)
        try:
            return await submit(self.plane, parsed, self.sink, begins=Bench.begins)
        except SageError as error:
            assert self.sink.status is None
            return type(error).__name__

    @property
    def served_by(self) -> str | None:
        decision = self.plane.decision("a")
        assert decision is not None
        return decision.engine

    @property
    def text(self) -> str:
        """What the client has read; a whole stream or a whole body."""
        if self.sink.content_type.startswith("text/event-stream"):
            assert self.sink.body.endswith(b"data: [DONE]\n\n")
            events = self.sink.body.removesuffix(b"data: [DONE]\n\n").split(b"\n\n")
            chunks = [json.loads(event.removeprefix(b"data: ")) for event in events if event]
            return "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
        text: str = json.loads(self.sink.body)["choices"][0]["message"]["content"]
        return text

    def assert_error_event(self) -> None:
        """The stream ended with our error, as an event of its own, and without `[DONE]`."""
        assert self.sink.ended
        assert b"data: [DONE]" not in self.sink.body
        last = self.sink.body.split(b"\n\n")[-2]
        assert json.loads(last.removeprefix(b"data: "))["error"]["code"] in ("engine_error", "timeout")

    async def close(self) -> None:
        await self.plane.close(5.0)
        assert self.plane.core.live == 0
        assert not any(status.running for status in self.plane.engines())
        for engine in self.engines:
            await engine.close()


@asynccontextmanager
async def world(
    script: Script, limits: HttpLimits = PATIENT, *, healthy: bool = True
) -> AsyncIterator[tuple[World, ScriptedEngine, ScriptedEngine]]:
    async with AsyncExitStack() as stack:
        faulty = await stack.enter_async_context(ScriptedEngine(script=script))
        other = await stack.enter_async_context(ScriptedEngine(script=Script(words=WORDS)))
        one = World([faulty.url, other.url] if healthy else [faulty.url], limits)
        stack.push_async_callback(one.close)
        yield one, faulty, other


# ---- before the first byte: the other engine answers ----


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("status", [429, 500, 503])
async def test_a_status_that_is_the_engine_s_fault(status: int, stream: bool) -> None:
    async with world(Script(status=status)) as (one, faulty, _):
        assert await one.ask(stream=stream) == "done"
        assert (one.served_by, one.text) == ("e1", "uno dos tres")
        assert len(faulty.requests) == 1


@pytest.mark.parametrize(
    ("status", "error"), [(429, "OverloadedError"), (500, "EngineError"), (503, "EngineError")]
)
async def test_a_fault_of_the_only_engine_is_an_error(status: int, error: str) -> None:
    async with world(Script(status=status), healthy=False) as (one, faulty, _):
        assert await one.ask() == error
        assert len(faulty.requests) == 2


async def test_a_status_that_is_the_request_s_fault_is_not_tried_again() -> None:
    async with world(Script(status=400)) as (one, _, other):
        assert await one.ask() == "BadRequestError"
        assert other.requests == []


@pytest.mark.parametrize("stream", [True, False])
async def test_an_engine_that_says_nothing(stream: bool) -> None:
    async with world(Script(gate=asyncio.Event()), SILENT) as (one, faulty, _):
        assert await one.ask(stream=stream) == "done"
        assert one.served_by == "e1"
        await faulty.until(lambda: faulty.cancelled == 1)


async def test_an_engine_that_is_not_there_yet() -> None:
    port = find_free((20_000, 29_999))
    async with ScriptedEngine(script=Script(words=WORDS)) as other:
        one = World([f"http://127.0.0.1:{port}", other.url], PATIENT)
        assert await one.ask() == "done"
        assert (one.served_by, one.text) == ("e1", "uno dos tres")
        await one.close()


async def test_an_engine_that_starts_slowly_is_503_until_it_is_up() -> None:
    one = World([], PATIENT)
    async with ScriptedEngine(script=Script(words=WORDS)) as slow:
        engine = connect("e0", slow.url, PATIENT)
        one.plane.announce(engine.spec)
        parsed = chat("early")
        with pytest.raises(UnavailableError, match="e0 is starting"):
            await one.plane.submit(parsed.job, parsed.call, MemorySink())
        one.plane.add_engine(engine)
        assert (await one.ask(), one.text) == ("done", "uno dos tres")
        await one.close()
        await engine.close()


async def test_a_whole_answer_that_stalls() -> None:
    async with world(Script(gate=asyncio.Event(), gate_after=0), STALLED) as (one, _, _other):
        assert await one.ask(stream=False) == "done"
        assert one.served_by == "e1"


# ---- what comes late or in small pieces is not harmed ----


@pytest.mark.parametrize("stream", [True, False])
async def test_an_engine_that_is_slow(stream: bool) -> None:
    gate = asyncio.Event()
    async with world(Script(gate=gate, words=("a", "b"))) as (one, faulty, _):
        task = asyncio.create_task(one.ask(stream=stream))
        await faulty.until(lambda: faulty.active == 1)
        gate.set()
        assert await task == "done"
        assert (one.served_by, one.text) == ("e0", "ab")


@pytest.mark.parametrize("size", [1, 2, 7, 64])
@pytest.mark.parametrize("stream", [True, False])
async def test_an_answer_in_pieces_of_any_size(size: int, stream: bool) -> None:
    async with world(Script(fragment=size, words=("ü", "\n", "ok"))) as (one, _, _other):
        assert await one.ask(stream=stream) == "done"
        assert (one.served_by, one.text) == ("e0", "ü\nok")


@pytest.mark.parametrize("at", range(0, 240, 11))
async def test_an_answer_split_at_any_byte(at: int) -> None:
    """The two halves of the stream come as two writes."""
    async with world(Script(fragment=max(1, at), words=("ü", "ok"))) as (one, _, _other):
        assert await one.ask() == "done"
        assert one.text == "üok"


# ---- after the first byte: an error event ----


async def test_a_stream_that_stalls() -> None:
    async with world(Script(gate=asyncio.Event(), gate_after=2), STALLED) as (one, faulty, other):
        assert await one.ask() == "failed"
        one.assert_error_event()
        assert other.requests == []
        await faulty.until(lambda: faulty.cancelled == 1)


async def test_a_stream_without_done() -> None:
    async with world(Script(flaw=Flaw(no_done=True))) as (one, _, _other):
        assert await one.ask() == "failed"
        one.assert_error_event()


async def test_a_stream_without_end_breaks_off_at_the_limit() -> None:
    async with world(Script(flaw=Flaw(endless=True)), BOUNDED) as (one, faulty, _):
        assert await one.ask() == "failed"
        one.assert_error_event()
        await faulty.until(lambda: faulty.cancelled == 1)


async def test_an_engine_that_crashes_in_the_middle() -> None:
    async with world(Script(gate=asyncio.Event(), gate_after=1)) as (one, faulty, _):
        task = asyncio.create_task(one.ask())
        await one.sink.until_chunks(1)
        one.plane.engine_down("e0", "killed", crashed=True)
        await faulty.stop()
        assert await task == "failed"
        one.assert_error_event()


async def test_an_engine_that_crashes_before_it_has_answered() -> None:
    async with world(Script(gate=asyncio.Event())) as (one, faulty, _):
        task = asyncio.create_task(one.ask())
        await faulty.until(lambda: faulty.active == 1)
        await faulty.stop()
        assert await task == "done"
        assert one.served_by == "e1"


@pytest.mark.parametrize("used", [True, False])
async def test_nobody_is_to_send_again_what_two_engines_died_under(used: bool) -> None:
    """Whether the first one took it on a connection that had served before, or on a new one."""
    async with world(Script()) as (one, faulty, other):
        if used:
            assert await one.ask() == "done"
            one.sink = MemorySink()
        faulty.script = other.script = Script(gate=asyncio.Event())
        task = asyncio.create_task(one.ask())
        for engine in (faulty, other):
            await engine.until(lambda engine=engine: engine.active == 1)  # type: ignore[misc]
            await engine.stop()
        assert await task == "QuarantinedError"
        assert faulty.connections == other.connections == 1


async def test_an_engine_that_breaks_off_beside_one_that_only_fails_is_no_reason_for_that() -> None:
    async with world(Script(cut_at=0)) as (one, _, other):
        other.script = Script(status=500)
        assert await one.ask() == "EngineError"


@pytest.mark.parametrize("stream", [True, False])
async def test_a_reset_at_any_byte_is_a_whole_answer_from_elsewhere_or_an_error_event(stream: bool) -> None:
    outcomes = set()
    for at in range(0, 400, 13):
        async with world(Script(cut_at=at)) as (one, _, _other):
            outcome = await one.ask(stream=stream)
            outcomes.add((outcome, one.served_by))
            if outcome == "failed":
                one.assert_error_event()
            else:
                assert one.text == ("uno dos tres" if one.served_by == "e1" else "one two three")
    assert ("done", "e1") in outcomes
    assert (("failed", "e0") in outcomes) == stream


# ---- bytes that are no text, lengths that are no lengths ----


async def test_a_stream_s_bytes_go_through_whatever_they_are() -> None:
    async with world(Script(flaw=Flaw(garble_at=60), words=("abc" * 40,))) as (one, _, _other):
        assert await one.ask() == "done"
        assert one.sink.body.count(b"\xff") == 1


@pytest.mark.parametrize("at", [0, 30, 100])
async def test_vectors_that_are_no_text_come_from_elsewhere(at: int) -> None:
    async with world(Script(flaw=Flaw(garble_at=at))) as (one, faulty, _):
        parsed = embedding("a", "x", "y", encoding_format="base64")
        assert await one.plane.submit(parsed.job, parsed.call, one.sink) == "done"
        assert one.served_by == "e1"
        assert len(json.loads(one.sink.body)["data"]) == 2
        assert len(faulty.requests) == 1


@pytest.mark.parametrize("declared", ["5", "90000", "-1", "five"])
async def test_a_body_of_another_length_than_declared_comes_from_elsewhere(declared: str) -> None:
    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {declared}\r\n\r\n"
        writer.write(head.encode() + b'{"choices":[{"message":{"content":"short"}}]}')
        writer.close()

    server = await asyncio.start_server(speak, "127.0.0.1", 0)
    async with server, ScriptedEngine(script=Script(words=WORDS)) as other:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        one = World([url, other.url], PATIENT)
        assert await one.ask(stream=False) == "done"
        assert (one.served_by, one.text) == ("e1", "uno dos tres")
        await one.close()


# ---- the client goes away ----


@pytest.mark.parametrize("after", [-1, 0, 2])
@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_goes_away_frees_the_engine(after: int, stream: bool) -> None:
    async with world(Script(gate=asyncio.Event(), gate_after=after)) as (one, faulty, _):
        task = asyncio.create_task(one.ask(stream=stream))
        await faulty.until(lambda: faulty.active == 1)
        if after > 0 and stream:
            await one.sink.until_chunks(1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        if after <= 0 or stream:
            await faulty.until(lambda: faulty.cancelled == 1)
        assert not any(status.running for status in one.plane.engines())


async def test_the_engine_s_own_error_is_what_a_client_reads() -> None:
    async with world(Script(status=500), healthy=False) as (one, _, _other):
        parsed = chat("a")
        with pytest.raises(EngineError, match="e0 answered 500"):
            await one.plane.submit(parsed.job, parsed.call, one.sink)
