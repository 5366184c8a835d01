"""What the driver tells its core, and when; and what it does with actions that are not about requests."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from sage.common.errors import EngineError, UnreachableError
from sage.common.telemetry import RequestClass
from sage.middleware.control_plane.core import Core
from sage.middleware.control_plane.options import CoreOptions
from sage.middleware.control_plane.policies.fifo import Fifo
from sage.middleware.control_plane.policy import BatchLimits, EngineView, PolicyOptions, Traits
from sage.middleware.control_plane.records import Record
from sage.middleware.control_plane.types import (
    Action,
    Cancelled,
    Event,
    Failed,
    Finished,
    FirstByte,
    GaveUp,
    Progress,
    StartEngine,
    Tick,
)
from sage.middleware.testing.bench import Bench, chat, embedding
from sage.middleware.testing.memory import Behaviour
from sage.middleware.testing.virtual import virtual


class Batching(Fifo):
    """Fifo that coalesces."""

    traits = Traits(batches=True)

    def batch(self, record: Record, engine: EngineView, now: float) -> BatchLimits:
        return BatchLimits(64, 1_000_000)


class Watched(Core):
    """A core that remembers its events, and does more where it is told to."""

    def __init__(self) -> None:
        super().__init__(Batching(PolicyOptions()), CoreOptions())
        self.events: list[Event] = []
        self.extra: list[Action] = []
        self.broken: set[type[Event]] = set()  # raise at the next of these

    def handle(self, event: Event) -> list[Action]:
        self.events.append(event)
        actions = super().handle(event)
        if type(event) in self.broken:
            self.broken.clear()
            raise ArithmeticError("a fault of ours")
        extra, self.extra = self.extra, []
        return [*actions, *extra]

    def heard(self, *kinds: type[Any]) -> Sequence[Any]:
        return [event for event in self.events if isinstance(event, kinds)]


@virtual
async def test_a_stream_has_one_first_byte_and_one_end() -> None:
    core = Watched()
    async with Bench(core=core) as bench:
        await bench.start(chat("a"))
        assert [type(event) for event in core.heard(FirstByte, Finished, Failed)] == [FirstByte, Finished]
        (finished,) = core.heard(Finished)
        assert finished.usage == bench.engines[0].usages[0]


@pytest.mark.parametrize(
    ("fault", "after", "expected"),
    [
        (UnreachableError("refused"), 0, (True, True, True)),
        (EngineError("broke"), 0, (True, True, False)),
        (EngineError("broke"), 1, (False, True, False)),
    ],
)
@virtual
async def test_a_failure_says_what_it_was(
    fault: Exception, after: int, expected: tuple[bool, bool, bool]
) -> None:
    core = Watched()
    async with Bench(core=core) as bench:
        bench.engines[0].next_behaviours.append(Behaviour(fault=fault, fault_after=after))
        await asyncio.gather(bench.start(chat("a")), return_exceptions=True)
        failed = core.heard(Failed)[0]
        assert (failed.retryable, failed.fault, failed.refused) == expected
        assert failed.reason == str(fault)


@virtual
async def test_progress_names_once_a_second_what_has_had_bytes() -> None:
    core = Watched()
    async with Bench(2, core=core) as bench:
        bench.engines[0].behaviour = Behaviour(every_s=1.6)
        bench.engines[1].behaviour = Behaviour(gate=bench.gate)
        moving, still = bench.start(chat("a")), bench.start(chat("b"))
        assert await moving == "done"
        reports = core.heard(Progress)
        # chunks come at 1.6, 3.2 and 4.8 s, the end at 6.4 s
        assert [event.at for event in reports] == [2.0, 4.0, 5.0]
        assert {attempt for event in reports for attempt in event.attempts} == {1}
        bench.gate.set()
        await still
        count = len(core.events)
        await asyncio.sleep(20.0)
        assert all(isinstance(event, Tick) for event in core.events[count:])


@virtual
async def test_who_waits_for_texts_of_another_call_does_not_stall() -> None:
    core = Watched()
    async with Bench(2, core=core) as bench:
        bench.hold()
        first = bench.start(embedding("a", "same"))
        await bench.engines[0].until_running(1)
        second = bench.start(embedding("b", "same"))
        await asyncio.sleep(1.5)
        assert [event.attempts for event in core.heard(Progress)] == [(2,)]
        bench.gate.set()
        assert [await first, await second] == ["done", "done"]


@virtual
async def test_the_usage_of_a_call_is_what_the_engine_counted() -> None:
    core = Watched()
    async with Bench(core=core) as bench:
        bench.hold()
        tasks = [bench.start(embedding(f"r{number}", f"text {number}", "same")) for number in range(4)]
        await bench.engines[0].until_running(1)
        bench.gate.set()
        await asyncio.gather(*tasks)
        assert [event.usage for event in core.heard(Finished)] == bench.engines[0].usages
        assert not core.heard(FirstByte)  # only a stream has a first token


@virtual
async def test_the_end_of_a_request_is_told_once() -> None:
    core = Watched()
    async with Bench(core=core) as bench:
        bench.hold()
        late, gone = bench.start(chat("late"), deadline=1.0), bench.start(chat("gone"))
        await asyncio.gather(late, return_exceptions=True)
        await bench.engines[0].until_running(1)
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        ends = core.heard(GaveUp, Cancelled, Finished, Failed)
        assert [(type(event), event.id) for event in ends] == [(GaveUp, "late"), (Cancelled, "gone")]


@virtual
async def test_the_core_is_woken_when_it_asks_to_be() -> None:
    core = Watched()
    async with Bench(core=core, queue_max_wait_s=7.0) as bench:
        bench.hold()
        running = bench.start(chat("a"))
        await bench.engines[0].until_running(1)
        await asyncio.gather(bench.start(chat("b")), return_exceptions=True)
        assert asyncio.get_running_loop().time() == CoreOptions().limits.queue_max_wait_s
        assert core.heard(Tick)[-1].at == asyncio.get_running_loop().time()
        bench.gate.set()
        await running


@virtual
async def test_a_fault_of_ours_in_a_call_s_own_task_ends_its_requests(
    caplog: pytest.LogCaptureFixture,
) -> None:
    core = Watched()
    async with Bench(core=core) as bench:
        gate = asyncio.Event()
        bench.engines[0].next_behaviours.append(Behaviour(gate=gate))
        first = bench.start(chat("first"))
        await bench.engines[0].until_running(1)
        tasks = [bench.start(embedding(name, name)) for name in "ab"]
        await bench.settled()
        bench.engines[0].behaviour = Behaviour(fault=EngineError("broke"))
        core.broken = {Failed}
        gate.set()
        await first
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [str(result) for result in results] == ["The answer was lost by a fault of this server."] * 2
        assert "a fault of ours" in caplog.text


@virtual
async def test_an_action_about_engines_that_nobody_takes_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    core = Watched()
    async with Bench(core=core) as bench:
        core.extra = [StartEngine("e0", "e0-1", "load")]
        assert await bench.start(chat("a")) == "done"
        assert "nobody here starts or stops engines" in caplog.text


@virtual
async def test_whoever_runs_the_engines_may_add_one_at_once() -> None:
    core = Watched()
    async with Bench(core=core) as bench:
        taken: list[object] = []

        def take(action: object) -> None:
            taken.append(action)
            bench.plane.announce(bench.engines[0].spec.__class__("new", "memory", "other", frozenset(), 1))

        bench.plane.on_engine_action = take
        core.extra = [StartEngine("e0", "new", "load")]
        assert await bench.start(chat("a")) == "done"
        assert taken == [StartEngine("e0", "new", "load")]
        assert [status.name for status in bench.plane.engines()] == ["e0", "new"]
        bench.plane.remove_engine("new")


@virtual
async def test_a_decision_tells_what_explain_needs() -> None:
    async with Bench(2, policy="least_load") as bench:
        await bench.start(chat("a"), deadline=9.0)
        decision = bench.plane.decision("a")
        assert decision is not None
        assert decision.deadline_s == 9.0
        assert decision.slo.ttft_s is not None
        assert decision.output_tokens_p50
        assert decision.actual_s == 0.0
        assert [one.engine for one in decision.candidates] == ["e0", "e1"]
        assert decision.refusal == ""
        await bench.start(embedding("b", "x"))
        other = bench.plane.decision("b")
        assert other is not None
        assert (other.route, other.output_tokens_p50) == ("embeddings", None)
        assert other.request_class == RequestClass.EMBED_INTERACTIVE
