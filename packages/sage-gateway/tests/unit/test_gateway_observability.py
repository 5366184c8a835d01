"""Dashboards and alerts name only what a real run shows, and each alert fires when it should.

`data/run.txt` is made by `data/record.py`.
"""

from __future__ import annotations

import json
import math
import shutil
import subprocess
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from sage.common.errors import UsageError
from sage.common.telemetry import METRICS
from sage.gateway.observability.command import observe
from sage.gateway.observability.dashboards import DASHBOARDS, dashboard
from sage.gateway.testing.promql import Series, parse, read_series

RUN = list(read_series((Path(__file__).parents[1] / "data" / "run.txt").read_text(), 4.0))
ALERTS_FILE = files("sage.gateway.observability").joinpath("alerts.yaml")
ALERTS: dict[str, dict[str, Any]] = {
    rule["alert"]: rule
    for group in YAML(typ="safe").load(ALERTS_FILE.read_text())["groups"]
    for rule in group["rules"]
}
PANELS = [
    pytest.param(query, id=f"{name}: {panel.title}: {legend}")
    for name, board in DASHBOARDS.items()
    for panel in board.panels
    for legend, query in panel.queries.items()
]
HISTOGRAMS = {metric.name for metric in METRICS if metric.kind == "histogram"}


def seen(name: str) -> set[str]:
    """The labels that a series of the recorded run has; raises KeyError where there is none."""
    found: set[str] = set()
    there = [one for one in RUN if one.name == name]
    if not there:
        raise KeyError(name)
    for one in there:
        found |= one.labels.keys()
    return found


def rises(*values: float) -> list[float]:
    """A counter or gauge over twelve minutes: the values, the last one held."""
    return [*values, *[values[-1]] * (12 - len(values))]


def grows(each: float) -> list[float]:
    return [each * minute for minute in range(12)]


def series(text: str, values: Sequence[float]) -> Series:
    (one,) = read_series(f"{text} {' '.join(map(str, values))}", 60.0)
    return one


def histogram(name: str, low: float, each: float, labels: str = "") -> list[Series]:
    """All observations between `low` and twice that."""
    return [
        series(f'{name}_bucket{{{labels}le="{low:g}"}}', grows(0.0)),
        series(f'{name}_bucket{{{labels}le="{2 * low:g}"}}', grows(each)),
        series(f'{name}_bucket{{{labels}le="+Inf"}}', grows(each)),
    ]


