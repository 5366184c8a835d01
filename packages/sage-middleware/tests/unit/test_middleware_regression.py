"""Statistical tests use seeded noise: the same figures on every run."""

# ruff: noqa: S311 — no secret is drawn here

from __future__ import annotations

from math import isfinite
from random import Random
from statistics import median, quantiles

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from sage.middleware.control_plane.regression import LeastSquares, Quantile, Residuals, bounded

PRIOR = (0.02, 0.001, 0.0003, 1.0)
POSITIVE = st.floats(1e-300, 1e300)
REASONABLE = st.floats(1e-6, 1e6)


@pytest.mark.parametrize(("value", "expected"), [(-1.0, 2.0), (2.0, 2.0), (2.5, 2.5), (3.0, 3.0), (9.0, 3.0)])
def test_bounded(value: float, expected: float) -> None:
    assert bounded(value, 2.0, 3.0) == expected


# ---- quantile ----------------------------------------------------------------------------------------------


def test_a_quantile_says_what_it_was_told_at_first() -> None:
    assert Quantile(0.9, 512.0).value == 512.0


@pytest.mark.parametrize("initial", [0.001, 1.0, 1000.0])
def test_the_first_values_replace_what_was_assumed(initial: float) -> None:
    half, most = Quantile(0.5, initial), Quantile(0.9, initial)
    for x in (1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0):
        half.observe(x)
        most.observe(x)
    assert half.value == pytest.approx(6.0, abs=1.0)
    assert most.value == pytest.approx(10.0, abs=1.0)


@pytest.mark.parametrize("q", [0.1, 0.5, 0.9, 0.95])
@pytest.mark.parametrize("sigma", [0.05, 0.5, 2.0])
def test_a_share_q_lies_below(q: float, sigma: float) -> None:
    random, quantile = Random(1), Quantile(q, 3.0)
    below, values = 0, []
    for _ in range(4000):
        x = random.lognormvariate(1.0, sigma)
        below += x <= quantile.value
        values.append(quantile.value)
        quantile.observe(x)
    assert below / 4000 == pytest.approx(q, abs=0.02)
    exact = quantiles((random.lognormvariate(1.0, sigma) for _ in range(20_000)), n=100)[round(q * 100) - 1]
    assert median(values) == pytest.approx(exact, rel=0.25 * sigma + 0.01)


def test_a_quantile_of_one_value_is_that_value() -> None:
    quantile = Quantile(0.9, 5.0)
    for _ in range(500):
        quantile.observe(40.0)
    assert quantile.value == pytest.approx(40.0, rel=0.02)


@pytest.mark.parametrize("factor", [0.1, 10.0])
def test_a_quantile_forgets(factor: float) -> None:
    random, quantile = Random(2), Quantile(0.5, 1.0)
    for _ in range(5000):
        quantile.observe(random.lognormvariate(0.0, 0.5))
    for _ in range(300):
        quantile.observe(factor * random.lognormvariate(0.0, 0.5))
    assert quantile.value == pytest.approx(factor, rel=0.3)


@settings(deadline=None)
@given(st.floats(0.01, 0.99), POSITIVE, st.lists(POSITIVE, max_size=60))
def test_a_quantile_stays_a_positive_number(q: float, initial: float, values: list[float]) -> None:
    quantile = Quantile(q, initial)
    for x in values:
        quantile.observe(x)
        assert 0.0 < quantile.value < 1e301
    assert quantile.samples == len(values)


@settings(deadline=None)
@given(st.lists(st.floats(1.0, 2.0), min_size=Quantile.WARM, max_size=200))
def test_a_quantile_stays_about_where_the_values_are(values: list[float]) -> None:
    quantile = Quantile(0.9, 1.5)
    for x in values:
        quantile.observe(x)
    assert 0.9 < quantile.value < 2.2


# ---- residuals ---------------------------------------------------------------------------------------------


def test_a_model_is_innocent_until_most_of_the_window_is_off() -> None:
    residuals = Residuals()
    assert residuals.trusted
    verdicts = []
    for _ in range(Residuals.WINDOW):
        residuals.observe(1.0, 3.0)
        verdicts.append(residuals.trusted)
    assert verdicts == [True] * 25 + [False] * 25


def test_trust_comes_back() -> None:
    residuals = Residuals()
    for _ in range(200):
        residuals.observe(1.0, 3.0)
    for _ in range(24):
        residuals.observe(1.0, 1.0)
    assert not residuals.trusted
    residuals.observe(1.0, 1.0)
    assert residuals.trusted


@pytest.mark.parametrize(
    ("actual", "fine"), [(0.66, False), (0.67, True), (1.0, True), (2.0, True), (2.01, False)]
)
def test_off_means_by_more_than_half_of_the_actual_value(actual: float, fine: bool) -> None:
    residuals = Residuals()
    for _ in range(50):
        residuals.observe(1.0, actual)
    assert residuals.trusted is fine


