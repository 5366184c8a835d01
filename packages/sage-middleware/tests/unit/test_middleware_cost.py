"""Statistical tests use seeded noise: the same figures on every run."""

# ruff: noqa: S311 — no secret is drawn here

from __future__ import annotations

from collections.abc import Callable
from math import isfinite
from random import Random
from statistics import median

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from sage.middleware.control_plane.cost import (
    CPU_LLM,
    GPU_LLM,
    EmbedCost,
    LlmCost,
    LlmPrior,
    OutputLengths,
    PromptTokens,
)

POSITIVE = st.floats(1e-300, 1e300)
Truth = Callable[[float, float], float]


def engine(base: float, slope: float, per_token: float, chunk: int = 2048) -> Truth:
    return lambda tokens, running: max(1.0, tokens / chunk) * (base + slope * running) + per_token * tokens


FAST = engine(0.006, 0.0001, 0.00002)
SLOW = engine(0.03, 0.004, 0.002)


def load(random: Random) -> tuple[float, int]:
    return random.choice([50, 300, 2000, 6000]) * random.random(), random.randint(0, 32)


def run(cost: LlmCost, truth: Truth, random: Random, count: int, sigma: float) -> None:
    for _ in range(count):
        tokens, running = load(random)
        cost.observe_ttft(tokens, running, truth(tokens, running) * random.lognormvariate(0.0, sigma))


def error(cost: LlmCost, truth: Truth) -> float:
    random = Random(99)
    loads = [load(random) for _ in range(300)]
    return median(abs(cost.ttft(*each) / truth(*each) - 1.0) for each in loads)


# ---- LLM ---------------------------------------------------------------------------------------------------


def test_ttft_is_the_formula() -> None:
    cost = LlmCost(chunk=100, prior=LlmPrior((0.5, 0.25, 0.125)))
    assert cost.ttft(8, 0) == 0.5 + 1.0
    assert cost.ttft(8, 2) == 0.5 + 0.5 + 1.0
    assert cost.ttft(200, 2) == 2 * (0.5 + 0.5) + 25.0
    assert (cost.iteration_base, cost.iteration_slope, cost.per_token) == (0.5, 0.25, 0.125)


def test_tpot_is_the_formula() -> None:
    cost = LlmCost(prior=LlmPrior(tpot=(0.5, 0.25, 2.0, 4.0)))
    assert cost.tpot(3) == 0.5 + 0.75
    assert cost.tpot(3, 0.5, 0.25) == 0.5 + 0.75 + 1.0 + 1.0


def test_the_weights_can_be_read_inline() -> None:
    cost = LlmCost(chunk=500)
    run(cost, SLOW, Random(1), 50, 0.1)
    inline = 2.0 * (cost.iteration_base + cost.iteration_slope * 7) + cost.per_token * 1000
    assert cost.ttft(1000, 7) == inline


@pytest.mark.parametrize("prior", [None, GPU_LLM, CPU_LLM])
@pytest.mark.parametrize("truth", [FAST, SLOW, engine(0.2, 0.01, 0.003), engine(0.001, 0.00001, 0.000003)])
def test_any_engine_is_learned_from_any_prior(prior: LlmPrior | None, truth: Truth) -> None:
    cost, random = LlmCost(prior=prior), Random(2)
    run(cost, truth, random, 10, 0.2)
    assert error(cost, truth) < 0.5
    run(cost, truth, random, 140, 0.2)
    assert error(cost, truth) < 0.12
    assert cost.trusted
    assert cost.samples == 150


@pytest.mark.parametrize("sigma", [0.1, 0.3, 0.6])
def test_nine_in_ten_are_within_the_margin(sigma: float) -> None:
    cost, random, within = LlmCost(), Random(3), 0
    run(cost, SLOW, random, 300, sigma)
    for _ in range(2000):
        tokens, running = load(random)
        seconds = SLOW(tokens, running) * random.lognormvariate(0.0, sigma)
        within += seconds <= cost.ttft(tokens, running) * cost.margin
        cost.observe_ttft(tokens, running, seconds)
    assert 0.85 <= within / 2000 <= 0.95


def test_trust_is_lost_on_an_engine_that_no_model_fits_and_comes_back() -> None:
    cost, random, verdicts = LlmCost(), Random(4), []
    for sigma in (0.2, 3.0, 0.2):
        run(cost, FAST, random, 200, sigma)
        verdicts.append(cost.trusted)
        assert 1.0 <= cost.margin <= 4.0
    assert verdicts == [True, False, True]
    assert error(cost, FAST) < 0.2


