"""The control plane's core: a state machine without clock, I/O, await or randomness.

Events with their time go in, actions come out. Two drivers can run the same object: the live one and a
simulator. Each request reaches exactly one of done, failed, rejected, cancelled.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from typing import Any, Final

from sage.common.telemetry import RequestClass
from sage.middleware.control_plane.engine_table import EngineLoad, EngineTable
from sage.middleware.control_plane.policy import Policy
from sage.middleware.control_plane.queues import ClassCounts, Lane, Queues
from sage.middleware.control_plane.records import History, Outcome, Record
from sage.middleware.control_plane.types import (
    Action,
    Arrived,
    Cancelled,
    Dispatch,
    EngineAdded,
    EngineDown,
    EngineRemoved,
    EngineUp,
    Event,
    Failed,
    Finished,
    FirstByte,
    Job,
    Reject,
    Tick,
)

__all__ = ["Core", "Limits"]

RETRY_RESERVE: Final = 10.0  # retries that may come in a burst, and the first ones of a quiet server


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of each class's queue, and of retries."""

    queue_max_requests: int = 1024
    queue_max_bytes: int = 256 * 1024 * 1024
    queue_max_wait_s: float = 30.0
    max_attempts: int = 2
    retry_share: float = 0.1  # of the traffic


class Core:
    """Queues, engines, placement, retries. `history` bounds how many records are kept."""

    def __init__(self, policy: Policy, limits: Limits, history: int) -> None:
        self.policy = policy
        self.engines = EngineTable()
        self._limits = limits
        self._queues = Queues(limits.queue_max_wait_s)
        self._history = History(history)
        self._live: dict[str, Record] = {}
        self._arrivals = 0
        self._dispatches = 0
        self._retries = RETRY_RESERVE
        self._actions: list[Action] = []
        self._handlers: dict[type[Event], Callable[[Any], None]] = {
            Arrived: self._arrived,
            FirstByte: self._first_byte,
            Finished: self._finished,
            Failed: self._failed,
            Cancelled: self._cancelled,
            EngineAdded: self._engine_added,
            EngineUp: self._engine_up,
            EngineDown: self._engine_down,
            EngineRemoved: self._engine_removed,
            Tick: self._ticked,
        }

    # ---- what a driver calls -------------------------------------------------------------------------

    def handle(self, event: Event) -> list[Action]:
        """Take one event in and say what to do. Events about requests that have ended change nothing."""
        self._actions = []
        self._handlers[type(event)](event)
        if self._queues.waiting and not isinstance(event, FirstByte):  # a first byte frees nothing
            self._expire(event.at)
            self._place_waiting(event.at)
            if isinstance(event, Arrived):
                self._settle(self._live.get(event.job.id), event.at)
        return self._actions

    def check(self, job: Job) -> None:
        """Raise what is wrong with a job whatever the load: NotFoundError or BadRequestError."""
        self.engines.check(job)

    def next_expiry(self) -> float | None:
        """When a `Tick` is due; None when nothing waits."""
        return self._queues.next_expiry()

    @property
    def live(self) -> int:
        """Requests that have not ended."""
        return len(self._live)

    def is_live(self, ident: str) -> bool:
        """Whether a request has not ended."""
        return ident in self._live

    def record(self, ident: str) -> Record | None:
        """The record of a request that lives or is still remembered."""
        return self._live.get(ident) or self._history.get(ident)

    def records(self, limit: int) -> list[Record]:
        """The newest records, newest first."""
        return [record for record, _ in zip(self._history.newest_first(), range(limit), strict=False)]

    def counts(self, request_class: RequestClass) -> ClassCounts:
        """Counts of one class."""
        return self._queues.counts[request_class]

    def oldest(self, request_class: RequestClass) -> float | None:
        """When the longest-waiting request of a class began to wait."""
        return self._queues.oldest(request_class)

    # ---- requests ------------------------------------------------------------------------------------

    def _arrived(self, event: Arrived) -> None:
        job, now = event.job, event.at
        self._arrivals += 1
        self._retries = min(RETRY_RESERVE, self._retries + self._limits.retry_share)
        record = Record(job, self._arrivals, self.policy.name, now, event.deadline, queued=now)
        self._live[job.id] = record
        self._history.add(record)
        self._queues.push(record)

    def _settle(self, record: Record | None, now: float) -> None:
        """Refuse a newcomer that nothing can serve, or whose class already waits at its bounds."""
        if record is None or record.outcome != "waiting":
            return
        if not self.engines.candidates(record.job, now):
            self._queues.remove(record)
            self._reject_unserved(record, now)
            return
        counts = self._queues.counts[record.job.request_class]
        over_count = counts.waiting > self._limits.queue_max_requests
        if not over_count and counts.waiting_bytes <= self._limits.queue_max_bytes:
            self._queues.watch(record)
            return
        oldest = self._queues.oldest(record.job.request_class)
        self._queues.remove(record)
        counts.shed += 1
        bound = (
            f"{self._limits.queue_max_requests} requests"
            if over_count
            else f"{self._limits.queue_max_bytes} bytes"
        )
        # the oldest one's wait so far is the least that a newcomer would wait
        wait = max(1.0, now - oldest) if oldest is not None else 1.0
        self._reject(record, 429, f"the queue of {record.job.request_class} is full ({bound})", wait, now)

    def _first_byte(self, event: FirstByte) -> None:
        record = self._live.get(event.id)
        if record is not None and record.first_byte is None:
            record.first_byte = event.at

    def _finished(self, event: Finished) -> None:
        record = self._live.get(event.id)
        if record is None or record.outcome != "running":
            return
        load = self._free_slot(record)
        load.served += 1
        load.breaker.success()
        record.usage = event.usage
        self._queues.counts[record.job.request_class].completed += 1
        self._end(record, "done", "", event.at)

    def _failed(self, event: Failed) -> None:
        record = self._live.get(event.id)
        if record is None:
            return
        now = event.at
        if record.outcome == "waiting":
            self._queues.remove(record)
        else:
            load = self._free_slot(record)
            load.failed += 1
            if event.fault:
                load.breaker.fault(now)
        if event.retryable and event.fault:
            self._retry(record, event)
        else:
            self._end(record, "failed", event.reason, now)
        if record.outcome != "waiting":
            self._queues.counts[record.job.request_class].failed += 1
        self._reject_stranded(now)

    def _retry(self, record: Record, event: Failed) -> None:
        """Let it wait again at the head of its lane, or refuse it."""
        now = event.at
        if record.attempts >= self._limits.max_attempts:
            self._reject(
                record, 502, f"{record.attempts} attempts failed, the last one: {event.reason}", None, now
            )
        elif self._retries < 1.0:
            self._reject(record, 502, f"no retries left for now; it failed with: {event.reason}", None, now)
        elif not self.engines.candidates(record.job, now):
            self._reject_unserved(record, now)
        else:
            self._retries -= 1.0
            record.outcome, record.first_byte, record.queued = "waiting", None, now
            record.reason = f"waiting for a second attempt; the first one failed: {event.reason}"
            self._queues.push(record, front=True)
            self._queues.watch(record)

    def _cancelled(self, event: Cancelled) -> None:
        record = self._live.get(event.id)
        if record is None:
            return
        if record.outcome == "waiting":
            self._queues.remove(record)
            self._end(record, "cancelled", "the client went away while it waited", event.at)
        else:
            self._free_slot(record)
            self._end(record, "cancelled", "", event.at)

    # ---- engines and time ----------------------------------------------------------------------------

    def _engine_added(self, event: EngineAdded) -> None:
        load = self.engines.add(event.spec)
        load.state, load.detail = "starting", ""
        self._reject_stranded(event.at)

    def _engine_up(self, event: EngineUp) -> None:
        load = self.engines.add(event.spec)
        load.state, load.detail = "ready", ""
        load.breaker.success()

    def _engine_down(self, event: EngineDown) -> None:
        load = self.engines.get(event.name)
        if load is not None and load.state != "draining":
            load.state, load.detail = "failed", event.reason
            self._reject_stranded(event.at)

    def _engine_removed(self, event: EngineRemoved) -> None:
        load = self.engines.get(event.name)
        if load is None:
            return
        load.state, load.detail = "draining", f"removed; {load.running} requests still run"
        if not load.running:
            self.engines.forget(load)
        self._reject_stranded(event.at)

    def _ticked(self, event: Tick) -> None:
        """Time passed: nothing but what `handle` does after each event."""

    # ---- decisions -----------------------------------------------------------------------------------

    def _place_waiting(self, now: float) -> None:
        """Send what can be sent: interactive lanes first, and by arrival within a tier."""
        for lanes in self._queues.tiers():
            while lanes:
                lane = min(lanes, key=_arrival) if len(lanes) > 1 else lanes[0]
                if not self._place(lane.head, now) or not lane.records:
                    lanes.remove(lane)

    def _place(self, record: Record, now: float) -> bool:
        job = record.job
        candidates = self.engines.candidates(job, now)
        if record.engine is not None:  # it failed there: any other free one is better
            others = [load for load in candidates if load.name != record.engine]
            candidates = others if any(load.free for load in others) else candidates
        if not any(load.free for load in candidates):
            return False
        choice = self.policy.choose(candidates, job, now)
        if choice is None:
            return False
        load = self.engines[choice.engine]
        if load.free <= 0 or load not in candidates:
            raise RuntimeError(
                f"The policy {self.policy.name!r} chose {choice.engine!r}, which has no free slot."
            )
        self._queues.remove(record)
        self._dispatches += 1
        load.take(record, self._dispatches)
        record.outcome, record.engine, record.reason = "running", choice.engine, choice.reason
        record.policy, record.dispatched = self.policy.name, now
        record.attempts += 1
        self._actions.append(Dispatch(job.id, choice.engine, choice.reason, record.attempts))
        return True

    def _free_slot(self, record: Record) -> EngineLoad:
        load = self.engines[record.engine or ""]
        load.give_back(record)
        if load.state == "draining" and not load.running:
            self.engines.forget(load)
        return load

    def _expire(self, now: float) -> None:
        for record in self._queues.expired(now):
            self._queues.remove(record)
            self._queues.counts[record.job.request_class].shed += 1
            waited = now - record.arrived
            late = record.deadline is not None and now >= record.deadline
            why = "its deadline passed" if late else "no engine became free in time"
            self._reject(record, 429, f"{why}: it waited {waited:.1f} s", max(1.0, waited), now)

    def _reject_stranded(self, now: float) -> None:
        """Refuse what waits for engines of which none may be sent work any more."""
        for lane in chain.from_iterable(self._queues.tiers()):
            if not self.engines.candidates(lane.head.job, now):
                for record in list(lane.records.values()):
                    self._queues.remove(record)
                    self._reject_unserved(record, now)

    def _reject_unserved(self, record: Record, now: float) -> None:
        states = [
            f"{load.name} is {load.state}" for load in self.engines if load.spec.model == record.job.model
        ]
        what = ", ".join(states) or "none is left"
        why = f"no engine for {record.job.model!r} can take requests now ({what})"
        self._reject(record, 503, why, self.engines.retry_after(record.job, now), now)

    def _reject(
        self, record: Record, status: int, reason: str, retry_after: float | None, now: float
    ) -> None:
        self._actions.append(Reject(record.job.id, status, reason, retry_after))
        self._end(record, "failed" if record.attempts else "rejected", reason, now)

    def _end(self, record: Record, outcome: Outcome, reason: str, now: float) -> None:
        record.end(outcome, reason, now)
        del self._live[record.job.id]


def _arrival(lane: Lane) -> int:
    return lane.head.sequence