@pytest.mark.parametrize(("actual", "fine"), [(0.09, False), (0.1, True), (1.9, True), (2.9, False)])
def test_off_means_by_more_than_the_noise_too(actual: float, fine: bool) -> None:
    residuals = Residuals(noise=0.9)
    for _ in range(50):
        residuals.observe(1.0, actual)
    assert residuals.trusted is fine


@pytest.mark.parametrize("sigma", [0.1, 0.3, 0.6, 1.0])
def test_the_margin_covers_nine_in_ten(sigma: float) -> None:
    random, residuals, covered = Random(3), Residuals(), 0
    for n in range(2100):
        actual = random.lognormvariate(0.0, sigma)
        covered += n >= 100 and actual <= residuals.margin
        residuals.observe(1.0, actual)
    assert 0.85 <= covered / 2000 <= 0.95


@settings(deadline=None)
@given(st.lists(st.tuples(POSITIVE, REASONABLE), max_size=60))
def test_the_margin_is_within_one_and_four(outcomes: list[tuple[float, float]]) -> None:
    residuals = Residuals()
    for predicted, actual in outcomes:
        residuals.observe(predicted, actual)
        assert 1.0 <= residuals.margin <= 4.0


# ---- least squares -----------------------------------------------------------------------------------------


def draw(random: Random) -> tuple[float, float, float, float]:
    """Features of a time to first token: iterations, iterations x running, tokens; the fourth is not used."""
    tokens = random.choice([50, 300, 2000, 6000]) * random.random()
    iterations = max(1.0, tokens / 2048)
    return iterations, iterations * random.randint(0, 32), tokens, 0.0


def dot(weights: tuple[float, ...], x: tuple[float, ...]) -> float:
    return sum(w * feature for w, feature in zip(weights, x, strict=True))


def learn(fit: LeastSquares, truth: tuple[float, ...], random: Random, count: int, sigma: float) -> None:
    for _ in range(count):
        x = draw(random)
        fit.observe(x, dot(truth, x) * random.lognormvariate(0.0, sigma))


def error(fit: LeastSquares, truth: tuple[float, ...]) -> float:
    """Median relative error over what comes."""
    random = Random(99)
    return median(abs(dot(fit.weights, x) / dot(truth, x) - 1.0) for x in (draw(random) for _ in range(300)))


def trace(fit: LeastSquares) -> float:
    return sum(fit._covariance[i] for i in (0, 4, 7, 9))


@pytest.mark.parametrize("scale", [0.01, 0.1, 1.0, 10.0, 100.0])
@pytest.mark.parametrize("shape", [(1.0, 1.0, 1.0), (0.5, 0.1, 0.3), (1.0, 4.0, 6.0)])
def test_a_prior_that_is_far_off_is_replaced(scale: float, shape: tuple[float, ...]) -> None:
    truth = (*(scale * s * p for s, p in zip(shape, PRIOR[:3], strict=True)), 1.0)
    fit, random = LeastSquares(PRIOR), Random(4)
    learn(fit, truth, random, 10, 0.2)
    assert error(fit, truth) < 0.3
    learn(fit, truth, random, 90, 0.2)
    assert error(fit, truth) < 0.1
    learn(fit, truth, random, 900, 0.2)
    assert error(fit, truth) < 0.1


def test_each_weight_is_found_where_the_features_vary() -> None:
    fit, truth = LeastSquares(PRIOR), (0.05, 0.0006, 0.0002, 1.0)
    learn(fit, truth, Random(5), 2000, 0.05)
    assert fit.weights[:3] == pytest.approx(truth[:3], rel=0.1)


def test_the_prediction_made_before_is_returned() -> None:
    fit = LeastSquares(PRIOR)
    assert fit.observe((1.0, 2.0, 100.0, 0.0), 5.0) == pytest.approx(0.02 + 0.002 + 0.03)
    expected = dot(fit.weights, (1.0, 0.0, 7.0, 0.0))
    assert fit.observe((1.0, 0.0, 7.0, 0.0), 5.0) == expected
    assert fit.samples == 2


def test_collinear_features_are_fitted_together_and_do_not_wind_up() -> None:
    fit, random = LeastSquares(PRIOR), Random(6)
    for _ in range(5000):
        fit.observe((1.0, 8.0, 100.0, 0.0), 0.5 * random.lognormvariate(0.0, 0.2))
    assert dot(fit.weights, (1.0, 8.0, 100.0, 0.0)) == pytest.approx(0.5, rel=0.1)
    for _ in range(20):  # now they vary: no prediction runs away
        x = draw(random)
        fit.observe(x, dot((0.1, 0.01, 0.003, 1.0), x))
    assert error(fit, (0.1, 0.01, 0.003, 1.0)) < 0.3


