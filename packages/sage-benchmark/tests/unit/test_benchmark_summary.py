"""From records to metrics: units, misses, intervals, and when a run is INVALID."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

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


def bulk(index: int, *, at: float, took: float) -> Record:
    return Record(index, "bulk", at, at, "ok", pieces=(at + took,), texts=64, closed=True)


def test_a_storm_has_a_rate_of_texts_and_no_lag() -> None:
    records = [embed(0, late=0.002), bulk(1, at=0.0, took=2.0), bulk(2, at=2.0, took=2.0)]
    metrics = summarise(records, 4.0, seed=0)
    assert value(metrics, "bulk", "texts_per_s").value == pytest.approx(128 / 4)
    assert value(metrics, "bulk", "attainment").value == 1.0
    assert value(metrics, "client", "lag_p99").n == 1
    assert check_lag([bulk(1, at=0.0, took=2.0)]) == ""
