"""What the live control plane makes of engines that fail: retries, errors in streams, second attempts."""

from __future__ import annotations

import asyncio
import json

import msgspec
import pytest

from sage.common.errors import (
    BadRequestError,
    EngineError,
    OverloadedError,
    UnavailableError,
    UnreachableError,
)
from sage.middleware.control_plane.classify import Parsed
from sage.middleware.control_plane.core import Core
from sage.middleware.control_plane.options import CoreOptions
from sage.middleware.control_plane.policies.fifo import Fifo
from sage.middleware.control_plane.policy import PolicyOptions, Traits
from sage.middleware.control_plane.relay import Relay
from sage.middleware.control_plane.types import RestartEngine
from sage.middleware.engines.port import Call, Route, Sink, Usage
from sage.middleware.testing.bench import Bench, chat
from sage.middleware.testing.memory import Behaviour, MemoryEngine, MemorySink
from sage.middleware.testing.virtual import virtual

FAULT = EngineError("it broke")


class Recipient:
    """Fits `Recipient`."""

    def __init__(self) -> None:
        self.sink = MemorySink()
        self.relay: Relay | None = None
        self.call = Call("req-1", Route.CHAT, b"{}", stream=True, include_usage=False)


def relay_to(recipient: Recipient, number: int = 1, *, stream: bool = True) -> Relay:
    return Relay(recipient, number, lambda _number: None, stream=stream)


# ---- the relay ----


@pytest.mark.parametrize(("last", "between"), [(b'data: {"a":1}\n\n', b""), (b'data: {"a', b"\n\n")])
def test_the_error_event_stands_for_itself(last: bytes, between: bytes) -> None:
    recipient = Recipient()
    relay = relay_to(recipient)
    relay.head(200, "text/event-stream")
    relay.data(last)
    relay.fail(FAULT)
    relay.fail(FAULT)  # once is enough
    assert recipient.sink.ended
    assert recipient.sink.body.startswith(last + between + b'data: {"error"')
    assert recipient.sink.body.endswith(b"\n\n")


@pytest.mark.parametrize("stream", [True, False])
def test_of_two_relays_the_first_that_writes_is_heard(stream: bool) -> None:
    recipient = Recipient()
    first, second = relay_to(recipient, 1, stream=stream), relay_to(recipient, 2, stream=stream)
    for relay, text in ((second, b"second"), (first, b"first")):
        relay.head(200, "text/plain")
        relay.data(text)
        relay.end()
    assert recipient.sink.chunks == [b"second"]
    assert (first.committed, second.committed) == (False, True)


def test_a_relay_tells_its_first_byte_once_and_that_bytes_have_come() -> None:
    told: list[int] = []
    relay = Relay(Recipient(), 7, told.append, stream=True)
    assert not relay.fresh
    relay.data(b"a")
    relay.fresh = False
    relay.data(b"b")
    assert told == [7]
    assert relay.fresh


# ---- before the first byte ----


@pytest.mark.parametrize("fault", [UnreachableError("refused"), FAULT, OverloadedError("full")])
@virtual
async def test_a_fault_before_the_first_byte_is_served_elsewhere(fault: Exception) -> None:
    async with Bench(2) as bench:
        bench.engines[0].behaviour = Behaviour(fault=fault)
        assert await bench.start(chat("a")) == "done"
        decision = bench.plane.decision("a")
        assert decision is not None
        assert (decision.engine, decision.attempts, decision.retries) == ("e1", 2, 1)
        assert bench.sinks["a"].body.endswith(b"[DONE]\n\n")
        assert {status.name: status.failed for status in bench.plane.engines()} == {"e0": 1, "e1": 0}


@virtual
async def test_a_whole_answer_that_breaks_in_the_middle_is_served_elsewhere() -> None:
    async with Bench(2) as bench:
        bench.engines[0].behaviour = Behaviour(fault=FAULT, fault_after=1)
        assert await bench.start(chat("a", stream=False)) == "done"
        assert bench.body("a")["choices"]
        assert [len(engine.calls) for engine in bench.engines] == [1, 1]


@virtual
async def test_when_all_attempts_fail_the_engine_s_own_error_is_raised() -> None:
    async with Bench(2) as bench:
        for engine in bench.engines:
            engine.behaviour = Behaviour(fault=FAULT)
        with pytest.raises(EngineError, match="it broke"):
            await bench.start(chat("a"))
        assert bench.sinks["a"].status is None
        assert [len(engine.calls) for engine in bench.engines] == [1, 1]
        assert bench.outcome("a") == "failed"