@pytest.mark.parametrize(("scale", "trusted"), [(0.001, True), (0.5, False)])
def test_noise_that_no_goal_notices_costs_no_trust(scale: float, trusted: bool) -> None:
    cost = LlmCost()
    run(cost, engine(scale, 0.0, 0.0), Random(4), 200, 3.0)
    assert cost.trusted is trusted


@pytest.mark.parametrize("factor", [1 / 3, 3.0])
def test_a_change_of_pace_is_followed(factor: float) -> None:
    cost, random = LlmCost(), Random(5)
    run(cost, SLOW, random, 2000, 0.3)

    def changed(tokens: float, running: float) -> float:
        return factor * SLOW(tokens, running)

    run(cost, changed, random, 100, 0.3)
    assert error(cost, changed) < 0.25


def test_a_new_process_begins_with_what_the_old_one_taught_and_has_to_earn_trust_to_refuse() -> None:
    cost, random = LlmCost(), Random(5)
    run(cost, SLOW, random, 500, 0.1)
    cost.observe_tpot(4.0, 0.0, 0.0, 0.02)
    before, tpot, margin = cost.ttft(900, 3), cost.tpot(3), cost.margin
    run(cost, FAST, random, 40, 5.0)
    assert not cost.trusted
    run(cost, SLOW, random, 500, 0.1)
    cost.restart()
    assert cost.ttft(900, 3) == pytest.approx(before, rel=0.2)
    assert cost.tpot(3) == pytest.approx(tpot)
    assert (cost.samples, cost.trusted) == (0, True)
    assert cost.margin == LlmCost().margin != margin
    run(cost, SLOW, random, 5, 0.1)
    assert error(cost, SLOW) < 0.2


@pytest.mark.parametrize("factor", [0.1, 10.0])
def test_a_process_on_another_device_is_known_in_ten_samples(factor: float) -> None:
    cost, same, random = LlmCost(), LlmCost(), Random(11)

    def other(tokens: float, running: float) -> float:
        return factor * SLOW(tokens, running)

    for one in (cost, same):
        run(one, SLOW, random, 2000, 0.1)
    cost.restart()
    for one in (cost, same):
        run(one, other, random, 10, 0.1)
    assert error(cost, other) < 0.2 < error(same, other)


def test_interference_of_an_embedding_engine_is_learned() -> None:
    cost, random = LlmCost(), Random(6)
    for _ in range(1500):
        running, share, beside = (
            random.randint(0, 16),
            random.random(),
            random.choice([0.0, 0.0, random.random()]),
        )
        seconds = 0.008 + 0.0005 * running + 0.01 * share + 0.1 * beside
        cost.observe_tpot(running, share, beside, seconds * random.lognormvariate(0.0, 0.1))
    assert cost.tpot(8, 0.2) == pytest.approx(0.014, rel=0.1)
    assert cost.tpot(8, 0.2, 1.0) == pytest.approx(0.114, rel=0.1)


def test_engines_learn_apart() -> None:
    one, other = LlmCost(), LlmCost()
    run(one, SLOW, Random(7), 50, 0.1)
    assert other.ttft(1000, 4) == LlmCost().ttft(1000, 4)
    assert other.samples == 0


@settings(deadline=None)
@given(st.lists(st.tuples(POSITIVE, POSITIVE, POSITIVE, POSITIVE), max_size=60))
def test_no_report_breaks_an_llm_model(reports: list[tuple[float, float, float, float]]) -> None:
    cost = LlmCost()
    for tokens, running, share, seconds in reports:
        cost.observe_ttft(tokens, running, seconds)
        cost.observe_tpot(running, share, share, seconds)
        for weight in (cost.iteration_base, cost.iteration_slope, cost.per_token):
            assert weight > 0.0
            assert isfinite(weight)
        assert 0.0 < cost.ttft(1000, 8) < 1e15
        assert 0.0 < cost.tpot(8, 0.5, 0.5) < 1e15
        assert 1.0 <= cost.margin <= 4.0


# ---- embedding ---------------------------------------------------------------------------------------------


def test_a_batch_is_the_formula() -> None:
    cost = EmbedCost(prior=(0.5, 0.25, 2.0))
    assert cost.seconds(8, 3) == 0.5 + 2.0 + 6.0
    assert cost.seconds(8, 3, threads=0) == cost.seconds(8, 3)
    assert cost.seconds(8, 3, threads=4) < cost.seconds(8, 3, threads=2) < cost.seconds(8, 3)
    assert cost.seconds(8, 3, beside=0.5) > cost.seconds(8, 3)
    assert cost.knee == 4


def batches(cost: EmbedCost, random: Random, count: int, threads: list[int], sigma: float) -> None:
    for _ in range(count):
        texts, chosen, beside = (
            random.randint(1, 32),
            random.choice(threads),
            random.choice([0.0, 0.0, 0.3, 1.0]),
        )
        tokens = texts * random.randint(5, 200)
        seconds = batch(tokens, texts, chosen, beside) * random.lognormvariate(0.0, sigma)
        cost.observe(tokens, texts, seconds, chosen, beside)


