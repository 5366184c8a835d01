"""The order of `hybrid`: due dates while they can be kept, cost when they cannot, and a floor for bulk."""

from __future__ import annotations

from math import inf, log2

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from sage.common.telemetry import RequestClass
from sage.middleware.control_plane.disciplines import Fifo
from sage.middleware.control_plane.records import Record
from sage.middleware.control_plane.urgency import AGING, PRESSED, Feasible, Floor, Floored
from sage.middleware.testing.core import CoreBench
from sage.middleware.testing.policies import chat_job, embed_job, embed_spec, waiting_record


def record(
    number: int, *, arrived: float = 0.0, goal: float = 2.0, cost: float = 0.1, quick: float = 0.1
) -> Record:
    return waiting_record(
        chat_job(f"r{number}"),
        number,
        arrived=arrived,
        queued=arrived,
        due=arrived + goal,
        cost=cost,
        quick=quick,
    )


def order(queue: Feasible, now: float) -> list[int]:
    """What comes out, one after the other, at one time."""
    found = []
    while (head := queue.head(now)) is not None:
        found.append(head.sequence)
        queue.remove(head)
    return found


def filled(*records: Record, now: float = 0.0) -> Feasible:
    queue = Feasible()
    for one in records:
        queue.push(one, now)
    return queue


class Oracle:
    """The same order, found by looking at all that waits."""

    def __init__(self) -> None:
        self.waiting: list[Record] = []

    def head(self, now: float) -> Record | None:
        in_time = [one for one in self.waiting if one.due - one.quick >= now]
        if not in_time:
            return self._cheapest(self.waiting, now)
        first = min(in_time, key=lambda one: (one.due, one.sequence))
        pressed = now - first.arrived > PRESSED * (first.due - first.arrived)
        return self._cheapest(in_time, now) if pressed else first

    def _cheapest(self, among: list[Record], now: float) -> Record | None:
        def price(one: Record) -> float:
            goal = min(max(one.due - one.arrived, 1e-3), 30.0)
            size = float(2.0 ** (round(2.0 * log2(goal)) / 2.0))
            return (one.cost - AGING * (now - one.arrived)) / size

        return min(among, key=price, default=None)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["comes", "comes", "head", "goes", "leaves"]),
            st.sampled_from([0.0, 0.01, 0.1, 0.7, 3.0]),  # seconds that pass before
            st.floats(0.05, 20.0),  # its goal
            st.floats(0.001, 2.0),  # its cost
            st.sampled_from([0.01, 0.1, 3.0]),  # the quickest that it can be
        ),
        max_size=60,
    )
)
def test_the_order_is_that_of_looking_at_all_of_them(
    steps: list[tuple[str, float, float, float, float]],
) -> None:
    queue, oracle, now = Feasible(), Oracle(), 0.0
    for number, (what, passes, goal, cost, quick) in enumerate(steps):
        now += passes
        if what == "comes":
            one = record(number, arrived=now, goal=goal, cost=cost, quick=quick)
            queue.push(one, now)
            oracle.waiting.append(one)
            continue
        head = queue.head(now)
        assert head is oracle.head(now)
        gone = head if what == "goes" else oracle.waiting[-1] if oracle.waiting else None
        if what != "head" and gone is not None:
            queue.remove(gone)
            oracle.waiting.remove(gone)
        assert len(queue) == len(oracle.waiting)


# ---- due dates, cost, age ----------------------------------------------------------------------------------


def test_the_earliest_due_goes_first_while_nobody_is_pressed() -> None:
    queue = filled(record(1, goal=5.0), record(2, goal=1.0, cost=0.9), record(3, goal=3.0))
    assert order(queue, 0.1) == [2, 3, 1]


def test_the_cheapest_goes_first_when_the_first_in_line_has_waited_for_too_long() -> None:
    queue = filled(record(1, cost=0.5), record(2, cost=0.1), record(3, cost=0.3))
    assert order(queue, PRESSED * 2.0 + 0.01) == [2, 3, 1]


def test_what_cannot_be_in_time_goes_last_however_cheap() -> None:
    queue = filled(record(1, cost=0.01, quick=1.9), record(2, cost=0.9))
    assert order(queue, 0.2) == [2, 1]


