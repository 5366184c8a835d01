"""The control plane's state as metrics, by the names of `sage.common.telemetry`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final, get_args

from sage.common import telemetry
from sage.common.api import EngineState, EngineStatus, MetricList, MetricSample, MetricStatus, QueueStatus
from sage.common.telemetry import Metric, ShedReason
from sage.middleware.control_plane.accounting import Books, Tally
from sage.middleware.control_plane.histogram import LogHistogram

__all__ = ["Sample", "collect"]

Labels = dict[str, str]
Sample = tuple[Metric, float | LogHistogram, Labels]

_COUNTS: Final[tuple[tuple[Metric, Callable[[Tally], int]], ...]] = (
    (telemetry.REQUESTS_MET, lambda tally: tally.met),
    (telemetry.RETRIES, lambda tally: tally.retries),
    (telemetry.HEDGES, lambda tally: tally.hedges),
    (telemetry.QUARANTINED, lambda tally: tally.quarantined),
)
_OUTCOMES: Final[tuple[tuple[str, Callable[[Tally], int]], ...]] = (
    ("done", lambda tally: tally.done),
    ("failed", lambda tally: tally.failed),
    ("rejected", lambda tally: sum(tally.shed.values())),
    ("cancelled", lambda tally: tally.cancelled),
)
_TIMES: Final[tuple[tuple[Metric, Callable[[Tally], LogHistogram]], ...]] = (
    (telemetry.QUEUE_TIME, lambda tally: tally.queue),
    (telemetry.TTFT, lambda tally: tally.ttft),
    (telemetry.TPOT, lambda tally: tally.tpot),
    (telemetry.DURATION, lambda tally: tally.total),
)


class _Collector:
    """Samples by metric; a metric without any is left out at the end."""

    def __init__(self) -> None:
        self._samples: dict[str, list[MetricSample]] = {metric.name: [] for metric in telemetry.METRICS}

    def value(self, metric: Metric, value: float, labels: Labels) -> None:
        self._samples[metric.name].append(MetricSample(labels=labels, value=float(value)))

    def histogram(self, metric: Metric, found: LogHistogram, labels: Labels) -> None:
        if found.count:
            self._samples[metric.name].append(
                MetricSample(
                    labels=labels,
                    count=found.count,
                    sum=found.total,
                    buckets=list(found.up_to(*metric.bounds)),
                    quantiles=found.quantiles(),
                )
            )

    def result(self) -> MetricList:
        return MetricList(
            metrics=[
                MetricStatus(name=m.name, kind=m.kind, unit=m.unit, help=m.help, samples=samples)
                for m in telemetry.METRICS
                if (samples := self._samples[m.name])
            ]
        )


def collect(
    books: Books,
    engines: Sequence[EngineStatus],
    queues: Sequence[QueueStatus],
    *,
    policy: str,
    uptime: float,
    others: Iterable[Sample] = (),
) -> MetricList:
    """All metrics as of now. `uptime` in seconds. `others` are counted elsewhere in this process."""
    out = _Collector()
    out.value(telemetry.POLICY_INFO, 1.0, {"policy": policy})
    out.value(telemetry.UPTIME, uptime, {})
    out.histogram(telemetry.DISPATCH_OVERHEAD, books.overhead, {})
    for request_class, tenant, tally in books.tallies():
        _tally(out, tally, {"request_class": request_class.value, "tenant": tenant})
    for queue in queues:
        labels = {"request_class": queue.request_class}
        out.value(telemetry.QUEUE_WAITING, queue.waiting, labels)
        out.value(telemetry.QUEUE_BYTES, queue.waiting_bytes, labels)
        out.value(telemetry.QUEUE_OLDEST, queue.oldest_s, labels)
    _calls(out, books)
    for model, tokens in sorted(books.tokens.items()):
        for kind, count in zip(("input", "output"), tokens, strict=True):
            out.value(telemetry.TOKENS, count, {"model": model, "type": kind})
    for engine in engines:
        _engine(out, engine)
    for metric, found, labels in others:
        if isinstance(found, LogHistogram):
            out.histogram(metric, found, labels)
        else:
            out.value(metric, found, labels)
    return out.result()


def _tally(out: _Collector, tally: Tally, labels: Labels) -> None:
    for outcome, count in _OUTCOMES:
        out.value(telemetry.REQUESTS, count(tally), {**labels, "outcome": outcome})
    for reason in ShedReason:  # each from the beginning: a rate must see the first one
        out.value(telemetry.REQUESTS_SHED, tally.shed[reason], {**labels, "reason": reason.value})
    for metric, count in _COUNTS:
        out.value(metric, count(tally), labels)
    for metric, times in _TIMES:
        out.histogram(metric, times(tally), labels)


def _calls(out: _Collector, books: Books) -> None:
    for engine, calls in books.calls():
        labels = {"engine": engine}
        out.histogram(telemetry.BATCH_TEXTS, calls.texts, labels)
        out.histogram(telemetry.BATCH_TOKENS, calls.tokens, labels)
        error, ratio = calls.error.quantile(0.5), calls.ratio.quantile(0.9)
        if error is not None and ratio is not None:
            out.value(telemetry.PREDICTIONS, calls.error.count, labels)
            out.value(telemetry.PREDICTION_ERROR, error, labels)
            out.value(telemetry.PREDICTION_CALIBRATION, ratio, labels)


def _engine(out: _Collector, engine: EngineStatus) -> None:
    labels = {"engine": engine.name}
    for state in get_args(EngineState):
        named = {**labels, "model": engine.model, "state": state}
        out.value(telemetry.ENGINE_STATE, float(state == engine.state), named)
    out.value(telemetry.ENGINE_RUNNING, engine.running, labels)
    out.value(telemetry.ENGINE_SLOTS, engine.max_running, labels)
    out.value(telemetry.ENGINE_SERVED, engine.served, labels)
    out.value(telemetry.ENGINE_FAILED, engine.failed, labels)
    out.value(telemetry.ENGINE_RESTARTS, engine.restarts, labels)
