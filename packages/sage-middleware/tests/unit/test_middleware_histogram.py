"""Histograms of four buckets to an octave."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage.middleware import _native
from sage.middleware.control_plane.histogram import FIRST, LAST, LogHistogram, count_values

VALUES = st.lists(st.floats(2.0**FIRST * 1.2, 2.0**LAST), min_size=1, max_size=200)


def filled(values: list[float]) -> LogHistogram:
    histogram = LogHistogram()
    for value in values:
        histogram.add(value)
    return histogram


def test_an_empty_one_has_no_quantiles() -> None:
    assert LogHistogram().quantile(0.5) is None
    assert LogHistogram().quantiles() is None


@given(VALUES, st.sampled_from((0.01, 0.5, 0.9, 0.99, 1.0)))
def test_a_quantile_is_within_ten_percent(values: list[float], share: float) -> None:
    exact = sorted(values)[math.ceil(share * len(values)) - 1]
    assert filled(values).quantile(share) == pytest.approx(exact, rel=0.1)


@given(VALUES, st.integers(FIRST, 0), st.integers(1, LAST))
def test_counts_up_to_powers_of_two_are_exact(values: list[float], first: int, last: int) -> None:
    found = list(filled(values).up_to(first, last))
    assert [bound for bound, _ in found] == [2.0**k for k in range(first, last + 1)]
    for bound, count in found:
        assert count == sum(value <= bound for value in values)


@given(VALUES, VALUES)
def test_merging_is_counting_both(one: list[float], two: list[float]) -> None:
    merged, both = filled(one), filled(one + two)
    merged.merge(filled(two))
    assert list(merged.up_to(FIRST, LAST)) == list(both.up_to(FIRST, LAST))
    assert merged.count == both.count
    assert merged.total == pytest.approx(both.total)


def test_what_lies_outside_is_counted_at_the_ends() -> None:
    histogram = filled([0.0, 2.0**-30, 2.0**30])
    assert histogram.quantile(0.5) == 0.0
    assert next(iter(histogram.up_to(FIRST, LAST))) == (2.0**FIRST, 2)
    assert list(histogram.up_to(FIRST, LAST))[-1] == (2.0**LAST, 2)
    assert histogram.count == 3
    assert histogram.quantile(1.0) == pytest.approx(2.0**LAST, rel=0.1)


@given(st.lists(st.floats() | st.sampled_from([0.25, 1.0, 2.0]), max_size=90))
def test_native_and_python_sort_alike(values: list[float]) -> None:
    bounds = (0.25, 0.5, 1.0, 2.0)
    ours, theirs = [3, 0, 1, 0, 2], [3, 0, 1, 0, 2]
    count_values(ours, values, bounds)
    _native.count_values(theirs, values, bounds)
    assert ours == theirs
