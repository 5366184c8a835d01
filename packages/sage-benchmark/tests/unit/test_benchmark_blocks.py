"""Comparing arms: against figures worked out by hand or published, against simulation, and invariants."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sage.benchmark.stats import Samples, holm, over_blocks, paired, percentile, quantile, ratio

VALUES = st.floats(0.1, 1e4)


def average(samples: Samples) -> float:
    return float(samples.mean())


@settings(max_examples=60)
@given(st.lists(VALUES, min_size=1, max_size=200), st.sampled_from([0.01, 0.5, 0.9, 0.99]))
def test_a_quantile_is_the_value_of_the_percentile(samples: list[float], q: float) -> None:
    assert quantile(samples, q) == percentile(samples, q).value


@pytest.mark.parametrize("q", [0.0, 1.0, 50.0])
def test_a_quantile_lies_between_zero_and_one(q: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        quantile([1.0], q)


def test_holm_by_hand() -> None:
    # Sorted .01 .02 .03 .04 times 4 3 2 1 = .04 .06 .06 .04, made monotone.
    adjusted = holm({"d": 0.04, "a": 0.01, "c": 0.03, "b": 0.02})
    assert adjusted == pytest.approx({"d": 0.06, "a": 0.04, "c": 0.06, "b": 0.06})
    assert list(adjusted) == ["d", "a", "c", "b"]


def test_holm_stops_at_one_and_refuses_what_is_no_probability() -> None:
    assert holm({"a": 0.6, "b": 0.9}) == {"a": 1.0, "b": 1.0}
    assert holm({"a": 0.2}) == {"a": 0.2}
    assert holm({}) == {}
    with pytest.raises(ValueError, match="between 0 and 1"):
        holm({"a": 1.2})


@given(st.dictionaries(st.text(max_size=3), st.floats(0, 1), max_size=8))
def test_holm_never_lowers_a_p_and_keeps_their_order(ps: dict[str, float]) -> None:
    adjusted = holm(ps)
    assert all(ps[name] <= adjusted[name] <= 1 for name in ps)
    ordered = sorted(ps, key=ps.__getitem__)
    assert [adjusted[name] for name in ordered] == sorted(adjusted.values())


def test_the_sign_flip_test_is_exact() -> None:
    # All five differences point one way: 2 of 32 flips are as large.
    assert paired([2.0, 3, 4, 5, 6], [1.0, 1, 1, 1, 1], seed=0).p == 2 / 32
    # Sums of the flips of 1, 2: 3, 1, -1, -3; what was seen is -1.
    assert paired([1.0, 0.0], [0.0, 2.0], seed=0).p == 1.0
    assert paired([1.0, 1.0], [1.0, 1.0], seed=0).p == 1.0


def test_fishers_maize_data() -> None:
    # Fisher 1935, Darwin's 15 pairs in eighths of an inch: 1,726 of 32,768 flips, p = 0.0527; sampled here.
    differences = [49.0, -67, 8, 16, 6, 23, 28, 41, 14, 29, 56, 24, 75, 60, -48]
    got = paired(differences, [0.0] * 15, seed=1)
    assert got.p == pytest.approx(0.0527, abs=0.007)
    assert got.difference.value == pytest.approx(20.93, abs=0.01)
    assert got.difference.low < 0.5 + 20.93 < got.difference.high


def test_pairs_must_match() -> None:
    with pytest.raises(ValueError, match="2 blocks, the other 1"):
        paired([1.0, 2.0], [1.0], seed=0)
    with pytest.raises(ValueError, match="block by block"):
        ratio([[1.0]], [], average, seed=0)


def test_a_ratio_of_arms_that_differ_by_a_factor_in_each_block_is_exact() -> None:
    below = [[1.0, 2.0], [10.0, 20.0], [100.0, 200.0]]
    above = [[3 * value for value in block] for block in below]
    got = ratio(above, below, average, seed=0)
    assert got.value == pytest.approx(3.0)
    assert got.n == 3
    assert got.low == pytest.approx(3.0)
    assert got.high == pytest.approx(3.0)


def test_a_ratio_pools_the_samples_of_all_blocks() -> None:
    got = ratio([[1.0] * 9, [11.0]], [[1.0], [1.0]], average, seed=0)
    assert got.value == pytest.approx(2.0)  # (9 + 11) / 10, not the mean of 1 and 11
    assert got.low == pytest.approx(1.0)
    assert got.high == pytest.approx(11.0)


def test_a_denominator_of_zero_is_infinite_and_nothing_over_nothing_is_one() -> None:
    assert ratio([[1.0]], [[0.0]], average, seed=0).value == math.inf
    assert ratio([[0.0]], [[0.0]], average, seed=0).value == 1.0
    some = ratio([[1.0], [1.0], [1.0]], [[0.0], [1.0], [1.0]], average, seed=0)
    assert some.value == pytest.approx(1.5)
    assert some.high == math.inf


def test_one_block_has_an_interval_of_no_width() -> None:
    got = over_blocks([[1.0, 2.0, 6.0]], average, seed=0)
    assert (got.low, got.value, got.high, got.n) == (3.0, 3.0, 3.0, 1)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.lists(VALUES, min_size=1, max_size=6), min_size=2, max_size=6), st.integers(0, 99))
def test_block_intervals_hold_their_value_and_repeat(blocks: Any, seed: int) -> None:
    got = over_blocks(blocks, average, seed=seed)
    assert got == over_blocks(blocks, average, seed=seed)
    assert got.low <= got.value <= got.high
    same = ratio(blocks, blocks, average, seed=seed)
    assert (same.low, same.value, same.high) == (1.0, 1.0, 1.0)


def test_the_block_interval_covers_although_samples_of_a_block_go_together() -> None:
    rng = np.random.default_rng(3)
    trials = 60
    covered = 0
    for trial in range(trials):
        blocks = [
            [level + float(noise) for noise in rng.normal(0, 0.1, 20)] for level in rng.normal(5, 1, 20)
        ]
        got = over_blocks(blocks, average, seed=trial)
        covered += got.low <= 5.0 <= got.high
    assert covered >= 0.8 * trials
