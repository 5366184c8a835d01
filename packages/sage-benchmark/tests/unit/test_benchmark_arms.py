"""Arms: what counts in a block, each measure by hand, ratios between interleaved blocks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from sage.benchmark.arms import Block, Goals, measures, per_arm, ratios, significance
from sage.benchmark.metrics import Limits, Record
from sage.common.errors import EngineError

GOALS: Goals = {"chat": Limits(ttft=0.5, tpot=0.1), "embed": Limits(e2e=0.2)}


def chat(at: float, first: float, *, gap: float = 0.05) -> Record:
    pieces = tuple(at + first + gap * i for i in range(3))
    return Record(int(at * 100), "chat", at, at, "ok", pieces=pieces, completion_tokens=3)


def embed(at: float, took: float) -> Record:
    return Record(int(at * 100), "embed", at, at, "ok", pieces=(at + took,), texts=1)


def bulk(at: float, end: float, texts: int = 64) -> Record:
    return Record(0, "bulk", at, at, "ok", pieces=(end,), texts=texts, closed=True)


def block(*records: Record, cores: float = 1.5) -> Block:
    return Block(records, seconds=10.0, begin=2.0, timeout=30.0, cores={"llm": cores, "client": 0.1})


# Window 2 to 12: of the chats the second and third count, the third misses by its TPOT; one embedding of two.
ONE = block(
    chat(1.9, 9.0), chat(2.0, 0.4), chat(11.9, 0.3, gap=0.2), chat(12.0, 9.0),
    embed(3.0, 0.1), embed(4.0, 0.3), bulk(0.0, 4.0), bulk(4.0, 8.0), bulk(10.0, 14.0),
)  # fmt: skip


def value(metrics: Any, group: str, name: str) -> float:
    return next(float(m.value) for m in metrics if (m.group, m.name) == (group, name))


def test_each_measure_of_a_block_by_hand() -> None:
    metrics = per_arm([ONE], GOALS, seed=0)
    expected = {
        ("chat", "ttft_p50"): 300, ("chat", "ttft_p99"): 400,
        ("chat", "tpot_p50"): 50, ("chat", "tpot_p99"): 200,
        ("embed", "e2e_p50"): 100, ("embed", "e2e_p99"): 300,
        ("bulk", "texts_per_s"): (32 + 64 + 32) / 10,
        ("chat", "attainment"): 0.5, ("embed", "attainment"): 0.5, ("joint", "attainment"): 0.5,
        ("chat", "goodput"): 0.1, ("embed", "goodput"): 0.1, ("joint", "goodput"): 0.2,
        ("machine", "busy_cores"): 1.6,
    }  # fmt: skip
    assert {(m.group, m.name) for m in metrics} == set(expected)
    for (group, name), number in expected.items():
        assert value(metrics, group, name) == pytest.approx(number), (group, name)
    for metric in metrics:
        assert metric.low <= metric.value <= metric.high


def test_what_had_no_answer_in_time_counts_as_the_timeout_and_a_refusal_as_a_miss_alone() -> None:
    late = Record(1, "chat", 5.0, 5.0, "timeout")
    refused = Record(2, "chat", 6.0, 6.0, "shed", status=429)
    metrics = per_arm([block(chat(3.0, 0.1), late, refused, embed(3.0, 0.1))], GOALS, seed=0)
    assert value(metrics, "chat", "ttft_p99") == 30_000
    assert value(metrics, "chat", "ttft_p50") == pytest.approx(100)
    assert value(metrics, "chat", "tpot_p99") == pytest.approx(50)
    assert value(metrics, "chat", "attainment") == pytest.approx(1 / 3)


def test_a_block_without_a_sample_is_an_error_that_says_why() -> None:
    refused = replace(chat(3.0, 0.1), outcome="shed", pieces=(), error="queue full")
    with pytest.raises(EngineError, match=r"Block 1 has no sample of chat ttft_p50.*queue full"):
        per_arm([ONE, block(refused, embed(3.0, 0.1))], GOALS, seed=0)


def test_percentiles_are_of_all_blocks_together() -> None:
    blocks = [block(*(chat(2 + i, 0.1 * (i + 5 * b)) for i in range(5)), embed(3.0, 0.1)) for b in range(2)]
    # TTFTs 0, 100, … 900 ms: the fifth of ten is 400.
    assert value(per_arm(blocks, GOALS, seed=0), "chat", "ttft_p50") == pytest.approx(400)


def test_ratios_pair_the_blocks() -> None:
    slow = [block(chat(3.0, 0.4), embed(4.0, 0.15 * n), bulk(2.0, 12.0)) for n in (1, 2, 3)]
    fast = [block(chat(3.0, 0.1), embed(4.0, 0.075 * n), bulk(2.0, 12.0, 128)) for n in (1, 2, 3)]
    found = {(m.group, m.name): m for m in ratios(fast, slow, GOALS, seed=0)}
    assert found["chat", "ttft_p99"].value == pytest.approx(0.25)
    assert found["embed", "e2e_p99"].value == pytest.approx(0.5)
    assert found["embed", "e2e_p99"].low == pytest.approx(0.5)
    assert found["embed", "e2e_p99"].high == pytest.approx(0.5)
    assert found["bulk", "texts_per_s"].value == pytest.approx(2.0)
    assert found["bulk", "texts_per_s"].unit == "ratio"
    assert found["joint", "goodput"].value == pytest.approx(5 / 4)


def test_significance_is_corrected_over_all_measures() -> None:
    slow = [block(chat(3.0, 0.4), embed(4.0, 0.1), bulk(2.0, 12.0)) for _ in range(5)]
    fast = [block(chat(3.0, 0.1), embed(4.0, 0.1), bulk(2.0, 12.0)) for _ in range(5)]
    found = significance(fast, slow, GOALS, seed=0)
    assert set(found) == {f"{m.group}.{m.name}" for m in measures(GOALS)}
    assert found["embed.e2e_p50"] == 1.0
    assert found["chat.ttft_p99"] == pytest.approx(min(1.0, len(found) * 2 / 32))
