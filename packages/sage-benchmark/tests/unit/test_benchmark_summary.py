"""From records to metrics: units, misses, intervals, and when a run is INVALID."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from sage.benchmark.load import poisson
from sage.benchmark.metrics import Record
from sage.benchmark.summary import check_lag, counts, summarise
from sage.common.errors import EngineError


def chat(index: int, *, late: float = 0.0, first: float = 0.1) -> Record:
    at = float(index)
    return Record(
        index, "chat", at, at + late, "ok", pieces=(at + first, at + first + 0.15), completion_tokens=4
    )


def embed(index: int, *, took: float = 0.2, late: float = 0.0) -> Record:
    return Record(index, "embed", float(index), index + late, "ok", pieces=(index + took,))


def shed(record: Record) -> Record:
    return replace(record, outcome="shed", pieces=(), status=429, error="queue full")


def value(metrics: Any, group: Any, name: Any) -> Any:
    return next(m for m in metrics if (m.group, m.name) == (group, name))


def test_every_metric_of_both_classes_has_a_value_inside_its_interval() -> None:
    records = [chat(i) for i in range(10)] + [embed(i) for i in range(10)]
    metrics = summarise(records, 20.0, seed=0)
    assert {m.group for m in metrics} == {"chat", "embed", "client"}
    for metric in metrics:
        assert metric.low <= metric.value <= metric.high, metric
        assert metric.unit
    assert value(metrics, "chat", "ttft_p50").value == pytest.approx(100)
    assert value(metrics, "chat", "tpot_p50").value == pytest.approx(50)
    assert value(metrics, "chat", "itl_p50").value == pytest.approx(150)
    assert value(metrics, "chat", "e2e_p90").value == pytest.approx(250)
    assert value(metrics, "chat", "output_tokens_per_s").value == pytest.approx(40 / 20)
    assert value(metrics, "embed", "e2e_mean").value == pytest.approx(200)
    assert value(metrics, "embed", "goodput").value == pytest.approx(10 / 20)


def test_sheds_count_against_attainment_and_goodput() -> None:
    records = [chat(0), shed(chat(1)), chat(2), shed(chat(3)), embed(0)]
    metrics = summarise(records, 5.0, seed=0)
    assert value(metrics, "chat", "attainment").value == 0.5
    assert value(metrics, "chat", "goodput").value == pytest.approx(2 / 5)
    assert value(metrics, "chat", "ttft_p50").n == 2
    assert counts(records)["chat"] == {"issued": 4, "ok": 2, "shed": 2, "failed": 0, "timeout": 0}


def test_slow_answers_are_throughput_but_not_goodput() -> None:
    metrics = summarise([chat(0, first=3.0), chat(1), embed(0)], 4.0, seed=0)
    assert value(metrics, "chat", "throughput").value == pytest.approx(2 / 4)
    assert value(metrics, "chat", "goodput").value == pytest.approx(1 / 4)


def test_a_class_without_any_answer_is_an_error_that_says_why() -> None:
    with pytest.raises(EngineError, match=r"None of the 2 chat requests was answered.*queue full"):
        summarise([shed(chat(0)), shed(chat(1)), embed(0)], 5.0, seed=0)


def test_the_client_may_be_five_milliseconds_late() -> None:
    records = [chat(i, late=0.005) for i in range(4)]
    assert check_lag(records) == ""
    assert "late by 6.0 ms at p99, more than 5.0 ms" in check_lag([chat(0, late=0.006)])


def test_the_client_may_be_five_percent_of_the_smallest_median_late() -> None:
    slow = [chat(i, first=10.0, late=0.4) for i in range(4)]
    assert check_lag(slow) == ""
    assert "more than 10.0 ms" in check_lag([*slow, embed(9, took=0.2)])


def test_lag_is_judged_even_when_nothing_was_answered() -> None:
    assert check_lag([shed(chat(0, late=0.5))])


def test_a_schedule_is_a_function_of_its_seed() -> None:
    plan = poisson(rate=50, duration=4, seed=1, chat_share=0.5)
    assert plan == poisson(rate=50, duration=4, seed=1, chat_share=0.5)
    assert plan != poisson(rate=50, duration=4, seed=2, chat_share=0.5)
    assert [a.index for a in plan] == list(range(len(plan)))
    assert [a.at for a in plan] == sorted(a.at for a in plan)
    assert all(0 < a.at < 4 for a in plan)


def test_arrivals_have_the_rate_and_the_gaps_of_a_poisson_process() -> None:
    plan = poisson(rate=200, duration=100, seed=5, chat_share=0.25)
    assert len(plan) == pytest.approx(20_000, rel=0.03)
    gaps = [b.at - a.at for a, b in pairwise(plan)]
    average = sum(gaps) / len(gaps)
    deviation = (sum((gap - average) ** 2 for gap in gaps) / len(gaps)) ** 0.5
    assert deviation / average == pytest.approx(1.0, rel=0.03)
    assert sum(a.kind == "chat" for a in plan) / len(plan) == pytest.approx(0.25, abs=0.02)


@pytest.mark.parametrize("bad", [{"rate": 0}, {"duration": -1}, {"chat_share": 1.5}])
def test_a_schedule_that_cannot_be_is_refused(bad: Any) -> None:
    with pytest.raises(ValueError, match="A schedule needs"):
        poisson(**{"rate": 1.0, "duration": 1.0, "seed": 0, "chat_share": 0.5, **bad})
