"""Intervals: against published values, against simulation, and their invariants."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sage.benchmark.stats import mean, percentile, proportion

SAMPLES = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=300)


@pytest.mark.parametrize(
    ("hits", "n", "low", "high"),
    # Newcombe 1998, table I, method 3 (score without continuity correction).
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_gives_the_published_intervals(hits: int, n: int, low: float, high: float) -> None:
    estimate = proportion(hits, n)
    assert estimate.value == hits / n
    assert estimate.low == pytest.approx(low, abs=5e-5)
    assert estimate.high == pytest.approx(high, abs=5e-5)


@pytest.mark.parametrize(("hits", "n"), [(1, 0), (0, 0), (3, 2), (-1, 2)])
def test_a_proportion_of_nothing_is_an_error(hits: int, n: int) -> None:
    with pytest.raises(ValueError, match="0 <= hits <= n"):
        proportion(hits, n)


@given(st.integers(1, 5000), st.data())
def test_wilson_holds_its_value_and_stays_inside_zero_and_one(n: int, data: Any) -> None:
    estimate = proportion(data.draw(st.integers(0, n)), n)
    assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1


def test_the_bootstrap_is_reproducible_and_seeded() -> None:
    samples = list(np.random.default_rng(1).normal(10, 2, 50))
    assert mean(samples, seed=3) == mean(samples, seed=3)
    assert mean(samples, seed=3) != mean(samples, seed=4)


def test_the_bootstrap_covers_the_true_mean_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(7)
    trials = 60
    covered = 0
    for trial in range(trials):
        estimate = mean([rng.exponential() for _ in range(60)], seed=trial)
        covered += estimate.low <= 1.0 <= estimate.high
    assert covered >= 0.85 * trials


def test_a_single_sample_has_an_interval_of_no_width() -> None:
    estimate = mean([4.0], seed=0)
    assert (estimate.low, estimate.value, estimate.high, estimate.n) == (4.0, 4.0, 4.0, 1)


def test_percentiles_are_nearest_rank() -> None:
    samples = list(range(1, 101))
    assert percentile(samples, 0.5).value == 50
    assert percentile(samples, 0.9).value == 90
    assert percentile(samples, 0.99).value == 99


def test_the_median_interval_uses_the_tabled_ranks() -> None:
    # n = 100: ranks 40 and 61 hold the median with 96.5 % (Conover, table A3).
    estimate = percentile(list(range(1, 101)), 0.5)
    assert (estimate.low, estimate.high) == (40, 61)


def test_p99_is_starred_below_a_thousand_samples() -> None:
    assert percentile(range(999), 0.99).starred
    assert not percentile(range(1000), 0.99).starred
    assert percentile(range(19), 0.5).starred
    assert not percentile(range(20), 0.5).starred


def test_an_interval_that_has_no_upper_sample_stops_at_the_largest() -> None:
    estimate = percentile([1.0, 2.0, 3.0], 0.99)
    assert (estimate.value, estimate.high, estimate.starred) == (3.0, 3.0, True)


def test_the_percentile_interval_covers_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(11)
    trials = 200
    covered = 0
    for _ in range(trials):
        estimate = percentile([rng.random() for _ in range(200)], 0.9)
        covered += estimate.low <= 0.9 <= estimate.high
    assert covered >= 0.9 * trials


@settings(max_examples=60)
@given(SAMPLES, st.sampled_from([0.01, 0.5, 0.9, 0.99]))
def test_a_percentile_lies_in_its_interval_and_both_are_samples(samples: Any, q: float) -> None:
    estimate = percentile(samples, q)
    assert estimate.low <= estimate.value <= estimate.high
    assert {estimate.low, estimate.value, estimate.high} <= set(samples)
    assert estimate.n == len(samples)


@pytest.mark.parametrize("bad", [[], [float("nan")], [1.0, float("inf")]])
def test_missing_samples_are_errors(bad: Any) -> None:
    with pytest.raises(ValueError, match=r"no samples|not a finite"):
        percentile(bad, 0.5)
    with pytest.raises(ValueError, match=r"no samples|not a finite"):
        mean(bad, seed=0)


@pytest.mark.parametrize("q", [0.0, 1.0, 99.0, -0.5])
def test_a_quantile_outside_zero_and_one_is_an_error(q: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        percentile([1.0], q)


def test_scaling_keeps_n_and_the_star() -> None:
    scaled = percentile([0.001, 0.002], 0.99).scaled(1000)
    assert (scaled.value, scaled.n, scaled.starred) == (2.0, 2, True)
