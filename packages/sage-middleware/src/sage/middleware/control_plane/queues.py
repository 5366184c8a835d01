"""What waits: lanes of like requests in order of arrival, with each class bounded by count, bytes and age."""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from sage.common.telemetry import RequestClass
from sage.middleware.control_plane.records import Record
from sage.middleware.engines.port import Capability

__all__ = ["ClassCounts", "Lane", "Queues"]

BULK: Final = frozenset((RequestClass.EMBED_BULK,))

LaneKey = tuple[RequestClass, str, frozenset[Capability]]


@dataclass(slots=True)
class ClassCounts:
    """One class's queue and what became of its requests."""

    waiting: int = 0
    waiting_bytes: int = 0
    shed: int = 0
    completed: int = 0
    failed: int = 0


class Lane:
    """Waiting requests that the same engines can serve: one class, one model, the same needs."""

    def __init__(self, key: LaneKey) -> None:
        self.key = key
        self.bulk = key[0] in BULK
        self.records: OrderedDict[str, Record] = OrderedDict()

    @property
    def head(self) -> Record:
        """The one whose turn it is."""
        return next(iter(self.records.values()))


class Queues:
    """All lanes, the counts of each class, and the times at which waiting ends by age or deadline."""

    def __init__(self, max_wait: float) -> None:
        self._max_wait = max_wait
        self._lanes: dict[LaneKey, Lane] = {}
        self._expiries: list[tuple[float, int, Record]] = []
        self.counts = {request_class: ClassCounts() for request_class in RequestClass}
        self.waiting = 0

    def push(self, record: Record, *, front: bool = False) -> None:
        """Let it wait; `front` for one that has been served before and failed."""
        job = record.job
        key = (job.request_class, job.model, job.needs)
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = Lane(key)
        lane.records[job.id] = record
        if front:
            lane.records.move_to_end(job.id, last=False)
        counts = self.counts[job.request_class]
        counts.waiting += 1
        counts.waiting_bytes += job.body_bytes
        self.waiting += 1

    def remove(self, record: Record) -> None:
        """Take it out, wherever it stands."""
        job = record.job
        key = (job.request_class, job.model, job.needs)
        lane = self._lanes[key]
        del lane.records[job.id]
        if not lane.records:
            del self._lanes[key]
        counts = self.counts[job.request_class]
        counts.waiting -= 1
        counts.waiting_bytes -= job.body_bytes
        self.waiting -= 1

    def tiers(self) -> tuple[list[Lane], list[Lane]]:
        """The lanes that hold something: interactive ones, bulk ones. The lists are the caller's own."""
        interactive: list[Lane] = []
        bulk: list[Lane] = []
        for lane in self._lanes.values():
            (bulk if lane.bulk else interactive).append(lane)
        return interactive, bulk

    def oldest(self, request_class: RequestClass) -> float | None:
        """When the request that has waited longest in a class began to wait."""
        return min(
            (lane.head.queued for lane in self._lanes.values() if lane.key[0] is request_class), default=None
        )

    def watch(self, record: Record) -> None:
        """Remember when its waiting ends. Called for what stays in the queue, not for what passes through."""
        until = record.queued + self._max_wait
        if record.deadline is not None:
            until = min(until, record.deadline)
        if len(self._expiries) > 64 + 2 * self.waiting:  # most of them were served long ago
            self._expiries = [entry for entry in self._expiries if entry[2].outcome == "waiting"]
            heapq.heapify(self._expiries)
        heapq.heappush(self._expiries, (until, record.sequence, record))

    def expired(self, now: float) -> Iterator[Record]:
        """Those whose waiting has ended by `now`; the caller removes them."""
        while self._expiries and self._expiries[0][0] <= now:
            _, _, record = heapq.heappop(self._expiries)
            if record.outcome == "waiting":
                yield record

    def next_expiry(self) -> float | None:
        """When `expired` has something next; None when nothing waits."""
        while self._expiries and self._expiries[0][2].outcome != "waiting":
            heapq.heappop(self._expiries)
        return self._expiries[0][0] if self._expiries else None
