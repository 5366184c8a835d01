"""Plots as inline SVG: distributions, a run over time, shares against load. No script, no asset."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

__all__ = ["cdf", "lines", "timeline"]

WIDTH, HEIGHT = 640, 260
LEFT, RIGHT, TOP, BOTTOM = 48, 16, 14, 40


def cdf(series: Mapping[str, Sequence[float]], *, unit: str, label: str) -> str:
    """Cumulative distribution of each named series of samples. ValueError for an empty series."""
    if not series or not all(series.values()):
        raise ValueError("A CDF needs at least one sample in each series.")
    right = max(max(samples) for samples in series.values()) or 1.0
    lines = []
    for number, samples in enumerate(series.values()):
        ordered = sorted(samples)
        steps = [(0.0, 0.0)]
        for rank, sample in enumerate(ordered, 1):
            steps += [(sample, (rank - 1) / len(ordered)), (sample, rank / len(ordered))]
        steps.append((right, 1.0))
        points = " ".join(f"{_x(x, right):.1f},{_y(y):.1f}" for x, y in steps)
        lines.append(f'<polyline class="s{number}" points="{points}"/>')
    ticks = [(y, f"{y:.0%}") for y in (0.0, 0.5, 0.9, 1.0)]
    return _frame(label, lines, right, unit, ticks, list(series))


def timeline(points: Mapping[str, Sequence[tuple[float, float, bool]]], *, unit: str, label: str) -> str:
    """Requests as dots: (seconds into the run, latency, met its limits) for each named series.

    A request that missed its limits is drawn hollow.
    """
    flat = [point for series in points.values() for point in series]
    if not flat:
        raise ValueError("A timeline needs at least one point.")
    right = max(x for x, _, _ in flat) or 1.0
    top = max(y for _, y, _ in flat) or 1.0
    dots = [
        f'<circle class="s{number}{"" if met else " miss"}" '
        f'cx="{_x(x, right):.1f}" cy="{_y(y / top):.1f}" r="3"/>'
        for number, series in enumerate(points.values())
        for x, y, met in series
    ]
    ticks = [(share, f"{share * top:.3g}") for share in (0.0, 0.5, 1.0)]
    return _frame(f"{label} ({unit})", dots, right, "s into the run", ticks, list(points))


def lines(series: Mapping[str, Sequence[tuple[float, float]]], *, unit: str, label: str) -> str:
    """A line for each named series of (x from 0, share between 0 and 1). ValueError for an empty series."""
    if not series or not all(series.values()):
        raise ValueError("A line needs at least one point in each series.")
    right = max(x for points in series.values() for x, _ in points) or 1.0
    marks = [
        f'<polyline class="s{number}" points="'
        + " ".join(f"{_x(x, right):.1f},{_y(y):.1f}" for x, y in points)
        + '"/>'
        for number, points in enumerate(series.values())
    ]
    ticks = [(y, f"{y:.0%}") for y in (0.0, 0.5, 0.9, 1.0)]
    return _frame(label, marks, right, unit, ticks, list(series))


def _x(value: float, right: float) -> float:
    return LEFT + value / right * (WIDTH - LEFT - RIGHT)


def _y(share: float) -> float:
    return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)


def _frame(
    label: str, marks: list[str], right: float, unit: str, ticks: list[tuple[float, str]], names: list[str]
) -> str:
    grid = [
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{_y(y):.1f}" y2="{_y(y):.1f}"/>'
        f'<text x="{LEFT - 6}" y="{_y(y) + 4:.1f}" text-anchor="end">{escape(text)}</text>'
        for y, text in ticks
    ]
    grid += [
        f'<text x="{_x(share * right, right):.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">'
        f"{share * right:.3g}</text>"
        for share in (0.0, 0.25, 0.5, 0.75, 1.0)
    ]
    middle = LEFT + (WIDTH - LEFT - RIGHT) / 2
    grid.append(f'<text x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">{escape(unit)}</text>')
    legend = "".join(f'<li class="s{number}">{escape(name)}</li>' for number, name in enumerate(names))
    return (
        f'<figure><figcaption>{escape(label)}</figcaption><ul class="legend">{legend}</ul>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label, quote=True)}">'
        f"{''.join(grid)}{''.join(marks)}</svg></figure>"
    )
