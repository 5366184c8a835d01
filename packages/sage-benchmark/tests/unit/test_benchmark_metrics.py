"""The definitions, each checked against numbers worked out by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage.benchmark.metrics import (
    CONVERSATIONAL,
    INTERACTIVE,
    Limits,
    Outcome,
    Record,
    attainment,
    e2e,
    goodput,
    itl,
    lag,
    meets,
    texts_per_s,
    tpot,
    ttft,
)

CHAT = Record(0, "chat", intended=10.0, sent=10.2, outcome="ok", pieces=(10.5, 10.6, 10.8))


def test_latencies_count_from_the_intended_send_not_from_the_actual_one() -> None:
    assert ttft(CHAT) == pytest.approx(0.5)
    assert e2e(CHAT) == pytest.approx(0.8)
    assert lag(CHAT) == pytest.approx(0.2)


def test_tpot_is_the_mean_gap_over_the_engines_own_token_count() -> None:
    assert tpot(CHAT) == pytest.approx(0.3 / 2)
    assert tpot(replace(CHAT, completion_tokens=7)) == pytest.approx(0.3 / 6)


def test_tpot_of_a_single_token_does_not_exist() -> None:
    assert tpot(replace(CHAT, pieces=(10.5,))) is None


def test_itl_is_the_gaps() -> None:
    assert itl(CHAT) == pytest.approx([0.1, 0.2])


def test_a_request_attains_only_when_it_meets_all_limits() -> None:
    assert meets(CHAT, Limits(ttft=0.5, tpot=0.151, e2e=0.81))
    assert not meets(CHAT, Limits(ttft=0.49, tpot=0.15))
    assert not meets(CHAT, Limits(ttft=0.5, tpot=0.14))
    assert not meets(CHAT, Limits(e2e=0.79))
    assert meets(CHAT, Limits())


@pytest.mark.parametrize("outcome", ["shed", "failed", "timeout"])
def test_what_was_not_answered_is_a_miss_even_when_its_first_token_was_early(outcome: Outcome) -> None:
    assert not meets(replace(CHAT, outcome=outcome), Limits(ttft=60.0))


def test_attainment_and_goodput_divide_by_what_was_issued_and_by_the_wall() -> None:
    shed = replace(CHAT, index=1, outcome="shed", pieces=())
    assert attainment([CHAT, shed, CHAT, shed], Limits(ttft=1.0)) == (2, 4)
    assert goodput([CHAT, shed, CHAT, shed], Limits(ttft=1.0), wall=4.0) == 0.5


def test_goodput_refuses_a_wall_that_is_not_positive() -> None:
    with pytest.raises(ValueError, match="positive wall time"):
        goodput([CHAT], CONVERSATIONAL, wall=0.0)


def bulk(sent: float, end: float, outcome: Outcome = "ok") -> Record:
    return Record(0, "bulk", sent, sent, outcome, pieces=(end,), texts=60, closed=True)


def test_texts_count_by_the_part_of_the_call_that_lies_in_the_window() -> None:
    # 60 whole, 60 of which a third, none after it, none refused: 80 texts in 10 s.
    calls = [bulk(0.0, 6.0), bulk(8.0, 14.0), bulk(11.0, 12.0), bulk(1.0, 2.0, "shed")]
    assert texts_per_s(calls, 10.0) == pytest.approx((60 + 20) / 10)
    assert texts_per_s([bulk(3.0, 3.0)], 10.0) == 6.0
    assert texts_per_s([], 10.0) == 0.0
    with pytest.raises(ValueError, match="positive window"):
        texts_per_s([], 0.0)


def test_a_record_without_an_answer_has_no_latency() -> None:
    empty = replace(CHAT, pieces=(), outcome="failed")
    for latency in (ttft, e2e, tpot, itl):
        with pytest.raises(ValueError, match="no answer to time"):
            latency(empty)


def test_the_named_classes_are_those_of_mlperf() -> None:
    assert (INTERACTIVE.ttft, INTERACTIVE.tpot) == (0.5, 0.03)
    assert (CONVERSATIONAL.ttft, CONVERSATIONAL.tpot) == (2.0, 0.1)


@given(
    start=st.floats(0, 1e3),
    gaps=st.lists(st.floats(1e-6, 10), min_size=2, max_size=50),
)
def test_gaps_first_token_and_total_agree(start: Any, gaps: Any) -> None:
    times = [start]
    for gap in gaps:
        times.append(times[-1] + gap)
    record = Record(0, "chat", intended=start, sent=start, outcome="ok", pieces=tuple(times[1:]))
    assert ttft(record) + sum(itl(record)) == pytest.approx(e2e(record), abs=1e-6)
    assert tpot(record) == pytest.approx(sum(itl(record)) / (len(gaps) - 1), abs=1e-6)
    assert ttft(record) <= e2e(record)
