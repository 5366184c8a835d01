"""A measured run and its four files: `run.json`, `records.jsonl`, `report.html`, `report.md`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from html import escape
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any, Final

from sage.benchmark import plots
from sage.benchmark.metrics import Record, e2e, meets, ttft
from sage.benchmark.summary import LIMITS, Metric
from sage.common.api import EngineStatus

__all__ = ["SCHEMA_VERSION", "UNCONFIRMED", "Run", "badges", "markdown", "to_json", "write"]

SCHEMA_VERSION: Final = 1
RANDOM_WEIGHTS: Final = "RANDOM-WEIGHTS"
SIMULATED: Final = "SIMULATED"
UNCONFIRMED: Final = "UNCONFIRMED"


@dataclass(frozen=True, slots=True)
class Run:
    """One run, whole: what was asked, of what, where, and what came out."""

    suite: str
    started_at: str  # ISO 8601, UTC
    parameters: dict[str, Any]
    policy: str
    engines: list[dict[str, Any]]
    badges: list[str]
    invalid: list[str]  # why the figures must not be used; empty = valid
    environment: dict[str, Any]
    wall_s: float
    requests: dict[str, dict[str, int]]
    metrics: list[Metric]


def badges(engines: Iterable[EngineStatus], *, confirmed: bool) -> list[str]:
    """What a reader must know before a figure: they stand beside every table and plot.

    RANDOM-WEIGHTS: an engine's text means nothing. SIMULATED: an engine of kind `simulated` answered.
    UNCONFIRMED: no admin API said which engines and policy were measured.
    """
    known = list(engines)
    found = (
        (RANDOM_WEIGHTS, any(engine.random_weights for engine in known)),
        (SIMULATED, any(engine.kind == "simulated" for engine in known)),
        (UNCONFIRMED, not confirmed),
    )
    return [badge for badge, holds in found if holds]


def to_json(run: Run) -> dict[str, Any]:
    """The content of `run.json`."""
    return {"schema_version": SCHEMA_VERSION, "valid": not run.invalid, **asdict(run)}


def write(run: Run, records: Sequence[Record], folder: Path) -> None:
    """Write `run.json`, `report.md` and `report.html`; the suite wrote `records.jsonl` while it ran."""
    (folder / "run.json").write_text(json.dumps(to_json(run), indent=2) + "\n", encoding="utf-8")
    (folder / "report.md").write_text(markdown(run), encoding="utf-8")
    (folder / "report.html").write_text(html(run, records), encoding="utf-8")


def markdown(run: Run) -> str:
    """The report as Markdown tables."""
    lines = [f"# {_title(run)}", "", _setting(run), ""]
    lines += [f"**INVALID**: {reason}." for reason in run.invalid]
    lines += ["", "| class | issued | ok | shed | failed | timeout |", "|---|---|---|---|---|---|"]
    for kind, row in run.requests.items():
        lines.append(f"| {kind} | " + " | ".join(str(value) for value in row.values()) + " |")
    lines += [
        "",
        "| metric | class | value | 95 % interval | n | unit | better |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += ["| " + " | ".join(_cells(metric)) + " |" for metric in run.metrics]
    return "\n".join([*lines, "", _legend(), ""])


def html(run: Run, records: Sequence[Record]) -> str:
    """The report as one page that needs nothing else: inline styles and SVG, no script."""
    package = resources.files("sage.benchmark")
    template = Template(package.joinpath("report.template.html").read_text(encoding="utf-8"))
    return template.substitute(
        title=escape(_title(run)),
        style=package.joinpath("report.css").read_text(encoding="utf-8"),
        suite=escape(run.suite),
        badges="".join(f'<span class="badge">{escape(badge)}</span> ' for badge in run.badges),
        setting=escape(_setting(run)),
        invalid="".join(f'<p class="invalid">INVALID: {escape(reason)}.</p>' for reason in run.invalid),
        plots=_plots(run, [record for record in records if record.outcome == "ok"]),
        requests="\n".join(_row([kind, *map(str, row.values())]) for kind, row in run.requests.items()),
        metrics="\n".join(_row(_cells(metric)) for metric in run.metrics),
        legend=escape(_legend()),
        environment=escape(json.dumps(run.environment, indent=2)),
    )


def _plots(run: Run, answered: Sequence[Record]) -> str:
    """Both plots; the badges follow into their captions, so that a cut-out picture keeps them."""
    suffix = f" - {' '.join(run.badges)}" if run.badges else ""
    distributions = {
        "chat TTFT": [ttft(record) * 1000 for record in answered if record.kind == "chat"],
        "embedding end to end": [e2e(record) * 1000 for record in answered if record.kind == "embed"],
    }
    over_time = {"chat end to end": _points(answered, "chat"), "embedding": _points(answered, "embed")}
    late = f"Latency by intended send, hollow = missed its limits{suffix}"
    return plots.cdf(distributions, unit="ms", label=f"Latency, cumulative{suffix}") + plots.timeline(
        over_time, unit="ms", label=late
    )


def _row(cells: Iterable[str]) -> str:
    return f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>"


def _points(answered: Sequence[Record], kind: str) -> list[tuple[float, float, bool]]:
    return [
        (record.intended, e2e(record) * 1000, meets(record, LIMITS[record.kind]))
        for record in answered
        if record.kind == kind
    ]


def _title(run: Run) -> str:
    return " ".join([f"SAGE benchmark: {run.suite}", *(f"[{badge}]" for badge in run.badges)])


def _setting(run: Run) -> str:
    parameters = ", ".join(f"{name} {value}" for name, value in run.parameters.items())
    engines = ", ".join(f"{e['name']} ({e['kind']}, {e['model']})" for e in run.engines) or "not confirmed"
    return (
        f"{run.started_at}. Policy {run.policy}. Engines: {engines}. {parameters}. Wall {run.wall_s:.1f} s."
    )


def _cells(metric: Metric) -> list[str]:
    star = "*" if metric.starred else ""
    interval = f"{_number(metric.low)} to {_number(metric.high)}"
    value = f"{_number(metric.value)}{star}"
    return [metric.name, metric.group, value, interval, str(metric.n), metric.unit, metric.direction]


def _number(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _legend() -> str:
    limits = "; ".join(
        f"{kind}: " + ", ".join(f"{n} ≤ {v * 1000:.0f} ms" for n, v in asdict(limit).items() if v is not None)
        for kind, limit in LIMITS.items()
    )
    return (
        "Latencies count from the intended send. * = too few samples for this percentile to be trusted. "
        f"Limits for attainment and goodput: {limits}. What was shed, failed or timed out is a miss."
    )