CLASS = 'request_class="chat",tenant="t"'
BAD: dict[str, list[Series]] = {
    "SageGone": [],
    "SageEngineNotReady": [
        series('sage_engine_state{engine="e",model="m",state="ready"}', rises(1, 0)),
        series('sage_engine_state{engine="e",model="m",state="stopped"}', rises(0)),
        series('sage_engine_state{engine="e",model="m",state="failed"}', rises(0, 1)),
    ],
    "SageEngineRestarts": [series('sage_engine_restarts_total{engine="e"}', rises(0, 1, 2, 3, 4))],
    "SageEngineFails": [
        series('sage_engine_failed_total{engine="e"}', grows(1)),
        series('sage_engine_served_total{engine="e"}', grows(9)),
    ],
    "SageEngineTimesOut": [
        series('sage_limit_hits_total{limit="chunk_time"}', rises(0, 0, 0, 0, 1)),
        series('sage_limit_hits_total{limit="rpm"}', rises(0)),
    ],
    "SageRequestsQuarantined": [series(f"sage_requests_quarantined_total{{{CLASS}}}", rises(0, 1))],
    "SageGoalsMissed": [
        series(f"sage_requests_met_total{{{CLASS}}}", grows(80)),
        series(f'sage_requests_total{{{CLASS},outcome="done"}}', grows(90)),
        series(f'sage_requests_total{{{CLASS},outcome="failed"}}', grows(10)),
        series(f'sage_requests_total{{{CLASS},outcome="cancelled"}}', grows(50)),
    ],
    "SageSheds": [
        series(f'sage_requests_total{{{CLASS},outcome="done"}}', grows(80)),
        series(f'sage_requests_total{{{CLASS},outcome="rejected"}}', grows(20)),
    ],
    "SageFirstTokenLate": histogram("gen_ai_server_time_to_first_token_seconds", 4, 100, f"{CLASS},"),
    "SageQueueOld": [series('sage_queue_oldest_seconds{request_class="chat"}', rises(0, 10, 20))],
    "SageLoopLags": histogram("sage_event_loop_lag_seconds", 0.25, 1200),
    "SageConnectionsNearlyFull": [series('sage_connections_open{listener="data"}', rises(10, 7000))],
    "SageLimitsMet": [series('sage_limit_hits_total{limit="json_depth"}', grows(120))],
    "SageKeyRefused": [
        series('sage_key_refusals_total{key="k",limit="rpm"}', grows(40)),
        series('sage_key_refusals_total{key="k",limit="tpm"}', grows(40)),
    ],
    "SagePredictionsOff": [
        series('sage_prediction_error_ratio_p50{engine="e"}', rises(0.1, 1.5)),
        series('sage_predictions_total{engine="e"}', rises(100, 500)),
    ],
    "SageJobFailed": [series('sage_jobs{state="failed"}', rises(0, 1))],
    "SageJobRestarts": [series("sage_job_restarts_total", rises(0, 1, 2, 3))],
    "SageJobCheckpointOld": [series('sage_job_checkpoint_age_seconds{job="j"}', rises(5, 700))],
    "SageJobStuck": [series('sage_job_loop_stuck_seconds{job="j"}', rises(0, 40))],
    "SageJobDiverts": [
        series('sage_job_operator_records_total{job="j",operator="o",way="in"}', grows(80)),
        series('sage_job_operator_records_total{job="j",operator="o",way="diverted"}', grows(5)),
        series('sage_job_operator_records_total{job="j",operator="o",way="skipped"}', grows(5)),
    ],
}


@pytest.mark.parametrize(
    "expr", [*PANELS, *(pytest.param(one["expr"], id=name) for name, one in ALERTS.items())]
)
def test_what_a_panel_or_an_alert_names_was_there_in_a_real_run(expr: str) -> None:
    metrics = parse(expr).metrics
    assert metrics
    for name, labels in metrics.items():
        assert labels <= seen(name), name


@pytest.mark.parametrize("expr", PANELS)
def test_a_panel_shows_something_of_a_real_run(expr: str) -> None:
    if "> 0" in expr:
        return  # nothing of that kind went on in the last minutes of it
    assert any(not math.isnan(value) for value in parse(expr).at(RUN).values())


def test_each_alert_has_a_bad_case() -> None:
    assert BAD.keys() == ALERTS.keys()


@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_fires_when_it_should_and_not_in_a_good_run(name: str) -> None:
    query = parse(ALERTS[name]["expr"])
    assert query.at(BAD[name])
    assert query.at(RUN) == {}


@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_says_how_bad_it_is_and_what_it_is(name: str) -> None:
    rule = ALERTS[name]
    assert rule["labels"]["severity"] in ("critical", "warning", "info")
    assert rule["annotations"]["summary"].endswith(".")
    assert rule.keys() <= {"alert", "expr", "for", "labels", "annotations"}


def test_every_metric_is_on_a_dashboard() -> None:
    shown = {name for param in PANELS for name in parse(str(param.values[0])).metrics}
    hidden = {
        metric.name
        for metric in METRICS
        if (f"{metric.name}_bucket" if metric.name in HISTOGRAMS else metric.name) not in shown
    }
    assert hidden == {
        "sage_policy_info",
        "sage_uptime_seconds",
        "sage_tasks",
        "sage_embedding_call_tokens",
        "sage_predictions_total",
        "sage_prediction_calibration_p90",
    }