def test_outliers_do_not_carry_the_fit_away() -> None:
    fit, random, truth = LeastSquares(PRIOR), Random(7), (0.04, 0.001, 0.0004, 1.0)
    worst = 0.0
    for n in range(2000):
        x = draw(random)
        hit = 100.0 if random.random() < 0.02 else 1.0
        fit.observe(x, dot(truth, x) * hit * random.lognormvariate(0.0, 0.1))
        if n > 100:
            worst = max(worst, abs(dot(fit.weights, (1.0, 8.0, 500.0, 0.0)) / 0.248 - 1.0))
    assert error(fit, truth) < 0.2
    assert worst < 0.5


@pytest.mark.parametrize("factor", [0.1, 1 / 3, 3.0, 10.0])
def test_a_change_of_regime_is_followed_within_a_hundred_samples(factor: float) -> None:
    fit, random, truth = LeastSquares(PRIOR), Random(8), (0.012, 0.00015, 0.0001, 1.0)
    learn(fit, truth, random, 3000, 0.2)
    changed = (*(factor * w for w in truth[:3]), 1.0)
    learn(fit, changed, random, 100, 0.2)
    assert error(fit, changed) < 0.2
    learn(fit, truth, random, 100, 0.2)
    assert error(fit, truth) < 0.2


def test_a_small_change_is_followed_by_forgetting() -> None:
    fit, random, truth = LeastSquares(PRIOR), Random(11), (0.02, 0.001, 0.0003, 1.0)
    learn(fit, truth, random, 5000, 0.1)
    changed = (*(1.25 * w for w in truth[:3]), 1.0)
    learn(fit, changed, random, 600, 0.1)
    assert error(fit, changed) < 0.06


def test_a_weight_stays_within_its_bounds_whatever_would_fit() -> None:
    fit, random = LeastSquares(PRIOR), Random(12)
    for _ in range(2000):  # most say that the prior is right, some that one weight is a thousand times larger
        running = float(random.random() < 0.3)
        fit.observe((1.0, running, 100.0, 0.0), 0.05 + 1.0 * running)
    assert fit.weights[1] == pytest.approx(32 * PRIOR[1], rel=0.1)
    for _ in range(2000):  # and now that it is nothing
        running = random.randint(0, 30)
        fit.observe((1.0, running, 100.0, 0.0), 0.05)
    assert 0.005 * PRIOR[1] < fit.weights[1] < 0.1 * PRIOR[1]


def test_changes_without_end_do_not_widen_without_end() -> None:
    fit = LeastSquares(PRIOR)
    for n in range(6000):
        fit.observe((1.0, 8.0, 100.0, 0.0), 0.05 if n // 20 % 2 else 0.5)
    assert trace(fit) < 110.0


def test_forgetting_stops_at_the_bound_of_the_covariance() -> None:
    fit = LeastSquares(PRIOR)
    learn(fit, PRIOR, Random(13), 10, 0.0)
    fit._covariance = (1e-6, 0.0, 0.0, 0.0, 120.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    fit.observe((1.0, 0.0, 0.0, 0.0), PRIOR[0])
    assert trace(fit) == 120.0 + 1e-6


def test_noise_alone_widens_nothing() -> None:
    fit, random, truth = LeastSquares(PRIOR), Random(9), (0.02, 0.001, 0.0003, 1.0)
    learn(fit, truth, random, 500, 0.3)
    for _ in range(20):
        learn(fit, truth, random, 50, 0.3)
        assert error(fit, truth) < 0.15


def test_a_covariance_that_rounding_ate_up_is_begun_anew() -> None:
    fit, random, truth = LeastSquares(PRIOR), Random(10), (0.02, 0.004, 0.0003, 1.0)
    learn(fit, truth, random, 100, 0.1)
    fit._covariance = (0.0,) * 10
    learn(fit, tuple(3 * w for w in truth), random, 100, 0.1)
    assert error(fit, tuple(3 * w for w in truth)) < 0.1


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(REASONABLE, st.floats(0.0, 1e6), st.floats(0.0, 1e9), st.floats(0.0, 1.0), REASONABLE),
        max_size=80,
    )
)
def test_weights_stay_positive_bounded_numbers(samples: list[tuple[float, ...]]) -> None:
    fit = LeastSquares(PRIOR)
    for x0, x1, x2, x3, actual in samples:
        assert fit.observe((x0, x1, x2, x3), actual) > 0.0
        assert all(w > 0.0 and isfinite(w) for w in fit.weights)
        relative = [w / p for w, p in zip(fit.weights, PRIOR, strict=True)]
        assert max(relative) <= 3300.0 * min(relative)
        assert trace(fit) < 110.0
