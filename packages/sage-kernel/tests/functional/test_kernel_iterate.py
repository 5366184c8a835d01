"""Loops: records go round until they are done, one by one in a request and many at once in a run."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sage.kernel import (
    Batch,
    Failure,
    Flow,
    LocalEnvironment,
    OperatorError,
    Part,
    ReplyError,
    RoundsError,
    Stream,
    Window,
)


@dataclass(frozen=True)
class Ask:
    question: str
    steps: int = 0
    done: bool = False


async def act(ask: Ask) -> Ask:
    await asyncio.sleep(0)
    return replace(ask, steps=ask.steps + 1, done=ask.steps + 1 >= len(ask.question))


def done(ask: Ask) -> bool:
    return ask.done


def halved(x: int) -> int:
    return x // 2


async def halved_slowly(x: int) -> int:
    for _ in range(x % 3):
        await asyncio.sleep(0)
    return x // 2


def always(x: int) -> bool:
    return True


def small(x: int) -> bool:
    return x < 2


def rounds_of(x: int) -> int:
    """How often `x` is halved, at least once, until it is small."""
    return max(1, x.bit_length() - 1)


BODIES: dict[str, Any] = {
    "sync": lambda s: s.map(halved),
    "async": lambda s: s.map(halved_slowly, concurrency=3),
    "batch": lambda s: s.map_batch(lambda xs: [x // 2 for x in xs], Batch(4)),
    "branches": lambda s: (
        s.filter(lambda x: x % 2).map(halved).merge(s.filter(lambda x: not x % 2).map(halved_slowly))
    ),
    "nested": lambda s: s.iterate(lambda t: t.map(halved), until=always, max_rounds=1, name="inner"),
}


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.integers(0, 3000), max_size=60),
    st.sampled_from(sorted(BODIES)),
    st.integers(1, 12),
    st.sampled_from(["emit", "divert"]),
    st.sampled_from(["any", "input"]),
    st.integers(1, 7),
)
def test_every_record_leaves_the_loop_once(
    xs: list[int], body: str, rounds: int, on_rounds: Any, order: Any, concurrency: int
) -> None:
    flow = Flow("loops")
    out: list[int] = []
    over: list[Failure[int]] = []
    stream = flow.source(xs).iterate(
        BODIES[body],
        until=small,
        max_rounds=rounds,
        on_rounds=on_rounds,
        order=order,
        concurrency=concurrency,
    )
    stream.sink(out.append)
    if on_rounds == "divert":
        stream.diverted.sink(over.append)
    report = LocalEnvironment(batch=5, capacity=8).run_sync(flow)
    ends = [x >> min(rounds, rounds_of(x)) for x in xs]
    late = [end for end in ends if not small(end)] if on_rounds == "divert" else []
    assert sorted(failure.item for failure in over) == sorted(late)
    expected = [end for end in ends if small(end) or on_rounds == "emit"]
    assert out == expected if order == "input" else Counter(out) == Counter(expected)
    assert report["iterate"].in_flight == 0


async def test_an_agent_goes_round_and_streams_its_parts() -> None:
    async def think(ask: Ask) -> AsyncIterator[Part[str] | Ask]:
        yield Part(f"step {ask.steps + 1}")
        yield await act(ask)

    flow = Flow("agent")
    flow.reply(flow.requests(Ask).iterate(lambda s: s.map(think), until=done, max_rounds=12, name="agent"))
    async with await LocalEnvironment().submit(flow) as job:
        stream = job.stream(Ask("abc"))
        assert [part async for part in stream] == ["step 1", "step 2", "step 3"]
        assert await stream.reply() == Ask("abc", 3, done=True)
        report = job.report()
        assert [o.name for o in report.operators] == ["requests", "agent", "agent/think", "reply"]
        assert (report["agent"].items_out, report["agent/think"].items_in) == (1, 3)


async def test_what_is_not_done_in_time_says_so() -> None:
    def build(on_rounds: Any) -> Flow:
        flow = Flow("short")
        flow.reply(
            flow.requests(Ask).iterate(lambda s: s.map(act), until=done, max_rounds=2, on_rounds=on_rounds)
        )
        return flow

    async with await LocalEnvironment().submit(build("fail")) as job:
        with pytest.raises(
            RoundsError, match=r"operator 'iterate' failed .*not done after 2 rounds, its limit"
        ):
            await job.request(Ask("abc"))
        assert await job.request(Ask("ab")) == Ask("ab", 2, done=True)
    async with await LocalEnvironment().submit(build("emit")) as job:
        assert await job.request(Ask("abc")) == Ask("abc", 2)


def test_what_runs_out_of_rounds_is_diverted_as_it_then_is() -> None:
    flow = Flow("short")
    over: list[Failure[Ask]] = []
    stream = flow.source([Ask("abcd")]).iterate(
        lambda s: s.map(act), until=done, max_rounds=3, on_rounds="divert", name="agent"
    )
    stream.sink(print)
    stream.diverted.sink(over.append)
    report = LocalEnvironment().run_sync(flow)
    text = "RoundsError: it was not done after 3 rounds, its limit"
    assert over == [Failure(Ask("abcd", 3), "agent", text, 1)]
    assert report["agent"].diverted == 1


async def test_cancelling_a_request_cancels_the_call_of_its_round(gate: Any, turns: Any) -> None:
    flow = Flow("cancel")
    flow.reply(flow.requests(int).iterate(lambda s: s.map(gate), until=lambda x: x < 0, max_rounds=9))
    async with await LocalEnvironment().submit(flow) as job:
        tasks = [asyncio.create_task(job.request(x)) for x in (1, 2)]
        await gate.until(2)
        gate.open(1)  # the second round of this one
        await turns()
        assert set(gate.waiting) == {1, 2}
        tasks[0].cancel()
        with pytest.raises(asyncio.CancelledError):
            await tasks[0]
        assert gate.cancelled == [1]
        assert not tasks[1].done()
        await job.stop(drain=False)
        assert gate.cancelled == [1, 2]
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_timeout_is_for_all_rounds_and_a_deadline_ends_them(gate: Any) -> None:
    flow = Flow("late")
    stream = flow.requests(int)
    flow.reply(stream.iterate(lambda s: s.map(gate), until=bool, max_rounds=9, timeout=0.001))
    async with await LocalEnvironment().submit(flow) as job:
        with pytest.raises(OperatorError, match=r"TimeoutError: no result within 0.001 s"):
            await job.request(1)
    patient = Flow("patient")
    patient.reply(patient.requests(int).iterate(lambda s: s.map(gate), until=bool, max_rounds=9))
    async with await LocalEnvironment().submit(patient) as job:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.001):
                await job.request(2)
    assert gate.cancelled == [1, 2]


async def test_requests_are_not_throttled_by_the_loop(gate: Any) -> None:
    flow = Flow("wide")
    flow.reply(flow.requests(int).iterate(lambda s: s.map(gate, concurrency=200), until=always, max_rounds=1))
    async with await LocalEnvironment().submit(flow) as job:
        tasks = [asyncio.create_task(job.request(x)) for x in range(200)]
        await gate.until(200)
        for x in range(200):
            gate.open(x)
        assert await asyncio.gather(*tasks) == list(range(200))


async def test_a_run_has_as_many_records_in_the_loop_as_its_body_calls(gate: Any) -> None:
    flow = Flow("wide")
    looped = flow.source(range(150)).iterate(
        lambda s: s.map(gate, concurrency=100), until=always, max_rounds=1
    )
    looped.sink(lambda x: None)
    task = asyncio.create_task(LocalEnvironment().run(flow))
    await gate.until(100)
    while not task.done():
        for x in list(gate.waiting):
            gate.open(x)
        await asyncio.sleep(0)
    assert gate.most == 100
    assert (await task)["iterate"].items_out == 150


async def test_a_record_that_its_body_drops_is_skipped() -> None:
    def build(flow: Flow, start: Stream[int]) -> Stream[int]:
        return start.iterate(lambda s: s.map(halved).filter(lambda x: x != 5), until=small, max_rounds=9)

    flow = Flow("drops")
    out: list[int] = []
    build(flow, flow.source([10, 8])).sink(out.append)
    report = await LocalEnvironment().run(flow)
    assert (out, report["iterate"].skipped, report["iterate"].in_flight) == ([1], 1, 0)
    served = Flow("served")
    served.reply(build(served, served.requests(int)))
    async with await LocalEnvironment().submit(served) as job:
        with pytest.raises(ReplyError, match="gave no reply"):
            await job.request(10)


def inverse(x: int) -> int:
    return 1 // (x - 3)


def test_a_failure_in_the_body_names_both_and_follows_the_loop() -> None:
    def build(flow: Flow, on_error: Any) -> Stream[int]:
        return flow.source([7, 9]).iterate(
            lambda s: s.map(halved).map(inverse), until=always, max_rounds=2, on_error=on_error, name="loop"
        )

    failing = Flow("fails")
    build(failing, "fail").sink(print)
    with pytest.raises(
        OperatorError, match=r"operator 'loop' failed .*operator 'loop/inverse' failed .* ZeroDi"
    ):
        LocalEnvironment().run_sync(failing)
    diverting = Flow("diverts")
    out: list[int] = []
    lost: list[Failure[int]] = []
    stream = build(diverting, "divert")
    stream.sink(out.append)
    stream.diverted.sink(lost.append)
    LocalEnvironment().run_sync(diverting)
    assert (out, [failure.item for failure in lost]) == ([1], [7])


async def test_a_body_may_answer_what_it_diverts() -> None:
    def once(x: int) -> int:
        if x > 10:
            raise ValueError(x)
        return x - 1

    def body(s: Stream[int]) -> Stream[int]:
        tried = s.map(once, on_error="divert")
        return tried.merge(tried.diverted.map(lambda failure: failure.item // 2))

    flow = Flow("answers")
    out: list[int] = []
    flow.source([44]).iterate(body, until=lambda x: x == 0, max_rounds=99, name="down").sink(out.append)
    report = await LocalEnvironment().run(flow)
    assert out == [0]
    assert report["down/once"].diverted == 3  # 44, 22 and 11


class Model:
    """Counts its lives."""

    def __init__(self) -> None:
        self.log: list[str] = []

    def setup(self) -> None:
        self.log.append("setup")

    async def __call__(self, xs: Any) -> Any:
        return [x // 2 for x in xs]

    def close(self) -> None:
        self.log.append("close")


async def test_what_a_body_owns_is_set_up_and_closed_once() -> None:
    model, flow = Model(), Flow("owned")
    flow.source([9, 9]).iterate(lambda s: s.map_batch(model), until=small, max_rounds=9).sink(lambda x: None)
    await LocalEnvironment().run(flow)
    assert model.log == ["setup", "close"]


async def test_a_batch_in_a_body_ends_with_the_run_that_fails(gate: Any) -> None:
    async def batch(xs: Any) -> Any:
        await gate(tuple(xs))

    def fails(x: int) -> int:
        raise ValueError("gone")

    async def wait(x: int) -> int:
        await gate.until(1)
        return x

    flow = Flow("both")
    numbers = flow.source([1])
    numbers.iterate(lambda s: s.map_batch(batch, Batch(2)), until=always, max_rounds=9).sink(print)
    numbers.map(wait).map(fails).sink(print)
    with pytest.raises(OperatorError, match="gone"):
        await LocalEnvironment().run(flow)
    assert gate.cancelled == [(1,)]


def test_a_record_keeps_its_time_on_its_rounds() -> None:
    flow = Flow("timed")
    panes: list[Any] = []
    looped = (
        flow.source([40, 3, 17])
        .event_time(float, lateness=40)
        .iterate(lambda s: s.map(halved_slowly), until=small, max_rounds=9)
    )
    looped.keyby(lambda x: 0).window(Window(10)).reduce(int, lambda n, x: n + 1).sink(panes.append)
    LocalEnvironment().run_sync(flow)
    assert [(pane.start, pane.value) for pane in panes] == [(0, 1), (10, 1), (40, 1)]
