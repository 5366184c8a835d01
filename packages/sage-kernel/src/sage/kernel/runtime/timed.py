"""Operators on records with event times: the plain kernels, with the times kept beside the values."""

from __future__ import annotations

from collections.abc import Callable
from itertools import compress
from typing import Any, TypeAlias

from sage.kernel.compile import Op
from sage.kernel.plan import EventTime
from sage.kernel.runtime.columns import Columns
from sage.kernel.runtime.kernels import Faults, Kernel, kernel_of, mapped

__all__ = ["Clock", "TimedKernel", "one_to_one", "timed_kernel_of"]

TimedKernel: TypeAlias = Callable[[Columns], Columns]


class Clock:
    """Gives records their event times, and knows how far the stream has come."""

    def __init__(self, spec: EventTime, faults: Faults) -> None:
        self._times = mapped(spec.at, faults)
        self._faults = faults
        self._lateness = spec.lateness
        self.idle = spec.idle
        self.latest = float("-inf")

    def run(self, values: list[Any]) -> Columns:
        """The records with their times; one whose time cannot be read is settled as `on_error` says."""
        lost = self._faults.lost = []
        times = self._times(values)
        kept = _without(values, lost)
        self.latest = max(self.latest, max(times, default=self.latest))
        return Columns(kept, times)

    @property
    def watermark(self) -> float:
        """What no later record is older than, in seconds, but the late ones."""
        return self.latest - self._lateness


def timed_kernel_of(op: Op, faults: Faults) -> TimedKernel:
    """The kernel of a sync operator, for records with times: each result has that of its record."""
    if op.node.verb == "filter":
        return _filter(op.fn, faults)
    if op.node.verb == "flatmap":
        return _flatmap(op.fn, faults)
    return one_to_one(kernel_of(op, faults), faults)


def _without(column: list[Any], lost: list[int]) -> list[Any]:
    """A column without the places that were lost."""
    if not lost:
        return column
    gone = set(lost)
    return [value for at, value in enumerate(column) if at not in gone]


def one_to_one(kernel: Kernel, faults: Faults) -> TimedKernel:
    """A kernel that gives one result per item, but for those that fail: each result has its record's time."""

    def run(batch: Columns) -> Columns:
        lost = faults.lost = []
        values = kernel(batch.values)
        # A sink gives nothing, and then there is nothing to keep the times of.
        return Columns(values, _without(batch.times, lost)) if values else Columns([], [])

    return run


def _filter(fn: Callable[[Any], object], faults: Faults) -> TimedKernel:
    judge = mapped(fn, faults)

    def run(batch: Columns) -> Columns:
        lost = faults.lost = []
        keep = judge(batch.values)
        values, times = _without(batch.values, lost), _without(batch.times, lost)
        return Columns(list(compress(values, keep)), list(compress(times, keep)))

    return run


def _flatmap(fn: Callable[[Any], Any], faults: Faults) -> TimedKernel:
    expand = mapped(lambda item: list(fn(item)), faults)

    def run(batch: Columns) -> Columns:
        lost = faults.lost = []
        results = expand(batch.values)
        times = _without(batch.times, lost)
        values = [value for found in results for value in found]
        return Columns(values, [t for t, found in zip(times, results, strict=True) for _ in found])

    return run
