"""Slopes of what grows, or does not."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage.benchmark.resilience.slope import binned, slope


@given(st.floats(-50, 50), st.floats(-1e3, 1e3), st.integers(3, 40))
def test_of_a_line_it_is_the_slope_and_the_interval_has_no_width(rise: float, start: float, n: int) -> None:
    times = [0.5 * at for at in range(n)]
    found = slope(times, [start + rise * at for at in times])
    assert found.value == pytest.approx(rise, abs=1e-6)
    assert [found.low, found.high] == pytest.approx([rise, rise], abs=1e-6)


def test_a_jump_does_not_carry_it_away() -> None:
    values = [5.0] * 50
    values[20] = 500.0
    assert slope(list(range(50)), values).value == 0.0


def test_the_interval_covers_the_slope_about_as_often_as_it_says() -> None:
    dice = Random(3)  # noqa: S311 - reproducible, not secret
    times = list(range(30))
    covered = 0
    for _ in range(200):
        found = slope(times, [0.1 * at + dice.gauss(0.0, 1.0) for at in times])
        assert found.low <= found.value <= found.high
        covered += found.low <= 0.1 <= found.high
    assert 180 <= covered <= 199


@pytest.mark.parametrize(
    ("times", "values"),
    [([0.0, 1.0], [1.0, 2.0]), ([0.0, 1.0, 1.0], [1.0, 2.0, 3.0]), ([0.0, 1.0, 2.0], [1.0])],
)
def test_what_has_no_slope_is_refused(times: list[float], values: list[float]) -> None:
    with pytest.raises(ValueError, match="three values at rising times"):
        slope(times, values)


def test_bins_have_their_medians_and_empty_ones_are_left_out() -> None:
    times, values = binned([0.0, 1.0, 2.0, 31.0, 39.0], [1.0, 9.0, 2.0, 5.0, 7.0], 10.0)
    assert (times, values) == ([5.0, 35.0], [2.0, 6.0])
