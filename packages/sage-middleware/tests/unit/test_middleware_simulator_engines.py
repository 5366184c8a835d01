"""What the engine models do beside batching: caches, hangs, noise, shared devices, batches of texts."""

from __future__ import annotations

from random import Random
from statistics import fmean
from typing import Any

import pytest

from sage.middleware.control_plane.simulator.embedding import EmbedSim
from sage.middleware.control_plane.simulator.engines import NEVER, Device, SimEngine, Work
from sage.middleware.control_plane.simulator.fleet import DeviceModel, EmbedEngine, LlmEngine
from sage.middleware.control_plane.simulator.llm import LlmSim
from sage.middleware.testing.simulated import embed_engine, llm_engine


def llm(device: Device | None = None, **changes: Any) -> LlmSim:
    model = LlmEngine.model_validate(llm_engine(**changes))
    return LlmSim("llm", model, device or Device(), Random(0))  # noqa: S311


def embed(device: Device | None = None, **changes: Any) -> EmbedSim:
    model = EmbedEngine.model_validate(embed_engine(**changes))
    return EmbedSim("embed", model, device or Device(), Random(0))  # noqa: S311


def texts(attempt: int, tokens: int, count: int = 1, threads: int = 0) -> Work:
    return Work(attempt, tokens, 0, texts=count, threads=threads)


def begin(sim: SimEngine, *works: Work, now: float = 0.0) -> None:
    for work in works:
        sim.submit(work)
    sim.resume(now)


def finish(sim: SimEngine) -> dict[int, float]:
    """Run it until it is idle: when each call was complete."""
    ends = {}
    while sim.due != NEVER:
        now = sim.due
        ends.update({work.attempt: now for work in sim.advance(now)[1]})
        sim.resume(now)
    return ends


# ---- the prefix cache --------------------------------------------------------------------------------------


def prompt(attempt: int, blocks: tuple[int, ...]) -> Work:
    return Work(attempt, 100 * len(blocks), 1, blocks=blocks, per_block=100)


def test_a_prefix_that_was_computed_is_not_computed_again() -> None:
    sim = llm()
    begin(sim, prompt(1, (1, 2, 3)))
    assert finish(sim) == {1: pytest.approx(0.01 + 300 * 0.0001)}
    begin(sim, prompt(2, (1, 2, 9)), now=1.0)
    assert finish(sim) == {2: pytest.approx(1.0 + 0.01 + 100 * 0.0001)}
    assert (sim.cached, sim.computed) == (200, 400)


def test_without_a_prefix_cache_every_prompt_is_computed() -> None:
    sim = llm(prefix_cache=False)
    begin(sim, prompt(1, (1, 2, 3)))
    finish(sim)
    begin(sim, prompt(2, (1, 2, 9)), now=1.0)
    assert finish(sim) == {2: pytest.approx(1.0 + 0.01 + 300 * 0.0001)}
    assert (sim.computed, sim.cached) == (600, 0)


def test_of_a_prompt_that_is_cached_whole_the_last_token_is_computed() -> None:
    sim = llm()
    for attempt in (1, 2):
        begin(sim, prompt(attempt, (1, 2)))
        finish(sim)
    assert (sim.cached, sim.computed) == (199, 201)


def test_the_prefix_cache_forgets_the_least_recently_used_tail_first() -> None:
    sim = llm(kv_tokens=400)
    for attempt, blocks in enumerate([(1, 2), (3, 4), (1, 2), (5,)]):
        begin(sim, prompt(attempt, blocks))
        finish(sim)
    assert list(sim._cache) == [3, 2, 1, 5]  # 4, the tail of what was used longest ago, had to go


def test_a_process_that_died_has_cached_nothing() -> None:
    sim = llm()
    begin(sim, prompt(1, (1, 2)))
    finish(sim)
    sim.drop(1.0)
    begin(sim, prompt(2, (1, 2)), now=1.0)
    finish(sim)
    assert sim.cached == 0


# ---- steps -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sim", [llm(), embed()], ids=["llm", "embed"])
def test_a_hang_puts_off_what_runs_by_its_length(sim: SimEngine) -> None:
    begin(sim, Work(1, 100, 20))
    undisturbed = sim.due
    sim.freeze(0.005)
    assert sim.due == NEVER
    begin(sim, Work(2, 100, 20), now=1.0)
    assert sim.due == NEVER
    sim.thaw(2.005)
    assert sim.due == pytest.approx(undisturbed + 2.0)
    assert set(finish(sim)) == {1, 2}


def test_a_newcomer_is_let_in_at_the_end_of_the_iteration_that_runs() -> None:
    sim = llm()
    begin(sim, Work(1, 100, 1000))
    sim.advance(sim.due)
    sim.resume(0.02)  # decoding, 11 ms each
    assert sim.due == pytest.approx(0.02 + 999 * 0.011)
    begin(sim, Work(2, 100, 1), now=0.02 + 2.5 * 0.011)
    assert sim.due == pytest.approx(0.02 + 3 * 0.011)


def test_a_full_batch_is_not_cut_for_what_cannot_be_let_in() -> None:
    sim = llm(max_running=1)
    begin(sim, Work(1, 100, 1000))
    sim.advance(sim.due)
    sim.resume(0.02)
    due = sim.due
    begin(sim, Work(2, 100, 1), now=0.1)
    assert sim.due == due