@virtual
async def test_the_engine_s_own_4xx_is_raised_and_not_retried() -> None:
    async with Bench(2) as bench:
        bench.engines[0].behaviour = Behaviour(fault=BadRequestError("prompt too long", param="messages"))
        with pytest.raises(BadRequestError, match="prompt too long"):
            await bench.start(chat("a"))
        assert bench.engines[1].calls == []
        assert bench.plane.engines()[0].state == "ready"


@virtual
async def test_a_bug_in_an_adapter_is_an_engine_error_without_its_words() -> None:
    async with Bench() as bench:
        bench.engines[0].behaviour = Behaviour(fault=ValueError("secret"))
        with pytest.raises(EngineError, match="failed unexpectedly") as caught:
            await bench.start(chat("a"))
        assert "secret" not in str(caught.value)


@virtual
async def test_an_ejected_engine_is_shown_as_degraded() -> None:
    async with Bench() as bench:
        bench.engines[0].behaviour = Behaviour(fault=FAULT)
        for ident in "abc":
            with pytest.raises((EngineError, UnavailableError)):
                await bench.start(chat(ident))
        (status,) = bench.plane.engines()
        assert status.state == "degraded"
        assert "5 faults in a row; ejected for 10 s" in status.detail
        with pytest.raises(UnavailableError) as caught:
            await bench.start(chat("d"))
        assert caught.value.retry_after == pytest.approx(10.0, rel=0.2)


class Endless(MemoryEngine):
    """Returns as if it were done, and has not ended its answer."""

    async def send(self, call: Call, sink: Sink) -> Usage:
        self.calls.append(call)
        sink.head(200, "text/event-stream")
        return Usage()


@virtual
async def test_an_answer_without_an_end_is_a_fault() -> None:
    async with Bench(0) as bench:
        bench.plane.add_engine(Endless())
        with pytest.raises(EngineError, match="without ending its answer"):
            await bench.start(chat("a"))


# ---- after the first byte ----


@virtual
async def test_after_the_first_byte_a_fault_is_an_error_event_without_done() -> None:
    async with Bench(2) as bench:
        bench.engines[0].behaviour = Behaviour(fault=FAULT, fault_after=2)
        assert await bench.start(chat("a")) == "failed"
        sink = bench.sinks["a"]
        decision = bench.plane.decision("a")
        assert decision is not None
        assert (decision.outcome, decision.reason, decision.attempts) == ("failed", "it broke", 1)
        assert sink.ended
        assert json.loads(sink.chunks[-1].removeprefix(b"data: ")) == FAULT.to_openai()
        assert b"[DONE]" not in sink.body
        assert bench.engines[1].calls == []


@virtual
async def test_an_engine_that_hangs_is_ejected_and_its_replacement_asked_for() -> None:
    async with Bench() as bench:
        asked = asyncio.Queue[object]()
        engine = bench.engines[0]
        bench.plane.on_engine_action = asked.put_nowait
        engine._spec = msgspec.structs.replace(engine.spec, managed=True)
        bench.plane.add_engine(engine)
        bench.hold()
        task = bench.start(chat("a"), deadline=200.0)
        assert type(await asked.get()) is RestartEngine
        assert bench.plane.engines()[0].state == "degraded"
        engine.behaviour = Behaviour()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@virtual
@pytest.mark.parametrize("chunks", [0, 2])
async def test_what_hangs_at_an_engine_ends_without_a_deadline(chunks: int) -> None:
    async with Bench(2) as bench:
        bench.engines[0].behaviour = Behaviour(gate=bench.gate, gate_after=chunks)
        task = bench.start(chat("a"))
        if chunks:  # the client has had some: it is told in the stream
            assert await task == "failed"
            assert b"[DONE]" not in bench.sinks["a"].body
            assert b"fallen silent" in bench.sinks["a"].body
        else:
            assert await task == "done"
        assert bench.outcome("a") == ("failed" if chunks else "done")
        assert not bench.engines[0].running


@virtual
async def test_an_engine_that_falls_silent_is_shown_as_degraded_until_it_moves() -> None:
    async with Bench() as bench:
        bench.hold()
        task = bench.start(chat("a"))
        await asyncio.sleep(50.0)
        (status,) = bench.plane.engines()
        assert status.state == "degraded"
        assert status.detail.startswith("1 requests run there, and nothing has come for ")
        bench.gate.set()
        assert await task == "done"
        assert bench.plane.engines()[0].state == "ready"


