"""Figures of a simulated run against values worked out by hand, and what holds for any run."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage.middleware.control_plane.records import Outcome
from sage.middleware.control_plane.simulator.report import (
    ALL,
    RunReport,
    jain,
    meets,
    prediction_error,
    quantile,
    summarise,
    wall,
)
from sage.middleware.control_plane.simulator.types import EngineResult, RequestResult, Result
from sage.middleware.control_plane.types import Slo

CHAT = Slo(ttft=2.0, tpot=0.1)


def request(
    ident: str = "r",
    *,
    outcome: Outcome = "done",
    ttft: float | None = 0.5,
    tpot: float | None = 0.05,
    total: float = 3.0,
    slo: Slo = CHAT,
    arrived: float = 0.0,
    tenant: str = "t",
    kind: str = "chat",
    queue: float | None = 0.1,
    predicted: float = 0.0,
    attempts: int = 1,
    output: int = 50,
) -> RequestResult:
    return RequestResult(
        ident, kind, tenant, arrived, outcome, "llm", queue, ttft, tpot, total, output, attempts, 100, slo,
        predicted_s=predicted,
    )  # fmt: skip


def embedding(total: float, *, outcome: Outcome = "done", tenant: str = "t") -> RequestResult:
    return request(
        "e", outcome=outcome, ttft=total, tpot=None, total=total, slo=Slo(total=0.5),
        kind="embed_interactive", output=0, tenant=tenant,
    )  # fmt: skip


def result(requests: list[RequestResult]) -> Result:
    engine = EngineResult("llm", "llm", "ready", 5.0, 1, 1, 0, 0, 100, 0, 50, 0, 1)
    return Result("fifo", "small", 3, requests, [engine], 10, 20.0, 0.01)


def figures(report: RunReport) -> dict[tuple[str, str], float]:
    return {(f.group, f.name): f.value for f in report.figures}


@pytest.mark.parametrize(
    ("changes", "met"),
    [
        ({}, True),
        ({"ttft": 2.0, "tpot": 0.1}, True),
        ({"ttft": 2.001}, False),
        ({"tpot": 0.101}, False),
        ({"tpot": None}, True),
        ({"slo": Slo(total=2.9)}, False),
        ({"slo": Slo()}, True),
        ({"outcome": "rejected"}, False),
        ({"outcome": "failed"}, False),
        ({"outcome": "cancelled", "slo": Slo()}, False),
    ],
)
def test_a_request_meets_its_goal_only_when_it_meets_all_of_it(changes: dict[str, object], met: bool) -> None:
    assert meets(msgspec.structs.replace(request(), **_fields(changes))) is met


def _fields(changes: dict[str, object]) -> dict[str, object]:
    names = {"ttft": "ttft_s", "tpot": "tpot_s", "total": "total_s"}
    return {names.get(key, key): value for key, value in changes.items()}


def test_figures_of_a_small_run() -> None:
    requests = [
        request(ttft=0.2, total=1.0),
        request(ttft=0.4, total=2.0, arrived=1.0),
        request(ttft=5.0, total=9.0, arrived=1.0),
        request(outcome="rejected", ttft=None, tpot=None, total=0.0, arrived=2.0, queue=None),
        embedding(0.3),
        embedding(0.7),
    ]
    report = summarise(result(requests))
    found = figures(report)
    assert report.wall_s == wall(requests) == 10.0
    assert found[("chat", "attainment")] == 2 / 4
    assert found[("chat", "goodput")] == 2 / 10
    assert found[("chat", "throughput")] == 3 / 10
    assert found[("chat", "shed")] == 1 / 4
    assert found[("chat", "ttft_p50")] == pytest.approx(400)
    assert found[("chat", "ttft_p99")] == pytest.approx(5000)
    assert found[("chat", "e2e_p90")] == pytest.approx(9000)
    assert found[("embed_interactive", "attainment")] == 1 / 2
    assert found[("embed_interactive", "e2e_p50")] == pytest.approx(300)
    assert found[(ALL, "attainment")] == 3 / 6
    assert found[("engine llm", "utilisation")] == 5 / 20
    assert ("embed_interactive", "tpot_p50") not in found
    assert report.outcomes["chat"] == {"done": 3, "rejected": 1}
    assert report.ttft_ms["chat"] == pytest.approx([200, 400, 5000])


def test_a_class_of_which_nothing_was_answered_is_missed_and_has_no_latency() -> None:
    found = figures(summarise(result([embedding(0.1, outcome="rejected"), request()])))
    assert found[("embed_interactive", "attainment")] == 0
    assert not [name for group, name in found if group == "embed_interactive" and name.startswith("e2e")]


def test_fairness_is_over_the_attainment_of_tenants() -> None:
    served = [embedding(0.1, tenant="a"), embedding(0.1, tenant="a"), embedding(0.9, tenant="b")]
    assert figures(summarise(result(served)))[(ALL, "jain")] == pytest.approx(0.5)


def test_jain_at_its_ends() -> None:
    assert jain([0.4] * 7) == pytest.approx(1.0)
    assert jain([1, 0, 0, 0]) == 1 / 4
    assert jain([0, 0]) == 1.0
    with pytest.raises(ValueError, match="at least one share"):
        jain([])


@given(st.lists(st.floats(0.001, 1), min_size=1, max_size=30))
def test_jain_lies_between_one_over_n_and_one(shares: list[float]) -> None:
    assert 1 / len(shares) - 1e-9 <= jain(shares) <= 1 + 1e-9


@given(st.lists(st.floats(0, 100), min_size=1, max_size=50), st.floats(0.01, 0.99))
def test_a_quantile_is_a_sample_with_its_share_at_or_below(samples: list[float], q: float) -> None:
    found = quantile(sorted(samples), q)
    assert found in samples
    assert sum(sample <= found for sample in samples) >= q * len(samples) - 1e-6
    assert sum(sample < found for sample in samples) <= q * len(samples) + 1e-6


def test_a_prediction_is_judged_from_its_dispatch() -> None:
    late = request(ttft=1.1, queue=0.1, predicted=0.8)  # a first token 1.0 s after dispatch
    embedded = msgspec.structs.replace(embedding(0.5), queue_s=0.1, predicted_s=0.6)
    others = [
        request(predicted=0.0),
        request(predicted=1.0, attempts=2),
        request(predicted=1.0, outcome="rejected", ttft=None),
    ]
    assert prediction_error([late, embedded, *others]) == pytest.approx([0.2, 0.5])
    assert figures(summarise(result([late])))[("chat", "prediction_error_p50")] == pytest.approx(0.2)


@given(st.lists(st.sampled_from(["done", "rejected", "failed", "cancelled"]), min_size=1, max_size=30))
def test_outcomes_are_counted_once_and_shares_add_up(outcomes: list[Outcome]) -> None:
    report = summarise(result([request(str(n), outcome=outcome) for n, outcome in enumerate(outcomes)]))
    assert sum(report.outcomes["chat"].values()) == len(outcomes)
    found = figures(report)
    assert found[("chat", "attainment")] + found[("chat", "shed")] + found[("chat", "failed")] <= 1 + 1e-9
    assert found[("chat", "goodput")] <= found[("chat", "throughput")]


def test_a_run_is_simulated_in_python_and_in_json() -> None:
    report = summarise(result([request()]))
    assert report.simulated
    assert msgspec.json.decode(msgspec.json.encode(report))["label"] == "SIMULATED"
    assert msgspec.json.decode(msgspec.json.encode(report), type=RunReport) == report


def test_a_run_without_requests_is_an_error() -> None:
    with pytest.raises(ValueError, match="without a request"):
        summarise(result([]))


def test_a_long_distribution_is_reduced_to_few_points() -> None:
    curve = summarise(result([request(ttft=n / 1000) for n in range(1, 1001)])).ttft_ms["chat"]
    assert len(curve) == 200
    assert curve == sorted(curve)
    assert curve[-1] == pytest.approx(1000)
