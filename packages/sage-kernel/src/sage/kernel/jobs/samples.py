"""What the jobs of a process count, as metrics."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from itertools import islice
from typing import Final, TypeAlias

from sage.common.jobs import STATES
from sage.common.telemetry import (
    JOB_BUSY,
    JOB_CHECKPOINT_AGE,
    JOB_IN_FLIGHT,
    JOB_RECORDS,
    JOB_RESTARTS,
    JOB_RETRIES,
    JOB_STUCK,
    JOB_WAIT,
    JOBS,
    Metric,
)
from sage.kernel.jobs.held import Held

__all__ = ["OPERATORS", "Sample", "samples"]

Sample: TypeAlias = tuple[Metric, float, dict[str, str]]
OPERATORS: Final = 64
"""Operators of one job that have metrics, the first of its flow; a scrape stays small."""


def samples(held: Collection[Held], restarts: int, now: float) -> Iterator[Sample]:
    """All metrics as of `now`, Unix seconds; those of one job only while it runs."""
    for state in STATES:
        yield JOBS, sum(1 for one in held if one.job.state == state), {"state": state}
    yield JOB_RESTARTS, restarts, {}
    for one in held:
        if one.job.state == "running":
            yield from _running(one, now)


def _running(held: Held, now: float) -> Iterator[Sample]:
    of = {"job": held.job.name}
    newest = held.job.checkpoint.at if held.job.checkpoint else 0.0
    yield JOB_CHECKPOINT_AGE, max(0.0, now - max(newest, held.since)), of
    yield JOB_STUCK, held.stuck, of
    for operator in islice(held.operators, OPERATORS):
        mine = of | {"operator": operator.name}
        ways = {
            "in": operator.items_in,
            "out": operator.items_out,
            "diverted": operator.diverted,
            "skipped": operator.skipped,
        }
        for way, count in ways.items():
            yield JOB_RECORDS, count, mine | {"way": way}
        yield JOB_RETRIES, operator.retries, mine
        yield JOB_IN_FLIGHT, operator.in_flight, mine
        yield JOB_BUSY, operator.busy, mine
        yield JOB_WAIT, operator.wait, mine
