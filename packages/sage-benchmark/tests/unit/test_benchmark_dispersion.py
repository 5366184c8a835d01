"""Residuals to quantiles and to the time for which a slow moment lasts."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest
from numpy.typing import NDArray

from sage.benchmark.simulate.dispersion import ENOUGH, dispersion
from sage.middleware.control_plane.simulator.fleet import PROBABILITIES, Dispersion
from sage.middleware.control_plane.simulator.variation import Variation

FACTORS = (0.5, 0.6, 0.7, 0.75, 0.85, 0.95, 1.1, 1.4, 1.8, 2.5, 4.0)
Array = NDArray[np.float64]


def drawn(hold_s: float, count: int = 4000, every: float = 0.05) -> tuple[Array, Array, Array]:
    """Durations of an engine that varies as is known; what was expected of them; when."""
    variation = Variation(Dispersion(factors=FACTORS, hold_s=hold_s), Random(0))  # noqa: S311
    at = np.arange(count, dtype=np.float64) * every
    expected = np.random.default_rng(0).uniform(0.01, 0.1, count)
    return expected * np.array([variation.at(float(time)) for time in at]), expected, at


@pytest.mark.parametrize("hold_s", [0.3, 1.0, 3.0])
def test_what_was_drawn_is_found_again(hold_s: float) -> None:
    found = dispersion(*drawn(hold_s, count=20_000, every=hold_s / 4))
    assert found is not None
    assert found.factors[2:-2] == pytest.approx(FACTORS[2:-2], rel=0.08)
    assert found.hold_s == pytest.approx(hold_s, rel=0.4)


def test_steps_that_have_nothing_in_common_hold_nothing() -> None:
    found = dispersion(*drawn(0.0))
    assert found is not None
    assert found.hold_s == 0.0


def test_the_order_of_rows_does_not_matter() -> None:
    seconds, expected, at = drawn(1.0)
    mixed = np.random.default_rng(1).permutation(len(at))
    assert dispersion(seconds[mixed], expected[mixed], at[mixed]) == dispersion(seconds, expected, at)


def test_few_observations_have_no_p99() -> None:
    seconds, expected, at = drawn(1.0, count=ENOUGH - 1)
    assert dispersion(seconds, expected, at) is None
    assert dispersion(*drawn(1.0, count=ENOUGH)) is not None


def test_what_is_far_off_is_not_what_it_was_taken_for() -> None:
    seconds, expected, at = drawn(1.0)
    seconds[::50] = 1e-5
    found = dispersion(seconds, expected, at)
    assert found is not None
    assert found.factors[0] >= 0.25


def test_a_machine_that_never_varies_is_one() -> None:
    expected = np.full(200, 0.02)
    found = dispersion(expected, expected, np.arange(200.0))
    assert found == Dispersion(factors=(1.0,) * len(PROBABILITIES))
