"""Schedules: pure, of the rate and the burstiness that they say, and worked out by hand where that can be."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sage.benchmark.load import embed_request, gamma, mixed, on_off, poisson, replay, shots

SEEDS = st.integers(0, 10_000)


def spread(times: list[float]) -> float:
    """Coefficient of variation of the gaps."""
    gaps = [b - a for a, b in pairwise(times)]
    average = sum(gaps) / len(gaps)
    return float((sum((gap - average) ** 2 for gap in gaps) / len(gaps)) ** 0.5 / average)


@settings(max_examples=30)
@given(seed=SEEDS, rate=st.floats(0.5, 50), duration=st.floats(0.5, 20), cv=st.floats(0.2, 4))
def test_every_source_is_a_sorted_function_of_its_seed(seed: Any, rate: Any, duration: Any, cv: Any) -> None:
    sources: tuple[Callable[[], list[float]], ...] = (
        partial(poisson, rate=rate, duration=duration, seed=seed),
        partial(gamma, rate=rate, duration=duration, seed=seed, cv=cv),
        partial(on_off, rate=rate, duration=duration, seed=seed, on=0.7, off=1.1),
    )
    for make in sources:
        times = make()
        assert times == make()
        assert times == sorted(times)
        assert all(0 <= at < duration for at in times)


def test_another_seed_gives_another_schedule() -> None:
    assert poisson(rate=50, duration=4, seed=1) != poisson(rate=50, duration=4, seed=2)


@pytest.mark.parametrize("cv", [0.5, 1.0, 2.0])
def test_gaps_have_the_mean_and_the_spread_that_were_asked_for(cv: float) -> None:
    times = gamma(rate=200, duration=200, seed=5, cv=cv)
    assert len(times) == pytest.approx(40_000, rel=0.04)
    assert spread(times) == pytest.approx(cv, rel=0.04)


def test_poisson_is_gamma_of_spread_one() -> None:
    assert poisson(rate=9, duration=5, seed=3) == gamma(rate=9, duration=5, seed=3, cv=1.0)


def test_an_on_off_source_is_silent_when_off_and_keeps_the_mean_rate() -> None:
    times = on_off(rate=100, duration=300, seed=2, on=1.0, off=3.0)
    assert all(at % 4.0 <= 1.0 for at in times)
    assert len(times) == pytest.approx(30_000, rel=0.03)


@pytest.mark.parametrize(("duration", "busy"), [(1.0, 1.0), (3.0, 2.0), (4.0, 2.0), (5.5, 3.5), (7.0, 4.0)])
def test_a_last_period_that_is_cut_is_busy_first(duration: float, busy: float) -> None:
    times = on_off(rate=2000, duration=duration, seed=1, on=2.0, off=2.0)
    assert len(times) == pytest.approx(4000 * busy, rel=0.05)
    assert times[-1] < duration


def test_without_silence_on_off_is_poisson() -> None:
    assert on_off(rate=20, duration=10, seed=4, on=1.0, off=0.0) == poisson(rate=20, duration=10, seed=4)


def test_a_replay_begins_at_zero_is_faster_and_is_cut() -> None:
    assert replay([10.0, 12.0, 12.0, 20.0], duration=3.0, speed=2.0) == [0.0, 1.0, 1.0]


@pytest.mark.parametrize("bad", [[], [1.0, 0.5]])
def test_a_recording_that_is_empty_or_not_sorted_is_refused(bad: list[float]) -> None:
    with pytest.raises(ValueError, match="at least one time and be sorted"):
        replay(bad, duration=1.0)


@pytest.mark.parametrize("bad", [{"rate": 0.0}, {"rate": -1.0}, {"duration": 0.0}, {"cv": 0.0}, {"cv": -1.0}])
def test_a_schedule_that_cannot_be_is_refused(bad: Any) -> None:
    with pytest.raises(ValueError, match=r"A schedule needs|coefficient"):
        gamma(**{"rate": 1.0, "duration": 1.0, "seed": 0, "cv": 1.0, **bad})
    with pytest.raises(ValueError, match="on > 0"):
        on_off(rate=1.0, duration=1.0, seed=0, on=0.0, off=1.0)


def test_classes_are_merged_in_order_of_time_and_get_their_targets() -> None:
    arrivals = mixed({"chat": [0.5, 1.5], "embed": [0.1, 1.0]})
    assert [(a.index, a.at, a.kind) for a in arrivals] == [
        (0, 0.1, "embed"), (1, 0.5, "chat"), (2, 1.0, "embed"), (3, 1.5, "chat"),
    ]  # fmt: skip
    made = shots(arrivals, {"chat": "llm", "embed": "vec"}, lambda a: embed_request("m", [str(a.index)]))
    assert [shot.target for shot in made] == ["vec", "llm", "vec", "llm"]
    assert [shot.arrival for shot in made] == arrivals
