"""Factors of an engine's steps: as likely as their quantiles say, and held for as long as they should be."""

from __future__ import annotations

from random import Random
from statistics import fmean, quantiles
from typing import Any

import pytest
from pydantic import ValidationError

from sage.middleware.control_plane.simulator.embedding import EmbedSim
from sage.middleware.control_plane.simulator.engines import NEVER, Device, SimEngine, Work
from sage.middleware.control_plane.simulator.fleet import Dispersion, EmbedEngine, LlmEngine
from sage.middleware.control_plane.simulator.llm import LlmSim
from sage.middleware.control_plane.simulator.variation import Variation
from sage.middleware.testing.simulated import embed_engine, llm_engine

FACTORS = (0.5, 0.6, 0.7, 0.75, 0.85, 0.95, 1.1, 1.4, 1.8, 2.5, 4.0)
ONES = (1.0,) * 11


def twice(hold_s: float = 0.0) -> dict[str, Any]:
    return {"factors": (2.0,) * 11, "hold_s": hold_s}


def llm(**changes: Any) -> LlmSim:
    return LlmSim("llm", LlmEngine.model_validate(llm_engine(**changes)), Device(), Random(0))  # noqa: S311


def run(sim: SimEngine, *works: Work) -> list[float]:
    """Submit at once; when first tokens and answers came."""
    for work in works:
        sim.submit(work)
    sim.resume(0.0)
    times = []
    while sim.due != NEVER:
        now = sim.due
        firsts, ends = sim.advance(now)
        times += [now] * (len(firsts) + len(ends))
        sim.resume(now)
    return times


def test_factors_are_as_likely_as_their_quantiles_say() -> None:
    variation = Variation(Dispersion(factors=FACTORS), Random(1))  # noqa: S311
    drawn = [variation.at(step * 0.01) for step in range(20_000)]
    assert min(drawn) >= 0.5
    assert max(drawn) <= 4.0
    cuts = quantiles(drawn, n=100)
    assert [cuts[q - 1] for q in (10, 50, 90)] == pytest.approx([0.75, 0.95, 1.4], rel=0.03)
    assert cuts[98] == pytest.approx(2.5, rel=0.1)


def test_a_factor_holds_for_a_while_and_is_forgotten() -> None:
    variation = Variation(Dispersion(factors=FACTORS, hold_s=1.0), Random(2))  # noqa: S311
    drawn = [variation.at(step * 0.1) for step in range(50_000)]
    mean = fmean(drawn)
    off = [one - mean for one in drawn]
    spread = fmean(one * one for one in off)

    def correlation(steps: int) -> float:
        return fmean(a * b for a, b in zip(off, off[steps:], strict=False)) / spread

    assert correlation(5) == pytest.approx(0.607, abs=0.1)  # exp(-0.5)
    assert correlation(50) == pytest.approx(0.007, abs=0.1)


def test_one_seed_gives_one_series() -> None:
    one, same = (Variation(Dispersion(factors=FACTORS, hold_s=0.2), Random(3)) for _ in range(2))  # noqa: S311
    assert [one.at(t * 0.1) for t in range(99)] == [same.at(t * 0.1) for t in range(99)]


def test_quantiles_must_ascend_and_be_all_there() -> None:
    for factors in (FACTORS[::-1], FACTORS[:-1], (*FACTORS, 5.0)):
        with pytest.raises(ValidationError):
            Dispersion(factors=factors)


def test_batches_vary() -> None:
    model = EmbedEngine.model_validate(embed_engine(dispersion=twice()))
    sim = EmbedSim("embed", model, Device(), Random(0))  # noqa: S311
    assert run(sim, Work(1, 100, 0, texts=1)) == pytest.approx([2 * 0.021])


def test_decoding_varies_by_the_dispersion_and_prefill_by_that_of_first_tokens() -> None:
    first, end = run(
        llm(dispersion=twice(10.0), first_token={"factors": ONES}), Work(1, 100, 11, stream=True)
    )
    assert first == pytest.approx(0.02)
    assert end == pytest.approx(0.02 + 2 * 10 * 0.011)
    first, end = run(llm(first_token=twice()), Work(1, 100, 11, stream=True))
    assert first == pytest.approx(2 * 0.02)
    assert end == pytest.approx(2 * 0.02 + 10 * 0.011)


def test_a_long_answer_meets_many_factors() -> None:
    """Its mean is that of all, not one draw: 2,000 tokens at 11 ms while a factor holds for 0.1 s."""
    ends = []
    for seed in range(20):
        model = LlmEngine.model_validate(llm_engine(dispersion={"factors": FACTORS, "hold_s": 0.1}))
        sim = LlmSim("llm", model, Device(), Random(seed))  # noqa: S311
        ends.append(run(sim, Work(1, 100, 2000))[-1])
    assert max(ends) / min(ends) < 1.4
    assert max(FACTORS) / min(FACTORS) == 8.0
