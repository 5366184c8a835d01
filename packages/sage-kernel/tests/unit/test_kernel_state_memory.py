"""What keys leave behind: state that is gone holds no memory, however many keys there were."""

from __future__ import annotations

import asyncio
import gc
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from sage.common.testing import VirtualClock
from sage.kernel import Flow, Registry, Stream, Window
from sage.kernel.compile import compile_plan
from sage.kernel.runtime.chain import Step, step_of
from sage.kernel.runtime.columns import Columns, Watermark
from sage.kernel.runtime.kernels import Faults
from sage.kernel.runtime.report import Counters
from sage.kernel.runtime.state import Stateful, changed

KEYS = 2000
Event = tuple[str, float]


def name(event: Event) -> str:
    return event[0]


def time(event: Event) -> float:
    return event[1]


def count(state: int, _: Event) -> int:
    return state + 1


def total(one: int, other: int) -> int:
    return one + other


def fold(events: Stream[Event]) -> Stream[Any]:
    return events.keyby(name).scan(int, lambda state, _: (state + 1, state), ttl=10)


def windows(window: Window) -> Callable[[Stream[Event]], Stream[Any]]:
    return lambda events: (
        events.keyby(name).window(window).reduce(int, count, merge=total if window.gap else None)
    )


STATES = {
    "fold": fold,
    "window": windows(Window(10)),
    "late": windows(Window(10, late=5)),
    "session": windows(Window(gap=5)),
}


def step(build: Callable[[Stream[Event]], Stream[Any]]) -> tuple[Step, Stateful]:
    flow, events = Flow("keys"), list[Event]()
    build(flow.source(events).event_time(time)).sink(print)
    ops = compile_plan(flow.plan, Registry(entry_points=False)).ops
    op = next(op for op in ops if op.node.verb in ("scan", "window"))
    made = step_of(op, Faults(op, Counters("keys", op.node.verb)), VirtualClock())
    assert made.stateful is not None
    made.stateful.begin((), None)
    return made, made.stateful


def visit(made: Step, prefix: str, at: float) -> None:
    for start in range(0, KEYS, 500):
        events = [(f"{prefix}{number}", at) for number in range(start, start + 500)]
        made.run(Columns(events, [at] * 500))


def leave(made: Step, at: float) -> None:
    assert made.control is not None
    made.control(Watermark(at))


@contextmanager
def measured() -> Iterator[Callable[[], float]]:
    """Bytes for each of `KEYS` that were allocated since."""
    gc.collect()
    tracemalloc.start()
    try:
        yield lambda: (gc.collect(), tracemalloc.get_traced_memory()[0] / KEYS)[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", STATES)
def test_keys_that_are_gone_leave_no_more_than_the_table_they_were_in(kind: str) -> None:
    """The table is that of the most keys at once: five times as many, one after another, add nothing."""
    made, stateful = step(STATES[kind])
    left = []
    with measured() as held:
        for number in range(5):
            visit(made, f"{number}-", 100.0 * number)
            full = held()
            asyncio.run(taken(stateful))
            leave(made, 100.0 * number + 99)
            gone = asyncio.run(taken(stateful))
            assert len(gone) == KEYS
            assert set(gone.values()) == {b""}  # a checkpoint forgets them, too
            del gone
            left.append(held())
            assert left[-1] < 64 < full
    assert max(left) - left[0] < 4


@pytest.mark.parametrize("kind", STATES)
def test_what_is_restored_forgets_as_what_was_never_stopped(kind: str) -> None:
    made, stateful = step(STATES[kind])
    visit(made, "", 100.0)
    states = dict(stateful.changes())
    assert len(states) == KEYS
    again, restored = step(STATES[kind])
    restored.begin(states.items(), stateful.plain())
    leave(again, 120.0)
    assert set(asyncio.run(taken(restored)).values()) == {b""}
    with measured() as held:
        visit(again, "later-", 200.0)
        leave(again, 300.0)
        asyncio.run(taken(restored))
        assert held() < 64


async def taken(stateful: Stateful) -> dict[bytes, bytes]:
    found = await changed("keys", stateful)
    return dict(zip(found.keys, found.states, strict=True))
