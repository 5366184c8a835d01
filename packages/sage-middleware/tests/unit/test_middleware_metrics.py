"""From the books to metrics: everything that is named can be seen, with its labels and its sums."""

from __future__ import annotations

import math
from collections.abc import Iterator
from types import SimpleNamespace
from typing import cast

import pytest

from sage.common import telemetry
from sage.common.api import EngineStatus, MetricList, MetricSample, QueueStatus
from sage.common.telemetry import METRICS, Metric, RequestClass, ShedReason
from sage.middleware.control_plane.accounting import Books
from sage.middleware.control_plane.engine_table import Attempt
from sage.middleware.control_plane.histogram import FIRST, LAST
from sage.middleware.control_plane.metrics import Sample, collect
from sage.middleware.control_plane.policy import available_policies, policy_summaries
from sage.middleware.control_plane.records import Outcome, Record
from sage.middleware.control_plane.types import Job, Slo
from sage.middleware.engines.port import Usage

ENGINES = [
    EngineStatus(
        name="llm-0",
        kind="vllm",
        model="m",
        task="generate",
        state="ready",
        url="",
        running=2,
        max_running=8,
        served=5,
        failed=1,
        restarts=1,
    )
]
QUEUES = [
    QueueStatus(
        request_class="chat", waiting=3, waiting_bytes=900, oldest_s=0.5, shed=1, completed=4, failed=1
    )
]


def ended(tenant: str, outcome: Outcome, *, ttft: float = 0.1) -> Record:
    made = Record(
        job=Job("r", "m", RequestClass.CHAT, tenant, frozenset(), 10, 10, 10, stream=True),
        sequence=1,
        policy="fifo",
        arrived=0.0,
        deadline=None,
        slo=Slo(1.0, 0.1),
        due=math.inf,
        prompt_tokens=10,
        output_p50=0.0,
        output_p90=0.0,
        units=1,
        left=0,
        queued=0.0,
    )
    made.outcome, made.dispatched, made.first_byte, made.engine = outcome, 0.0, ttft, "llm-0"
    made.usage, made.predicted, made.attempts = Usage(10, 11), 0.1, 1
    return made


@pytest.fixture
def books() -> Books:
    """One of everything."""
    books = Books()
    books.ended(ended("a", "done"), 0.6)
    books.ended(ended("a", "done", ttft=2.0), 2.5)
    books.ended(ended("b", "cancelled"), 0.6)
    refused = ended("b", "rejected")
    refused.refusal = ShedReason.FORECAST
    books.ended(refused, 0.6)
    load = SimpleNamespace(name="embed-0")
    books.answered(cast(Attempt, SimpleNamespace(engine=load, texts=4, tokens=100)))
    books.overhead.add(2e-5)
    return books


@pytest.fixture
def metrics(books: Books) -> MetricList:
    others: list[Sample] = [
        (telemetry.KEY_RUNNING, 1.0, {"key": "k"}),
        (telemetry.KEY_REFUSED, 2.0, {"key": "k", "limit": "rpm"}),
        (telemetry.CONNECTIONS, 3.0, {"listener": "data"}),
        (telemetry.STREAMS, 1.0, {}),
        (telemetry.TASKS, 5.0, {}),
        (telemetry.FALLBACKS, 1.0, {"name": "n", "model": "m", "reason": "r"}),
        (telemetry.LIMIT_HITS, 4.0, {"limit": "json_depth"}),
        (telemetry.LOOP_LAG, books.overhead, {}),
        (telemetry.BATCHES, 1.0, {"status": "completed"}),
        (telemetry.BATCH_LINES, 3.0, {"outcome": "failed"}),
        (telemetry.JOBS, 1.0, {"state": "running"}),
        (telemetry.JOB_RESTARTS, 2.0, {}),
        (telemetry.JOB_CHECKPOINT_AGE, 3.0, {"job": "one"}),
        (telemetry.JOB_STUCK, 0.0, {"job": "one"}),
        (telemetry.JOB_RECORDS, 9.0, {"job": "one", "operator": "ask", "way": "in"}),
        (telemetry.JOB_RETRIES, 1.0, {"job": "one", "operator": "ask"}),
        (telemetry.JOB_IN_FLIGHT, 2.0, {"job": "one", "operator": "ask"}),
        (telemetry.JOB_BUSY, 0.5, {"job": "one", "operator": "ask"}),
        (telemetry.JOB_WAIT, 0.1, {"job": "one", "operator": "ask"}),
    ]
    return collect(books, ENGINES, QUEUES, policy="fifo", uptime=12.0, others=others)


