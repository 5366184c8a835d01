"""The files of a run: complete, badged, offline."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from sage.benchmark import plots
from sage.benchmark.metrics import Record
from sage.benchmark.report import SCHEMA_VERSION, Run, badges, html, markdown, write
from sage.benchmark.summary import counts, summarise
from sage.common.api import EngineStatus

RECORDS = [
    *(Record(i, "chat", float(i), float(i), "ok", pieces=(i + 0.1, i + 0.2)) for i in range(5)),
    *(Record(i, "embed", float(i), float(i), "ok", pieces=(i + 0.1 * i,)) for i in range(1, 9)),
    Record(9, "chat", 9.0, 9.0, "shed", status=429, error="queue full"),
]


def engine(**changes: Any) -> EngineStatus:
    base = {
        "name": "llm-0",
        "kind": "transformers",
        "model": "tiny",
        "task": "generate",
        "state": "ready",
        "url": "http://127.0.0.1:1",
    }
    return EngineStatus.model_validate({**base, "max_running": 8, **changes})


def run(**changes: Any) -> Run:
    base = {
        "suite": "smoke",
        "started_at": "2026-01-01T00:00:00+00:00",
        "parameters": {"rate": 2.0, "chat_model": "<tiny & co>"},
        "policy": "fifo",
        "engines": [engine().model_dump(mode="json")],
        "badges": [],
        "invalid": [],
        "environment": {"hardware": {"cores": 2}},
        "wall_s": 10.0,
        "requests": counts(RECORDS),
        "metrics": summarise(RECORDS, 10.0, seed=0),
    }
    return Run(**{**base, **changes})


def test_badges_say_what_a_reader_must_know() -> None:
    assert badges([engine()], confirmed=True) == []
    assert badges([engine(), engine(random_weights=True)], confirmed=True) == ["RANDOM-WEIGHTS"]
    assert badges([engine(kind="simulated", random_weights=True)], confirmed=True) == [
        "RANDOM-WEIGHTS",
        "SIMULATED",
    ]
    assert badges([], confirmed=False) == ["UNCONFIRMED"]


def test_badges_follow_into_every_title_and_plot() -> None:
    marked = run(badges=["RANDOM-WEIGHTS"])
    page = html(marked, RECORDS)
    assert all("RANDOM-WEIGHTS" in caption for caption in re.findall(r"<figcaption>(.*?)<", page))
    assert page.count("RANDOM-WEIGHTS") >= 5
    assert "[RANDOM-WEIGHTS]" in markdown(marked).splitlines()[0]


def test_json_holds_all_metrics_with_n_interval_unit_and_direction(tmp_path: Path) -> None:
    write(run(), RECORDS, tmp_path)
    data = json.loads((tmp_path / "run.json").read_text())
    assert data["schema_version"] == SCHEMA_VERSION
    assert data["valid"] is True
    assert data["policy"] == "fifo"
    for metric in data["metrics"]:
        assert set(metric) == {
            "name", "group", "value", "low", "high", "n", "unit", "direction", "starred",
        }  # fmt: skip
        assert None not in metric.values()


def test_an_invalid_run_says_so_everywhere(tmp_path: Path) -> None:
    bad = run(invalid=["the client sent late"])
    write(bad, RECORDS, tmp_path)
    assert json.loads((tmp_path / "run.json").read_text())["valid"] is False
    assert "INVALID" in (tmp_path / "report.md").read_text()
    assert "INVALID" in (tmp_path / "report.html").read_text()


class _Offline(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []

    def handle_starttag(self, tag: Any, attrs: Any) -> None:
        self.tags.append(tag)
        assert not {"src", "href", "srcset", "action", "style", "onclick"} & {name for name, _ in attrs}


def test_the_page_fetches_nothing_and_runs_nothing() -> None:
    page = html(run(), RECORDS)
    parser = _Offline()
    parser.feed(page)
    assert not {"script", "link", "img", "iframe", "object"} & set(parser.tags)
    assert parser.tags.count("svg") == 2
    assert "url(" not in page
    assert "@import" not in page


def test_names_from_outside_are_escaped() -> None:
    page = html(run(), RECORDS)
    assert "<tiny" not in page
    assert "&lt;tiny &amp; co&gt;" in page


def test_a_starred_percentile_is_explained() -> None:
    text = markdown(run())
    assert re.search(r"\| ttft_p99 \| chat \| \S+\* \|", text)
    assert "too few samples" in text


def test_a_cdf_rises_from_zero_to_one() -> None:
    svg = plots.cdf({"a": [1.0, 2.0, 2.0, 4.0]}, unit="ms", label="x")
    points = [tuple(map(float, p.split(","))) for p in re.findall(r'points="([^"]+)"', svg)[0].split()]
    xs, ys = [p[0] for p in points], [p[1] for p in points]
    assert xs == sorted(xs)
    assert ys == sorted(ys, reverse=True)


def test_a_miss_is_drawn_hollow() -> None:
    svg = plots.timeline({"a": [(0.0, 1.0, True), (1.0, 9.0, False)]}, unit="ms", label="x")
    assert svg.count("circle") == 2
    assert svg.count("miss") == 1


def test_a_plot_of_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one sample"):
        plots.cdf({"a": []}, unit="ms", label="x")
    with pytest.raises(ValueError, match="at least one point"):
        plots.timeline({"a": []}, unit="ms", label="x")
