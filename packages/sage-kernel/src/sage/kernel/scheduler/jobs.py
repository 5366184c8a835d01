"""What the queue knows of the jobs: their units, and who of those that wait goes next."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import TypeAlias

from sage.common.errors import UsageError
from sage.kernel.scheduler.policy import Policy
from sage.kernel.scheduler.types import Need, Placement, Unit

__all__ = ["Job", "Line", "Order", "Shape", "new_job"]

Shape: TypeAlias = tuple[Need, ...]
"""What the units of a job need. Where one job of a shape finds no room, none of that shape does."""

Order: TypeAlias = tuple[float, int, str]
"""Urgency, number of the submission, name: the smallest goes first."""


@dataclass(slots=True, eq=False)
class Job:
    """Units that start together or not at all: all that have not ended are placed, or none is."""

    name: str
    order: Order
    units: dict[str, Unit]
    placed: dict[str, Placement] = field(default_factory=dict)
    overtaken: int = 0  # jobs that started while it was the first that waits

    @property
    def shape(self) -> Shape:
        """What the units that have not ended need."""
        return tuple(sorted(unit.resources.need for unit in self.units.values()))


class Line:
    """Jobs that wait, the most urgent first."""

    def __init__(self) -> None:
        self.short = ""  # why the first had no room when it was last looked for
        self._heap: list[Order] = []
        self._jobs: dict[str, Job] = {}

    def __len__(self) -> int:
        return len(self._jobs)

    def __iter__(self) -> Iterator[Job]:
        return iter(self._jobs.values())

    def __contains__(self, job: Job) -> bool:
        return job.name in self._jobs

    def push(self, job: Job) -> None:
        """Let it wait here."""
        self._jobs[job.name] = job
        heappush(self._heap, job.order)

    def drop(self, job: Job) -> None:
        """It does not wait here any more."""
        del self._jobs[job.name]
        # What is in the heap and not in the line is taken out when it comes to the front.
        while self._heap and not self._is_here(self._heap[0]):
            heappop(self._heap)

    def first(self) -> Job | None:
        """The one whose turn it is."""
        return self._jobs[self._heap[0][2]] if self._heap else None

    def _is_here(self, order: Order) -> bool:
        job = self._jobs.get(order[2])
        return job is not None and job.order == order


def new_job(units: tuple[Unit, ...], policy: Policy, number: int) -> Job:
    """The job that these units are. Raises UsageError where they are not one."""
    names = {unit.group for unit in units}
    if len(names) != 1 or (names == {""} and len(units) > 1):
        found = ", ".join(sorted(map(repr, names))) or "no unit"
        raise UsageError(f"A job is one unit, or units of one group; found {found}.")
    job = units[0].group or units[0].id
    by_id = {unit.id: unit for unit in units}
    if len(by_id) < len(units):
        raise UsageError(f"Two units of job {job!r} have the same id; each needs one of its own.")
    return Job(job, (min(map(policy.urgency, units)), number, job), by_id)
