"""What waits: lanes of requests that the same engines can serve, bounded by count, bytes and age."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from math import inf
from typing import Final

import msgspec

from sage.common.telemetry import RequestClass
from sage.middleware.control_plane.engine_table import EngineLoad, EngineTable
from sage.middleware.control_plane.policy import Discipline, Policy
from sage.middleware.control_plane.records import Record
from sage.middleware.control_plane.types import Job
from sage.middleware.engines.port import Capability

__all__ = ["ClassCounts", "Lane", "Lanes"]

PATIENT: Final = frozenset((RequestClass.EMBED_BULK, RequestClass.BATCH))
PATIENCE: Final = 10.0  # so many times longer than the others may they wait
STRETCH: Final = 2.0  # times the time of an idle engine, that every request may take

LaneKey = tuple[str, frozenset[Capability], str]


class ClassCounts(msgspec.Struct):
    """One class's queue and what became of its requests."""

    waiting: int = 0
    waiting_bytes: int = 0
    shed: int = 0
    completed: int = 0
    failed: int = 0


class Lane:
    """Waiting requests that the same engines can serve: one model, the same needs, batches of one kind."""

    __slots__ = (
        "_engines",
        "_version",
        "ahead",
        "ahead_low",
        "discipline",
        "held",
        "job",
        "records",
        "reference",
    )

    def __init__(self, job: Job, discipline: Discipline) -> None:
        self.job = job  # the first one, as an example
        self.discipline = discipline
        self.records: dict[str, Record] = {}
        self.held = False  # a call waits for company: any newcomer may be the one that it waits for
        self.ahead = 0.0  # predicted engine-seconds that wait
        self.ahead_low = 0.0  # of them, those of patient classes
        self.reference: EngineLoad | None = None  # the quickest engine, for a first estimate of cost
        self._engines: list[EngineLoad] = []
        self._version = -1

    def estimate(self, record: Record) -> None:
        """What a newcomer finds here, and what it costs on the quickest engine. After `engines`."""
        record.ahead, record.ahead_seconds = len(self.records), self.ahead
        self.price(record)

    def price(self, record: Record) -> None:
        """What it costs on the quickest engine, if there is any. Never while it waits."""
        reference = self.reference
        if reference is not None:
            record.cost = reference.seconds(record, record.units)
            record.quick = quick = reference.quickest(record)
            if record.ends_by < inf:
                self._limit(record, reference)
            if record.deadline is None:  # a goal that not even an idle engine meets is no reason to refuse
                soonest = record.arrived + STRETCH * quick
                if record.due < soonest:
                    record.due = soonest

    @staticmethod
    def _limit(record: Record, reference: EngineLoad) -> None:
        """The first token must leave time for the others, of which half of such answers have no more."""
        if record.deadline is None:
            alone = record.quick + record.output_p90 * reference.llm.tpot(1)
            record.ends_by = max(record.ends_by, record.arrived + STRETCH * alone)
        rest = record.output_p50 * reference.llm.tpot(max(1, reference.running))
        record.due = min(record.due, record.ends_by - rest)

    def before(self, record: Record) -> float:
        """Predicted engine-seconds that wait and are not of a more patient class."""
        return self.ahead if record.job.request_class in PATIENT else self.ahead - self.ahead_low

    def engines(self, table: EngineTable, now: float) -> list[EngineLoad]:
        """The engines that may be sent its requests."""
        if self._version != table.version:
            self._engines = table.candidates(self.job, now)
            self._version = table.version
            self.reference = min(self._engines, key=_slowness, default=None)
        return self._engines


def _slowness(load: EngineLoad) -> float:
    if not load.generates:
        return load.embed.seconds(1000.0, 8.0)
    return load.llm.ttft(1000.0, 0.0) + 100.0 * load.llm.tpot(1.0)


