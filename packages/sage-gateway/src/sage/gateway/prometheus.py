"""Metrics in the text format that Prometheus reads, version 0.0.4
(https://prometheus.io/docs/instrumenting/exposition_formats/)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from sage.common.api import MetricList, MetricSample, MetricStatus

__all__ = ["CONTENT_TYPE", "exposition"]

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

_ESCAPED: Final = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})


def exposition(metrics: MetricList) -> str:
    """All metrics, one sample on a line."""
    return "".join(f"{line}\n" for metric in metrics.metrics for line in _lines(metric))


def _lines(metric: MetricStatus) -> Iterator[str]:
    yield f"# HELP {metric.name} {metric.help}"
    yield f"# TYPE {metric.name} {metric.kind}"
    for sample in metric.samples:
        if sample.buckets is None:
            yield f"{metric.name}{_labels(sample.labels)} {_number(sample.value or 0.0)}"
        else:
            yield from _histogram(metric.name, sample, sample.buckets)


def _histogram(name: str, sample: MetricSample, buckets: list[tuple[float, int]]) -> Iterator[str]:
    labels, count = sample.labels, sample.count or 0
    for bound, seen in buckets:
        yield f"{name}_bucket{_labels(labels | {'le': _number(bound)})} {seen}"
    yield f"{name}_bucket{_labels(labels | {'le': '+Inf'})} {count}"
    yield f"{name}_sum{_labels(labels)} {_number(sample.sum or 0.0)}"
    yield f"{name}_count{_labels(labels)} {count}"


def _labels(labels: dict[str, str]) -> str:
    pairs = ",".join(f'{name}="{value.translate(_ESCAPED)}"' for name, value in labels.items())
    return f"{{{pairs}}}" if pairs else ""


def _number(value: float) -> str:
    return str(int(value)) if value.is_integer() else repr(value)