def test_what_comes_too_late_is_served_all_the_same() -> None:
    queue = filled(record(1, goal=1.0), now=5.0)
    assert len(queue) == 1
    assert order(queue, 5.0) == [1]
    assert len(queue) == 0


def test_waiting_makes_up_for_cost() -> None:
    old = record(1, arrived=0.0, cost=0.5)
    new = record(2, arrived=1.5, cost=0.2)  # 0.3 cheaper, 1.5 s younger
    assert order(filled(old, new), 1.6) == [1, 2]
    newer = record(3, arrived=0.5, cost=0.2)  # 0.3 cheaper, 0.5 s younger
    assert order(filled(old, newer), 1.6) == [3, 1]


@pytest.mark.parametrize("uptime", [0.0, 1e6])
def test_goals_of_different_lengths_compare_whatever_the_clock_says(uptime: float) -> None:
    cheap = record(1, arrived=uptime, goal=2.0, cost=0.1)
    dear = record(2, arrived=uptime, goal=8.0, cost=4.0)
    assert order(filled(cheap, dear, now=uptime), uptime + 0.7) == [1, 2]
    assert order(filled(dear, cheap, now=uptime), uptime + 0.7) == [1, 2]


@pytest.mark.parametrize("uptime", [0.0, 1e6])
def test_what_has_no_goal_does_not_overtake_what_has_one(uptime: float) -> None:
    goal = record(1, arrived=uptime, goal=2.0, cost=0.1)
    whenever = record(2, arrived=uptime, goal=inf, cost=5.0)
    assert order(filled(goal, whenever, now=uptime), uptime + 1.0) == [1, 2]


def naive(records: list[Record], now: float) -> float | tuple[float, float]:
    """The key of whom the documentation says is next: a due date, or a cost."""
    feasible = [one for one in records if one.due - one.quick >= now]
    if not feasible:
        return min(cost_of(one, now) for one in records)
    first = min(feasible, key=lambda one: (one.due, one.sequence))
    if now - first.arrived <= PRESSED * (first.due - first.arrived):
        return first.due, 0.0
    return min(cost_of(one, now) for one in feasible)


def cost_of(one: Record, now: float) -> float:
    goal = 2.0 ** (round(2 * log2(min(max(one.due - one.arrived, 1e-3), 30.0))) / 2)
    return float((one.cost - AGING * (now - one.arrived)) / goal)


RECORDS = st.lists(
    st.tuples(
        st.floats(0.0, 4.0),
        st.sampled_from([0.5, 2.0, 2.1, 10.0, 100.0, inf]),
        st.floats(0.001, 2.0),
        st.floats(0.0, 1.0),
    ),
    min_size=1,
    max_size=12,
)


@given(RECORDS, st.lists(st.floats(0.0, 2.0), min_size=12, max_size=12), st.sampled_from([0.0, 4e5]))
def test_the_order_is_that_of_a_model_that_looks_at_everything(
    drawn: list[tuple[float, float, float, float]], gaps: list[float], uptime: float
) -> None:
    now = uptime + 4.0
    waiting = [
        record(number, arrived=uptime + arrived, goal=goal, cost=cost, quick=quick)
        for number, (arrived, goal, cost, quick) in enumerate(drawn, 1)
    ]
    queue = filled(*waiting, now=now)
    for gap in gaps:
        now += gap
        head = queue.head(now)
        if head is None:
            break
        expected = naive(waiting, now)
        if isinstance(expected, tuple):
            assert head.due == expected[0]
        else:
            assert cost_of(head, now) == pytest.approx(expected, abs=1e-6)
        waiting.remove(head)
        queue.remove(head)
        assert len(queue) == len(waiting)


def test_nobody_waits_for_ever_behind_cheaper_ones() -> None:
    dear = record(1, goal=30.0, cost=1.0, quick=0.0)
    queue, now = filled(dear), 0.0
    for number in range(2, 200):
        now += 0.1
        queue.push(record(number, arrived=now, goal=30.0, cost=0.1, quick=0.0), now)
        head = queue.head(now)
        assert head is not None
        queue.remove(head)
        if head is dear:
            break
    assert now < 30.0


# ---- the floor of bulk -------------------------------------------------------------------------------------


def is_bulk(one: Record) -> bool:
    return one.job.request_class is RequestClass.EMBED_BULK


