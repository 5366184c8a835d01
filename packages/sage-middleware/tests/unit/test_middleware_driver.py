"""The live control plane over in-memory engines: every window of a request's life, and all is freed once."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from sage.common.api import Decision
from sage.common.clock import SystemClock
from sage.common.config import ControlPlaneConfig
from sage.common.errors import (
    BadRequestError,
    ConfigError,
    ConflictError,
    EngineError,
    NotFoundError,
    OverloadedError,
    TimedOutError,
    UnavailableError,
    UnreachableError,
)
from sage.middleware.control_plane.classify import Parsed, ParseLimits, parse
from sage.middleware.control_plane.driver import ControlPlane
from sage.middleware.control_plane.relay import Relay
from sage.middleware.engines.port import Capability, Route
from sage.middleware.testing.memory import Behaviour, MemoryEngine, MemorySink

FAULT = EngineError("it broke")


def chat(ident: str, *, stream: bool = True, **fields: Any) -> Parsed:
    body = {"model": "memory", "messages": [{"role": "user", "content": "hi"}], "stream": stream, **fields}
    headers = {"x-request-id": ident}
    return parse(Route.CHAT, json.dumps(body).encode(), limits=ParseLimits(), tenant="t", headers=headers)


class Bench:
    """A control plane, its engines, and the requests that a test has started."""

    def __init__(self, engines: int = 1, *, slots: int = 1, **config: Any) -> None:
        self.plane = ControlPlane(ControlPlaneConfig(**config), SystemClock())
        self.engines = [MemoryEngine(f"e{index}", max_running=slots) for index in range(engines)]
        for engine in self.engines:
            self.plane.add_engine(engine)
        self.gate = asyncio.Event()
        self.sinks: dict[str, MemorySink] = {}

    def start(self, ident: str, *, deadline: float | None = None, **fields: Any) -> asyncio.Task[Decision]:
        request = chat(ident, **fields)
        sink = self.sinks[ident] = MemorySink()
        return asyncio.create_task(self.plane.submit(request.job, request.call, sink, deadline=deadline))

    def hold(self, after: int = 0) -> None:
        """From now on engines wait for `gate` after so many chunks."""
        for engine in self.engines:
            engine.behaviour = Behaviour(gate=self.gate, gate_after=after)

    def assert_idle(self) -> None:
        assert self.plane._core.live == 0
        assert self.plane._tickets == {}
        assert [status.running for status in self.plane.engines()] == [0] * len(self.engines)
        assert [engine.running for engine in self.engines] == [0] * len(self.engines)
        assert [queue.waiting for queue in self.plane.queues()] == [0] * len(self.plane.queues())


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    one = Bench()
    yield one
    one.gate.set()
    await one.plane.close(5.0)
    one.assert_idle()


@pytest.fixture
async def pair() -> AsyncIterator[Bench]:
    two = Bench(2)
    yield two
    two.gate.set()
    await two.plane.close(5.0)
    two.assert_idle()


async def settled() -> None:
    """Let every task run until it waits."""
    for _ in range(10):
        await asyncio.sleep(0)


async def cancel(task: asyncio.Task[Decision]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_stream_is_passed_on_and_accounted_for(bench: Bench) -> None:
    decision = await bench.start("a", stream_options={"include_usage": True})
    sink = bench.sinks["a"]
    assert (sink.status, sink.content_type, sink.ended) == (200, "text/event-stream", True)
    assert sink.body.endswith(b"data: [DONE]\n\n")
    assert (decision.outcome, decision.engine, decision.attempts, decision.tenant) == ("done", "e0", 1, "t")
    assert decision.completion_tokens == 3
    assert decision.route == "chat/completions"
    times = (decision.queue_s, decision.ttft_s, decision.latency_s)
    assert all(time is not None for time in times)
    assert times == tuple(sorted(time or 0.0 for time in times))
    assert bench.plane.decision("a") == decision
    assert bench.plane.decisions() == [decision]
    assert bench.plane.decision("b") is None


async def test_a_whole_answer_is_passed_on(bench: Bench) -> None:
    await bench.start("a", stream=False)
    sink = bench.sinks["a"]
    assert sink.content_type == "application/json"
    assert json.loads(sink.body)["choices"][0]["message"]["content"] == "one two three"
    assert sink.ended


async def test_an_engine_never_runs_more_than_its_slots() -> None:
    bench = Bench(2, slots=3)
    bench.hold()
    tasks = [bench.start(f"r{number}") for number in range(20)]
    await bench.engines[1].until_running(3)
    queue = {status.request_class: status for status in bench.plane.queues()}["chat"]
    assert queue.waiting == 14
    assert queue.waiting_bytes > 0
    assert queue.oldest_s >= 0
    bench.gate.set()
    decisions = await asyncio.gather(*tasks)
    assert {decision.outcome for decision in decisions} == {"done"}
    assert [engine.most_running for engine in bench.engines] == [3, 3]
    bench.assert_idle()


# ---- the client goes away ----


async def test_cancel_while_queued(bench: Bench) -> None:
    bench.hold()
    first = bench.start("a")
    await bench.engines[0].until_running(1)
    second = bench.start("b")
    await settled()
    await cancel(second)
    bench.gate.set()
    assert (await first).outcome == "done"
    assert len(bench.engines[0].calls) == 1
    decision = bench.plane.decision("b")
    assert decision is not None
    assert (decision.outcome, decision.attempts) == ("cancelled", 0)


@pytest.mark.parametrize("after", [0, 1, 2])
async def test_cancel_at_the_engine_ends_its_work_and_frees_the_slot(bench: Bench, after: int) -> None:
    bench.hold(after)
    task = bench.start("a")
    await bench.engines[0].until_running(1)
    await bench.sinks["a"].until_chunks(after)
    await cancel(task)
    assert bench.engines[0].cancelled == 1
    bench.assert_idle()
    assert not bench.sinks["a"].ended
    bench.engines[0].behaviour = Behaviour()
    assert (await bench.start("b")).outcome == "done"


async def test_cancel_between_the_decision_and_its_start(bench: Bench) -> None:
    bench.hold()
    first = bench.start("a")
    await bench.engines[0].until_running(1)
    second = bench.start("b")
    third = bench.start("c")
    await settled()
    other = MemoryEngine("e1", max_running=1)
    bench.plane.add_engine(other)  # places b, whose task has not run since
    bench.engines.append(other)
    await cancel(second)
    assert (await third).engine == "e1"
    assert [call.request_id for call in other.calls] == ["c"]
    bench.gate.set()
    assert (await first).outcome == "done"


# ---- faults ----


@pytest.mark.parametrize(("last", "between"), [(b'data: {"a":1}\n\n', b""), (b'data: {"a', b"\n\n")])
def test_the_error_event_stands_for_itself(last: bytes, between: bytes) -> None:
    sink = MemorySink()
    relay = Relay(sink, stream=True, on_first_byte=lambda: None)
    relay.head(200, "text/event-stream")
    relay.data(last)
    relay.fail(FAULT)
    relay.fail(FAULT)  # once is enough
    assert sink.ended
    assert sink.body.startswith(last + between + b'data: {"error"')
    assert sink.body.endswith(b"\n\n")


async def test_a_fault_before_the_first_byte_is_served_elsewhere(pair: Bench) -> None:
    pair.engines[0].behaviour = Behaviour(fault=UnreachableError("refused"))
    decision = await pair.start("a")
    assert (decision.outcome, decision.engine, decision.attempts) == ("done", "e1", 2)
    assert pair.sinks["a"].body.endswith(b"[DONE]\n\n")
    assert {status.name: status.failed for status in pair.plane.engines()} == {"e0": 1, "e1": 0}


async def test_a_whole_answer_that_breaks_in_the_middle_is_served_elsewhere(pair: Bench) -> None:
    pair.engines[0].behaviour = Behaviour(fault=FAULT, fault_after=1)
    decision = await pair.start("a", stream=False)
    assert (decision.outcome, decision.attempts) == ("done", 2)
    assert json.loads(pair.sinks["a"].body)


async def test_after_the_first_byte_a_fault_is_an_error_event_without_done(pair: Bench) -> None:
    pair.engines[0].behaviour = Behaviour(fault=FAULT, fault_after=2)
    decision = await pair.start("a")
    sink = pair.sinks["a"]
    assert (decision.outcome, decision.reason, decision.attempts) == ("failed", "it broke", 1)
    assert sink.ended
    assert json.loads(sink.chunks[-1].removeprefix(b"data: ")) == FAULT.to_openai()
    assert b"[DONE]" not in sink.body
    assert pair.engines[1].calls == []


async def test_when_all_attempts_fail_the_engine_s_own_error_is_raised(pair: Bench) -> None:
    for engine in pair.engines:
        engine.behaviour = Behaviour(fault=FAULT)
    with pytest.raises(EngineError, match="it broke"):
        await pair.start("a")
    assert pair.sinks["a"].status is None
    assert [len(engine.calls) for engine in pair.engines] == [1, 1]


async def test_the_engine_s_own_4xx_is_raised_and_not_retried(pair: Bench) -> None:
    pair.engines[0].behaviour = Behaviour(fault=BadRequestError("prompt too long", param="messages"))
    with pytest.raises(BadRequestError, match="prompt too long"):
        await pair.start("a")
    assert pair.engines[1].calls == []


async def test_a_bug_in_an_adapter_is_an_engine_error_without_its_words(bench: Bench) -> None:
    bench.engines[0].behaviour = Behaviour(fault=ValueError("secret"))
    with pytest.raises(EngineError, match="failed unexpectedly") as caught:
        await bench.start("a")
    assert "secret" not in str(caught.value)


async def test_an_ejected_engine_is_shown_as_degraded(bench: Bench) -> None:
    bench.engines[0].behaviour = Behaviour(fault=FAULT)
    for ident in "abc":
        with pytest.raises((EngineError, UnavailableError)):
            await bench.start(ident)
    (status,) = bench.plane.engines()
    assert status.state == "degraded"
    assert "5 faults in a row; ejected for 10 s" in status.detail
    with pytest.raises(UnavailableError) as caught:
        await bench.start("d")
    assert caught.value.retry_after is not None
    assert 9 < caught.value.retry_after <= 10


# ---- refusals ----


async def test_an_unknown_model_is_refused_before_anything_is_kept(bench: Bench) -> None:
    with pytest.raises(NotFoundError, match="there are: memory"):
        await bench.start("a", model="x")
    assert bench.plane.decisions() == []


async def test_what_no_engine_can_do_is_refused(bench: Bench) -> None:
    plain = MemoryEngine("plain", "plain", capabilities=frozenset((Capability.CHAT,)))
    bench.plane.add_engine(plain)
    with pytest.raises(BadRequestError, match=r"does not honour 'n'. Engines that can: e0 \(model memory\)"):
        await bench.start("a", model="plain", n=2)
    bench.plane.remove_engine("plain")


async def test_a_model_that_is_on_its_way_is_503() -> None:
    bench = Bench(0)
    engine = MemoryEngine()
    bench.plane.announce(engine.spec)
    assert bench.plane.models() == []
    with pytest.raises(UnavailableError, match="memory-0 is starting") as caught:
        await bench.start("a")
    assert caught.value.retry_after == 1.0
    bench.plane.add_engine(engine)
    assert bench.plane.models() == ["memory"]
    assert (await bench.start("b")).outcome == "done"
    await bench.plane.close(1.0)


async def test_queues_shed_by_count_and_by_age() -> None:
    bench = Bench(queue_max_requests=1, queue_max_wait_s=0.05)
    bench.hold()
    running = bench.start("a")
    await bench.engines[0].until_running(1)
    waiting = bench.start("b")
    await settled()
    with pytest.raises(OverloadedError, match="full"):
        await bench.start("c")
    with pytest.raises(OverloadedError, match="no engine became free in time") as caught:
        await waiting
    assert caught.value.retry_after is not None
    bench.gate.set()
    await running
    queue = {status.request_class: status for status in bench.plane.queues()}["chat"]
    assert (queue.shed, queue.completed) == (2, 1)
    bench.assert_idle()


@pytest.mark.parametrize("after", [0, 1])
async def test_a_deadline_ends_a_request_at_the_engine(bench: Bench, after: int) -> None:
    bench.hold(after)
    task = bench.start("a", deadline=0.05)
    if after:
        assert (await task).outcome == "failed"
        assert b'"code":"timeout"' in bench.sinks["a"].chunks[-1]
    else:
        with pytest.raises(TimedOutError, match=r"0.05 s"):
            await task
    assert not task.cancelled()
    assert bench.engines[0].cancelled == 1
    assert bench.plane.engines()[0].state == "ready"


async def test_the_same_id_twice_is_a_conflict(bench: Bench) -> None:
    bench.hold()
    first = bench.start("a")
    await bench.engines[0].until_running(1)
    with pytest.raises(ConflictError, match="'a' is in flight"):
        await bench.start("a")
    bench.sinks["a"] = MemorySink()
    bench.gate.set()
    assert (await first).outcome == "done"


# ---- engines and policies come and go ----


async def test_an_engine_that_goes_down_gets_nothing_until_it_is_back(pair: Bench) -> None:
    pair.plane.engine_down("e0", "killed")
    assert {(await pair.start(ident)).engine for ident in "ab"} == {"e1"}
    statuses = {status.name: status for status in pair.plane.engines()}
    assert (statuses["e0"].state, statuses["e0"].detail) == ("failed", "killed")
    pair.plane.add_engine(pair.engines[0])
    assert (await pair.start("c")).engine == "e0"


async def test_an_engine_removed_in_between_still_serves_what_was_placed(bench: Bench) -> None:
    bench.hold()
    first = bench.start("a")
    await bench.engines[0].until_running(1)
    second = bench.start("b")
    await settled()
    other = MemoryEngine("e1", max_running=1)
    bench.plane.add_engine(other)  # places b, whose task has not run since
    bench.plane.remove_engine("e1")
    assert (await second).engine == "e1"
    assert [status.name for status in bench.plane.engines()] == ["e0"]
    bench.gate.set()
    assert (await first).outcome == "done"


async def test_two_engines_cannot_share_a_name(bench: Bench) -> None:
    with pytest.raises(ConflictError, match="'e0'"):
        bench.plane.add_engine(MemoryEngine("e0"))


async def test_the_policy_changes_under_load_without_losing_a_request() -> None:
    bench = Bench(2, policy="fifo")
    bench.hold()
    tasks = [bench.start(f"r{number}") for number in range(10)]
    await bench.engines[1].until_running(1)
    bench.plane.set_policy("round_robin")
    assert bench.plane.policy == "round_robin"
    bench.gate.set()
    decisions = await asyncio.gather(*tasks)
    assert [decision.policy for decision in decisions] == ["fifo"] * 2 + ["round_robin"] * 8
    with pytest.raises(ConfigError, match="fifo, least_load"):
        bench.plane.set_policy("best")
    assert bench.plane.policy == "round_robin"
    bench.assert_idle()


async def test_close_lets_requests_finish_and_refuses_new_ones(bench: Bench) -> None:
    bench.hold(1)
    task = bench.start("a")
    await bench.sinks["a"].until_chunks(0)
    await bench.engines[0].until_running(1)
    closing = asyncio.create_task(bench.plane.close(5.0))
    await settled()
    with pytest.raises(UnavailableError, match="shutting down"):
        await bench.start("b")
    bench.gate.set()
    await closing
    assert (await task).outcome == "done"


async def test_close_ends_what_does_not_finish_with_an_error() -> None:
    bench = Bench()
    bench.hold(1)
    streaming = bench.start("a")
    await bench.engines[0].until_running(1)
    await bench.sinks["a"].until_chunks(1)
    queued = bench.start("b")
    await settled()
    await bench.plane.close(0.0)
    assert (await streaming).outcome == "failed"
    assert b"shutting down" in bench.sinks["a"].chunks[-1]
    with pytest.raises(UnavailableError, match="shutting down"):
        await queued
    bench.assert_idle()


async def test_a_storm_of_disconnects_and_faults_leaves_nothing_behind() -> None:
    bench = Bench(3, slots=2)
    for engine in bench.engines:
        for number in range(40):
            fault = FAULT if number % 3 == 0 else None
            engine.next_behaviours.append(Behaviour(fault=fault, fault_after=number % 4))
    tasks = []
    for number in range(200):
        tasks.append(bench.start(f"r{number}", stream=number % 2 == 0))
        if number % 3 == 0:
            await asyncio.sleep(0)
        if number % 4 == 0:
            tasks[number // 2].cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    ends = [one if isinstance(one, BaseException) else one.outcome for one in results]
    assert all(
        end in ("done", "failed") or isinstance(end, asyncio.CancelledError | EngineError) for end in ends
    )
    bench.assert_idle()
    assert len({task.get_name() for task in asyncio.all_tasks()}) == 1
    await bench.plane.close(1.0)
