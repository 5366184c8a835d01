"""Flows of requests: replies, partial results, cancellation, draining."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest

from sage.common.errors import OverloadedError, UnavailableError, UsageError
from sage.kernel import Batch, Failure, Flow, Job, LocalEnvironment, OperatorError, Part, ReplyError, Retry
from sage.kernel.runtime.batcher import Batcher


def service(build: Any, *, name: str = "svc") -> Flow:
    flow = Flow(name)
    flow.reply(build(flow.requests(object)))
    return flow


async def start(build: Any, **options: Any) -> Job:
    return await LocalEnvironment().submit(service(build), **options)


async def echo(x: Any) -> Any:
    await asyncio.sleep(0)
    return x


async def test_every_caller_gets_its_own_reply() -> None:
    def build(s: Any) -> Any:
        return (
            s.map(lambda x: x + 1)
            .map(echo, concurrency=3)
            .map_batch(lambda xs: [x * 2 for x in xs], Batch(4))
        )

    async with await start(build) as job:
        assert await asyncio.gather(*(job.request(x) for x in range(50))) == [(x + 1) * 2 for x in range(50)]
        report = job.report()
        assert report["echo"].items_in == report["reply"].items_in == 50
        assert report["echo"].in_flight == 0


async def test_falsy_replies_are_replies() -> None:
    async with await start(lambda s: s.map(echo)) as job:
        for x in (None, 0, "", False):
            assert await job.request(x) is x


async def test_an_error_is_the_callers_and_the_job_goes_on() -> None:
    async with await start(lambda s: s.map(lambda x: 1 / x, name="div").map(echo)) as job:
        with pytest.raises(OperatorError, match=r"operator 'div' failed on item 1 \(0\): ZeroDivisionError"):
            await asyncio.gather(job.request(1), job.request(0))
        assert await job.request(2) == 0.5


async def test_a_request_without_a_reply_says_so() -> None:
    async with await start(lambda s: s.filter(bool).map(echo)) as job:
        assert await job.request(1) == 1
        with pytest.raises(ReplyError, match="gave no reply"):
            await job.request(0)


async def test_two_replies_are_an_error() -> None:
    async with await start(lambda s: s.merge(s.map(echo))) as job:
        with pytest.raises(ReplyError, match="two replies"):
            await job.request(1)


async def test_branches_choose_the_way_to_the_reply() -> None:
    def build(s: Any) -> Any:
        return s.filter(lambda x: x > 0).map(echo).merge(s.filter(lambda x: x <= 0).map(lambda x: "low"))

    async with await start(build) as job:
        assert [await job.request(x) for x in (3, -3)] == [3, "low"]


async def test_a_diverted_request_may_be_answered_otherwise() -> None:
    async def fails(x: int) -> int:
        raise ConnectionError("gone")

    def build(s: Any) -> Any:
        tried = s.map(fails, retry=Retry(3, 0), on_error="divert")
        return tried.merge(tried.diverted.map(lambda f: f))

    async with await start(build) as job:
        assert await job.request(7) == Failure(7, "fails", "ConnectionError: gone", 3)
        assert job.report()["fails"].retries == 2


async def test_side_branches_see_every_request() -> None:
    class Log:
        def __init__(self) -> None:
            self.seen: list[Any] = []
            self.ends: list[str] = []

        async def write(self, _epoch: int, items: Any) -> None:
            self.seen.extend(items)

        async def commit(self, _epoch: int) -> None:
            self.ends.append("commit")

        async def close(self) -> None:
            self.ends.append("close")

    log, flow = Log(), Flow("log")
    plain: list[int] = []
    asks = flow.requests(int)
    asks.flatmap(lambda x: [x] * x).sink(log)
    asks.sink(plain.append)
    flow.reply(asks.map(echo))
    async with await LocalEnvironment().submit(flow) as job:
        assert [await job.request(x) for x in (2, 0, 1)] == [2, 0, 1]
    assert (log.seen, plain, log.ends) == ([2, 2, 1], [2, 0, 1], ["commit", "close"])


async def test_keyed_state_is_shared_by_requests() -> None:
    async with await start(
        lambda s: s.keyby(lambda x: x[0]).scan(int, lambda n, x: (n + x[1], n + x[1]))
    ) as job:
        asks = [("a", 1), ("", 5), ("a", 2), ("", 5)]
        assert [await job.request(x) for x in asks] == [1, 5, 3, 10]


async def test_over_the_limit_is_refused(gate: Any) -> None:
    async with await start(lambda s: s.map(gate), limit=2) as job:
        tasks = [asyncio.create_task(job.request(x)) for x in (1, 2)]
        await gate.until(2)
        with pytest.raises(OverloadedError, match="2 requests in flight") as caught:
            await job.request(3)
        assert caught.value.retry_after
        for x in (1, 2):
            gate.open(x)
        assert await asyncio.gather(*tasks) == [1, 2]


async def test_calls_in_flight_stay_within_concurrency(gate: Any, turns: Any) -> None:
    async with await start(lambda s: s.map(gate, concurrency=2)) as job:
        tasks = [asyncio.create_task(job.request(x)) for x in range(6)]
        while not all(task.done() for task in tasks):
            for x in list(gate.waiting):
                gate.open(x)
            await asyncio.sleep(0)
        assert gate.most == 2


async def test_cancelling_a_request_cancels_its_call_only(gate: Any) -> None:
    async with await start(lambda s: s.map(gate)) as job:
        tasks = [asyncio.create_task(job.request(x)) for x in (1, 2)]
        await gate.until(2)
        tasks[0].cancel()
        with pytest.raises(asyncio.CancelledError):
            await tasks[0]
        assert gate.cancelled == [1]
        gate.open(2)
        assert await tasks[1] == 2


async def test_a_batch_call_is_cancelled_when_nobody_waits_for_it(gate: Any, turns: Any) -> None:
    async def batch(xs: list[int]) -> list[int]:
        await gate(tuple(xs))
        return xs

    async with await start(lambda s: s.map_batch(batch, Batch(8))) as job:
        tasks = [asyncio.create_task(job.request(x)) for x in (1, 2)]
        await gate.until(1)
        tasks[0].cancel()
        await turns()
        assert gate.cancelled == []
        tasks[1].cancel()
        await turns()
        assert gate.cancelled == [(1, 2)]
        task = asyncio.create_task(job.request(3))
        await gate.until(1)
        gate.open((3,))
        assert await task == 3


async def test_a_batch_that_fails_fails_for_each_of_its_requests() -> None:
    def batch(xs: Any) -> Any:
        raise ValueError("all of them")

    async with await start(lambda s: s.map_batch(batch, Batch(8))) as job:
        results = await asyncio.gather(*(job.request(x) for x in range(3)), return_exceptions=True)
        assert all(isinstance(r, OperatorError) and "all of them" in str(r) for r in results)


async def test_batches_fill_from_concurrent_requests() -> None:
    sizes: list[int] = []

    async def call(xs: list[int]) -> list[int]:
        sizes.append(len(xs))
        return xs

    batcher = Batcher(call, Batch(4, wait=60), 2)
    async with asyncio.timeout(5):
        assert await asyncio.gather(*(batcher(x) for x in range(8))) == list(range(8))
    assert sizes == [4, 4]
    lonely = Batcher(call, Batch(4, wait=0.001), 2)
    assert await lonely(9) == 9
    await batcher.close()


async def test_stopping_drains(gate: Any, turns: Any) -> None:
    job = await start(lambda s: s.map(gate))
    task = asyncio.create_task(job.request(1))
    await gate.until(1)
    stopping = asyncio.create_task(job.stop())
    await turns()
    assert not stopping.done()
    with pytest.raises(UnavailableError, match="stopping"):
        await job.request(2)
    gate.open(1)
    await stopping
    assert await task == 1
    assert not job.report().interrupted
    await job.stop()


async def test_stopping_at_once_cancels_what_is_in_flight(gate: Any) -> None:
    job = await start(lambda s: s.map(gate))
    task = asyncio.create_task(job.request(1))
    await gate.until(1)
    await job.stop(drain=False)
    with pytest.raises(UnavailableError, match="was stopped before it replied"):
        await task
    assert gate.cancelled == [1]
    assert job.report().interrupted


async def test_resources_are_set_up_and_closed_once() -> None:
    log: list[str] = []

    class Client:
        async def setup(self) -> None:
            log.append("setup")

        async def __call__(self, x: int) -> int:
            return x

        async def close(self) -> None:
            log.append("close")

    client = Client()
    async with await start(lambda s: s.map(client).map(client)) as job:
        assert await job.request(1) == 1
        assert log == ["setup"]
    assert log == ["setup", "close"]


@dataclass
class Answer:
    text: str


async def speak(words: list[str]) -> AsyncIterator[Part[str] | Answer]:
    for word in words:
        await asyncio.sleep(0)
        yield Part(word)
    yield Answer(" ".join(words))


async def test_a_stream_gives_parts_then_the_reply() -> None:
    async with await start(lambda s: s.map(speak).map(lambda a: a.text.upper())) as job:
        stream = job.stream(["a", "b"])
        assert [part async for part in stream] == ["a", "b"]
        assert await stream.reply() == "A B"
        assert await job.request(["c"]) == "C"
        assert await job.stream(["d"]).reply() == "D"
        with pytest.raises(UsageError, match="iterated once"):
            async for _ in stream:
                pass


async def test_parts_arrive_while_the_call_goes_on(gate: Any) -> None:
    async def slow(x: int) -> AsyncIterator[Part[int] | int]:
        yield Part(x)
        yield await gate(x)

    async with await start(lambda s: s.map(slow)) as job:
        parts = aiter(job.stream(5))
        assert await anext(parts) == 5
        await gate.until(1)
        gate.open(5)
        with pytest.raises(StopAsyncIteration):
            await anext(parts)


async def test_streams_do_not_mix() -> None:
    async with await start(lambda s: s.map(speak)) as job:

        async def read(words: list[str]) -> list[str]:
            return [part async for part in job.stream(words)]

        asked = [[f"{i}{j}" for j in range(40)] for i in range(5)]
        assert await asyncio.gather(*(read(words) for words in asked)) == asked


async def test_a_reader_that_stalls_holds_the_operator_back(turns: Any) -> None:
    made: list[int] = []

    async def endless(x: int) -> AsyncIterator[Part[int] | int]:
        for i in range(1000):
            made.append(i)
            yield Part(i)
        yield x

    async with await start(lambda s: s.map(endless)) as job:
        parts = aiter(job.stream(1))
        await anext(parts)
        await turns()
        assert len(made) < 40
        await parts.aclose()
        assert job.report()["endless"].in_flight == 0


async def test_leaving_a_stream_cancels_the_request(gate: Any, turns: Any) -> None:
    async def slow(x: int) -> AsyncIterator[Part[int] | int]:
        yield Part(x)
        yield await gate(x)

    async with await start(lambda s: s.map(slow)) as job:
        stream = job.stream(1)
        async for _ in stream:
            await gate.until(1)
            break
        await turns()
        assert gate.cancelled == [1]
        with pytest.raises(ReplyError, match="left before its end"):
            await stream.reply()


async def test_an_error_ends_the_stream() -> None:
    async def fails(x: int) -> AsyncIterator[Part[int] | int]:
        yield Part(x)
        raise ValueError("half way")

    async with await start(lambda s: s.map(fails)) as job:
        parts = aiter(job.stream(1))
        assert await anext(parts) == 1
        with pytest.raises(OperatorError, match="half way"):
            await anext(parts)
