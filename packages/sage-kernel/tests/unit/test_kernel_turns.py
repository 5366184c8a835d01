"""When a source lets others come up, and what rests for other threads."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from time import perf_counter_ns

import pytest

from sage.kernel.runtime import turns
from sage.kernel.runtime.turns import TURN_NS, Turn


@pytest.fixture
def rests(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    found: list[float] = []
    monkeypatch.setattr(turns, "sleep", found.append)
    return found


@pytest.fixture
def neighbour() -> Iterator[None]:
    """Another thread of this process."""
    over = threading.Event()
    thread = threading.Thread(target=over.wait)
    thread.start()
    yield
    over.set()
    thread.join()


def test_a_turn_is_over_after_its_time() -> None:
    before = perf_counter_ns()
    turn = Turn()
    assert not turn.is_over(before + TURN_NS)
    assert turn.is_over(perf_counter_ns() + TURN_NS + 1)


async def test_others_come_up_at_its_end_and_it_begins_anew() -> None:
    seen: list[str] = []
    asyncio.get_running_loop().call_soon(seen.append, "other")
    turn = Turn()
    late = perf_counter_ns() + 2 * TURN_NS
    await turn.end(late)
    assert seen == ["other"]
    assert not turn.is_over(perf_counter_ns())


@pytest.mark.usefixtures("neighbour")
async def test_it_rests_for_other_threads_every_fifth_turn_at_most(rests: list[float]) -> None:
    turn, start = Turn(), perf_counter_ns()
    for number in range(1, 21):
        await turn.end(start + number * TURN_NS)
    assert 2 <= len(rests) <= 4
    assert all(0 < seconds < 0.001 for seconds in rests)


async def test_alone_it_does_not_rest(rests: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading, "active_count", lambda: 1)
    turn, start = Turn(), perf_counter_ns()
    for number in range(1, 21):
        await turn.end(start + number * TURN_NS)
    assert rests == []
