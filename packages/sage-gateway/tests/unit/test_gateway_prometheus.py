"""The Prometheus text: what a scraper reads is what was counted."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage.common.api import MetricList, MetricSample, MetricStatus
from sage.gateway.prometheus import exposition


def metric(name: str, kind: str, *samples: MetricSample) -> MetricStatus:
    return MetricStatus.model_validate(
        {"name": name, "kind": kind, "unit": "s", "help": "what it is", "samples": samples}
    )


def test_a_gauge_and_a_histogram() -> None:
    gauge = metric("up", "gauge", MetricSample(labels={"a": "x", "b": ""}, value=0.25), MetricSample(value=2))
    histogram = metric(
        "wait_seconds",
        "histogram",
        MetricSample(labels={"a": "x"}, count=3, sum=5.5, buckets=[(0.5, 1), (1.0, 2)]),
    )
    assert exposition(MetricList(metrics=[gauge, histogram])).splitlines() == [
        "# HELP up what it is",
        "# TYPE up gauge",
        'up{a="x",b=""} 0.25',
        "up 2",
        "# HELP wait_seconds what it is",
        "# TYPE wait_seconds histogram",
        'wait_seconds_bucket{a="x",le="0.5"} 1',
        'wait_seconds_bucket{a="x",le="1"} 2',
        'wait_seconds_bucket{a="x",le="+Inf"} 3',
        'wait_seconds_sum{a="x"} 5.5',
        'wait_seconds_count{a="x"} 3',
    ]


def test_nothing_is_an_empty_page() -> None:
    assert exposition(MetricList(metrics=[])) == ""


def unquoted(label: str) -> str:
    """What Prometheus takes a quoted label value for."""
    out, escaped = [], False
    for char in label:
        if escaped:
            out.append({"n": "\n"}.get(char, char))
            escaped = False
        elif char == "\\":
            escaped = True
        else:
            assert char not in '"\n'
            out.append(char)
    return "".join(out)


@given(st.text())
def test_a_tenants_name_cannot_leave_its_quotes(tenant: str) -> None:
    text = exposition(MetricList(metrics=[metric("m", "gauge", MetricSample(labels={"t": tenant}, value=1))]))
    line = text.removesuffix("\n").split("\n", 2)[2]
    assert line.startswith('m{t="')
    assert line.endswith('"} 1')
    assert unquoted(line[len('m{t="') : -len('"} 1')]) == tenant


@given(st.floats(0, 1e12))
def test_numbers_are_read_back_exactly(value: float) -> None:
    text = exposition(MetricList(metrics=[metric("m", "gauge", MetricSample(value=value))]))
    assert float(text.splitlines()[-1].split(" ")[1]) == value


def test_a_parser_that_others_wrote_agrees() -> None:
    parser = pytest.importorskip("prometheus_client.parser")
    sample = MetricSample(labels={"a": 'q"\\\n'}, count=3, sum=5.5, buckets=[(0.5, 1), (1.0, 2)])
    (family,) = parser.text_string_to_metric_families(
        exposition(MetricList(metrics=[metric("wait_seconds", "histogram", sample)]))
    )
    assert family.type == "histogram"
    found = {(one.name, one.labels.get("le")): one.value for one in family.samples}
    assert found["wait_seconds_bucket", "+Inf"] == 3
    assert found["wait_seconds_sum", None] == 5.5
    assert family.samples[0].labels["a"] == 'q"\\\n'