@virtual
async def test_a_fault_of_who_runs_the_engines_stops_no_request(caplog: pytest.LogCaptureFixture) -> None:
    async with Bench() as bench:
        engine = bench.engines[0]
        engine._spec = msgspec.structs.replace(engine.spec, managed=True)
        bench.plane.add_engine(engine)

        def broken(_action: object) -> None:
            raise ValueError("no such process")

        bench.plane.on_engine_action = broken
        bench.hold()
        with pytest.raises(UnavailableError):
            await bench.start(chat("a"))
        assert "no such process" in caplog.text
        await asyncio.sleep(20.0)
        bench.gate.set()
        assert await bench.start(chat("b")) == "done"


@virtual
async def test_a_stream_that_moves_is_no_hang() -> None:
    async with Bench() as bench:
        bench.engines[0].behaviour = Behaviour(every_s=20.0)
        assert await bench.start(chat("a")) == "done"
        assert asyncio.get_running_loop().time() >= 60.0
        assert bench.plane.engines()[0].state == "ready"


# ---- second attempts beside the first ----


class Hedging(Fifo):
    """Fifo that sends late calls twice."""

    traits = Traits(hedges=True)


def hedging() -> Core:
    return Core(Hedging(PolicyOptions()), CoreOptions())


def hedgeable(ident: str, *, stream: bool) -> Parsed:
    parsed = chat(ident, stream=stream)
    return Parsed(msgspec.structs.replace(parsed.job, hedgeable=True), parsed.call)


@pytest.mark.parametrize("stream", [True, False])
@virtual
async def test_a_late_call_runs_twice_and_the_first_answer_counts(stream: bool) -> None:
    async with Bench(2, core=hedging()) as bench:
        bench.engines[0].behaviour = Behaviour(gate=bench.gate)
        assert await bench.start(hedgeable("a", stream=stream)) == "done"
        assert [engine.cancelled for engine in bench.engines] == [1, 0]
        assert bench.sinks["a"].body.count(b"three") == 2  # as `content` and as `text`
        decision = bench.plane.decision("a")
        assert decision is not None
        assert (decision.outcome, decision.hedges, decision.attempts) == ("done", 1, 1)


@pytest.mark.parametrize("stream", [True, False])
@virtual
async def test_the_late_one_may_win_after_all(stream: bool) -> None:
    async with Bench(2, core=hedging()) as bench:
        first, second = bench.engines
        first.behaviour = Behaviour(gate=bench.gate)
        second.behaviour = Behaviour(gate=asyncio.Event())
        task = bench.start(hedgeable("a", stream=stream))
        await second.until_running(1)
        bench.gate.set()
        assert await task == "done"
        await second.until_running(0)
        assert [engine.cancelled for engine in bench.engines] == [0, 1]
        assert bench.sinks["a"].body.count(b"three") == 2  # as `content` and as `text`


@pytest.mark.parametrize("loser", [0, 1])
@virtual
async def test_a_fault_of_one_of_two_leaves_the_other(loser: int) -> None:
    async with Bench(2, core=hedging()) as bench:
        first, second = bench.engines
        gates = [asyncio.Event(), asyncio.Event()]
        first.behaviour = Behaviour(gate=gates[0], fault=FAULT if loser == 0 else None)
        second.behaviour = Behaviour(gate=gates[1], fault=FAULT if loser == 1 else None)
        task = bench.start(hedgeable("a", stream=True))
        await second.until_running(1)
        gates[loser].set()
        await bench.engines[loser].until_running(0)
        assert not task.done()
        gates[1 - loser].set()
        assert await task == "done"
        assert [len(engine.calls) for engine in bench.engines] == [1, 1]


@virtual
async def test_a_client_that_goes_away_ends_both() -> None:
    async with Bench(2, core=hedging()) as bench:
        bench.hold()
        task = bench.start(hedgeable("a", stream=True))
        await bench.engines[1].until_running(1)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await bench.settled()
        assert [engine.cancelled for engine in bench.engines] == [1, 1]


@virtual
async def test_a_hedged_stream_that_breaks_after_its_first_byte_ends_with_an_error() -> None:
    async with Bench(2, core=hedging()) as bench:
        bench.engines[0].behaviour = Behaviour(gate=bench.gate)
        bench.engines[1].behaviour = Behaviour(fault=FAULT, fault_after=1)
        assert await bench.start(hedgeable("a", stream=True)) == "failed"
        assert b"it broke" in bench.sinks["a"].chunks[-1]
        assert bench.sinks["a"].ended
        assert bench.engines[0].cancelled == 1