def batch(tokens: float, texts: float, threads: int = 1, beside: float = 0.0) -> float:
    """An engine that gains little from threads and suffers much from a neighbour."""
    return (0.004 + 0.0001 * tokens + 0.001 * texts) * float(threads**-0.4) * (1.0 + 2.0 * beside)


@pytest.mark.parametrize("threads", [[1], [4], [1, 2, 4], [2, 8]])
def test_batches_are_learned_with_threads_and_interference(threads: list[int]) -> None:
    cost = EmbedCost()
    batches(cost, Random(8), 600, threads, 0.15)
    for count in threads:
        for beside in (0.0, 1.0):
            for texts, tokens in ((1, 30), (8, 800), (32, 5000)):
                predicted = cost.seconds(tokens, texts, count, beside)
                assert predicted == pytest.approx(batch(tokens, texts, count, beside), rel=0.25)
    assert cost.trusted
    assert cost.samples == 600
    assert 1.0 < cost.margin < 1.5


def test_a_new_embedding_process_begins_with_what_the_old_one_taught() -> None:
    cost = EmbedCost()
    batches(cost, Random(8), 600, [1, 4], 0.15)
    before = [cost.seconds(800, 8, threads, beside) for threads in (1, 4) for beside in (0.0, 1.0)]
    cost.restart()
    after = [cost.seconds(800, 8, threads, beside) for threads in (1, 4) for beside in (0.0, 1.0)]
    assert after == before
    assert (cost.samples, cost.trusted, cost.margin) == (0, True, EmbedCost().margin)
    for _ in range(10):
        cost.observe(800, 8, 10.0 * batch(800, 8))
    assert cost.seconds(800, 8) == pytest.approx(10.0 * batch(800, 8), rel=0.25)


@pytest.mark.parametrize("scale", [0.1, 10.0])
def test_a_wrong_prior_is_replaced_in_ten_batches(scale: float) -> None:
    cost, random = EmbedCost(), Random(9)
    for _ in range(10):
        texts = random.randint(1, 32)
        cost.observe(100 * texts, texts, scale * batch(100 * texts, texts))
    assert cost.seconds(800, 8) == pytest.approx(scale * batch(800, 8), rel=0.25)


def test_the_knee_is_where_tokens_cost_twice_the_start() -> None:
    cost, random = EmbedCost(), Random(10)
    for _ in range(1000):
        tokens = random.randint(10, 5000)
        cost.observe(tokens, 1, 0.02 + 0.0001 * tokens)
    weights = cost.seconds(0, 0), (cost.seconds(1000, 0) - cost.seconds(0, 0)) / 1000
    assert weights[1] * cost.knee >= 2 * weights[0] * (1 - 1e-9) > weights[1] * (cost.knee - 1)
    assert cost.knee == pytest.approx(400, rel=0.2)


@settings(deadline=None)
@given(st.floats(1e-4, 100.0), st.floats(1.0, 500.0), st.integers(0, 16))
def test_tokens_within_a_budget_fit_and_no_more_would(seconds: float, length: float, threads: int) -> None:
    cost = EmbedCost()
    batches(cost, Random(11), 20, [1, 2], 0.1)
    tokens = cost.tokens_within(seconds, length, threads)
    assert tokens >= 1
    assert tokens == 1 or cost.seconds(tokens, tokens / length, threads) <= seconds * (1 + 1e-9)
    assert cost.seconds(tokens + 1, (tokens + 1) / length, threads) > seconds * (1 - 1e-9)


@settings(deadline=None)
@given(st.lists(st.tuples(POSITIVE, POSITIVE, POSITIVE, st.integers(0, 10**6), POSITIVE), max_size=60))
def test_no_report_breaks_an_embedding_model(reports: list[tuple[float, float, float, int, float]]) -> None:
    cost = EmbedCost()
    for tokens, texts, seconds, threads, beside in reports:
        cost.observe(tokens, texts, seconds, threads, beside)
        assert 0.0 < cost.seconds(1000, 8, threads, 0.5) < 1e20
        assert cost.knee >= 1
        assert cost.tokens_within(0.1, 50.0, threads) >= 1
        assert 1.0 <= cost.margin <= 4.0


# ---- lengths and tokens ------------------------------------------------------------------------------------


def test_an_unknown_tenant_gets_the_prior_within_max_tokens() -> None:
    lengths = OutputLengths()
    assert (lengths.p50("m", "t", None), lengths.p90("m", "t", None)) == (128.0, 512.0)
    assert (lengths.p50("m", "t", 300), lengths.p90("m", "t", 300)) == (128.0, 300.0)
    assert (lengths.p50("m", "t", 10), lengths.p90("m", "t", 10)) == (10.0, 10.0)


