"""Means over seeds, paired comparisons, and the label that every output carries; on made-up runs."""

from __future__ import annotations

import json

import pytest

from sage.benchmark.simulate import output
from sage.benchmark.simulate.runs import Arm, Done, Task
from sage.benchmark.simulate.study import Cell, cells, differences, groups
from sage.middleware.control_plane.simulator.fleet import load_fleet
from sage.middleware.control_plane.simulator.report import ALL, Figure, RunReport

FLEET = load_fleet("four_llms")
SEEDS = range(6)


def done(arm: str, seed: int, attainment: float, ttft: float | None = None, load: float = 1.0) -> Done:
    figures = [
        Figure("attainment", ALL, attainment, "ratio", "higher"),
        Figure("attainment", "chat", attainment, "ratio", "higher"),
        Figure("utilisation", "engine llm0", 0.5, "ratio", "higher"),
    ]
    if ttft is not None:
        figures.append(Figure("ttft_p99", "chat", ttft, "ms", "lower"))
    curve = [] if ttft is None else [ttft / 2, ttft]
    report = RunReport("p", FLEET.name, seed, 10.0, {"chat": {"done": 3}}, figures, {"chat": curve})
    return Done(Task(Arm(arm, arm, FLEET), "mixed", seed, load), report, 3, 0.1)


@pytest.fixture
def runs() -> list[Done]:
    """`good` is better by 0.2 and 100 ms for each seed; all seeds differ."""
    slow = [done("plain", seed, 0.5 + seed / 100, 300.0 + seed) for seed in SEEDS]
    fast = [done("good", seed, 0.7 + seed / 100, 200.0 + seed) for seed in SEEDS]
    return slow + fast


def cell(table: list[Cell], arm: str, group: str, metric: str, load: float = 1.0) -> Cell:
    return next(c for c in table if (c.arm, c.group, c.metric, c.load) == (arm, group, metric, load))


def test_a_cell_is_the_mean_over_seeds_inside_its_interval(runs: list[Done]) -> None:
    found = cell(cells(runs), "good", "chat", "ttft_p99")
    assert found.value == pytest.approx(202.5)
    assert found.low < found.value < found.high
    assert (found.n, found.unit, found.better) == (6, "ms", "lower")


def test_what_some_seeds_lack_counts_fewer_seeds() -> None:
    table = cells([done("a", 0, 0.0), done("a", 1, 1.0, 50.0)])
    assert cell(table, "a", "chat", "ttft_p99").n == 1
    assert cell(table, "a", "chat", "attainment").n == 2


def test_arms_are_compared_with_the_first_one_seed_by_seed(runs: list[Done]) -> None:
    found = {(row.group, row.metric): row for row in differences(runs)}
    assert set(found) == {(ALL, "attainment"), ("chat", "attainment"), ("chat", "ttft_p99")}
    row = found[("chat", "ttft_p99")]
    assert (row.arm, row.against, row.n) == ("good", "plain", 6)
    assert row.value == row.low == row.high == pytest.approx(-100)
    assert row.p == pytest.approx(3 * 2 / 2**6), "exact sign flips, times three comparisons"


def test_a_comparison_uses_only_the_seeds_that_both_arms_have() -> None:
    found = differences(
        [done("a", 0, 1.0, 10.0), done("a", 1, 1.0), done("b", 0, 1.0, 30.0), done("b", 1, 1.0, 99.0)]
    )
    row = next(row for row in found if row.metric == "ttft_p99")
    assert (row.value, row.n) == (20.0, 1)


def test_loads_are_not_mixed() -> None:
    loaded = [
        done(arm, s, a, load=load) for load, a in ((1.0, 0.9), (2.0, 0.5)) for arm in "ab" for s in (0, 1)
    ]
    assert cell(cells(loaded), "a", ALL, "attainment", 2.0).value == 0.5
    assert {row.load for row in differences(loaded)} == {1.0, 2.0}


def test_one_arm_has_nothing_to_compare_with(runs: list[Done]) -> None:
    assert differences(runs[:6]) == []


def test_engines_are_not_classes(runs: list[Done]) -> None:
    assert groups(cells(runs)) == [ALL, "chat"]


def test_rows_have_a_column_for_each_metric(runs: list[Done]) -> None:
    rows = list(output.rows(cells(runs), 1.0))
    assert [row[:2] for row in rows] == [[ALL, "plain"], [ALL, "good"], ["chat", "plain"], ["chat", "good"]]
    assert all(len(row) == 2 + len(output.COLUMNS) for row in rows)
    chat = dict(zip([name for _, name in output.COLUMNS], rows[3][2:], strict=True))
    assert chat["TTFT p99 ms"].startswith("202 (") or chat["TTFT p99 ms"].startswith("203 (")
    assert chat["TPOT p50 ms"] == "-"


def test_every_part_of_the_json_says_that_it_is_simulated(runs: list[Done]) -> None:
    content = output.to_json(runs, cells(runs), differences(runs), {"trace": "mixed"}, {"git": {}})
    content = json.loads(json.dumps(content))
    assert (content["schema_version"], content["label"], content["badges"]) == (1, "SIMULATED", ["SIMULATED"])
    for part in ("metrics", "comparisons", "runs"):
        assert content[part]
        assert {row["label"] for row in content[part]} == {"SIMULATED"}
    assert content["fleets"]["four_llms"]["engines"]


def test_every_title_and_plot_of_the_page_says_that_it_is_simulated(runs: list[Done]) -> None:
    runs = [*runs, *(done(arm, seed, 0.3, 900.0, load=2.0) for arm in ("plain", "good") for seed in SEEDS)]
    page = output.html("mixed <b>", runs, cells(runs), differences(runs))
    for tag in ("<title>", "<h1>", "<h2>", "<figcaption>"):
        assert page.count(tag) >= 1
        assert page.count(tag) == page.count(f"{tag}[SIMULATED]"), tag
    assert page.count("<figure>") == 3, "attainment against load, and a distribution for each load"
    assert "<b>" not in page
    assert "<script" not in page


def test_a_class_without_an_answer_has_no_distribution() -> None:
    page = output.html("t", [done("a", 0, 0.0)], cells([done("a", 0, 0.0)]), [])
    assert "<figure>" not in page
