"""From runs to what is reported: means over seeds with intervals, and arms against the first one, paired."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

from sage.benchmark import stats
from sage.benchmark.simulate.runs import Done
from sage.middleware.control_plane.simulator.report import ALL, Figure

__all__ = ["COMPARED", "Cell", "Difference", "cells", "differences", "groups"]

COMPARED: Final = ("attainment", "goodput", "jain", "ttft_p50", "ttft_p99", "tpot_p99", "e2e_p50", "e2e_p99")


@dataclass(frozen=True, slots=True)
class Cell:
    """One figure of one arm at one load: the mean over the seeds that have it, `n` of them."""

    arm: str
    load: float
    group: str
    metric: str
    value: float
    low: float
    high: float
    n: int
    unit: str
    better: Literal["lower", "higher"]


@dataclass(frozen=True, slots=True)
class Difference:
    """An arm minus the first arm over the same seeds; `p` after Holm's adjustment over its load."""

    arm: str
    against: str
    load: float
    group: str
    metric: str
    value: float
    low: float
    high: float
    n: int
    p: float
    unit: str
    better: Literal["lower", "higher"]


_Key = tuple[str, float, str, str]


def cells(done: Iterable[Done]) -> list[Cell]:
    """A cell for each figure of each arm and load, in the order in which they first come."""
    return [
        Cell(*key, *_interval(stats.mean([f.value for f in found.values()], seed=0)), _first(found).unit,
             _first(found).better)
        for key, found in _by_key(done).items()
    ]  # fmt: skip


def differences(done: Sequence[Done]) -> list[Difference]:
    """Each arm against the first one, for the figures that people compare.

    A figure counts for the seeds where both arms have it: a class of which nothing was answered has no times.
    """
    table = _by_key(done)
    against = done[0].task.arm.label
    found = []
    for load in dict.fromkeys(one.task.load for one in done):
        rows = [row for key, ours in table.items() if (row := _compare(key, ours, table, against, load))]
        adjusted = stats.holm({str(number): row.p for number, row in enumerate(rows)})
        found += [_with_p(row, adjusted[str(number)]) for number, row in enumerate(rows)]
    return found


def groups(table: Iterable[Cell]) -> list[str]:
    """Classes by name, after what is over all of them; engines are left out."""
    names = {cell.group for cell in table if not cell.group.startswith("engine ")}
    return [ALL, *sorted(names - {ALL})]


def _by_key(done: Iterable[Done]) -> dict[_Key, dict[int, Figure]]:
    """Arm, load, group and metric to the figure of each seed."""
    table: dict[_Key, dict[int, Figure]] = {}
    for one in done:
        for figure in one.report.figures:
            key = (one.task.arm.label, one.task.load, figure.group, figure.name)
            table.setdefault(key, {})[one.task.seed] = figure
    return table


def _compare(
    key: _Key, ours: dict[int, Figure], table: dict[_Key, dict[int, Figure]], against: str, load: float
) -> Difference | None:
    arm, at, group, metric = key
    theirs = table.get((against, at, group, metric), {})
    seeds = sorted(ours.keys() & theirs.keys())
    if arm == against or at != load or metric not in COMPARED or not seeds:
        return None
    found = stats.paired([ours[s].value for s in seeds], [theirs[s].value for s in seeds], seed=0)
    some = _first(ours)
    return Difference(
        arm, against, load, group, metric, *_interval(found.difference), found.p, some.unit, some.better
    )


def _with_p(row: Difference, p: float) -> Difference:
    return replace(row, p=p)


def _interval(at: stats.Estimate) -> tuple[float, float, float, int]:
    return at.value, at.low, at.high, at.n


def _first(figures: dict[int, Figure]) -> Figure:
    return next(iter(figures.values()))
