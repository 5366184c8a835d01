"""Flows of requests with checkpoints: replies, and what was not answered and is taken up again."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from kernel_served import Calls, cut, service, submit, unanswered

from sage.common.errors import ConflictError, OverloadedError, UnavailableError, UsageError
from sage.kernel import (
    Batch,
    CheckpointError,
    Checkpoints,
    Flow,
    LocalEnvironment,
    OperatorError,
    Part,
    ReplyError,
)

# ---- replies -----------------------------------------------------------------------------------------------


async def test_a_reply_is_not_computed_again(tmp_path: Path) -> None:
    calls = Calls()
    plain: list[int] = []

    def added(x: int) -> int:
        plain.append(x)
        return x + 1

    flow = service(lambda s: s.map(calls).map(added))
    async with await submit(tmp_path, flow) as job:
        assert await job.request(1, id="one") == 2
        assert await job.request(1, id="one") == 2
        assert await job.request(1) == 2  # no id: another request
    async with await submit(tmp_path, flow) as job:
        assert job.taken_up == 0
        assert await job.request(1, id="one") == 2
        assert (await job.stream(1, id="one").reply()) == 2
    assert (calls.made[1], plain) == (2, [1, 1])


async def test_an_id_stands_for_one_item(tmp_path: Path) -> None:
    calls = Calls(3)
    async with await submit(tmp_path, service(lambda s: s.map(calls))) as job:
        await job.request(1, id="one")
        with pytest.raises(
            ConflictError, match="flow 'service' was asked with id 'one' before, and for another"
        ):
            await job.request(2, id="one")
        asking = asyncio.create_task(job.request(3, id="three"))
        await calls.reached.wait()
        with pytest.raises(ConflictError, match="with id 'three' before"):
            await job.request(4, id="three")
        asking.cancel()
    assert set(calls.made) == {1, 3}


async def test_ids_need_checkpoints() -> None:
    async with await LocalEnvironment().submit(service(lambda s: s.map(str))) as job:
        with pytest.raises(UsageError, match="keeps no requests by their ids"):
            await job.request(1, id="one")
        with pytest.raises(UsageError, match="runs without checkpoints"):
            await job.checkpoint()


@pytest.mark.parametrize("ident", [7, None, "x" * 513])
async def test_ids_are_texts(tmp_path: Path, ident: Any) -> None:
    async with await submit(tmp_path, service(lambda s: s.map(str))) as job:
        with pytest.raises(UsageError, match="valid is a text of up to 512 characters"):
            await job.request(1, id=ident)


async def test_falsy_replies_are_kept(tmp_path: Path) -> None:
    calls = Calls()
    flow = service(lambda s: s.map(calls))
    for _ in range(2):
        async with await submit(tmp_path, flow) as job:
            for at, item in enumerate((None, 0, "", False, ())):
                assert await job.request(item, id=f"falsy-{at}") is item
    assert sum(calls.made.values()) == 5


async def test_those_who_ask_for_one_thing_share_its_request(tmp_path: Path) -> None:
    calls = Calls("slow")
    async with await submit(tmp_path, service(lambda s: s.map(calls))) as job:
        first = asyncio.create_task(job.request("slow", id="x"))
        await calls.reached.wait()
        second = asyncio.create_task(job.request("slow", id="x"))
        await asyncio.sleep(0)
        calls.stuck.clear()
        first.cancel()  # the other one still wants it
        assert await second == "slow"
        assert await asyncio.gather(*(job.request(1, id="y") for _ in range(5))) == [1] * 5
    assert calls.made == {"slow": 2, 1: 1}


async def test_what_fails_is_told_to_all_and_may_be_asked_again(tmp_path: Path) -> None:
    broken = [True]

    async def brittle(x: int) -> int:
        await asyncio.sleep(0)
        if broken[0]:
            raise ConnectionError("no route")
        return x

    flow = service(lambda s: s.map(brittle, name="brittle"))
    async with await submit(tmp_path, flow) as job:
        found = await asyncio.gather(*(job.request(1, id="x") for _ in range(3)), return_exceptions=True)
        assert [type(one) for one in found] == [OperatorError] * 3
        broken[0] = False
        assert await job.request(1, id="x") == 1
    async with await submit(tmp_path, flow) as job:
        assert job.taken_up == 0


async def test_that_there_is_no_reply_is_remembered(tmp_path: Path) -> None:
    calls = Calls()
    flow = service(lambda s: s.map(calls).filter(lambda x: x > 1))
    for _ in range(2):
        async with await submit(tmp_path, flow) as job:
            with pytest.raises(ReplyError, match="gave no reply: filtered"):
                await job.request(1, id="x")
    assert calls.made[1] == 1


async def test_what_cannot_be_pickled_is_named(tmp_path: Path) -> None:
    flow = service(lambda s: s.map(lambda x: (lambda: x) if x == 1 else x))
    async with await submit(tmp_path, flow) as job:
        with pytest.raises(CheckpointError, match=r"a request of flow 'service' \(<function"):
            await job.request(lambda: 0)
        with pytest.raises(CheckpointError, match=r"a reply of flow 'service' \(<function"):
            await job.request(1, id="x")
        assert await job.request(2) == 2
    async with await submit(tmp_path, flow) as job:
        assert job.taken_up == 0


# ---- what was not answered ---------------------------------------------------------------------------------


async def test_what_was_not_answered_is_taken_up_and_ended_calls_are_not_made_again(tmp_path: Path) -> None:
    first, second = Calls(), Calls(2, 3)
    flow = service(lambda s: s.map(first, concurrency=4).map(second))
    job = await submit(tmp_path, flow)
    assert await job.request(1, id="one") == 1
    asking = [asyncio.create_task(job.request(x, id=str(x) if x == 2 else "")) for x in (2, 3)]
    while not second.made.keys() >= {2, 3}:  # noqa: ASYNC110 - turns of the loop, no time
        await asyncio.sleep(0)
    await cut(job, *asking)

    second.stuck.clear()
    async with await submit(tmp_path, flow) as job:
        assert job.taken_up == 2
        assert await job.request(2, id="2") == 2
    assert first.made == {1: 1, 2: 1, 3: 1}
    assert second.made == {1: 1, 2: 2, 3: 2}
    async with await submit(tmp_path, flow) as job:
        assert job.taken_up == 0
        assert await job.request(2, id="2") == 2
    assert second.made[2] == 2


class Moved:
    """A class that is not there any more when it is looked for."""

    here = True

    def __reduce__(self) -> Any:
        return (moved, ())


def moved() -> Moved:
    if not Moved.here:
        raise ImportError("Moved has moved")
    return Moved()


async def test_a_request_that_cannot_be_read_stays_for_a_start_that_can(tmp_path: Path) -> None:
    calls = Calls("x")
    flow = service(lambda s: s.map(type, name="kind").map(lambda kind: "x").map(calls))
    job = await submit(tmp_path, flow)
    asking = asyncio.create_task(job.request(Moved(), id="moved"))
    await calls.reached.wait()
    await cut(job, asking)
    calls.stuck.clear()

    Moved.here = False
    try:
        async with await submit(tmp_path, flow) as job:
            with pytest.raises(CheckpointError, match="a request of flow 'service' cannot be read"):
                await job.request(Moved(), id="moved")
    finally:
        Moved.here = True
    async with await submit(tmp_path, flow) as job:
        assert job.taken_up == 1
        assert await job.request(Moved(), id="moved") == "x"


async def test_a_request_that_its_caller_cancels_is_not_taken_up(tmp_path: Path) -> None:
    calls = Calls(1)
    flow = service(lambda s: s.map(calls))
    job = await submit(tmp_path, flow)
    asking = asyncio.create_task(job.request(1, id="x"))
    await calls.reached.wait()
    asking.cancel()
    await asyncio.wait([asking])
    assert asking.cancelled()
    await job.stop(drain=False)
    async with await submit(tmp_path, flow) as job:
        assert job.taken_up == 0


async def test_it_is_taken_up_as_often_as_it_is_cut_off(tmp_path: Path) -> None:
    stages = [Calls("x") for _ in range(4)]
    flow = service(
        lambda s: s.map(stages[0]).map(stages[1], name="b").map(stages[2], name="c").map(stages[3])
    )
    job = await submit(tmp_path, flow)
    asking = asyncio.create_task(job.request("x", id="x"))
    for at, stage in enumerate(stages):
        await stage.reached.wait()
        await cut(job, asking)
        stage.stuck.clear()
        job = await submit(tmp_path, flow)
        assert job.taken_up == 1
        asking = asyncio.create_task(job.request("x", id="x"))
        assert [one.made["x"] for one in stages[:at]] == [2] * at
    assert await asking == "x"
    await job.stop()
    assert [one.made["x"] for one in stages] == [2, 2, 2, 2]


async def test_who_waits_for_what_was_taken_up_is_told_when_it_is_cut_off(tmp_path: Path) -> None:
    job = await submit(tmp_path, await unanswered(tmp_path, "x"))
    asking = asyncio.create_task(job.request(1, id="x"))
    await asyncio.sleep(0)
    await cut(job, asking)


async def test_who_asks_for_what_was_cut_off_before_it_went_on_is_told_so(tmp_path: Path) -> None:
    job = await submit(tmp_path, await unanswered(tmp_path, "x"))
    asking = asyncio.create_task(job.request(1, id="x"))
    await cut(job, asking)  # before what was taken up has had a turn
    async with asyncio.timeout(30):
        with pytest.raises(UnavailableError, match="was stopped before it replied"):
            await job.request(1, id="x")


async def test_what_was_taken_up_counts_to_the_limit(tmp_path: Path) -> None:
    flow = await unanswered(tmp_path)
    checkpoints = Checkpoints(tmp_path / "checkpoints", every=0)
    job = await LocalEnvironment(checkpoints=checkpoints).submit(flow, limit=1)
    with pytest.raises(OverloadedError, match="has 1 requests in flight, its limit"):
        await job.request(2)
    await job.stop(drain=False)


async def test_loops_batches_and_caches_give_back_what_they_had(tmp_path: Path) -> None:
    inner, last = Calls(), Calls(40)
    batches: list[list[int]] = []

    async def tens(xs: list[int]) -> list[int]:
        batches.append(list(xs))
        return [10 * x for x in xs]

    def build(s: Any) -> Any:
        looped = s.iterate(lambda t: t.map(inner).map(lambda x: x + 1), until=lambda x: x > 3, max_rounds=9)
        return looped.map_batch(tens, Batch(8)).map(last)

    flow = service(build)
    job = await submit(tmp_path, flow)
    asking = asyncio.create_task(job.request(1, id="x"))
    await last.reached.wait()
    await cut(job, asking)
    last.stuck.clear()
    async with await submit(tmp_path, flow) as job:
        assert await job.request(1, id="x") == 40
    assert (inner.made, batches, last.made[40]) == ({1: 1, 2: 1, 3: 1}, [[4]], 2)


async def test_equal_calls_of_one_request_have_a_result_each(tmp_path: Path) -> None:
    count = iter(range(100))
    last = Calls()
    last.stuck.add((0, 1))

    async def next_one(_: str) -> int:
        return next(count)

    async def twice(x: str) -> tuple[int, int]:
        return x  # type: ignore[return-value]

    flow = Flow("service")
    asks = flow.requests(str)
    seen: list[int] = []
    asks.map(next_one, name="left").sink(seen.append)
    flow.reply(asks.map(next_one, name="right").map(lambda x: (0, x)).map(last))
    job = await submit(tmp_path, flow)
    asking = asyncio.create_task(job.request("q", id="x"))
    await last.reached.wait()
    await cut(job, asking)
    last.stuck.clear()
    async with await submit(tmp_path, flow) as job:
        assert await job.request("q", id="x") == (0, 1)
    assert seen == [0, 0]  # a sync function is called again
    assert next(count) == 2


async def test_parts_are_not_sent_again(tmp_path: Path) -> None:
    async def words(text: str) -> Any:
        for word in text.split():
            yield Part(word)
        yield text.upper()

    last = Calls("A B")
    flow = service(lambda s: s.map(words).map(last))
    job = await submit(tmp_path, flow)
    stream = job.stream("a b", id="x")
    assert [await anext(parts) for parts in [aiter(stream)] for _ in range(2)] == ["a", "b"]
    await last.reached.wait()
    await job.stop(drain=False)
    last.stuck.clear()
    async with await submit(tmp_path, flow) as job:
        stream = job.stream("a b", id="x")
        assert [part async for part in stream] == []
        assert await stream.reply() == "A B"
