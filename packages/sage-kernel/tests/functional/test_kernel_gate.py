"""Gates: records wait for a human, in requests, in finite runs and in loops."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sage.common.errors import NotFoundError, OverloadedError, UsageError
from sage.common.testing import VirtualClock
from sage.kernel import (
    Failure,
    Flow,
    Job,
    LocalEnvironment,
    Reject,
    RejectedError,
    Stream,
    Window,
    call_service,
)

HOUR = 3600.0


def large(x: int) -> bool:
    return x >= 10


def refunds(**options: Any) -> Flow:
    flow = Flow("refunds")
    flow.reply(flow.requests(int).gate("refunds", when=large, timeout=HOUR, **options).map(str))
    return flow


async def held(parked: Any, count: int) -> list[Any]:
    """Let the loop turn until so many records are parked."""
    async with asyncio.timeout(5):
        while True:
            found = [] if "refunds" not in parked.names() else parked.parked("refunds")
            if len(found) >= count:
                return list(found)
            await asyncio.sleep(0)


async def ask(job: Job, *items: int) -> tuple[list[asyncio.Task[Any]], dict[int, str]]:
    """Send requests that a gate parks; gives them and the ids by item."""
    tasks = [asyncio.create_task(job.request(item)) for item in items]
    return tasks, {one.item: one.id for one in await held(job.inboxes, len(items))}


async def test_a_human_approves_replaces_and_rejects() -> None:
    clock = VirtualClock(wall=1000.0)
    async with await LocalEnvironment(clock=clock).submit(refunds()) as job:
        assert await job.request(9) == "9"
        tasks, ids = await ask(job, 10, 11, 12)
        waiting = [(one.item, one.since, one.until) for one in job.parked("refunds")]
        assert waiting == [(item, 1000.0, 1000.0 + HOUR) for item in (10, 11, 12)]
        await job.resolve("refunds", ids[11], 5)
        await job.resolve("refunds", ids[10])
        assert await asyncio.gather(*tasks[:2]) == ["10", "5"]
        await job.resolve("refunds", ids[12], Reject("too much"))
        with pytest.raises(RejectedError, match=r"rejected in inbox 'refunds': too much") as caught:
            await tasks[2]
        assert (caught.value.code, caught.value.status) == ("rejected", 403)
        assert job.parked("refunds") == []


async def test_none_is_a_value_to_go_on_with() -> None:
    flow = Flow("none")
    flow.reply(flow.requests(int).gate("refunds", timeout=HOUR))
    async with await LocalEnvironment().submit(flow) as job:
        tasks, ids = await ask(job, 1)
        await job.resolve("refunds", ids[1], None)
        assert await tasks[0] is None


async def test_what_nobody_decides_on_has_the_stated_outcome() -> None:
    for outcome in ("approve", "reject"):
        clock = VirtualClock()
        async with await LocalEnvironment(clock=clock).submit(refunds(on_timeout=outcome)) as job:
            first, _ = await ask(job, 10)
            clock.advance(HOUR / 2)
            second, _ = await ask(job, 20)
            inbox = job.inboxes.get("refunds")
            clock.advance(HOUR / 2)
            inbox.expire()
            if outcome == "approve":
                assert await first[0] == "10"
            else:
                with pytest.raises(RejectedError, match=r"nobody decided .* 'refunds' within 3600 s"):
                    await first[0]
            assert [one.item for one in job.parked("refunds")] == [20]
            inbox.expire()
            assert not second[0].done()
            await job.resolve("refunds", job.parked("refunds")[0].id)
            assert await second[0] == "20"


async def test_the_time_runs_out_by_itself() -> None:
    flow = Flow("soon")
    flow.reply(flow.requests(int).gate("refunds", timeout=0.001, on_timeout="approve"))
    async with await LocalEnvironment().submit(flow) as job, asyncio.timeout(5):
        assert [await job.request(x) for x in (1, 2)] == [1, 2]


async def test_an_inbox_is_bounded() -> None:
    async with await LocalEnvironment().submit(refunds(limit=2, on_error="skip")) as job:
        tasks, ids = await ask(job, 10, 11)
        with pytest.raises(OverloadedError, match="inbox 'refunds' holds 2 undecided records") as caught:
            await job.request(12)
        assert caught.value.retry_after
        assert await job.request(1) == "1"
        await job.resolve("refunds", ids[10])
        await tasks[0]
        more = asyncio.create_task(job.request(13))
        assert [one.item for one in await held(job.inboxes, 2)] == [11, 13]
        await job.stop(drain=False)
        await asyncio.gather(tasks[1], more, return_exceptions=True)


async def test_a_request_that_is_cancelled_waits_no_more() -> None:
    async with await LocalEnvironment().submit(refunds()) as job:
        tasks, ids = await ask(job, 10)
        tasks[0].cancel()
        with pytest.raises(asyncio.CancelledError):
            await tasks[0]
        assert job.parked("refunds") == []
        with pytest.raises(NotFoundError, match=rf"nothing with the id '{ids[10]}'; it has nothing"):
            await job.resolve("refunds", ids[10])
        with pytest.raises(NotFoundError, match="no inbox 'refund'; there are: refunds"):
            job.parked("refund")


async def test_a_decision_on_a_request_that_is_being_cancelled_is_lost_with_it() -> None:
    async with await LocalEnvironment().submit(refunds()) as job:
        tasks, ids = await ask(job, 10, 11)
        tasks[0].cancel()
        await job.resolve("refunds", ids[10])
        await job.resolve("refunds", ids[11])
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(results[0], asyncio.CancelledError)
        assert (results[1], job.parked("refunds")) == ("11", [])


async def test_a_flow_that_serves_shares_the_inboxes_of_who_calls_it() -> None:
    env, flow = LocalEnvironment(), Flow("asks")
    env.register_service("desk", refunds())
    flow.source([10]).map(call_service("desk")).sink(lambda x: None)
    run = await env.start(flow)
    [one] = await held(run.inboxes, 1)
    await run.resolve("refunds", one.id)
    assert (await run.wait())["desk"].items_out == 1
    same = Flow("same")
    same.reply(same.requests(int).map(call_service("desk")).gate("refunds", timeout=1))
    with pytest.raises(UsageError, match="2 gates, one of them in a service, use the inbox 'refunds'"):
        await env.submit(same)


async def test_a_rejected_request_may_be_answered_otherwise() -> None:
    flow = Flow("refunds")
    asked = flow.requests(int).gate("refunds", timeout=HOUR, on_error="divert", name="desk")
    flow.reply(asked.map(str).merge(asked.diverted.map(lambda failure: failure.error)))
    async with await LocalEnvironment().submit(flow) as job:
        tasks, ids = await ask(job, 7)
        await job.resolve("refunds", ids[7], Reject())
        assert await tasks[0] == "RejectedError: it was rejected in inbox 'refunds'"
        assert job.report()["desk"].diverted == 1


async def test_parked_requests_outlive_their_job() -> None:
    seen: list[str] = []

    def build() -> Flow:
        flow = Flow("refunds")
        asked = flow.requests(int).gate("refunds", when=large, timeout=HOUR)
        asked.map(str).sink(seen.append)
        flow.reply(asked)
        return flow

    clock = VirtualClock()
    job = await LocalEnvironment(clock=clock).submit(build())
    tasks, ids = await ask(job, 10, 11, 12)
    snapshot = job.inboxes.snapshot()
    await job.stop(drain=False)
    await asyncio.gather(*tasks, return_exceptions=True)
    assert seen == []

    clock.advance(HOUR - 1)
    async with await LocalEnvironment(clock=clock).submit(build()) as job:
        again = job.inboxes.get("refunds")
        job.inboxes.restore(snapshot)
        assert {one.item: one.id for one in job.parked("refunds")} == ids
        await job.resolve("refunds", ids[11])
        await job.resolve("refunds", ids[12], Reject())
        assert again.dirty == {ids[11], ids[12]}
        assert await job.request(1) == 1
        clock.advance(1)
        again.expire()
    assert seen == ["1", "11"] or seen == ["11", "1"]
    assert again.states == {}


async def test_a_gate_in_a_loop_asks_on_each_round() -> None:
    flow = Flow("agent")
    looped = flow.requests(int).iterate(
        lambda s: s.gate("refunds", when=large, timeout=HOUR).map(lambda x: x - 3),
        until=lambda x: x < 8,
        max_rounds=9,
    )
    flow.reply(looped)
    async with await LocalEnvironment().submit(flow) as job:
        task = asyncio.create_task(job.request(15))
        for item in (15, 12):
            [one] = await held(job.inboxes, 1)
            assert one.item == item
            await job.resolve("refunds", one.id)
        assert await task == 6


async def test_a_gate_in_a_loop_of_a_run_waits_for_room() -> None:
    flow = Flow("agents")
    out: list[int] = []
    looped = flow.source([11, 12, 13]).iterate(
        lambda s: s.gate("refunds", timeout=HOUR, limit=1), until=lambda x: True, max_rounds=1
    )
    looped.sink(out.append)
    run = await LocalEnvironment().start(flow)
    for item in (11, 12, 13):
        [one] = await held(run.inboxes, 1)
        assert one.item == item
        await run.resolve("refunds", one.id)
    await run.wait()
    assert out == [11, 12, 13]


# ---- finite runs -------------------------------------------------------------------------------------------


def gated(xs: Any, out: list[Any], **options: Any) -> tuple[Flow, Stream[int]]:
    flow = Flow("gated")
    stream = flow.source(xs).gate("refunds", when=large, timeout=HOUR, **options)
    stream.sink(out.append)
    return flow, stream


async def test_what_passes_is_not_held_up_and_the_run_waits_for_the_rest() -> None:
    out: list[int] = []
    flow, stream = gated([1, 10, 2, 11, 3], out, on_error="divert", name="desk")
    lost: list[Failure[int]] = []
    stream.diverted.sink(lost.append)
    run = await LocalEnvironment(batch=2).start(flow)
    parked = await held(run.inboxes, 2)
    assert out == [1, 2, 3]
    assert run.state == "running"
    await run.resolve("refunds", parked[0].id, 100)
    await run.resolve("refunds", parked[1].id, Reject("no"))
    report = (await run.wait())["desk"]
    assert out == [1, 2, 3, 100]
    assert lost == [Failure(11, "desk", "RejectedError: it was rejected in inbox 'refunds': no", 1)]
    assert (report.items_in, report.items_out, report.diverted, report.in_flight) == (5, 4, 1, 0)


async def test_a_rejected_record_stops_a_run_that_is_told_nothing_else() -> None:
    flow, _ = gated([1, 10], [])
    run = await LocalEnvironment().start(flow)
    [one] = await held(run.inboxes, 1)
    await run.resolve("refunds", one.id, Reject("no"))
    with pytest.raises(RejectedError, match=r"operator 'refunds' failed on item 1 \(10\): it was rejected"):
        await run.wait()


async def test_a_full_inbox_holds_the_source_back(turns: Any) -> None:
    read: list[int] = []

    async def numbers() -> AsyncIterator[int]:
        for x in range(10, 1000):
            read.append(x)
            yield x

    out: list[int] = []
    flow, _ = gated(numbers, out, limit=3)
    run = await LocalEnvironment(batch=2, capacity=4).start(flow)
    await held(run.inboxes, 3)
    await turns()
    assert len(read) <= 3 + 2 + 4 + 2
    while run.state == "running":
        for one in run.parked("refunds"):
            await run.resolve("refunds", one.id)
        await asyncio.sleep(0)
    await run.wait()
    assert sorted(out) == list(range(10, 1000))


async def test_times_run_out_in_a_run_as_well() -> None:
    out: list[int] = []
    flow, _ = gated([10, 1], out, on_timeout="approve")
    clock = VirtualClock()
    run = await LocalEnvironment(clock=clock).start(flow)
    await held(run.inboxes, 1)
    clock.advance(HOUR)
    run.inboxes.get("refunds").expire()
    await run.wait()
    assert out == [1, 10]


async def test_a_when_that_fails_is_the_failure_of_its_record() -> None:
    flow = Flow("fails")
    out: list[float] = []
    numbers = flow.source([1, 0, 2])
    numbers.gate("refunds", when=lambda x: 1 / x > 9, timeout=HOUR, on_error="skip").sink(out.append)
    report = await LocalEnvironment().run(flow)
    assert (out, report["refunds"].skipped) == ([1, 2], 1)


async def test_a_parked_record_holds_the_windows_behind_the_gate_open(turns: Any) -> None:
    flow = Flow("timed")
    panes: list[tuple[float, int]] = []
    timed = flow.source([1, 10, 25, 47]).event_time(float)
    gate = timed.gate("refunds", when=lambda x: x == 10, timeout=HOUR)
    counts = gate.keyby(lambda x: 0).window(Window(20)).reduce(int, lambda n, x: n + 1)
    counts.sink(lambda pane: panes.append((pane.start, pane.value)))
    run = await LocalEnvironment().start(flow)
    [one] = await held(run.inboxes, 1)
    await turns()
    assert panes == []
    await run.resolve("refunds", one.id)
    await run.wait()
    assert panes == [(0, 2), (20, 1), (40, 1)]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 30), max_size=50),
    st.integers(1, 5),
    st.integers(1, 6),
    st.integers(0, 10**9),
    st.booleans(),
)
def test_every_record_leaves_a_gate_once(
    xs: list[int], limit: int, batch: int, seed: int, timed: bool
) -> None:
    flow = Flow("gated")
    out: list[int] = []
    lost: list[Failure[int]] = []
    numbers = flow.source(xs)
    stream = (numbers.event_time(float, lateness=99) if timed else numbers).gate(
        "refunds", when=large, timeout=HOUR, limit=limit, on_error="divert"
    )
    stream.sink(out.append)
    stream.diverted.sink(lost.append)
    rejected: list[int] = []
    random = Random(seed)  # noqa: S311 - whom it asks depends on time, which hypothesis must not see

    async def decide() -> None:
        run = await LocalEnvironment(batch=batch, capacity=4).start(flow)
        while run.state == "running":
            await asyncio.sleep(0)
            parked = run.parked("refunds")
            assert len(parked) <= limit
            for one in random.sample(parked, random.randint(0, len(parked))):
                if random.random() < 0.3:
                    rejected.append(one.item)
                    await run.resolve("refunds", one.id, Reject())
                else:
                    await run.resolve("refunds", one.id)
        await run.wait()

    asyncio.run(decide())
    assert Counter(out) + Counter(rejected) == Counter(xs)
    assert Counter(failure.item for failure in lost) == Counter(rejected)
    assert [x for x in out if not large(x)] == [x for x in xs if not large(x)]
