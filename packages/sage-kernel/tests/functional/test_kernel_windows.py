"""Windows over event time: what comes out is what the records say, in whatever batches they come."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sage.common.errors import UsageError
from sage.kernel import Failure, Flow, LocalEnvironment, OperatorError, Pane, PlanError, Window


class Seen(NamedTuple):
    key: str
    at: float


def key_of(seen: Seen) -> str:
    return seen.key


def time_of(seen: Seen) -> float:
    return seen.at


def one_more(count: int, _: Seen) -> int:
    return count + 1


def add(one: int, other: int) -> int:
    return one + other


SEEN = st.lists(st.builds(Seen, st.sampled_from(["a", "b", ""]), st.integers(0, 60).map(float)), max_size=60)
BATCH = st.integers(1, 7)


def panes(
    records: list[Seen], window: Window, *, lateness: float, batch: int = 3
) -> list[Pane[str, list[Seen]]]:
    flow, out = Flow("windows"), list[Pane[str, list[Seen]]]()
    times = flow.source(records).event_time(time_of, lateness=lateness)
    times.keyby(key_of).window(window).collect().sink(out.append)
    LocalEnvironment(batch=batch).run_sync(flow)
    return out


def fixed(records: list[Seen], size: float, every: float) -> dict[tuple[str, float], list[Seen]]:
    """Each window with what is in it, straight from the definition."""
    found: dict[tuple[str, float], list[Seen]] = defaultdict(list)
    for one in records:
        for n in range(-20, 80):
            if n * every <= one.at < n * every + size:
                found[one.key, n * every].append(one)
    return found


def sessions(records: list[Seen], gap: float) -> list[tuple[str, float, float, list[Seen]]]:
    found = []
    for key in {one.key for one in records}:
        run: list[Seen] = []
        for one in sorted((one for one in records if one.key == key), key=time_of):
            if run and one.at >= run[-1].at + gap:
                found.append((key, run[0].at, run[-1].at + gap, run))
                run = []
            run.append(one)
        found.append((key, run[0].at, run[-1].at + gap, run))
    return found


@settings(max_examples=120, deadline=None)
@given(SEEN, st.sampled_from([(10.0, 10.0), (10.0, 5.0), (9.0, 4.0), (1.0, 1.0)]), BATCH)
def test_each_window_has_its_records(records: list[Seen], sizes: tuple[float, float], batch: int) -> None:
    size, every = sizes
    window = Window(size) if size == every else Window(size, slide=every)
    out = panes(records, window, lateness=60, batch=batch)
    assert {(one.key, one.start): one.value for one in out} == fixed(records, size, every)
    assert all(one.end == one.start + size for one in out)
    assert [one.end for one in out] == sorted(one.end for one in out)


@settings(max_examples=120, deadline=None)
@given(SEEN, st.sampled_from([1.0, 4.0, 15.0]), BATCH)
def test_each_session_has_its_records(records: list[Seen], gap: float, batch: int) -> None:
    out = panes(records, Window(gap=gap), lateness=60, batch=batch)
    found = [(one.key, one.start, one.end, sorted(one.value, key=time_of)) for one in out]
    expected = sessions(records, gap)
    assert sorted(found, key=repr) == sorted(expected, key=repr)


@settings(max_examples=120, deadline=None)
@given(SEEN, st.sampled_from([0.0, 5.0, 20.0]), st.sampled_from([Window(10), Window(10, slide=5)]), BATCH)
def test_a_record_is_in_its_windows_or_late(
    records: list[Seen], lateness: float, window: Window, batch: int
) -> None:
    """However far out of order: what is late is counted, what is not is in each window that is still open."""
    flow, out = Flow("late"), list[Pane[str, list[Seen]]]()
    times = flow.source(records).event_time(time_of, lateness=lateness)
    times.keyby(key_of).window(window).collect(name="panes").sink(out.append)
    report = LocalEnvironment(batch=batch).run_sync(flow)
    within = {id(one) for pane in out for one in pane.value}
    assert len(within) + report["panes"].skipped == len(records)
    assert len({(pane.key, pane.start) for pane in out}) == len(out)


@settings(max_examples=120, deadline=None)
@given(
    SEEN,
    st.sampled_from([Window(10, late=200), Window(10, slide=5, late=200), Window(gap=6, late=200)]),
    BATCH,
)
def test_with_allowed_lateness_the_last_pane_has_everything(
    records: list[Seen], window: Window, batch: int
) -> None:
    out = panes(records, window, lateness=0, batch=batch)
    if window.gap:
        wanted = {(key, start): sorted(run) for key, start, _, run in sessions(records, window.gap)}
    else:
        every = window.slide or window.size
        wanted = {at: sorted(run) for at, run in fixed(records, window.size, every).items()}
    last = {(pane.key, pane.start): sorted(pane.value) for pane in out}
    assert {at: last.get(at) for at in wanted} == wanted


def test_late_records_are_diverted_with_what_they_missed() -> None:
    flow, late = Flow("late"), list[Failure[Any]]()
    records = [Seen("a", 0.0), Seen("a", 30.0), Seen("a", 1.0)]
    counts = flow.source(records).event_time(time_of).keyby(key_of)
    panes = counts.window(Window(10, on_late="divert")).reduce(int, one_more, name="panes")
    panes.sink(lambda pane: None)
    panes.diverted.sink(late.append)
    LocalEnvironment(batch=1).run_sync(flow)
    assert [(one.item, one.operator) for one in late] == [(Seen("a", 1.0), "panes")]
    assert "29 s behind the watermark" in late[0].error


def test_a_late_record_can_stop_the_run() -> None:
    flow = Flow("late")
    keyed = flow.source([Seen("a", 30.0), Seen("a", 1.0)]).event_time(time_of).keyby(key_of)
    keyed.window(Window(10, on_late="fail")).reduce(int, one_more).sink(print)
    with pytest.raises(OperatorError, match=r"'one_more' failed on item 1 .*29 s behind the watermark"):
        LocalEnvironment(batch=1).run_sync(flow)


def test_a_step_that_fails_leaves_the_window_as_it_was() -> None:
    def step(total: float, one: Seen) -> float:
        if one.at == 2:
            raise ValueError("no twos")
        return total + one.at

    flow, out = Flow("fails"), list[Pane[str, float]]()
    keyed = flow.source([Seen("a", float(at)) for at in range(5)]).event_time(time_of).keyby(key_of)
    keyed.window(Window(10)).reduce(float, step, on_error="skip", name="sum").sink(out.append)
    report = LocalEnvironment().run_sync(flow)
    assert [pane.value for pane in out] == [8]
    assert report["sum"].skipped == 1


async def test_times_survive_every_operator_on_the_way() -> None:
    """Maps, filters, flatmaps, batches, async calls in any order, merges: a result has its record's time."""

    async def slow(seen: Seen) -> Seen:
        for _ in range(int(seen.at) % 4):
            await asyncio.sleep(0)
        return seen

    def brittle(seen: Seen) -> Seen:
        if seen.at % 7 == 0:
            raise ValueError("seven")
        return seen

    records = [Seen("a", float(at)) for at in range(40)]
    flow, out = Flow("through"), list[Pane[str, int]]()
    times = flow.source(records).event_time(time_of)
    some = times.map(brittle, on_error="skip").filter(lambda one: one.at % 2)
    more = some.flatmap(lambda one: [one, one]).map_batch(lambda ones: list(ones)).map(slow, concurrency=5)
    both = more.merge(times.map(slow, order="input"))
    counts = both.keyby(key_of).window(Window(10)).reduce(int, one_more)
    counts.sink(out.append)
    await LocalEnvironment(batch=3).run(flow)
    kept = [at for at in range(40) if at % 2 and at % 7]
    assert [pane.value for pane in out] == [10 + 2 * sum(at // 10 == n for at in kept) for n in range(4)]


async def test_panes_are_records_with_times() -> None:
    """Windows of windows: a pane's time is its end."""
    flow, out = Flow("again"), list[Pane[str, int]]()
    records = [Seen("a", float(at)) for at in range(100)]
    small = flow.source(records).event_time(time_of).keyby(key_of).window(Window(10)).reduce(int, one_more)
    small.keyby(lambda pane: pane.key).window(Window(50)).reduce(int, lambda n, pane: n + pane.value).sink(
        out.append
    )
    await LocalEnvironment(batch=7).run(flow)
    assert [(pane.start, pane.value) for pane in out] == [(0, 40), (50, 50), (100, 10)]


async def test_a_pane_comes_while_the_source_goes_on() -> None:
    """The end of the stream is not what closes windows."""
    seen = asyncio.Event()

    async def records() -> AsyncIterator[Seen]:
        yield Seen("a", 1.0)
        yield Seen("a", 12.0)
        await seen.wait()

    flow = Flow("live")
    counts = flow.source(records).event_time(time_of).keyby(key_of).window(Window(10)).reduce(int, one_more)
    counts.sink(lambda pane: seen.set())
    async with asyncio.timeout(30):
        await LocalEnvironment().run(flow)


async def test_an_idle_stream_holds_nobody_up() -> None:
    """Two clocks merge, and one has nothing to say: with `idle` its silence does not stop the windows."""
    seen = asyncio.Event()

    async def silent() -> AsyncIterator[Seen]:
        await seen.wait()
        yield Seen("a", 40.0)

    flow, out = Flow("idle"), list[Pane[str, int]]()
    quiet = flow.source(silent).event_time(time_of, idle=0.01)
    busy = flow.source([Seen("a", 1.0), Seen("a", 12.0)]).event_time(time_of)

    def note(pane: Pane[str, int]) -> None:
        out.append(pane)
        seen.set()

    busy.merge(quiet).keyby(key_of).window(Window(10)).reduce(int, one_more).sink(note)
    async with asyncio.timeout(30):
        await LocalEnvironment().run(flow)
    assert [(pane.start, pane.value) for pane in out] == [(0, 1), (10, 1), (40, 1)]


@pytest.mark.parametrize(
    "given_",
    [{}, {"size": -1.0}, {"size": 5.0, "gap": 2.0}, {"size": 5.0, "slide": 6.0}, {"gap": 2.0, "slide": 1.0}],
)
def test_what_is_no_window(given_: Any) -> None:
    with pytest.raises(UsageError, match="is no window"):
        Window(**given_)


def test_check_tells_what_has_no_time() -> None:
    flow = Flow("timeless")
    numbers = flow.source([Seen("a", 1.0)], name="numbers")
    numbers.keyby(key_of).window(Window(gap=5)).reduce(int, one_more, name="panes").sink(print)
    timed = numbers.event_time(time_of, lateness=-1.0, name="clock")
    timed.merge(numbers, name="both").sink(print)
    timed.event_time(time_of, name="twice").sink(print)
    with pytest.raises(PlanError) as caught:
        flow.check()
    told = "\n".join(caught.value.problems)
    assert "'panes' needs event times, and 'numbers' has none: put .event_time(...) before it" in told
    assert "'panes' has session windows, which a record can join: give it merge=" in told
    assert "'both' merges streams with event times and without (numbers)" in told
    assert "'clock' has a negative lateness or idle" in told
    assert "'twice' gives event times to records that have them" in told


def test_requests_have_no_event_times() -> None:
    flow = Flow("service")
    flow.reply(flow.requests(Seen).event_time(time_of, name="clock"))
    with pytest.raises(PlanError, match="'clock': a flow of requests has no event times"):
        flow.check()
