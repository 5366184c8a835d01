"""What is decided about workers, without any: sizes, numbers, retries, the order of results, the room."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage.common.errors import UsageError
from sage.kernel import Flow, Parallel, Registry, Resources, Scale
from sage.kernel.compile import compile_plan
from sage.kernel.runtime.chain import Chain
from sage.kernel.runtime.channel import Channel
from sage.kernel.runtime.columns import Control, Watermark
from sage.kernel.runtime.kernels import Faults
from sage.kernel.runtime.local import PER_WORKER
from sage.kernel.runtime.outputs import Outputs
from sage.kernel.runtime.participant import Participant
from sage.kernel.runtime.replicas.bench import Done
from sage.kernel.runtime.replicas.pool import Pool, Replica, retried
from sage.kernel.runtime.replicas.process import WorkerLostError
from sage.kernel.runtime.replicas.scaling import TARGET_NS, Load, Scaler, next_size
from sage.kernel.runtime.replicas.sequence import Sequence
from sage.kernel.runtime.replicas.stage import ParallelStage
from sage.kernel.runtime.report import Counters
from sage.kernel.runtime.room import Room
from sage.kernel.scheduler import Node

LIMIT = PER_WORKER * 64


def test_batches_grow_while_they_are_quick_and_shrink_when_they_are_slow() -> None:
    size = 1
    for _ in range(12):
        size = next_size(size, 256, size, busy=1000)
    assert size == 256
    assert next_size(256, 256, 256, busy=3 * TARGET_NS) == 128
    assert next_size(64, 256, 3, busy=1000) == 64  # a batch that was not full says nothing
    assert next_size(1, 256, 1, busy=100 * TARGET_NS) == 1


class SizedReplica:
    """Notes the size of each batch, and says that an item takes so many nanoseconds."""

    def __init__(self, sizes: list[int], busy: int) -> None:
        self.sizes, self.busy = sizes, busy

    async def start(self) -> None:
        """It is there."""

    async def run(self, items: Any, _one_by_one: bool, /) -> list[Done]:
        self.sizes.append(len(items))
        tally = (len(items), len(items), 0, self.busy * len(items), ())
        return [Done(items, (tally,), None, 0)]

    async def close(self, now: bool, /) -> None:
        """It has nothing."""


async def sizes_of_batches(count: int, busy: int) -> list[int]:
    flow = Flow("sizes")
    flow.source([1]).map(abs, parallelism=1, name="work").sink(print)
    op = compile_plan(flow.plan, Registry(entry_points=False)).ops[1]
    counters, inbox, behind = Counters("work", "map"), Channel(count), Channel(count)
    outputs = Outputs([behind.writer()], [], counters)
    sizes, writer = list[int](), inbox.writer()
    pool = Pool(lambda: SizedReplica(sizes, busy), lambda _: None)
    await pool.open(1)
    member = Participant("work", inbox, Chain([]), outputs, [counters])
    stage = ParallelStage(op, pool, [Faults(op, counters)], LIMIT, member)
    for start in range(0, count, 64):
        assert writer.try_put(list(range(start, min(start + 64, count))))
    writer.close()
    async with asyncio.TaskGroup() as group:
        await stage.run(group)
    assert await behind.get(count) == list(range(count))
    return sizes


async def test_quick_calls_make_batches_that_are_worth_the_way_to_a_process() -> None:
    sizes = await sizes_of_batches(20_000, busy=50)
    assert sizes[:11] == [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024]
    assert max(sizes) == LIMIT
    assert len(sizes) <= 11 + 20_000 // LIMIT


async def test_calls_that_take_a_while_go_in_small_batches() -> None:
    """Of 10 µs as many as keep a worker for 5 ms; of 20 ms each alone."""
    assert max(await sizes_of_batches(20_000, busy=10_000)) == 512
    assert set(await sizes_of_batches(50, busy=20_000_000)) == {1}


def test_workers_are_added_while_records_queue_too_long_and_taken_away_when_it_is_calm() -> None:
    scaler, workers, done = Scaler(Scale(1, 8, target_wait=0.5), now=0.0), 1, 0
    seen = []
    for tick in range(1, 6):  # 1,000 wait, each worker does 100 a second: 10 s, then less
        done += 10 * workers
        workers = scaler.decide(tick * 0.1, Load(queued=1000, done=done, working=workers), workers)
        seen.append(workers)
    assert seen == [2, 4, 8, 8, 8]
    for tick in range(400):
        done += 10
        now = 1.0 + tick * 0.1
        workers = scaler.decide(now, Load(queued=0, done=done, working=min(workers, 3)), workers)
    assert workers == 3


def test_a_worker_that_is_long_at_one_item_is_not_idle() -> None:
    scaler = Scaler(Scale(1, 4, target_wait=1.0), now=0.0)
    for tick in range(1, 100):
        assert scaler.decide(tick * 0.1, Load(queued=0, done=0, working=2), 2) == 2


def test_records_that_queue_behind_calls_that_do_not_end_are_a_wait() -> None:
    scaler = Scaler(Scale(1, 4, target_wait=1.0), now=0.0)
    assert scaler.decide(0.9, Load(queued=5, done=0, working=1), 1) == 1
    assert scaler.decide(1.1, Load(queued=5, done=0, working=1), 1) == 2


@given(
    st.integers(1, 3),
    st.integers(0, 5),
    st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 500), st.integers(0, 12)), max_size=60),
)
def test_there_are_never_more_or_fewer_workers_than_allowed(
    low: int, more: int, loads: list[tuple[int, int, int]]
) -> None:
    scaler, workers, done = Scaler(Scale(low, low + more, 0.1), 0.0), low, 0
    for tick, (queued, finished, working) in enumerate(loads, 1):
        done += finished
        workers = scaler.decide(tick * 0.7, Load(queued, done, working), workers)
        assert low <= workers <= low + more


@given(st.integers(1, 300), st.sets(st.integers(0, 299), max_size=5))
def test_items_that_end_workers_are_found_at_a_bounded_price(count: int, deadly: set[int]) -> None:
    todo, losses = [(0, count, 0)], 0
    given_up, done = list[int](), list[int]()
    while todo:
        start, end, lost = todo.pop()
        if not deadly & set(range(start, end)):
            done += range(start, end)
            continue
        losses += 1
        again = retried(start, end, lost + 1)
        given_up += [] if again else [start]
        assert again or end - start == 1
        todo += reversed(again)
    assert given_up == sorted(deadly & set(range(count)))
    assert done == [x for x in range(count) if x not in deadly]
    assert losses <= 2 + 10 * len(deadly)


@given(st.booleans(), st.lists(st.integers(0, 4), max_size=40), st.randoms(use_true_random=False))
def test_messages_keep_their_place_whatever_is_finished_first(
    ordered: bool, steps: list[int], dice: random.Random
) -> None:
    sequence, under_way, taken, left = (
        Sequence(ordered=ordered),
        list[tuple[int, int]](),
        list[Any](),
        list[Any](),
    )

    def leave() -> None:
        while (turn := sequence.leave()) is not None:
            left.extend([turn] if isinstance(turn, Control) else turn[1])

    def finish(start: int, count: int) -> None:
        cut = dice.randint(0, count)
        pieces = [(a, b, list(range(start + a, start + b))) for a, b in ((0, cut), (cut, count)) if a < b]
        sequence.finish(start, pieces)

    for number, step in enumerate(steps):
        if step == 0:
            sequence.message(Watermark(number))
            taken.append(Watermark(number))
        else:
            under_way.append((sequence.take(step), step))
            taken += range(under_way[-1][0], under_way[-1][0] + step)
        if under_way and dice.random() < 0.5:
            finish(*under_way.pop(dice.randrange(len(under_way))))
            leave()
    dice.shuffle(under_way)
    for one in under_way:
        finish(*one)
        leave()
    leave()
    assert left == taken if ordered else sets_between_messages(left) == sets_between_messages(taken)


def sets_between_messages(turns: list[Any]) -> list[Any]:
    groups: list[Any] = [set()]
    for turn in turns:
        if isinstance(turn, Control):
            groups += [turn, set()]
        else:
            groups[-1].add(turn)
    return groups


class FakeReplica:
    """Answers at once; it is lost on batches that hold a deadly item."""

    def __init__(self, log: list[str], deadly: frozenset[int] = frozenset()) -> None:
        self.log, self.deadly = log, deadly

    async def start(self) -> None:
        self.log.append("start")

    async def run(self, items: Any, _one_by_one: bool, /) -> list[Done]:
        if self.deadly & set(items):
            raise WorkerLostError("gone")
        return [Done(items, (), None, 0)]

    async def close(self, now: bool, /) -> None:
        self.log.append("kill" if now else "close")


async def test_a_pool_has_as_many_workers_as_wanted_and_as_there_is_room_for() -> None:
    log: list[str] = []
    room, ended = [1, 2, 3], list[Replica]()
    pool = Pool(lambda: FakeReplica(log) if room and room.pop() else None, ended.append)
    await pool.open(1)
    await pool.resize(9)
    assert len(pool) == log.count("start") == 3
    busy = [await pool.take(), await pool.take()]
    await pool.resize(1)
    assert len(pool) == 1
    assert log.count("close") == 1  # the free one at once
    assert [pool.keeps] == [False]
    await pool.give(busy.pop())
    assert log.count("close") == 2
    await pool.give(busy.pop())
    assert [pool.keeps] == [True]
    await pool.close(now=False)
    assert (len(ended), log.count("close")) == (3, 3)


async def test_a_pool_loses_workers_and_no_items() -> None:
    log: list[str] = []
    pool = Pool(lambda: FakeReplica(log, frozenset({5})), lambda _: None)
    await pool.open(1)
    replica = await pool.take()
    pieces = await pool.run(replica, list(range(8)))
    assert [(p.start, p.end, bool(p.error)) for p in pieces] == [
        (0, 4, False), (4, 5, False), (5, 6, True), (6, 8, False)
    ]  # fmt: skip
    assert log.count("kill") == log.count("start") - 1 == 5


def test_a_machine_has_room_for_what_it_has() -> None:
    flow = Flow("rooms")
    half = Resources(cpu=1, gpu=0.5)
    stream = flow.source([1]).map(float, parallelism=Parallel(2, "thread"), resources=half, name="a")
    stream.map(float, resources=Resources(cpu=1), name="b").sink(print)
    plan = compile_plan(flow.plan, Registry(entry_points=False))
    op = plan.ops[1]
    room = Room(plan, Node("small", cpus=4, gpus=(1 << 30, 1 << 30)))
    first, second = room.take(op, 0), room.take(op, 1)
    assert first is not None
    assert second is not None
    assert room.take(op, 2) is not None  # the fourth core
    assert room.take(op, 3) is None
    room.give(first)
    assert room.take(op, 4) is not None


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Parallel(0),
        lambda: Parallel(True),
        lambda: Parallel(2, "fork"),  # type: ignore[arg-type]
        lambda: Parallel(2, order="key"),  # type: ignore[arg-type]
        lambda: Scale(0, 1),
        lambda: Scale(3, 2),
        lambda: Scale(1, 2, target_wait=0),
    ],
)
def test_options_say_what_would_be_valid(wrong: Any) -> None:
    with pytest.raises(UsageError, match="needs"):
        wrong()
