"""The requests that live, where they wait and run, and the ways in which they end."""

from __future__ import annotations

from typing import Final

from msgspec import structs

from sage.common.telemetry import ShedReason
from sage.middleware.control_plane.accounting import Books
from sage.middleware.control_plane.admission import expiry
from sage.middleware.control_plane.attempts import Attempts
from sage.middleware.control_plane.engine_table import Attempt, EngineTable
from sage.middleware.control_plane.jitter import Jitter
from sage.middleware.control_plane.lanes import Lanes
from sage.middleware.control_plane.options import CoreOptions
from sage.middleware.control_plane.placement import Placement
from sage.middleware.control_plane.policy import Policy, Shed
from sage.middleware.control_plane.records import History, Outcome, Record
from sage.middleware.control_plane.roster import Roster
from sage.middleware.control_plane.scaling import Scaling
from sage.middleware.control_plane.types import Action, Cancel, Job, Reject

__all__ = ["Requests", "without_blocks"]


FEW: Final = 8  # blocks, which take less memory than the rest of a record


def without_blocks(job: Job) -> Job:
    """The same job, as it is remembered."""
    return structs.replace(job, blocks=())


class Requests:
    """The state of a core. What is to be done about a change is added to `_actions`."""

    __slots__ = (
        "_actions",
        "_attempts",
        "_history",
        "_jitter",
        "_lanes",
        "_limits",
        "_live",
        "_options",
        "_placement",
        "_roster",
        "_scales",
        "_scaling",
        "books",
        "engines",
    )

    def __init__(self, policy: Policy, options: CoreOptions) -> None:
        self._options = options
        self._limits = options.limits
        self.engines = EngineTable()
        self.books = Books()
        self._lanes = Lanes(policy, self._limits.queue_max_wait_s)
        self._attempts = Attempts()
        self._placement = Placement(policy, options, self.engines, self._lanes, self._attempts)
        self._roster = Roster(self.engines, self._placement.forget)
        self._scaling = Scaling(options, self.engines, self._lanes)
        self._scales = bool(options.templates)
        self._history = History(options.history)
        self._jitter = Jitter(options.seed)
        self._live: dict[str, Record] = {}
        self._actions: list[Action] = []

    @property
    def policy(self) -> Policy:
        """The one in force."""
        return self._placement.policy

    @property
    def live(self) -> int:
        """Requests that have not ended."""
        return len(self._live)

    @property
    def streams(self) -> int:
        """Streams that have begun and go on."""
        return sum(one.job.stream and one.first_byte is not None for one in self._live.values())

    def is_live(self, ident: str) -> bool:
        """Whether a request has not ended."""
        return ident in self._live

    def record(self, ident: str) -> Record | None:
        """The record of a request that lives or is still remembered."""
        return self._live.get(ident) or self._history.get(ident)

    def records(self, limit: int) -> list[Record]:
        """The newest records, newest first."""
        return [record for record, _ in zip(self._history.newest_first(), range(limit), strict=False)]

    # ---- ends ----------------------------------------------------------------------------------------

    def _place(self, now: float) -> None:
        """Send what can be sent, and refuse what the policy gives up."""
        if self._lanes.waiting:
            for record in self._lanes.expired(now):
                self._shed(record, *expiry(record, now), now)
            for record, shed in self._placement.run(now, self._actions):
                self._shed(record, shed, ShedReason.FORECAST, now)

    def _drop(self, attempt: Attempt, now: float) -> None:
        """An attempt is over: its slot is free."""
        del self._attempts[attempt.number]
        load = attempt.engine
        load.give_back(attempt, now)
        for record, _, _, _ in attempt.slices:
            if len(record.running) == 1:
                record.running = ()
            else:
                record.running = tuple([other for other in record.running if other != attempt.number])
        if load.silence.degraded and not load.running:
            self._roster.eject(load, now)
        if load.state == "draining":
            self._actions += self._roster.idle(load)

    def _break_off(self, attempt: Attempt, now: float) -> None:
        """Nobody wants its answer any more."""
        self._drop(attempt, now)
        self._actions.append(Cancel(attempt.number))

    def _close(self, record: Record, outcome: Outcome, reason: str, now: float) -> None:
        """End a request wherever it is: in a queue, at engines, or both."""
        self._lanes.remove(self._lanes.lane(record.job), record)
        self._end(record, outcome, reason, now)
        for number in record.running:
            attempt = self._attempts[number]
            if all(other.job.id not in self._live for other, _, _, _ in attempt.slices):
                self._break_off(attempt, now)

    def _shed(self, record: Record, shed: Shed, kind: ShedReason, now: float) -> None:
        """Refuse it because of the load."""
        record.refusal = kind
        if shed.bound is not None:
            self.books.bounds[shed.bound] += 1
        self._scaling.shed(record.job)
        self._reject(record, 429, shed.reason, shed.retry_after, now)

    def _reject_stranded(self, now: float) -> None:
        """Refuse what waits for engines of which none may be sent work any more."""
        for lane in self._lanes.busy():
            if lane.engines(self.engines, now):
                continue
            for record in list(lane.records.values()):
                if self._scaling.held(record.job, record.deadline, now) != 0.0:
                    self._reject_unserved(record, now)

    def _reject_unserved(self, record: Record, now: float) -> None:
        why = self.engines.why_none(record.job)
        record.refusal = ShedReason.NO_ENGINE
        wait = self._scaling.held(record.job, record.deadline, now) or self.engines.retry_after(
            record.job, now
        )
        self._reject(record, 503, why, wait, now)

    def _reject(
        self, record: Record, status: int, reason: str, retry_after: float | None, now: float
    ) -> None:
        again = None if retry_after is None else self._jitter.spread(retry_after)
        self._actions.append(Reject(record.job.id, status, reason, again))
        self._close(record, "failed" if record.attempts else "rejected", reason, now)

    def _end(self, record: Record, outcome: Outcome, reason: str, now: float) -> None:
        record.end(outcome, reason, now)
        job = record.job
        del self._live[job.id]
        counts = self._lanes.counts[job.request_class]
        if outcome == "done":
            counts.completed += 1
        else:
            counts.failed += outcome == "failed"
            counts.shed += outcome == "rejected"
            if record.charged and record.dispatched is not None:
                spent = record.attempts * (now - record.dispatched)  # no call took more than it had
                self.policy.settle(record, min(record.charged, spent))
        record.cached = None  # it was for placing it, and is a seventh of what is remembered
        if len(job.blocks) > FEW:  # they are for placing it: too many to remember
            record.job = without_blocks(job)
        self.books.ended(record, now)