def one_of(number: int, *, bulk: bool, model: str = "v") -> Record:
    return waiting_record(embed_job(f"r{number}", texts=9 if bulk else 1, model=model), number)


def share_of_bulk(floor: Floor, upper: Floored, lower: Floored, seconds: float, cost: float) -> float:
    """Engine-seconds of bulk in a time in which both levels always wait, each request of the same cost."""
    upper.push(one_of(1, bulk=False), 0.0)
    lower.push(one_of(2, bulk=True), 0.0)
    spent = [0.0, 0.0]
    number = 2
    while sum(spent) < seconds:
        lanes = {id(lane): lane for lane in (upper, lower)}.values()
        heads = [(lane, head) for lane in lanes if (head := lane.head(0.0)) is not None]
        lane, head = min(heads, key=lambda pair: pair[0].key(pair[1], 0.0))
        low = is_bulk(head)
        spent[low] += cost
        floor.charge("v", int(low), cost)
        number += 1
        lane.push(one_of(number, bulk=low), 0.0)  # before: so that its level is never empty
        lane.remove(head)
    return spent[1]


def floored(floor: Floor) -> Floored:
    return Floored(is_bulk, Fifo, floor)


@pytest.mark.parametrize("cost", [0.01, 0.1])
def test_bulk_gets_its_share_beside_interactive_requests(cost: float) -> None:
    floor = Floor()
    lane = floored(floor)
    bulk = share_of_bulk(floor, lane, lane, 100.0, cost)
    assert bulk == pytest.approx(Floor.SHARE * 100.0, abs=0.5)


def test_bulk_gets_its_share_beside_interactive_requests_of_another_lane() -> None:
    floor = Floor()
    bulk = share_of_bulk(floor, floored(floor), floored(floor), 100.0, 0.05)
    assert bulk == pytest.approx(Floor.SHARE * 100.0, abs=0.5)


def test_nothing_is_owed_at_first_nor_for_a_time_without_bulk() -> None:
    floor = Floor()
    lane = floored(floor)
    lane.push(one_of(1, bulk=False), 0.0)
    for _ in range(100):
        floor.charge("v", 0, 1.0)
    lane.push(one_of(2, bulk=True), 0.0)
    assert not floor.lower_is_due("v")
    head = lane.head(0.0)
    assert head is not None
    assert not is_bulk(head)


def test_what_is_owed_is_bounded() -> None:
    floor = Floor()
    lane = floored(floor)
    lane.push(one_of(1, bulk=True), 0.0)
    for _ in range(1000):
        floor.charge("v", 0, 1.0)
    burst = 0.0
    while floor.lower_is_due("v"):
        floor.charge("v", 1, 0.01)
        burst += 0.01
    assert burst == pytest.approx(Floor.SHARE * (Floor.MOST - Floor.GRACE), abs=0.02)


def test_models_do_not_owe_for_each_other() -> None:
    floor = Floor()
    first, second = floored(floor), floored(floor)
    first.push(one_of(1, bulk=True), 0.0)
    second.push(one_of(2, bulk=True, model="w"), 0.0)
    floor.charge("v", 0, 3.0)
    assert (floor.lower_is_due("v"), floor.lower_is_due("w")) == (True, False)


def test_when_the_last_bulk_request_of_a_model_leaves_nothing_is_owed() -> None:
    floor = Floor()
    first, second = floored(floor), floored(floor)
    mine, other = one_of(1, bulk=True), one_of(2, bulk=True)
    first.push(mine, 0.0)
    second.push(other, 0.0)
    floor.charge("v", 0, 3.0)
    first.remove(mine)
    assert floor.lower_is_due("v")
    second.remove(other)
    assert not floor.lower_is_due("v")


def test_bulk_of_other_dimensions_is_served_under_steady_interactive_load() -> None:
    one = CoreBench("hybrid", embed_spec("v0"))
    bulk = embed_job("bulk", texts=20)
    number = 0
    for step in range(2000):
        while one.waiting(RequestClass.EMBED_INTERACTIVE) < 3:
            number += 1
            one.arrive(embed_job(f"r{number}"))
        if step == 20:
            one.arrive(structs.replace(bulk, batch_key="c"))
        one.wait(0.05)
        one.finish(next(iter(one.running.values())).slices[0].id)
        if step > 20 and one.outcome("bulk") == "done":
            break
    assert one.outcome("bulk") == "done"