def test_a_slower_engine_takes_longer_from_its_next_iteration_on() -> None:
    sim = llm()
    begin(sim, Work(1, 100, 11))
    sim.advance(sim.due)
    sim.resume(0.02)
    sim.slow = 10.0
    sim.cut(0.025)
    assert finish(sim) == {1: pytest.approx(0.02 + 0.011 + 9 * 0.11)}


def test_what_can_never_have_room_does_not_fit() -> None:
    assert llm(kv_tokens=100).fits(Work(1, 90, 11))
    assert not llm(kv_tokens=100).fits(Work(1, 90, 12))
    assert embed().fits(texts(1, 10**6))


def test_noise_has_mean_one_and_evens_out_over_a_long_step() -> None:
    sim = llm(noise=0.5)
    single = [sim._noise(1, 0.0) for _ in range(4000)]
    hundred = [sim._noise(100, 0.0) for _ in range(4000)]
    assert fmean(single) == pytest.approx(1.0, abs=0.05)
    assert fmean(hundred) == pytest.approx(1.0, abs=0.01)
    assert max(hundred) - min(hundred) < 0.2 * (max(single) - min(single))


# ---- batches of texts --------------------------------------------------------------------------------------


def test_a_batch_takes_its_base_its_tokens_and_its_texts() -> None:
    sim = embed()
    begin(sim, texts(1, 300, 3))
    assert finish(sim) == {1: pytest.approx(0.01 + 0.03 + 0.003)}
    assert sim.computed == 300
    assert sim.busy == pytest.approx(0.043)


def test_a_greedy_engine_gives_each_waiting_call_its_turn() -> None:
    sim = embed(batch_texts=4)
    begin(sim, texts(1, 600, 6))
    begin(sim, texts(2, 10), now=0.01)
    ends = finish(sim)
    assert ends[2] == ends[1] == pytest.approx(0.01 + 0.04 + 0.004 + 0.01 + 0.021 + 0.003)


def test_a_long_call_does_not_hold_up_a_short_one() -> None:
    sim = embed(batch_texts=4)
    begin(sim, texts(1, 6400, 64))
    begin(sim, texts(2, 100), now=0.01)
    ends = finish(sim)
    assert ends[2] == pytest.approx(2 * 0.054)
    assert ends[1] == pytest.approx(16 * 0.054 + 0.01 + 0.01 + 0.001)


def test_a_batch_ends_with_the_text_that_fills_its_token_budget() -> None:
    sim = embed(batch_tokens=250)
    begin(sim, texts(1, 100), texts(2, 100), texts(3, 100), texts(4, 100))
    ends = finish(sim)
    assert ends[1] == ends[2] == ends[3] < ends[4]


def test_a_single_engine_computes_one_call_at_a_time() -> None:
    sim = embed(batching="single")
    begin(sim, texts(1, 6400, 100), texts(2, 100))
    ends = finish(sim)
    assert ends[1] == pytest.approx(0.01 + 0.64 + 0.1)
    assert ends[2] == pytest.approx(ends[1] + 0.021)


def test_a_call_that_was_broken_off_is_not_computed_and_not_reported() -> None:
    sim = embed(batching="single")
    running, waiting = texts(1, 100), texts(2, 100)
    begin(sim, running, waiting, texts(3, 100))
    for work in (running, waiting):
        sim.cancel(work, 0.005)
    assert finish(sim) == {3: pytest.approx(2 * 0.021)}


@pytest.mark.parametrize(("elastic", "expected"), [(True, 0.021 / 4**0.8), (False, 0.021)])
def test_threads_speed_up_an_engine_that_can_use_them(elastic: bool, expected: float) -> None:
    sim = embed(cores=1, elastic=elastic)
    begin(sim, texts(1, 100, threads=4))
    assert sim.due == pytest.approx(expected)
    assert sim.threads == (4 if elastic else 1)


# ---- shared devices ----------------------------------------------------------------------------------------


def test_engines_of_one_device_slow_each_other_while_both_compute() -> None:
    device = Device(DeviceModel(interference=0.5))
    writer, reader = llm(device), embed(device)
    begin(writer, Work(1, 100, 100))
    writer.advance(writer.due)
    writer.resume(0.02)
    begin(reader, texts(2, 100), now=0.0255)
    assert reader.due == pytest.approx(0.0255 + 1.5 * 0.021)
    assert writer.due == pytest.approx(0.02 + 0.011)  # the iteration that ran goes on as it was
    writer.advance(writer.due)
    writer.resume(0.031)
    assert writer._each == pytest.approx(1.5 * 0.011)
    reader.advance(reader.due)
    reader.resume(0.057)
    assert writer.due == pytest.approx(0.031 + 2 * 1.5 * 0.011)  # and is free of it from the next one on


def test_engines_of_one_kind_do_not_count_as_interference() -> None:
    device = Device(DeviceModel(interference=0.5))
    one, other = embed(device), embed(device)
    begin(one, texts(1, 100))
    begin(other, texts(2, 100))
    assert other.due == pytest.approx(0.021)


def test_more_threads_than_cores_cost_everybody() -> None:
    device = Device(DeviceModel(cores=2, barrier=8.0))
    writer, reader = llm(device, cores=1), embed(device, cores=1, elastic=True)
    begin(reader, texts(1, 100, threads=2))
    assert reader.due == pytest.approx(0.021 / 2**0.8)  # nobody computes beside it
    begin(writer, Work(2, 100, 2))
    assert writer.due == pytest.approx(0.02 * (1 + 8.0 * 0.5))
