"""When a job that crashed comes back: the strategies, in virtual time."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage.common.errors import BadRequestError
from sage.common.testing import VirtualClock
from sage.kernel.jobs.held import spelled
from sage.kernel.jobs.restart import Restart


def delays(text: str, gaps: list[float]) -> list[float | None]:
    """What follows each of the crashes that come so long after the one before (or the start)."""
    restart, clock, crashes = Restart.parse(text), VirtualClock(), []
    found: list[float | None] = []
    for gap in gaps:
        clock.advance(gap)
        crashes.append(clock.wall())
        found.append(restart.delay_after(crashes, clock.wall()))
        clock.advance(found[-1] or 0.0)
    return found


@pytest.mark.parametrize(
    ("text", "gaps", "expected"),
    [
        ("none", [1], [None]),
        ("fixed:2", [1, 1, 1], [1.0, 1.0, None]),
        ("fixed:1:0", [1, 10_000], [0.0, None]),
        ("fixed:2:7", [1, 10_000, 1], [7.0, 7.0, None]),
        ("exponential:4", [1, 1, 1, 1, 1], [1.0, 2.0, 4.0, 8.0, None]),
        ("exponential:4:10:25", [1, 1, 1, 1], [10.0, 20.0, 25.0, 25.0]),
        ("exponential:1", [1, 400, 400], [1.0, 1.0, 1.0]),  # calm between them
        ("exponential:2", [1, 1, 400, 1, 1], [1.0, 2.0, 1.0, 2.0, None]),
        ("rate:2:60:0", [1, 1, 1], [0.0, 0.0, None]),
        ("rate:2:60:0", [1, 40, 40, 40], [0.0, 0.0, 0.0, 0.0]),
        ("rate:1:10:3", [1, 8, 1], [3.0, 3.0, None]),
    ],
)
def test_what_follows_each_crash(text: str, gaps: list[float], expected: list[float | None]) -> None:
    assert delays(text, gaps) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "always",
        "fixed",
        "fixed:",
        "fixed:0",
        "fixed:-1",
        "fixed:1.5",
        "fixed:101",
        "fixed:1:-1",
        "fixed:1:nan",
        "fixed:inf",
        "fixed:1:2:3",
        "none:1",
        "rate:1:2:3:4",
        "exponential:3:1e9",
    ],
)
def test_what_is_none_names_what_would_be(text: str) -> None:
    with pytest.raises(BadRequestError, match=r"valid is none, fixed:TIMES"):
        Restart.parse(text)


@given(
    st.one_of(
        st.just(Restart()),
        st.builds(Restart, st.just("fixed"), st.integers(1, 100), st.integers(0, 9999).map(float)),
        st.builds(
            Restart, st.just("exponential"), st.integers(1, 100), st.integers(0, 99).map(float), st.just(60.0)
        ),
        st.builds(
            Restart,
            st.just("rate"),
            st.integers(1, 100),
            st.integers(0, 99).map(float),
            st.just(60.0),
            st.integers(1, 999).map(float),
        ),
    )
)
def test_its_text_means_the_same(restart: Restart) -> None:
    assert Restart.parse(spelled(restart)) == restart


@given(
    st.sampled_from(["fixed:3:1", "exponential:3:1:8", "rate:3:50:1"]),
    st.lists(st.floats(0, 1000), min_size=1, max_size=30),
)
def test_no_strategy_restarts_for_ever_without_calm(text: str, gaps: list[float]) -> None:
    """Of four crashes in a row that come fast, the last one is given up; delays stay within their bounds."""
    found = delays(text, [*gaps, 400.0 if text != "fixed:3:1" else 0.0, 0.0, 0.0, 0.0])
    assert found[-1] is None
    assert all(delay is None or 0 <= delay <= 8 for delay in found)