def test_six_dashboards_and_the_rules_are_written(tmp_path: Path) -> None:
    observe(tmp_path / "new" / "folder")
    written = sorted(file.name for file in (tmp_path / "new" / "folder").iterdir())
    assert written == ["sage-alerts.yaml", *sorted(f"sage-{name}.json" for name in DASHBOARDS)]
    assert len(DASHBOARDS) == 6
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="Cannot write to"):
        observe(tmp_path / "file")


@pytest.mark.parametrize("name", DASHBOARDS)
def test_a_dashboard_is_what_grafana_imports(name: str) -> None:
    made = json.loads(json.dumps(dashboard(name, DASHBOARDS[name])))
    assert made["schemaVersion"] >= 39
    assert (made["uid"], len(made["uid"]) <= 40) == (f"sage-{name}", True)
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in made["panels"]]
    assert len(set(places)) == len(places)
    assert len({panel["id"] for panel in made["panels"]}) == len(places)
    for panel in made["panels"]:
        assert panel["datasource"]["uid"] == "${source}"
        refs = [target["refId"] for target in panel["targets"]]
        assert refs
        assert len(set(refs)) == len(refs)


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool (Debian: prometheus) is not installed")
def test_prometheus_takes_the_rules_and_agrees_when_they_fire(tmp_path: Path) -> None:
    rules = tmp_path / "alerts.yaml"
    rules.write_text(ALERTS_FILE.read_text())
    tests = [
        {
            "name": name,
            "interval": "1m",
            "input_series": [
                {"series": _named(one), "values": " ".join(map(str, one.values))} for one in BAD[name]
            ],
            "promql_expr_test": [
                {
                    "expr": f"count({rule['expr']})",
                    "eval_time": "11m",
                    "exp_samples": [{"labels": "{}", "value": len(parse(rule["expr"]).at(BAD[name]))}],
                }
            ],
        }
        for name, rule in ALERTS.items()
    ]
    (tmp_path / "test.yaml").write_text(json.dumps({"rule_files": ["alerts.yaml"], "tests": tests}))
    for command in (["check", "rules", "alerts.yaml"], ["test", "rules", "test.yaml"]):
        done = subprocess.run(
            ["promtool", *command], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr


def _named(one: Series) -> str:
    labels = ",".join(f'{name}="{value}"' for name, value in one.labels.items())
    return f"{one.name}{{{labels}}}"


# ---- the reader of expressions itself ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["sum(", "foo)", "rate(foo)", "foo[5m]", "count(foo)", "foo ~ 1", "1 + foo", ""]
)
def test_what_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        parse(text).at([series("foo", rises(1))])


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("sum(a)", {(): 5.0}),
        ("sum by (x) (a)", {("1",): 3.0, ("2",): 2.0}),
        ("max(a) > 2", {(): 3.0}),
        ("max(a) > 3", {}),
        ('a{x="1"} / b', {("1",): 0.5}),
        ('a{x!~"1|3"}', {("2",): 2.0}),
        ("a > 0 and b > 5", {("1",): 3.0}),
        ("absent(c)", {(): 1.0}),
        ("absent(a)", {}),
        ("sum(rate(n[5m]))", {(): 1.0}),
        ("sum(increase(n[2m]))", {(): 120.0}),
        ("a - 1", {("1",): 2.0, ("2",): 1.0}),
    ],
)
def test_what_expressions_come_to(text: str, wanted: dict[tuple[str, ...], float]) -> None:
    here = [
        series('a{x="1"}', rises(1, 3)),
        series('a{x="2"}', rises(2)),
        series('b{x="1"}', rises(6)),
        series("n", grows(60)),
    ]
    assert {tuple(v for _, v in sorted(k)): value for k, value in parse(text).at(here).items()} == wanted


def test_a_counter_that_began_anew_is_not_negative() -> None:
    assert parse("sum(increase(n[11m]))").at([series("n", [50, 60, *[10] * 10])]) == {frozenset(): 20.0}


def test_a_quantile_lies_inside_of_its_bucket() -> None:
    (value,) = parse("histogram_quantile(0.5, rate(h_bucket[5m]))").at(histogram("h", 1, 100)).values()
    assert value == pytest.approx(1.5)
