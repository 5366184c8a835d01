"""The live control plane over in-memory engines: every window of a request's life, and all is freed once."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from sage.common.errors import (
    BadRequestError,
    ConfigError,
    ConflictError,
    EngineError,
    NotFoundError,
    OverloadedError,
    TimedOutError,
    UnavailableError,
)
from sage.middleware.engines.port import Capability
from sage.middleware.testing.bench import Bench, Submitted, chat
from sage.middleware.testing.memory import Behaviour, MemoryEngine, MemorySink
from sage.middleware.testing.virtual import virtual

FAULT = EngineError("it broke")


async def cancel(task: Submitted) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@virtual
async def test_a_stream_is_passed_on_and_accounted_for() -> None:
    async with Bench() as bench:
        assert await bench.start(chat("a", stream_options={"include_usage": True})) == "done"
        sink = bench.sinks["a"]
        assert (sink.status, sink.content_type, sink.ended) == (200, "text/event-stream", True)
        assert sink.body.endswith(b"data: [DONE]\n\n")
        decision = bench.plane.decision("a")
        assert decision is not None
        assert (decision.outcome, decision.engine, decision.attempts, decision.tenant) == (
            "done",
            "e0",
            1,
            "t",
        )
        assert decision.completion_tokens == 3
        assert decision.route == "chat/completions"
        assert (decision.queue_s, decision.ttft_s, decision.latency_s) == (0.0, 0.0, 0.0)
        assert bench.plane.decisions() == [decision]
        assert bench.plane.decision("b") is None


@virtual
async def test_a_whole_answer_is_passed_on() -> None:
    async with Bench() as bench:
        assert await bench.start(chat("a", stream=False)) == "done"
        assert bench.sinks["a"].content_type == "application/json"
        assert bench.body("a")["choices"][0]["message"]["content"] == "one two three"


@virtual
async def test_an_engine_never_runs_more_than_its_slots() -> None:
    async with Bench(2, slots=3) as bench:
        bench.hold()
        tasks = [bench.start(chat(f"r{number}")) for number in range(20)]
        await bench.engines[1].until_running(3)
        queue = {status.request_class: status for status in bench.plane.queues()}["chat"]
        assert queue.waiting == 14
        assert queue.waiting_bytes > 0
        assert queue.oldest_s >= 0
        bench.gate.set()
        assert set(await asyncio.gather(*tasks)) == {"done"}
        assert [engine.most_running for engine in bench.engines] == [3, 3]


# ---- the client goes away ----


@virtual
async def test_cancel_while_queued() -> None:
    async with Bench() as bench:
        bench.hold()
        first = bench.start(chat("a"))
        await bench.engines[0].until_running(1)
        second = bench.start(chat("b"))
        await bench.settled()
        await cancel(second)
        bench.gate.set()
        assert await first == "done"
        assert len(bench.engines[0].calls) == 1
        decision = bench.plane.decision("b")
        assert decision is not None
        assert (decision.outcome, decision.attempts) == ("cancelled", 0)


@pytest.mark.parametrize("after", [0, 1, 2])
@virtual
async def test_cancel_at_the_engine_ends_its_work_and_frees_the_slot(after: int) -> None:
    async with Bench() as bench:
        bench.hold(after)
        task = bench.start(chat("a"))
        await bench.engines[0].until_running(1)
        await bench.sinks["a"].until_chunks(after)
        await cancel(task)
        assert bench.engines[0].cancelled == 1
        bench.assert_idle()
        assert not bench.sinks["a"].ended
        bench.engines[0].behaviour = Behaviour()
        assert await bench.start(chat("b")) == "done"


@virtual
async def test_cancel_between_the_decision_and_its_start() -> None:
    async with Bench() as bench:
        bench.hold()
        first = bench.start(chat("a"))
        await bench.engines[0].until_running(1)
        second = bench.start(chat("b"))
        third = bench.start(chat("c"))
        await bench.settled()
        other = MemoryEngine("e1", max_running=1)
        bench.plane.add_engine(other)  # places b, whose task has not run since
        bench.engines.append(other)
        await cancel(second)
        assert await third == "done"
        assert [call.request_id for call in other.calls] == ["c"]
        bench.gate.set()
        assert await first == "done"


@virtual
async def test_cancel_and_deadline_in_one_turn_of_the_loop_is_a_cancel() -> None:
    async with Bench() as bench:
        bench.hold()
        task = bench.start(chat("a"), deadline=1.0)
        await bench.engines[0].until_running(1)
        asyncio.get_running_loop().call_later(1.0, task.cancel)
        with pytest.raises(asyncio.CancelledError):
            await task
        assert bench.engines[0].cancelled == 1


# ---- refusals ----


@virtual
async def test_an_unknown_model_is_refused_before_anything_is_kept() -> None:
    async with Bench() as bench:
        with pytest.raises(NotFoundError, match="there are: memory"):
            await bench.start(chat("a", model="x"))
        assert bench.plane.decisions() == []


@virtual
async def test_what_no_engine_can_do_is_refused() -> None:
    async with Bench() as bench:
        bench.plane.add_engine(MemoryEngine("plain", "plain", capabilities=frozenset((Capability.CHAT,))))
        with pytest.raises(
            BadRequestError, match=r"does not honour 'n'. Engines that can: e0 \(model memory"
        ):
            await bench.start(chat("a", model="plain", n=2))
        bench.plane.remove_engine("plain")


@virtual
async def test_a_model_that_is_on_its_way_is_503() -> None:
    async with Bench(0) as bench:
        engine = MemoryEngine()
        bench.plane.announce(engine.spec)
        assert bench.plane.models() == []
        with pytest.raises(UnavailableError, match="memory-0 is starting") as caught:
            await bench.start(chat("a"))
        assert caught.value.retry_after == pytest.approx(1.0, rel=0.2)
        bench.plane.add_engine(engine)
        bench.engines.append(engine)
        assert bench.plane.models() == ["memory"]
        assert await bench.start(chat("b")) == "done"


@virtual
async def test_queues_shed_by_count_and_by_age() -> None:
    async with Bench(queue_max_requests=1, queue_max_wait_s=5.0) as bench:
        bench.hold()
        running = bench.start(chat("a"))
        await bench.engines[0].until_running(1)
        waiting = bench.start(chat("b"))
        await bench.settled()
        with pytest.raises(OverloadedError, match="full"):
            await bench.start(chat("c"))
        with pytest.raises(
            OverloadedError, match=r"no engine became free in time: it waited 5.0 s"
        ) as caught:
            await waiting
        assert caught.value.retry_after is not None
        bench.gate.set()
        await running
        queue = {status.request_class: status for status in bench.plane.queues()}["chat"]
        assert (queue.shed, queue.completed) == (2, 1)


@pytest.mark.parametrize("after", [0, 1])
@virtual
async def test_a_deadline_ends_a_request_at_the_engine(after: int) -> None:
    async with Bench() as bench:
        bench.hold(after)
        task = bench.start(chat("a"), deadline=2.0)
        if after:
            assert await task == "failed"
            assert b'"code":"timeout"' in bench.sinks["a"].chunks[-1]
        else:
            with pytest.raises(TimedOutError, match=r"deadline of 2 s"):
                await task
        assert asyncio.get_running_loop().time() == 2.0
        assert not task.cancelled()
        assert bench.outcome("a") == "failed"
        assert bench.engines[0].cancelled == 1
        assert bench.plane.engines()[0].state == "ready"


@virtual
async def test_a_deadline_ends_what_is_still_queued() -> None:
    async with Bench() as bench:
        bench.hold()
        first = bench.start(chat("a"))
        await bench.engines[0].until_running(1)
        with pytest.raises((TimedOutError, OverloadedError), match="deadline"):
            await bench.start(chat("b"), deadline=2.0)
        assert asyncio.get_running_loop().time() == 2.0
        bench.gate.set()
        assert await first == "done"


@pytest.mark.parametrize("own", [None, 1.0, 60.0])
@virtual
async def test_a_request_of_a_chain_ends_at_the_chain_s_deadline_or_its_own(own: float | None) -> None:
    async with Bench(slots=2) as bench:
        bench.engines[0].next_behaviours.append(Behaviour())
        assert await bench.start(chat("a"), deadline=5.0) == "done"
        bench.hold()
        await asyncio.sleep(2.0)
        parsed = chat("b")
        job = msgspec.structs.replace(parsed.job, parent="a")
        with pytest.raises(TimedOutError, match=r"deadline of (1|3) s"):
            await bench.plane.submit(job, parsed.call, MemorySink(), deadline=own)
        assert asyncio.get_running_loop().time() == (3.0 if own == 1.0 else 5.0)


@virtual
async def test_the_same_id_twice_is_a_conflict() -> None:
    async with Bench() as bench:
        bench.hold()
        first = bench.start(chat("a"))
        sink = bench.sinks["a"]
        await bench.engines[0].until_running(1)
        with pytest.raises(ConflictError, match="'a' is in flight"):
            await bench.start(chat("a"))
        bench.gate.set()
        assert await first == "done"
        assert sink.ended
        bench.sinks["a"] = MemorySink()


# ---- engines and policies come and go ----


@virtual
async def test_an_engine_that_goes_down_gets_nothing_until_it_is_back() -> None:
    async with Bench(2) as bench:
        bench.plane.engine_down("e0", "killed", crashed=True)
        for ident in "ab":
            assert await bench.start(chat(ident)) == "done"
        assert len(bench.engines[1].calls) == 2
        statuses = {status.name: status for status in bench.plane.engines()}
        assert (statuses["e0"].state, statuses["e0"].detail) == ("failed", "killed")
        bench.plane.add_engine(bench.engines[0])
        await bench.start(chat("c"))
        assert [call.request_id for call in bench.engines[0].calls] == ["c"]


@virtual
async def test_an_engine_removed_in_between_still_serves_what_was_placed() -> None:
    async with Bench() as bench:
        bench.hold()
        first = bench.start(chat("a"))
        await bench.engines[0].until_running(1)
        second = bench.start(chat("b"))
        await bench.settled()
        other = MemoryEngine("e1", max_running=1)
        bench.plane.add_engine(other)  # places b, whose task has not run since
        bench.plane.remove_engine("e1")
        assert await second == "done"
        assert [call.request_id for call in other.calls] == ["b"]
        assert [status.name for status in bench.plane.engines()] == ["e0"]
        bench.gate.set()
        assert await first == "done"


@virtual
async def test_two_engines_cannot_share_a_name() -> None:
    async with Bench() as bench:
        with pytest.raises(ConflictError, match="'e0'"):
            bench.plane.add_engine(MemoryEngine("e0"))


@virtual
async def test_the_policy_changes_under_load_without_losing_a_request() -> None:
    async with Bench(2) as bench:
        bench.hold()
        tasks = [bench.start(chat(f"r{number}")) for number in range(10)]
        await bench.engines[1].until_running(1)
        bench.plane.set_policy("round_robin")
        assert bench.plane.policy == "round_robin"
        bench.gate.set()
        assert await asyncio.gather(*tasks) == ["done"] * 10
        policies = [decision.policy for decision in reversed(bench.plane.decisions())]
        assert policies == ["fifo"] * 2 + ["round_robin"] * 8
        with pytest.raises(ConfigError, match="fifo, hybrid, least_load"):
            bench.plane.set_policy("best")
        assert bench.plane.policy == "round_robin"


# ---- the end ----


@virtual
async def test_close_lets_requests_finish_and_refuses_new_ones() -> None:
    async with Bench() as bench:
        bench.hold(1)
        task = bench.start(chat("a"))
        await bench.engines[0].until_running(1)
        closing = asyncio.create_task(bench.plane.close(5.0))
        await bench.settled()
        with pytest.raises(UnavailableError, match="shutting down"):
            await bench.start(chat("b"))
        bench.gate.set()
        await closing
        assert await task == "done"


@virtual
async def test_close_ends_what_does_not_finish_with_an_error() -> None:
    async with Bench() as bench:
        bench.hold(1)
        streaming = bench.start(chat("a"))
        await bench.engines[0].until_running(1)
        await bench.sinks["a"].until_chunks(1)
        queued = bench.start(chat("b"))
        await bench.settled()
        await bench.plane.close(3.0)
        assert asyncio.get_running_loop().time() == 3.0
        assert await streaming == "failed"
        assert b"shutting down" in bench.sinks["a"].chunks[-1]
        with pytest.raises(UnavailableError, match="shutting down"):
            await queued


@virtual
async def test_a_storm_of_disconnects_and_faults_leaves_nothing_behind() -> None:
    async with Bench(3, slots=2) as bench:
        for engine in bench.engines:
            for number in range(40):
                fault = FAULT if number % 3 == 0 else None
                engine.next_behaviours.append(Behaviour(fault=fault, fault_after=number % 4))
        tasks = []
        for number in range(200):
            tasks.append(bench.start(chat(f"r{number}", stream=number % 2 == 0)))
            if number % 3 == 0:
                await asyncio.sleep(0)
            if number % 4 == 0:
                tasks[number // 2].cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        expected = (asyncio.CancelledError, EngineError, UnavailableError)
        assert all(one in ("done", "failed") or isinstance(one, expected) for one in results)
        assert results.count("done") > 50
        bench.assert_idle()
