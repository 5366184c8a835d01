"""Joins of two streams by key and time, and two streams through one operator."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st

from sage.kernel import Failure, Flow, LocalEnvironment, Stream


class Event(NamedTuple):
    key: str
    at: float
    n: int


def key_of(event: Event) -> str:
    return event.key


def time_of(event: Event) -> float:
    return event.at


def events(raw: list[tuple[str, int]]) -> list[Event]:
    return [Event(key, float(at), n) for n, (key, at) in enumerate(raw)]


RAW = st.lists(st.tuples(st.sampled_from(["a", "b", ""]), st.integers(0, 30)), max_size=30)


@settings(max_examples=150, deadline=None)
@given(RAW, RAW, st.sampled_from([0.0, 3.0, 100.0]), st.integers(1, 5), st.integers(1, 9))
def test_a_join_is_the_pairs_of_its_definition(
    left: list[tuple[str, int]], right: list[tuple[str, int]], within: float, batch: int, capacity: int
) -> None:
    ones, others = events(left), events(right)
    flow, out = Flow("join"), list[tuple[Event, Event]]()
    one = flow.source(ones).event_time(time_of, lateness=30).keyby(key_of)
    other = flow.source(others).event_time(time_of, lateness=30).keyby(key_of)
    one.join(other, within=within).sink(out.append)
    LocalEnvironment(batch=batch, capacity=capacity).run_sync(flow)
    pairs = [(x, y) for x in ones for y in others if x.key == y.key and abs(x.at - y.at) <= within]
    assert Counter(out) == Counter(pairs)


@settings(max_examples=60, deadline=None)
@given(RAW, st.integers(1, 5))
def test_a_stream_joined_with_itself(raw: list[tuple[str, int]], batch: int) -> None:
    records = events(raw)
    flow, out = Flow("self"), list[tuple[Event, Event]]()
    stream = flow.source(records).event_time(time_of, lateness=30)
    stream.keyby(key_of).join(stream.keyby(key_of), within=2).sink(out.append)
    LocalEnvironment(batch=batch).run_sync(flow)
    pairs = [(x, y) for x in records for y in records if x.key == y.key and abs(x.at - y.at) <= 2]
    assert Counter(out) == Counter(pairs)


async def test_what_cannot_meet_any_more_is_forgotten() -> None:
    """A million seconds of records, and the join holds those of the last ten."""
    most = 0

    def watch(pair: tuple[int, int]) -> None:
        nonlocal most
        most = max(most, len(alive))

    alive: set[int] = set()

    class Tracked:
        def __init__(self, at: int) -> None:
            self.at = at
            alive.add(at)

        def __del__(self) -> None:
            alive.discard(self.at)

    flow = Flow("forget")

    def side(name: str) -> Stream[Tracked]:
        return flow.source((Tracked(at) for at in range(2000)), name=name).event_time(
            lambda one: float(one.at)
        )

    left, right = side("left").keyby(lambda _: 0), side("right").keyby(lambda _: 0)
    left.join(right, within=10).map(lambda pair: (pair[0].at, pair[1].at)).sink(watch)
    await LocalEnvironment(batch=4, capacity=8).run(flow)
    assert 10 < most < 200


def test_late_records_are_diverted() -> None:
    flow, late = Flow("late"), list[Failure[Any]]()
    one = flow.source(events([("a", 50), ("a", 1)])).event_time(time_of).keyby(key_of)
    other = flow.source(events([("a", 50)]), name="other").event_time(time_of).keyby(key_of)
    pairs = one.join(other, within=5, on_late="divert", name="pairs")
    pairs.sink(lambda pair: None)
    pairs.diverted.sink(late.append)
    LocalEnvironment(batch=1).run_sync(flow)
    assert [failure.item.at for failure in late] in ([], [1.0])  # the other's watermark may come later
    assert all("on the left" in failure.error for failure in late)


def test_comap_is_one_stream_of_both_and_ends_with_them() -> None:
    flow, out = Flow("comap"), list[str]()
    flow.source([1, 2]).connect(flow.source(["a"], name="letters")).comap(
        lambda number: f"number {number}", lambda letter: f"letter {letter}", name="both"
    ).sink(out.append)
    report = LocalEnvironment().run_sync(flow)
    assert Counter(out) == Counter(["number 1", "number 2", "letter a"])
    assert report["both-left"].items_out == 2
    assert report["both-right"].items_out == 1


async def test_comap_shares_state_through_one_object() -> None:
    """A rule stream and a data stream meet in two methods; neither waits for the other's end."""

    class Rules:
        limit = 10

        def rule(self, limit: int) -> str:
            self.limit = limit
            known.set()
            return f"limit {limit}"

        def judge(self, value: int) -> str:
            return "over" if value > self.limit else "under"

    known = asyncio.Event()

    async def values() -> AsyncIterator[int]:
        yield 5
        await known.wait()
        yield 5

    flow, out, rules = Flow("rules"), list[str](), Rules()
    limits = flow.source([3])
    limits.connect(flow.source(values, name="values")).comap(rules.rule, rules.judge).sink(out.append)
    await LocalEnvironment(batch=1).run(flow)
    assert Counter(out)["limit 3"] == 1
    assert out[-1] == "over"
