"""What `hybrid` lets in, gives up, places, waits for, tries out and cuts."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from sage.common.telemetry import RequestClass
from sage.middleware.control_plane.cost import EmbedCost, LlmCost
from sage.middleware.control_plane.goals import DEFAULT_SLOS
from sage.middleware.control_plane.policies.base import load_of
from sage.middleware.control_plane.policies.chunks import CHUNK, EFFICIENT, LARGEST_CHUNK
from sage.middleware.control_plane.policies.hybrid import HOLD_S, Hybrid
from sage.middleware.control_plane.policy import Choice, PolicyOptions, Shed, Wait
from sage.middleware.control_plane.records import Record
from sage.middleware.testing.policies import (
    FakeView,
    chat_job,
    chat_spec,
    embed_job,
    embed_spec,
    waiting_record,
)


def policy(**options: Any) -> Hybrid:
    return Hybrid(PolicyOptions(**({"exploration": 0.0} | options)))


def known(per_token: float = 0.0001, *, samples: int = 100, trusted: bool = True) -> LlmCost:
    """A model of an LLM whose first token takes 10 ms and `per_token` for each token of the prompt."""
    cost = LlmCost()
    cost.iteration_base, cost.iteration_slope, cost.per_token = 0.01, 0.0, per_token
    cost.tpot_base, cost.tpot_slope = 0.01, 0.0
    cost._tpot.weights = (0.01, 0.0, 0.0, 0.0)
    cost.samples, cost.trusted, cost.margin = samples, trusted, 1.0
    return cost


def view(name: str = "e0", *, running: int = 0, llm: LlmCost | None = None, **fields: Any) -> FakeView:
    slots = 4
    spec = chat_spec(name, max_running=slots)
    return FakeView(
        name, running, slots - running, slots, spec=spec, llm=known() if llm is None else llm, **fields
    )


def chat(tokens: int = 1000, *, due: float = 2.0, **fields: Any) -> Record:
    job = structs.replace(chat_job("a", tokens=tokens), stream=True)
    quick = 0.01 + 0.0001 * tokens
    usual: dict[str, Any] = {"due": due, "slo": DEFAULT_SLOS[RequestClass.CHAT], "quick": quick}
    return waiting_record(job, 1, **(usual | fields))


# ---- admission ---------------------------------------------------------------------------------------------


def test_what_waits_before_it_makes_it_late_and_it_is_told_when_to_come_again() -> None:
    shed = policy().admit(chat(), [view(running=1)], 10.0, 0.0)
    assert isinstance(shed, Shed)
    assert shed.retry_after == pytest.approx(10.0 + 0.11 - 2.0)


def test_what_is_in_time_is_let_in() -> None:
    assert policy().admit(chat(), [view(running=1)], 1.5, 0.0) is None


def test_the_backlog_is_shared_by_all_engines() -> None:
    engines = [view(f"e{number}", running=1) for number in range(4)]
    assert policy().admit(chat(), engines, 6.0, 0.0) is None
    assert policy().admit(chat(), engines[:2], 6.0, 0.0) is not None


def test_the_margin_of_the_model_counts() -> None:
    unsure = known()
    unsure.margin = 10.0
    assert policy().admit(chat(), [view(running=1)], 1.5, 0.0) is None
    assert policy().admit(chat(), [view(running=1, llm=unsure)], 1.5, 0.0) is not None


@pytest.mark.parametrize(
    "engine",
    [
        view("idle"),
        view("untrusted", running=1, llm=known(trusted=False)),
        view("new", running=1, llm=known(samples=9)),
    ],
)
def test_nothing_is_refused_by_a_model_nobody_trusts_nor_where_an_engine_idles(engine: FakeView) -> None:
    assert policy().admit(chat(), [view(running=4), engine], 1000.0, 0.0) is None


def whole(p90: float, ends_by: float = 3.0) -> Record:
    """A chat whose last token is wanted by then; 100 tokens of 10 ms are expected, `p90` at worst."""
    return chat(due=2.0, output_p50=100.0, output_p90=p90, ends_by=ends_by)


def test_what_must_be_complete_is_judged_by_the_p90_of_its_length() -> None:
    busy = [view(running=1)]
    assert policy().admit(whole(280.0), busy, 0.0, 0.0) is None  # 0.11 s and 2.8 s
    shed = policy().admit(whole(400.0), busy, 0.0, 0.0)
    assert isinstance(shed, Shed)
    assert shed.retry_after == pytest.approx(1.11)
    assert policy().admit(whole(400.0), [*busy, view("quicker", running=1, llm=fast())], 0.0, 0.0) is None
    assert policy().admit(whole(280.0), busy, 0.5, 0.0) is not None  # what waits before it counts
    assert policy().admit(whole(400.0), [*busy, view("idle")], 0.0, 0.0) is None
    assert policy(best_effort=frozenset({"tenant"})).admit(whole(400.0), busy, 0.0, 0.0) is None


def fast() -> LlmCost:
    cost = known()
    cost._tpot.weights = (0.001, 0.0, 0.0, 0.0)
    return cost


def test_a_newcomer_that_finds_an_open_engine_is_judged_so_too_and_never_again() -> None:
    busy = [view(running=1)]
    assert isinstance(policy().choose(whole(400.0), busy, 0.0), Shed)
    assert isinstance(policy().choose(whole(280.0), busy, 0.0), Choice)
    assert isinstance(policy().choose(whole(400.0), [view()], 0.0), Choice)
    assert isinstance(policy().choose(whole(400.0), busy, 0.1), Choice)  # it was let in: by the p50


def test_who_would_rather_be_late_is_never_refused() -> None:
    hybrid = policy(best_effort=frozenset({"tenant"}))
    assert hybrid.admit(chat(), [view(running=1)], 1000.0, 0.0) is None
    assert isinstance(hybrid.choose(chat(), [view(running=1)], 50.0), Choice)


def test_what_has_no_goal_is_never_late() -> None:
    assert policy().admit(chat(due=float("inf")), [view(running=1)], 1000.0, 0.0) is None


# ---- at the head of the queue ------------------------------------------------------------------------------


def test_before_prefill_is_spent_it_is_looked_at_again() -> None:
    shed = policy().choose(chat(), [view(running=1)], 5.0)
    assert isinstance(shed, Shed)
    assert shed.retry_after == 5.0  # so long it has waited


def test_what_has_been_served_in_part_is_not_given_up() -> None:
    begun = chat()
    begun.units, begun.left, begun.taken = 8, 5, 3
    assert isinstance(policy().choose(begun, [view(running=1)], 5.0), Choice)
    under_way = chat()
    under_way.running = (7,)
    assert isinstance(policy().choose(under_way, [view(running=1)], 5.0), Choice)


def test_an_idle_engine_serves_what_is_late() -> None:
    assert isinstance(policy().choose(chat(), [view()], 5.0), Choice)


def test_without_trust_the_least_loaded_is_taken_and_nothing_given_up() -> None:
    engines = [view("busy", running=3), view("quiet", running=1, llm=known(trusted=False))]
    choice = policy().choose(chat(), engines, 100.0)
    assert isinstance(choice, Choice)
    assert choice.engine == "quiet"
    assert choice.reason.startswith("least loaded")


@st.composite
def pools(draw: st.DrawFn) -> list[FakeView]:
    """Engines of which some are not trusted, under any load and with any figures learned."""
    engines = []
    for number in range(draw(st.integers(1, 5))):
        llm = known(draw(st.sampled_from([1e-6, 1e-4, 1.0])), trusted=draw(st.booleans()))
        one = view(
            f"e{number}",
            running=draw(st.integers(0, 4)),
            llm=llm,
            last_dispatch=draw(st.integers(0, 3)) * 5 + number,
        )
        one.outstanding_tokens = one.running * draw(st.integers(0, 4000))
        one.prefill_tokens = draw(st.integers(0, one.outstanding_tokens))
        engines.append(one)
    return engines


@given(pools(), st.sampled_from([0.0, 1.0, 50.0]))
def test_an_engine_that_is_not_trusted_gets_what_its_load_says_and_no_forecast_speaks_for_it(
    engines: list[FakeView], now: float
) -> None:
    chosen = policy().choose(chat(), engines, now)
    doubtful = {one.name for one in engines if not one.llm.trusted}
    free = [one for one in engines if one.free]
    least = min(free, key=lambda one: (load_of(one), one.last_dispatch), default=None)
    if not doubtful:
        return
    assert not isinstance(chosen, Shed)
    if least is not None and least.name in doubtful:  # neither locked out by its figures nor by others'
        assert isinstance(chosen, Choice)
        assert (chosen.engine, chosen.predicted) == (least.name, 0.0)
    else:  # nor does it draw what is not its turn; the trusted ones are compared as if it were not there
        trusted = [one for one in engines if one.name not in doubtful]
        alone = policy().choose(chat(), trusted, now) if trusted else Wait()
        if not isinstance(alone, Shed):
            assert _where(chosen) == _where(alone)
    for one in engines:
        if one.name in doubtful:
            one.llm = known(1e3, trusted=False)
    assert _where(policy().choose(chat(), engines, now)) == _where(chosen)


def _where(verdict: Choice | Wait | Shed) -> str:
    return verdict.engine if isinstance(verdict, Choice) else type(verdict).__name__


def test_one_engine_that_is_not_trusted_does_not_take_the_forecast_from_the_others() -> None:
    quick, slow = view("quick", running=2), view("slow", running=1, llm=known(0.0005))
    doubtful = view("doubtful", running=3, llm=known(trusted=False))
    choice = policy().choose(chat(), [slow, quick, doubtful], 0.0)
    assert isinstance(choice, Choice)
    assert choice.engine == "quick"
    assert choice.reason.startswith("first to have it")


@pytest.mark.parametrize("trusted", [True, False])
def test_embeddings_too_go_by_load_only_where_an_engine_is_not_trusted(trusted: bool) -> None:
    known_one, other = embedder(running=1, last_dispatch=1), embedder()
    other.name, other.embed.trusted, other.busy_until = "v1", trusted, 100.0
    other.running = 0 if not trusted else 1
    choice = policy().choose(waiting_record(embed_job("s"), due=5.0), [known_one, other], 0.0)
    assert isinstance(choice, Choice)
    assert choice.engine == ("v0" if trusted else "v1")


def test_it_waits_for_a_fast_busy_engine_rather_than_go_to_a_slow_idle_one() -> None:
    fast = view("fast", running=4, llm=known())
    slow = view("slow", llm=known(0.01))  # 10 s for the prompt
    assert isinstance(policy().choose(chat(output_p50=20.0), [fast, slow], 0.0), Wait)
    late = policy().choose(chat(output_p50=20.0), [fast, slow], 1.95)  # too late for either
    assert isinstance(late, Choice)
    assert late.engine == "slow"


def test_it_takes_the_idle_one_if_that_is_nearly_as_good() -> None:
    fast = view("fast", running=4, llm=known())
    other = view("other", llm=known(0.00012))
    choice = policy().choose(chat(), [fast, other], 0.0)
    assert isinstance(choice, Choice)
    assert choice.engine == "other"


def test_an_engine_that_has_the_prompt_cached_is_quicker() -> None:
    engines = [view("cold"), view("warm", running=1, prefill_tokens=500)]
    cold = policy().choose(chat(4000), engines, 0.0)
    warm = policy().choose(chat(4000, cached={"warm": 3900}), engines, 0.0)
    assert isinstance(cold, Choice)
    assert isinstance(warm, Choice)
    assert (cold.engine, warm.engine) == ("cold", "warm")
    assert warm.predicted == pytest.approx(0.01 + 0.0001 * 600)


def test_a_deep_prefill_backlog_closes_an_engine() -> None:
    deep = view(running=1, prefill_tokens=10_000)  # 1 s of prefill, and a goal of 2
    assert isinstance(policy().choose(chat(), [deep], 0.0), Wait)


@pytest.mark.parametrize(("running", "open_to"), [(2, {"chat", "batch"}), (3, {"chat"})])
def test_low_classes_hold_back_under_pressure(running: int, open_to: set[str]) -> None:
    engine = view(running=running)
    batch = chat(due=float("inf"))
    batch.job = structs.replace(batch.job, request_class=RequestClass.BATCH)
    found = {
        kind
        for kind, record in (("chat", chat()), ("batch", batch))
        if isinstance(policy().choose(record, [engine], 0.0), Choice)
    }
    assert found == open_to


# ---- exploration -------------------------------------------------------------------------------------------


def explored(record: Record, *engines: FakeView) -> dict[str, float]:
    """Engines that are chosen when each choice explores, with what is predicted of them."""
    hybrid = policy(exploration=1.0)
    found = {}
    for _ in range(200):
        choice = hybrid.choose(record, engines, 0.0)
        assert isinstance(choice, Choice)
        found[choice.engine] = choice.predicted
    return found


def test_exploration_stays_within_twice_the_best_and_says_what_it_expects() -> None:
    engines = view("best", llm=known()), view("near", llm=known(0.00018)), view("far", llm=known(0.0003))
    assert explored(chat(), *engines) == pytest.approx({"best": 0.11, "near": 0.19})


def test_exploration_does_not_break_a_goal() -> None:
    engines = view("best", llm=known()), view("late", llm=known(0.00018))
    assert set(explored(chat(due=0.15), *engines)) == {"best"}


def test_where_nothing_is_in_time_exploration_takes_the_best() -> None:
    engines = view("best", llm=known()), view("later", llm=known(0.00018))
    assert set(explored(chat(due=0.05), *engines)) == {"best"}


# ---- embeddings --------------------------------------------------------------------------------------------


def embedder(**fields: Any) -> FakeView:
    spec = structs.replace(embed_spec("v0", max_running=4), batches=False)
    return FakeView("v0", free=4, generates=False, spec=spec, embed=EmbedCost(), **fields)


def test_bulk_gives_way_to_what_runs() -> None:
    engine = embedder(running=1, busy_until=1.0)
    bulk = waiting_record(embed_job("b", texts=100))
    short = waiting_record(embed_job("s"), due=5.0)
    verdict = policy().choose(bulk, [engine], 0.0)
    assert isinstance(verdict, Wait)
    assert verdict.until == pytest.approx(1.0, abs=0.01)
    assert isinstance(policy().choose(short, [engine], 0.0), Choice)


@pytest.mark.parametrize(
    ("texts", "each", "ahead", "goes"),
    [
        (1, 0.0005, 0.001, True),
        (1, 0.0005, 0.02, False),
        (1, 0.002, 0.004, False),
        (100, 0.000001, 0.001, False),
    ],
)
def test_a_third_call_goes_to_an_engine_that_is_done_with_two_in_no_time(
    texts: int, each: float, ahead: float, goes: bool
) -> None:
    engine = embedder(running=2, busy_until=1.0 + ahead)
    engine.embed = EmbedCost(prior=(1e-6, 1e-9, each))
    verdict = policy().choose(waiting_record(embed_job("s", texts=texts), due=5.0), [engine], 1.0)
    assert isinstance(verdict, Choice) is goes


def test_bulk_gives_way_to_generation_that_would_become_too_slow() -> None:
    slow = known()
    slow.tpot_base = 10.0
    slow._tpot.weights = (10.0, 0.0, 0.0, 0.0)
    engine = embedder(device=(FakeView("llm", running=1, llm=slow),))
    verdict = policy().choose(waiting_record(embed_job("b", texts=100)), [engine], 0.0)
    assert isinstance(verdict, Wait)
    assert verdict.until is not None
    assert 0.0 < verdict.until < 0.1


@pytest.mark.parametrize("tokens", [1, 100, 2000])
def test_a_chunk_takes_at_most_a_part_of_the_interactive_goal(tokens: int) -> None:
    record = waiting_record(structs.replace(embed_job("b", texts=1000), prompt_tokens=1000 * tokens))
    record.prompt_tokens = 1000 * tokens
    engine = embedder()
    limits = policy().batch(record, engine, 0.0)
    goal = DEFAULT_SLOS[RequestClass.EMBED_INTERACTIVE].total
    assert goal is not None
    texts = max(1, limits.tokens // tokens)
    seconds = engine.embed.seconds(texts * tokens, texts, 1)
    assert texts == 1 or seconds <= (LARGEST_CHUNK if texts <= 4 else CHUNK) * goal * 1.01
    more = engine.embed.seconds(2 * texts * tokens + tokens, 2 * texts + 1, 1)
    assert more > CHUNK * goal  # and not much less either
    assert limits.hold_until == 0.0  # it is due whenever


@pytest.mark.parametrize("tokens", [2048, 2088, 2111])
def test_four_texts_are_four_whatever_their_length(tokens: int) -> None:
    """Each costs a tenth of the goal: three are within the smaller part of it, four within the larger."""
    record = waiting_record(structs.replace(embed_job("b", texts=64), prompt_tokens=tokens))
    record.prompt_tokens = tokens
    goal = DEFAULT_SLOS[RequestClass.EMBED_INTERACTIVE].total
    assert goal is not None
    engine = embedder()
    engine.embed = EmbedCost(prior=(1e-6, 0.1 * goal * 64 / tokens, 1e-6))
    limits = policy().batch(record, engine, 0.0)
    assert int(limits.tokens / (tokens / 64)) == EFFICIENT == 4


def test_interactive_texts_wait_a_moment_for_company_where_an_engine_does_not_batch() -> None:
    record = waiting_record(embed_job("s"), due=5.0, queued=1.0, arrived=1.0)
    engine = embedder()
    assert policy().batch(record, engine, 1.0).hold_until == pytest.approx(1.0 + HOLD_S)
    engine.spec = structs.replace(engine.spec, batches=True)
    assert policy().batch(record, engine, 1.0).hold_until == 0.0