def samples(metrics: MetricList, metric: Metric, **labels: str) -> list[MetricSample]:
    (found,) = (one for one in metrics.metrics if one.name == metric.name)
    return [one for one in found.samples if labels.items() <= one.labels.items()]


def value(metrics: MetricList, metric: Metric, **labels: str) -> float:
    (sample,) = samples(metrics, metric, **labels)
    assert sample.value is not None
    return sample.value


def test_every_metric_that_has_a_name_can_be_seen(metrics: MetricList) -> None:
    assert [one.name for one in metrics.metrics] == [one.name for one in METRICS]
    for found, metric in zip(metrics.metrics, METRICS, strict=True):
        assert found.samples, metric.name
        for sample in found.samples:
            assert tuple(sample.labels) == metric.labels
            assert (sample.buckets is None) == (metric.kind != "histogram")


def test_what_was_never_observed_is_left_out() -> None:
    found = collect(Books(), [], [], policy="fifo", uptime=1.0)
    assert [one.name for one in found.metrics] == [telemetry.POLICY_INFO.name, telemetry.UPTIME.name]


def test_requests_by_tenant_and_end(metrics: MetricList) -> None:
    assert value(metrics, telemetry.REQUESTS, tenant="a", outcome="done") == 2
    assert value(metrics, telemetry.REQUESTS_MET, tenant="a") == 1
    assert value(metrics, telemetry.REQUESTS, tenant="b", outcome="cancelled") == 1
    assert value(metrics, telemetry.REQUESTS_SHED, tenant="b", reason="forecast") == 1
    assert value(metrics, telemetry.REQUESTS, tenant="b", outcome="rejected") == 1


def test_a_histogram_has_a_sum_a_count_and_rising_buckets(metrics: MetricList) -> None:
    (ttft,) = samples(metrics, telemetry.TTFT, tenant="a")
    assert ttft.count == 2
    assert ttft.sum == pytest.approx(2.1)
    assert ttft.buckets is not None
    counts = [count for _, count in ttft.buckets]
    assert counts == sorted(counts)
    assert dict(ttft.buckets)[0.125] == 1
    assert dict(ttft.buckets)[2.0] == 2
    assert ttft.quantiles is not None
    assert ttft.quantiles.p99 == pytest.approx(2.0, rel=0.1)


def test_predictions_and_batches_by_engine(metrics: MetricList) -> None:
    assert value(metrics, telemetry.PREDICTIONS, engine="llm-0") == 2
    assert value(metrics, telemetry.PREDICTION_CALIBRATION, engine="llm-0") == pytest.approx(20.0, rel=0.1)
    (texts,) = samples(metrics, telemetry.BATCH_TEXTS, engine="embed-0")
    assert (texts.count, texts.sum) == (1, 4)


def test_engines_queues_and_the_policy(metrics: MetricList) -> None:
    states = {one.labels["state"]: one.value for one in samples(metrics, telemetry.ENGINE_STATE)}
    assert states.pop("ready") == 1
    assert set(states.values()) == {0}
    assert value(metrics, telemetry.ENGINE_RUNNING, engine="llm-0") == 2
    assert value(metrics, telemetry.QUEUE_WAITING, request_class="chat") == 3
    assert value(metrics, telemetry.POLICY_INFO, policy="fifo") == 1
    assert value(metrics, telemetry.UPTIME) == 12.0


def named(kind: str) -> Iterator[Metric]:
    return (one for one in METRICS if one.kind == kind)


def test_names_follow_the_conventions_of_prometheus() -> None:
    names = [one.name for one in METRICS]
    assert len(names) == len(set(names))
    assert all(name.startswith(("sage_", "gen_ai_server_")) for name in names)
    assert all(one.name.endswith("_total") for one in named("counter"))
    assert not any(one.name.endswith("_total") for one in METRICS if one.kind != "counter")
    assert all("_seconds" in one.name for one in METRICS if one.unit == "s")


def test_the_bounds_of_histograms_lie_where_they_count() -> None:
    for metric in named("histogram"):
        first, last = metric.bounds
        assert FIRST <= first < last <= LAST, metric.name


def test_every_policy_says_in_one_sentence_what_it_does() -> None:
    summaries = policy_summaries()
    assert sorted(summaries) == available_policies()
    for name, summary in summaries.items():
        assert summary.endswith("."), (name, summary)
        assert 20 < len(summary) < 120, (name, summary)
    assert len(set(summaries.values())) == len(summaries)
