"""Positive least squares, and a device whose engines slow each other down."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage.benchmark.simulate.fit import Rows, fit_device, positive_least_squares


def rows(
    weights: tuple[float, float, float], *, interference: float = 0.0, noise: float = 0.0, n: int = 300,
    seed: int = 0, beside: bool = True,
) -> Rows:  # fmt: skip
    rng = np.random.default_rng(seed)
    x = np.column_stack([np.ones(n), rng.integers(10, 2000, n), rng.integers(1, 64, n)]).astype(float)
    share = rng.choice([0.0, 0.5, 1.0], n) if beside else np.zeros(n)
    alone = 1 - share * interference / (1 + interference)
    seconds = (x @ np.array(weights)) / alone * np.exp(noise * rng.standard_normal(n))
    return Rows(x, seconds, share, np.ones(n), np.arange(float(n)), np.zeros(n, dtype=np.bool_))


@given(st.lists(st.floats(0, 10), min_size=3, max_size=3), st.integers(0, 1000))
def test_exact_data_gives_its_weights_back(weights: list[float], seed: int) -> None:
    x = np.random.default_rng(seed).uniform(0.1, 10, (40, 3))
    found, error = positive_least_squares(x, x @ np.array(weights))
    assert found == pytest.approx(weights, abs=1e-6)
    assert error == pytest.approx(0, abs=1e-9)


@given(st.integers(0, 1000))
def test_no_weight_is_negative_and_no_other_positive_weights_are_better(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(20, 3)), rng.normal(size=20)
    found, error = positive_least_squares(x, y)
    assert (found >= 0).all()
    for _ in range(50):
        other = np.abs(found + rng.normal(scale=0.1, size=3)) * rng.integers(0, 2, 3)
        assert float(np.square(x @ other - y).sum()) >= error - 1e-9


def test_a_column_of_nothing_gets_no_weight() -> None:
    x = np.column_stack([np.ones(5), np.zeros(5)])
    assert positive_least_squares(x, np.full(5, 3.0))[0].tolist() == pytest.approx([3.0, 0.0])


def test_weights_and_interference_are_found_together() -> None:
    llm, embed = (0.01, 0.0001, 0.0008), (0.004, 0.00003, 0.0002)
    both = [
        [rows(llm, interference=0.4, noise=0.03, seed=1)],
        [rows(embed, interference=0.4, noise=0.03, seed=2)],
    ]
    interference, found = fit_device(both)
    assert interference == pytest.approx(0.4, rel=0.05)
    assert found[0][1].weights == pytest.approx(llm, rel=0.05)
    assert found[1][1].weights == pytest.approx(embed, rel=0.05)
    assert found[0][1].noise == pytest.approx(0.03, rel=0.2)


def test_without_neighbours_there_is_no_interference_to_find() -> None:
    assert fit_device([[rows((0.01, 0.0001, 0.001), beside=False)]])[0] == 0.0


def test_the_reading_that_fits_is_chosen() -> None:
    right = rows((0.01, 0.0001, 0.001), noise=0.01)
    wrong = replace(right, x=right.x[::-1].copy())
    assert fit_device([[wrong, right]])[1][0][0] == 1
    assert fit_device([[right, wrong]])[1][0][0] == 0


def test_noise_of_long_calls_averages_out() -> None:
    rng = np.random.default_rng(3)
    steps = rng.integers(1, 200, 2000).astype(float)
    seconds = 0.01 * steps * (1 + 0.2 / np.sqrt(steps) * rng.standard_normal(2000))
    x = np.column_stack([steps, np.zeros(2000), np.zeros(2000)])
    rows = Rows(x, seconds, np.zeros(2000), steps, np.arange(2000.0), np.zeros(2000, dtype=np.bool_))
    fit = fit_device([[rows]])[1][0][1]
    assert fit.weights[0] == pytest.approx(0.01, rel=0.01)
    assert fit.noise == pytest.approx(0.2, rel=0.25)


@pytest.mark.parametrize("noise", [0.1, 0.3, 0.5])
def test_noise_does_not_make_an_engine_quick(noise: float) -> None:
    """Lognormal noise of median 1 has the mean exp(noise² / 2): that is what a step takes on average."""
    made = rows((0.01, 0.0, 0.001), noise=noise, n=4000, beside=False)
    plain = replace(made, x=made.x * np.array([1.0, 0.0, 1.0]))
    fit = fit_device([[plain]])[1][0][1]
    expected = plain.x @ np.array(fit.weights)
    assert float(np.mean(plain.seconds / expected)) == pytest.approx(1.0, abs=0.05)
    assert fit.noise == pytest.approx(noise, rel=0.25)


def test_what_rows_should_have_taken_counts_their_neighbours() -> None:
    made = rows((0.01, 0.0001, 0.001), interference=0.5)
    assert made.expected((0.01, 0.0001, 0.001), 0.5) == pytest.approx(made.seconds)
    assert (made.expected((0.01, 0.0001, 0.001), 0.0) < made.seconds + 1e-12).all()