def test_lengths_are_learned_by_model_tenant_and_size() -> None:
    lengths = OutputLengths()
    for n in range(1, 201):
        lengths.observe("m", "t", 1000, n)
        lengths.observe("m", "u", 1000, 7)
        lengths.observe("m", "t", None, 900)
        lengths.observe("other", "t", 1000, 30)
    assert lengths.p50("m", "t", 600) < lengths.p90("m", "t", 600)  # 600 and 1,000 are of one size
    assert lengths.p50("m", "u", 1000) == pytest.approx(7.0, rel=0.05)
    assert lengths.p90("m", "t", None) == pytest.approx(900.0, rel=0.05)
    assert lengths.p90("other", "t", 1000) == pytest.approx(30.0, rel=0.05)
    assert lengths.p50("m", "t", 10) == 10.0
    assert lengths.p50("m", "new", 1000) == 128.0


def test_lengths_are_calibrated() -> None:
    lengths, random, half, most = OutputLengths(), Random(12), 0, 0
    for _ in range(3000):
        tokens = min(4096, int(random.lognormvariate(5.0, 1.0)) + 1)
        half += tokens <= lengths.p50("m", "t", 4096)
        most += tokens <= lengths.p90("m", "t", 4096)
        lengths.observe("m", "t", 4096, tokens)
    assert half / 3000 == pytest.approx(0.5, abs=0.03)
    assert most / 3000 == pytest.approx(0.9, abs=0.03)


def test_the_keys_that_were_observed_last_are_kept() -> None:
    lengths = OutputLengths(keys=2)
    for tenant in ("a", "b", "a", "c"):
        lengths.observe("m", tenant, None, 5)
    assert [lengths.p90("m", tenant, None) for tenant in "abc"] == [512.0, 512.0, 512.0]
    for tenant in ("a", "b", "a", "c") + ("a",) * 12:
        lengths.observe("m", tenant, None, 5)
    assert lengths.p90("m", "a", None) < 10.0
    assert lengths.p90("m", "b", None) == 512.0


@settings(deadline=None)
@given(st.one_of(st.none(), st.integers(0, 10**9)), st.lists(st.integers(0, 10**9), max_size=40))
def test_lengths_never_exceed_max_tokens(max_tokens: int | None, seen: list[int]) -> None:
    lengths = OutputLengths()
    for tokens in seen:
        lengths.observe("m", "t", max_tokens, tokens)
    most = float("inf") if max_tokens is None else max_tokens
    assert 0.0 <= lengths.p50("m", "t", max_tokens) <= most
    assert 0.0 <= lengths.p90("m", "t", max_tokens) <= most


def test_tokens_are_a_quarter_of_the_bytes_until_they_are_known() -> None:
    tokens = PromptTokens()
    assert tokens.estimate("m", 4000) == 1000
    for _ in range(20):
        tokens.observe("m", 9000, 3000)
        tokens.observe("other", 1000, 700)
    assert tokens.estimate("m", 3000) == pytest.approx(1000, rel=0.02)
    assert tokens.estimate("other", 1000) == pytest.approx(700, rel=0.1)
    assert tokens.estimate("unknown", 4000) == 1000


def test_bytes_per_token_follow_another_language() -> None:
    tokens = PromptTokens()
    for _ in range(500):
        tokens.observe("m", 8000, 2000)
    for _ in range(150):
        tokens.observe("m", 8000, 6000)
    assert tokens.estimate("m", 8000) == pytest.approx(6000, rel=0.1)


def test_counts_that_say_nothing_teach_nothing() -> None:
    tokens = PromptTokens()
    tokens.observe("m", 0, 50)
    tokens.observe("m", 50, 0)
    assert tokens.estimate("m", 4000) == 1000
    assert tokens.estimate("m", 0) == 1


def test_only_so_many_models_are_kept() -> None:
    tokens = PromptTokens(models=2)
    for model in ("a", "b", "a", "c"):
        tokens.observe(model, 100_000, 100_000)
    assert [tokens.estimate(model, 1000) > 300 for model in "abc"] == [True, False, True]


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 10**12), st.integers(0, 10**12)), max_size=40), st.integers(0, 10**12)
)
def test_an_estimate_is_at_least_one_and_within_reason(
    seen: list[tuple[int, int]], prompt_bytes: int
) -> None:
    tokens = PromptTokens()
    for size, count in seen:
        tokens.observe("m", size, count)
    assert 1 <= tokens.estimate("m", prompt_bytes) <= 10 * prompt_bytes + 1
