"""Async calls and checkpoints: nothing waits for a slow call, nothing is lost, little is paid for twice."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from sage.kernel import Batch, CheckpointError, Checkpoints, Flow, LocalEnvironment, Run, Window
from sage.kernel.testing.sinks import EpochFiles, Numbers


def environment(folder: Path, **options: Any) -> LocalEnvironment:
    return LocalEnvironment(checkpoints=Checkpoints(folder / "checkpoints", every=0), **options)


class Calls:
    """Counts its calls; those of `slow` items never end, until `free` is set."""

    def __init__(self, *slow: int) -> None:
        self.slow = slow
        self.free = asyncio.Event()
        self.made: Counter[int] = Counter()
        self.ended = 0

    async def __call__(self, x: int) -> int:
        self.made[x] += 1
        if x in self.slow:
            await self.free.wait()
        self.ended += 1
        return 10 * x


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - turns of the loop, no time
            await asyncio.sleep(0)


async def cut_off(run: Run) -> None:
    await run.stop(drain=False)


@pytest.mark.parametrize("order", ["any", "input"])
async def test_a_checkpoint_does_not_wait_for_calls(tmp_path: Path, order: Any) -> None:
    def flow(call: Calls) -> Flow:
        flow = Flow("slow")
        flow.source(Numbers(6)).map(call, order=order, concurrency=4).sink(EpochFiles(tmp_path / "out"))
        return flow

    first = Calls(0, 1, 2)
    run = await environment(tmp_path).start(flow(first))
    await until(lambda: first.ended == 3)
    assert await run.checkpoint() == 1
    assert first.ended == 3
    await cut_off(run)
    assert sorted(EpochFiles.records(tmp_path / "out")) == ([] if order == "input" else [30, 40, 50])
    second = Calls()
    report = await environment(tmp_path).run(flow(second))
    # In flight at the checkpoint: called again. Done, and held back by the order: not.
    assert second.made == {0: 1, 1: 1, 2: 1}
    found = EpochFiles.records(tmp_path / "out")
    assert sorted(found) == [0, 10, 20, 30, 40, 50]
    assert order == "any" or found == sorted(found)
    assert [one.items_out for one in report.operators[:2]] == [6, 6]


async def test_a_full_queue_of_slow_calls_does_not_keep_a_checkpoint_waiting(tmp_path: Path) -> None:
    """Every channel is full and the source waits for room: the barrier overtakes all of it."""

    def flow(call: Calls, count: int) -> Flow:
        flow = Flow("full")
        stream = flow.source(Numbers(count)).map(call, concurrency=2).flatmap(lambda x: [x, x + 1])
        stream.map_batch(list, Batch(3)).sink(EpochFiles(tmp_path / "out"))
        return flow

    first = Calls(*range(200))
    run = await environment(tmp_path, batch=4, capacity=8).start(flow(first, 200))
    await until(lambda: first.made.total() == 2)
    assert await run.checkpoint() == 1
    assert (first.ended, first.made.total()) == (0, 2)
    await cut_off(run)
    second = Calls()
    report = await environment(tmp_path, batch=4, capacity=8).run(flow(second, 200))
    assert report.resumed == 1
    expected = Counter(y for x in range(200) for y in (10 * x, 10 * x + 1))
    assert Counter(EpochFiles.records(tmp_path / "out")) == expected
    assert second.made == Counter(range(200))


async def test_calls_that_ended_are_not_made_again(tmp_path: Path) -> None:
    """Also if no checkpoint came after them, and the run was cut off twice."""
    calls = Calls(50)

    def flow(call: Calls) -> Flow:
        flow = Flow("paid")
        flow.source(Numbers(60)).map(call, concurrency=1, name="call").sink(EpochFiles(tmp_path / "out"))
        return flow

    for times in (1, 2):
        run = await environment(tmp_path).start(flow(calls))
        await until(lambda: calls.made[50] == times)  # noqa: B023 - awaited here
        await cut_off(run)
    assert calls.made == Counter(range(51)) + Counter([50])
    last = Calls()
    report = await environment(tmp_path).run(flow(last))
    assert report.resumed == 0
    assert last.made == Counter(range(50, 60))
    assert EpochFiles.records(tmp_path / "out") == [10 * x for x in range(60)]


async def test_equal_inputs_have_results_of_their_own(tmp_path: Path) -> None:
    numbers = iter(range(100))
    release = asyncio.Event()

    async def number(x: int) -> int:
        if x == 2:
            await release.wait()
        return next(numbers)

    def flow() -> Flow:
        flow = Flow("equal")
        flow.source([1, 1, 1, 2]).map(number, concurrency=1, name="call").sink(EpochFiles(tmp_path / "out"))
        return flow

    run = await environment(tmp_path).start(flow())
    await until(lambda: run.reports()[1].items_out == 3)
    await cut_off(run)
    release.set()
    await environment(tmp_path).run(flow())
    assert EpochFiles.records(tmp_path / "out") == [0, 1, 2, 3]


async def test_what_was_paid_for_after_a_checkpoint_outlives_the_next_one(tmp_path: Path) -> None:
    """A result that was not asked for yet when a checkpoint came is still there after it."""
    calls, source = Calls(99), [1, 2, 3, 99, 4]

    def flow(call: Calls, wait: asyncio.Event) -> Flow:
        flow = Flow("left")

        async def items() -> AsyncIterator[int]:
            for x in source:
                if x == 3:
                    await wait.wait()
                yield x

        flow.source(items).map(call, name="call").sink(EpochFiles(tmp_path / "out"))
        return flow

    open_gate, shut = asyncio.Event(), asyncio.Event()
    open_gate.set()
    run = await environment(tmp_path).start(flow(calls, open_gate))
    await until(lambda: calls.ended == 4)
    await cut_off(run)
    for epoch in (1, 2):  # what comes behind 2 is not reached: its results are carried over each time
        again = Calls()
        run = await environment(tmp_path).start(flow(again, shut))
        await until(lambda: run.reports()[1].items_out == 2)  # noqa: B023 - awaited here
        assert await run.checkpoint() == epoch
        await cut_off(run)
        assert not again.made, epoch
    last = Calls()
    await environment(tmp_path).run(flow(last, open_gate))
    assert last.made == {99: 1}
    assert sorted(EpochFiles.records(tmp_path / "out")) == [10, 20, 30, 40, 990]


async def test_a_batch_is_called_with_what_is_missing(tmp_path: Path) -> None:
    batches: list[list[int]] = []
    hold = asyncio.Event()

    async def call(xs: Sequence[int]) -> list[int]:
        batches.append(list(xs))
        if 5 in xs:
            await hold.wait()
        return [10 * x for x in xs]

    def flow() -> Flow:
        flow = Flow("batches")
        stream = flow.source(Numbers(8)).map_batch(call, Batch(4), concurrency=1, order="input")
        stream.sink(EpochFiles(tmp_path / "out"))
        return flow

    run = await environment(tmp_path).start(flow())
    await until(lambda: any(5 in batch for batch in batches))
    await cut_off(run)
    done = {x for batch in batches for x in batch if 5 not in batch}
    batches.clear()
    hold.set()
    await environment(tmp_path, batch=8).run(flow())
    assert sorted(x for batch in batches for x in batch) == sorted(set(range(8)) - done)
    assert EpochFiles.records(tmp_path / "out") == [10 * x for x in range(8)]


@pytest.mark.parametrize("order", ["any", "input"])
async def test_a_failure_that_was_diverted_is_not_diverted_again(tmp_path: Path, order: Any) -> None:
    """Although an earlier call, which is in flight, holds the order back."""
    made: Counter[int] = Counter()
    hold = asyncio.Event()

    async def call(x: int) -> int:
        made[x] += 1
        if x == 0:
            await hold.wait()
        if x % 2:
            raise ValueError(x)
        return x

    def flow() -> Flow:
        flow = Flow("diverted")
        stream = flow.source(Numbers(6)).map(call, on_error="divert", order=order, name="call")
        stream.sink(EpochFiles(tmp_path / "out"))
        stream.diverted.sink(EpochFiles(tmp_path / "bad"))
        return flow

    run = await environment(tmp_path).start(flow())
    await until(lambda: made[5] == 1)
    await run.checkpoint()
    await cut_off(run)
    made.clear()
    hold.set()
    report = await environment(tmp_path).run(flow())
    assert made == {0: 1}
    assert sorted(one.item for one in EpochFiles.records(tmp_path / "bad")) == [1, 3, 5]
    assert sorted(EpochFiles.records(tmp_path / "out")) == [0, 2, 4]
    assert (report["call"].diverted, report["call"].items_out) == (3, 3)


async def test_a_failure_names_its_place_also_in_a_later_run(tmp_path: Path) -> None:
    hold = asyncio.Event()

    async def call(x: int) -> int:
        await hold.wait() if x in (3, 5) else None
        return 1 // (x - 5)

    def flow() -> Flow:
        flow = Flow("places")
        stream = flow.source(Numbers(8)).map(call, on_error="divert", name="call", concurrency=8)
        stream.sink(lambda x: None)
        stream.diverted.map(lambda failure: failure).sink(print)
        return flow

    run = await environment(tmp_path).start(flow())
    await until(lambda: run.reports()[1].items_out == 6)
    await run.checkpoint()
    await cut_off(run)
    hold.set()
    failing = Flow("places")
    stream = failing.source(Numbers(8)).map(call, on_error="fail", name="call", concurrency=8)
    stream.sink(lambda x: None)
    with pytest.raises(CheckpointError, match=r"operator 'print' \(sink\) is in the checkpoint"):
        await environment(tmp_path).run(failing)


async def test_watermarks_wait_for_the_calls_before_them_in_a_later_run_too(tmp_path: Path) -> None:
    calls = Calls(1)

    def flow(call: Calls) -> Flow:
        flow = Flow("times")
        timed = flow.source(Numbers(25)).event_time(float).map(call, name="call")
        panes = timed.keyby(lambda x: 0).window(Window(10)).collect()
        panes.sink(EpochFiles(tmp_path / "out"), name="out")
        return flow

    run = await environment(tmp_path).start(flow(calls))
    await until(lambda: calls.ended == 24)
    await run.checkpoint()
    assert EpochFiles.records(tmp_path / "out") == []
    await cut_off(run)
    again = Calls()
    await environment(tmp_path).run(flow(again))
    panes = EpochFiles.records(tmp_path / "out")
    assert [sorted(pane.value) for pane in panes] == [
        [10 * x for x in range(at, min(at + 10, 25))] for at in (0, 10, 20)
    ]
    assert again.made == {1: 1}


class Lock:
    """No pickle can hold it."""

    def __init__(self, x: int = 0) -> None:
        self.x = x

    def __reduce__(self) -> Any:
        raise TypeError("a lock cannot be pickled")

    def __repr__(self) -> str:
        return f"<Lock {self.x}>"


async def same(x: Any) -> Any:
    return x


async def locked(x: int) -> Any:
    return Lock(x)


async def test_what_cannot_be_pickled_is_named(tmp_path: Path) -> None:
    """The operator and the item, whatever its failures become."""
    takes, gives = Flow("takes"), Flow("gives")
    takes.source(Numbers(3)).map(Lock).map(same, on_error="skip", name="ask").sink(lambda x: None)
    gives.source(Numbers(3)).map(locked, on_error="skip", name="answer").sink(lambda x: None)
    with pytest.raises(CheckpointError, match=r"an item of operator 'ask' \(<Lock 0>\) cannot be pickled"):
        await environment(tmp_path / "takes").run(takes)
    with pytest.raises(CheckpointError, match=r"what operator 'answer' gave for 0 cannot be pickled"):
        await environment(tmp_path / "gives").run(gives)


async def test_a_log_that_ends_in_the_middle_is_read_up_to_there(tmp_path: Path) -> None:
    calls = Calls(7)

    def flow(call: Calls) -> Flow:
        flow = Flow("torn")
        flow.source(Numbers(8)).map(call, concurrency=1, name="call").sink(EpochFiles(tmp_path / "out"))
        return flow

    run = await environment(tmp_path).start(flow(calls))
    await until(lambda: calls.made[7] == 1)
    await cut_off(run)
    (log,) = (tmp_path / "checkpoints").glob("results-*")
    log.write_bytes(log.read_bytes()[:-3])
    last = Calls()
    await environment(tmp_path).run(flow(last))
    assert last.made == {6: 1, 7: 1}
    assert EpochFiles.records(tmp_path / "out") == [10 * x for x in range(8)]


async def test_the_log_is_cut_off_at_checkpoints(tmp_path: Path) -> None:
    calls = Calls(3)

    def names() -> list[str]:
        return sorted(path.name for path in (tmp_path / "checkpoints").glob("results-*"))

    flow = Flow("cut")
    flow.source(Numbers(4)).map(calls, name="call").sink(lambda x: None)
    environment = LocalEnvironment(checkpoints=Checkpoints(tmp_path / "checkpoints", every=0, keep=1))
    run = await environment.start(flow)
    await until(lambda: calls.ended == 3 and names() != [])
    assert names() == ["results-00000001"]
    await run.checkpoint()
    assert names() == []
    calls.free.set()
    await run.wait()
    assert names() == []