class Lanes:
    """All lanes, the counts of each class, and the times at which waiting ends by age or deadline."""

    __slots__ = (
        "_expiries",
        "_lanes",
        "_max_wait",
        "_policy",
        "counts",
        "waiting",
    )

    def __init__(self, policy: Policy, max_wait: float) -> None:
        self._policy = policy
        self._max_wait = max_wait
        self._lanes: dict[LaneKey, Lane] = {}
        self._expiries: list[tuple[float, int, int, Record]] = []
        self.counts = {request_class: ClassCounts() for request_class in RequestClass}
        self.waiting = 0

    def lane(self, job: Job) -> Lane:
        """The lane of such a job; an empty one is kept until it is in the way."""
        key = (job.model, job.needs, job.batch_key)
        lane = self._lanes.get(key)
        if lane is None:
            if len(self._lanes) >= 256:  # clients choose dimensions and encodings: lanes are bounded
                self._lanes = {key: lane for key, lane in self._lanes.items() if lane.records}
            lane = self._lanes[key] = Lane(job, self._policy.discipline())
        return lane

    def push(self, lane: Lane, record: Record, now: float) -> None:
        """Let it wait."""
        lane.records[record.job.id] = record
        self._count(lane, record, record.waiting_units)
        lane.discipline.push(record, now)
        counts = self.counts[record.job.request_class]
        counts.waiting += 1
        counts.waiting_bytes += record.job.body_bytes
        self.waiting += 1

    def remove(self, lane: Lane, record: Record) -> None:
        """Take it out, wherever it stands; nothing if it does not wait."""
        if lane.records.pop(record.job.id, None) is None:
            return
        if record.waiting_units:
            self._count(lane, record, -record.waiting_units)
        if not lane.records:  # no sum of rounding errors
            lane.ahead = lane.ahead_low = 0.0
        lane.discipline.remove(record)
        counts = self.counts[record.job.request_class]
        counts.waiting -= 1
        counts.waiting_bytes -= record.job.body_bytes
        self.waiting -= 1

    def took(self, lane: Lane, record: Record, units: int) -> None:
        """So many of its units wait no longer; below 0, so many more do. Nothing if it does not wait."""
        if record.job.id in lane.records:
            self._count(lane, record, -units)

    @staticmethod
    def _count(lane: Lane, record: Record, units: int) -> None:
        seconds = record.cost * units / record.units
        lane.ahead += seconds
        if record.job.request_class in PATIENT:
            lane.ahead_low += seconds

    def price(self, table: EngineTable, now: float) -> None:
        """An engine came up: find out what those cost that came when there was none."""
        for lane in self.busy():
            if lane.engines(table, now):
                for record in [one for one in lane.records.values() if not one.cost]:
                    self.remove(lane, record)
                    lane.price(record)
                    self.push(lane, record, now)

    def busy(self) -> list[Lane]:
        """The lanes that hold something. The list is the caller's own."""
        return [lane for lane in self._lanes.values() if lane.records]

    def oldest(self, request_class: RequestClass) -> float | None:
        """When the request that has waited longest in a class began to wait."""
        return min(
            (
                record.queued
                for lane in self._lanes.values()
                for record in lane.records.values()
                if record.job.request_class is request_class
            ),
            default=None,
        )

    def set_policy(self, policy: Policy, now: float) -> None:
        """Order what waits by another policy."""
        self._policy = policy
        for lane in self._lanes.values():
            lane.discipline = policy.discipline()
            for record in sorted(lane.records.values(), key=_sequence):
                lane.discipline.push(record, now)

    def set_max_wait(self, seconds: float) -> None:
        """How long what comes from now on may wait."""
        self._max_wait = seconds

    # ---- the end of waiting ----------------------------------------------------------------------------

    def watch(self, record: Record) -> None:
        """Remember when its waiting ends. Called for what stays in the queue, not for what passes through."""
        patience = PATIENCE if record.job.request_class in PATIENT else 1.0
        until = record.queued + self._max_wait * patience
        if record.deadline is not None:
            until = min(until, record.deadline)
        if len(self._expiries) > 64 + 2 * self.waiting:  # most of them were served long ago
            self._expiries = [entry for entry in self._expiries if _waits(entry[3])]
            heapq.heapify(self._expiries)
        heapq.heappush(self._expiries, (until, record.sequence, record.left, record))

    def expired(self, now: float) -> Iterator[Record]:
        """Those whose waiting has ended by `now`; the caller removes them."""
        while self._expiries and self._expiries[0][0] <= now:
            _, sequence, left, record = heapq.heappop(self._expiries)
            if not _waits(record):
                continue
            late = record.deadline is not None and now >= record.deadline
            if record.running or (record.left < left and not late):  # it is being served, in parts
                heapq.heappush(self._expiries, (now + self._max_wait, sequence, record.left, record))
            else:
                yield record

    def expires_before(self, at: float) -> bool:
        """Whether `expired` may have something before `at`: quicker to say than when it has."""
        return bool(self._expiries) and self._expiries[0][0] < at

    def next_expiry(self) -> float | None:
        """When `expired` has something next; None when nothing waits."""
        while self._expiries and not _waits(self._expiries[0][3]):
            heapq.heappop(self._expiries)
        return self._expiries[0][0] if self._expiries else None


def _waits(record: Record) -> bool:
    return record.ended is None and record.waiting_units > 0


def _sequence(record: Record) -> int:
    return record.sequence
