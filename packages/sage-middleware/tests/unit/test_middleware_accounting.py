"""The books: each request counts once, where it belongs; sums are conserved; memory is bounded."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage.common.api import ClassStatus
from sage.common.telemetry import RequestClass, ShedReason
from sage.middleware.control_plane.accounting import OTHER, Books
from sage.middleware.control_plane.engine_table import Attempt, EngineLoad
from sage.middleware.control_plane.records import Outcome, Record
from sage.middleware.control_plane.types import Job, Slo
from sage.middleware.engines.port import Capability, EngineSpec, Usage

CHAT_SLO = Slo(ttft=2.0, tpot=0.1)


def job(request_class: RequestClass = RequestClass.CHAT, tenant: str = "t", *, stream: bool = True) -> Job:
    return Job("r", "m", request_class, tenant, frozenset(), 10, 10, 10, stream=stream)


def record(what: Job | None = None, slo: Slo = CHAT_SLO, **fields: Any) -> Record:
    """One that arrived at 100 s."""
    made = Record(
        job=what or job(),
        sequence=1,
        policy="fifo",
        arrived=100.0,
        deadline=None,
        slo=slo,
        due=math.inf,
        prompt_tokens=10,
        output_p50=0.0,
        output_p90=0.0,
        units=1,
        left=0,
        queued=100.0,
    )
    for name, value in fields.items():
        setattr(made, name, value)
    return made


def streamed(ttft: float, tpot: float, tokens: int, **fields: Any) -> tuple[Record, float]:
    """A stream that is done, and its end."""
    first = 100.0 + ttft
    usage = Usage(10, tokens)
    done = record(outcome="done", dispatched=100.0, first_byte=first, usage=usage, attempts=1, **fields)
    return done, first + tpot * (tokens - 1)


def only(books: Books) -> ClassStatus:
    (status,) = books.classes()
    return status


# ---- goals ----


@pytest.mark.parametrize(
    ("ttft", "tpot", "tokens", "met"),
    [
        (1.9, 0.09, 50, 1),
        (2.1, 0.01, 50, 0),
        (0.1, 0.11, 50, 0),
        (0.1, 9.0, 1, 1),  # one token has no gap
    ],
)
def test_a_stream_meets_its_goals_for_first_token_and_gaps(
    ttft: float, tpot: float, tokens: int, met: int
) -> None:
    books = Books()
    books.ended(*streamed(ttft, tpot, tokens))
    status = only(books)
    assert (status.offered, status.done, status.met) == (1, 1, met)
    assert status.ttft_s is not None
    assert status.ttft_s.p50 == pytest.approx(ttft, rel=0.1)
    if tokens > 1:
        assert status.tpot_s is not None
        assert status.tpot_s.p50 == pytest.approx(tpot, rel=0.1)
    else:
        assert status.tpot_s is None


def test_a_goal_for_the_whole_counts_too() -> None:
    books = Books()
    done, end = streamed(0.1, 0.01, 11, slo=Slo(ttft=2.0, total=0.15))
    books.ended(done, end)
    assert only(books).met == 0


@pytest.mark.parametrize(("total", "slo", "met"), [
    (2.9, CHAT_SLO, 1),
    (3.1, CHAT_SLO, 0),
    (99.0, Slo(tpot=0.1), 1),  # no goal for the first token: nothing can be said
    (99.0, Slo(ttft=2.0), 1),
    (2.9, Slo(ttft=2.0, tpot=0.1, total=2.0), 0),
])  # fmt: skip
def test_an_answer_in_one_piece_is_in_time_when_a_stream_would_have_been(
    total: float, slo: Slo, met: int
) -> None:
    books = Books()
    whole = record(job(stream=False), slo, outcome="done", dispatched=100.0)
    whole.usage = Usage(10, 11)
    books.ended(whole, 100.0 + total)
    status = only(books)
    assert (status.met, status.ttft_s, status.tpot_s) == (met, None, None)


@pytest.mark.parametrize(("total", "met"), [(0.4, 1), (0.6, 0)])
def test_vectors_have_to_be_there_in_time(total: float, met: int) -> None:
    books = Books()
    done = record(job(RequestClass.EMBED_INTERACTIVE), Slo(total=0.5), outcome="done", dispatched=100.1)
    done.first_byte = 100.0 + total
    books.ended(done, 100.0 + total)
    status = only(books)
    assert (status.met, status.ttft_s) == (met, None)
    assert status.total_s is not None
    assert status.total_s.p50 == pytest.approx(total, rel=0.1)
    assert status.queue_s is not None
    assert status.queue_s.p50 == pytest.approx(0.1, rel=0.1)


# ---- ends ----


def test_each_end_is_counted_where_it_belongs() -> None:
    books = Books()
    ends: tuple[tuple[Outcome, dict[str, Any]], ...] = (
        ("rejected", {"refusal": ShedReason.QUEUE_FULL}),
        ("rejected", {"refusal": ShedReason.FORECAST}),
        ("rejected", {"refusal": ShedReason.FORECAST}),
        ("rejected", {}),
        ("cancelled", {"crashes": 2}),
        ("failed", {"retries": 1, "attempts": 2}),
        ("failed", {"crashes": 2, "attempts": 2, "retries": 1}),
        ("done", {"hedges": 1, "attempts": 2}),
    )
    for outcome, fields in ends:
        books.ended(record(outcome=outcome, **fields), 101.0)
    status = only(books)
    assert status.shed == {"queue_full": 1, "forecast": 2, "other": 1}
    assert (status.offered, status.done, status.met, status.failed, status.cancelled) == (7, 1, 1, 2, 1)
    assert (status.retries, status.hedges, status.quarantined) == (2, 1, 1)
    assert status.attainment() == pytest.approx(1 / 7)


def test_nothing_offered_has_no_attainment() -> None:
    books = Books()
    assert books.classes() == []
    books.ended(record(outcome="cancelled"), 101.0)
    assert only(books).attainment() is None


OUTCOMES = st.sampled_from(("done", "failed", "rejected", "cancelled"))


@given(st.lists(st.tuples(st.integers(0, 9), st.sampled_from(RequestClass), OUTCOMES), max_size=80))
def test_tenants_are_bounded_and_no_request_is_lost(
    ends: list[tuple[int, RequestClass, Outcome]],
) -> None:
    books = Books(tenants=3)
    for tenant, request_class, outcome in ends:
        books.ended(record(job(request_class, f"t{tenant}"), outcome=outcome), 101.0)
        assert len({name for _, name, _ in books.tallies()} - {OTHER}) <= 3
    if ends:
        assert f"t{ends[-1][0]}" in {name for _, name, _ in books.tallies()}
    for status in books.classes():
        mine = [outcome for _, request_class, outcome in ends if request_class == status.request_class]
        assert status.done == mine.count("done")
        assert status.failed == mine.count("failed")
        assert status.shed.get("other", 0) == mine.count("rejected")
        assert status.cancelled == mine.count("cancelled")
    assert sum(s.offered + s.cancelled for s in books.classes()) == len(ends)


def test_the_tenant_that_was_quiet_for_longest_becomes_other() -> None:
    books = Books(tenants=2)
    for tenant in ("a", "b", "a", "c", "d"):
        books.ended(record(job(tenant=tenant), outcome="failed"), 101.0)
    assert {tenant: tally.failed for _, tenant, tally in books.tallies()} == {"c": 1, "d": 1, OTHER: 3}


# ---- engines ----


def attempt(engine: str, texts: int, tokens: int) -> Attempt:
    load = SimpleNamespace(name=engine)
    return cast(Attempt, SimpleNamespace(engine=load, texts=texts, tokens=tokens))


def test_how_full_embedding_calls_are() -> None:
    books = Books()
    books.answered(attempt("e", 1, 10))
    books.answered(attempt("e", 16, 1000))
    ((name, calls),) = books.calls()
    assert (name, calls.texts.count, calls.texts.total, calls.tokens.total) == ("e", 2, 17, 1010)


def test_predictions_are_checked_against_what_was() -> None:
    books = Books()
    for ttft in (0.1, 0.2, 0.4):
        books.ended(*streamed(ttft, 0.01, 5, engine="llm", predicted=0.2))
    ((name, calls),) = books.calls()
    assert name == "llm"
    assert calls.error.quantile(0.5) == pytest.approx(0.5, rel=0.1)
    assert calls.ratio.quantile(0.9) == pytest.approx(2.0, rel=0.1)


@pytest.mark.parametrize("fields", [{"predicted": 0.0}, {"attempts": 2}, {"dispatched": None}])
def test_what_was_not_predicted_or_ran_twice_says_nothing_of_predictions(fields: dict[str, Any]) -> None:
    books = Books()
    done, end = streamed(0.1, 0.01, 5, engine="llm", predicted=0.2)
    for name, value in fields.items():
        setattr(done, name, value)
    books.ended(done, end)
    assert books.calls() == []


def test_a_generation_costs_the_pace_at_which_its_tokens_come() -> None:
    """An engine that begins at once and writes a token each 20 ms, whatever else it does, in four slots."""
    load = EngineLoad(EngineSpec("e", "openai", "m", frozenset((Capability.CHAT,)), 4))
    for running in (0, 1, 2, 3) * 60:
        load.llm.observe_ttft(10, running, 0.002)
        load.llm.observe_tpot(running, 0.0, 0.0, 0.020)
    cost = load.seconds(record(output_p50=10.0), 1)
    assert cost == pytest.approx(10 * 0.020 / 4, rel=0.35)
