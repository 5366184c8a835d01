"""What people see of simulated runs: tables on the terminal, `simulate.json`, `simulate.html`.

Every title, table and plot says SIMULATED, and so does every row of the JSON.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any, Final

import msgspec

from sage.benchmark import plots
from sage.benchmark.simulate.runs import Done
from sage.benchmark.simulate.study import Cell, Difference, groups
from sage.middleware.control_plane.simulator.report import ALL

__all__ = ["COLUMNS", "SCHEMA_VERSION", "SIMULATED", "difference", "html", "rows", "to_json", "write"]

SIMULATED: Final = "SIMULATED"
SCHEMA_VERSION: Final = 1
COLUMNS: Final = (
    ("attainment", "attainment"),
    ("goodput", "goodput /s"),
    ("ttft_p50", "TTFT p50 ms"),
    ("ttft_p99", "TTFT p99 ms"),
    ("tpot_p50", "TPOT p50 ms"),
    ("e2e_p99", "E2E p99 ms"),
    ("shed", "shed"),
    ("jain", "Jain"),
)
_COLOURS: Final = ("#2563c9", "#b45309", "#15803d", "#9333ea", "#be123c", "#0e7490", "#a16207", "#475569")


def rows(table: Sequence[Cell], load: float) -> Iterator[list[str]]:
    """For each class and arm at one load: its name, the arm, then a cell for each of `COLUMNS`."""
    at = {(cell.group, cell.arm, cell.metric): cell for cell in table if cell.load == load}
    for group in groups(table):
        for arm in dict.fromkeys(cell.arm for cell in table):
            found = [at.get((group, arm, metric)) for metric, _ in COLUMNS]
            if any(found):
                yield [group, arm, *(_shown(cell) if cell else "-" for cell in found)]


def to_json(
    done: Sequence[Done],
    table: Sequence[Cell],
    compared: Sequence[Difference],
    parameters: Mapping[str, Any],
    environment: Mapping[str, Any],
) -> dict[str, Any]:
    """The content of `simulate.json`."""
    fleets = {one.task.arm.fleet.name: one.task.arm.fleet for one in done}
    return {
        "schema_version": SCHEMA_VERSION,
        "label": SIMULATED,
        "badges": [SIMULATED],
        "parameters": dict(parameters),
        "environment": dict(environment),
        "fleets": {name: fleet.model_dump(mode="json") for name, fleet in fleets.items()},
        "metrics": [{"label": SIMULATED, **asdict(cell)} for cell in table],
        "comparisons": [{"label": SIMULATED, **asdict(row)} for row in compared],
        "runs": [
            {"arm": one.task.arm.label, "load": one.task.load, **msgspec.to_builtins(one.report)}
            for one in done
        ],
    }


def write(content: Mapping[str, Any], page: str, folder: Path) -> None:
    """Write `simulate.json` and `simulate.html` into a folder that exists."""
    (folder / "simulate.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    (folder / "simulate.html").write_text(page, encoding="utf-8")


def html(title: str, done: Sequence[Done], table: Sequence[Cell], compared: Sequence[Difference]) -> str:
    """One page that needs nothing else: tables and plots, inline."""
    style = resources.files("sage.benchmark").joinpath("report.css").read_text(encoding="utf-8")
    loads = list(dict.fromkeys(one.task.load for one in done))
    body = [f"<h1>[{SIMULATED}] {escape(title)}</h1>", f'<p class="note">{escape(_NOTE)}</p>']
    if len(loads) > 1:
        body.append(_attainment(table, loads))
    for load in loads:
        body += [_curves([one for one in done if one.task.load == load], load), _table(table, load)]
    if compared:
        body.append(_comparisons(compared))
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>[{SIMULATED}] {escape(title)}'
        f"</title><style>{style}{_series_style()}</style></head><body><main>{''.join(body)}</main></body></html>\n"
    )


_NOTE: Final = (
    "Figures of a model, not of a machine. Each is the mean over the seeds with a 95 % bootstrap interval; "
    "arms ran over the same arrivals. What was shed, failed or given up is a miss."
)


def _attainment(table: Sequence[Cell], loads: Sequence[float]) -> str:
    at = {
        (cell.arm, cell.load): cell.value
        for cell in table
        if (cell.group, cell.metric) == (ALL, "attainment")
    }
    arms = dict.fromkeys(arm for arm, _ in at)
    series = {arm: [(load, at[arm, load]) for load in sorted(loads) if (arm, load) in at] for arm in arms}
    return plots.lines(series, unit="load", label=f"[{SIMULATED}] Attainment of all classes against load")


def _curves(done: Sequence[Done], load: float) -> str:
    """A distribution of times to the first byte for each class that has any."""
    found = []
    for name in sorted({name for one in done for name, curve in one.report.ttft_ms.items() if curve}):
        series: dict[str, list[float]] = {}
        for one in done:
            series.setdefault(one.task.arm.label, []).extend(one.report.ttft_ms.get(name, ()))
        label = f"[{SIMULATED}] {name}: time to the first byte, load {load:g}"
        found.append(plots.cdf({arm: s for arm, s in series.items() if s}, unit="ms", label=label))
    return "".join(found)


def _table(table: Sequence[Cell], load: float) -> str:
    head = _row(["class", "arm", *(name for _, name in COLUMNS)], "th")
    return _boxed(f"[{SIMULATED}] load {load:g}, mean and 95 % interval", head, map(_row, rows(table, load)))


def _comparisons(compared: Sequence[Difference]) -> str:
    head = _row(["arm", "load", "class", "metric", "difference", "95 % interval", "p (Holm)", "unit"], "th")
    lines = (_row(difference(row)) for row in compared)
    return _boxed(f"[{SIMULATED}] against {compared[0].against}, paired over seeds", head, lines)


def difference(row: Difference) -> list[str]:
    """The cells of a comparison."""
    interval = f"{_number(row.low)} to {_number(row.high)}"
    shown = f"{'+' if row.value > 0 else ''}{_number(row.value)}"
    return [row.arm, f"{row.load:g}", row.group, row.metric, shown, interval, f"{row.p:.3f}", row.unit]


def _boxed(title: str, head: str, lines: Iterable[str]) -> str:
    return f'<h2>{escape(title)}</h2><div class="wide"><table>{head}{"".join(lines)}</table></div>'


def _row(cells: Iterable[str], tag: str = "td") -> str:
    return f"<tr>{''.join(f'<{tag}>{escape(cell)}</{tag}>' for cell in cells)}</tr>"


def _series_style() -> str:
    """Colours for more series than the report of a live run has."""
    return "".join(
        f"polyline.s{n}{{stroke:{colour}}}.legend .s{n}::before{{color:{colour}}}"
        for n, colour in enumerate(_COLOURS * 4)
    )


def _shown(cell: Cell) -> str:
    return f"{_number(cell.value)} ({_number(cell.low)}…{_number(cell.high)})"


def _number(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
