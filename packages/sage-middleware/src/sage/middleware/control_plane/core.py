"""The control plane's core: a state machine without clock, I/O, await or randomness.

Events with their time go in, actions come out. Two drivers run the same object: the live one and the
simulator. Each request reaches exactly one of done, failed, rejected, cancelled.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from msgspec import structs

from sage.common.telemetry import RequestClass, ShedReason
from sage.middleware.control_plane.accounting import Books
from sage.middleware.control_plane.admission import RetryBudget, expiry, full, refusal
from sage.middleware.control_plane.attempts import Attempts
from sage.middleware.control_plane.engine_table import EngineLoad, EngineTable
from sage.middleware.control_plane.estimator import Estimator, usage_of
from sage.middleware.control_plane.lanes import ClassCounts, Lane, Lanes
from sage.middleware.control_plane.options import CoreOptions
from sage.middleware.control_plane.placement import Placement
from sage.middleware.control_plane.policy import Policy, Shed
from sage.middleware.control_plane.records import Attempt, History, Outcome, Record
from sage.middleware.control_plane.roster import Roster
from sage.middleware.control_plane.scaling import Scaling
from sage.middleware.control_plane.types import (
    Action,
    Arrived,
    Cancel,
    Cancelled,
    Event,
    Failed,
    Finished,
    FirstByte,
    GaveUp,
    Job,
    Progress,
    Reject,
    StartEngine,
    Tick,
)
from sage.middleware.engines.port import Usage

__all__ = ["Core"]

LOOK_S: Final = 1.0  # between two looks at the engines


class Core:
    """Queues, engines, placement, retries."""

    def __init__(self, policy: Policy, options: CoreOptions | None = None) -> None:
        self._options = options or CoreOptions()
        self._limits = self._options.limits
        self.engines = EngineTable()
        self.books = Books()
        self._estimator = Estimator(self._options.slos)
        self._lanes = Lanes(policy, self._limits.queue_max_wait_s)
        self._attempts = Attempts()
        self._placement = Placement(policy, self._options, self.engines, self._lanes, self._attempts)
        self._history = History(self._options.history)
        self._live: dict[str, Record] = {}
        self._arrivals = 0
        self._retries = RetryBudget(self._limits)
        self._roster = Roster(self.engines, self._placement.forget)
        self._scaling = Scaling(self._options, self.engines, self._lanes)
        self._next_look = 0.0
        self._actions: list[Action] = []
        self._handlers: dict[type[Event], Callable[[Any], None]] = {
            Arrived: self._arrived,
            FirstByte: self._first_byte,
            Progress: self._progress,
            Finished: self._finished,
            Failed: self._failed,
            Cancelled: self._cancelled,
            GaveUp: self._gave_up,
            Tick: self._ticked,
            **dict.fromkeys(self._roster.events, self._engine_changed),
        }

    # ---- what a driver calls -------------------------------------------------------------------------

    def handle(self, event: Event) -> list[Action]:
        """Take one event in and say what to do. Events about what has ended change nothing."""
        actions: list[Action] = []
        self._actions = actions
        if self._roster.next_probe is not None:
            self._roster.probe(event.at)
        self._handlers[type(event)](event)
        return actions

    def check(self, job: Job) -> None:
        """Raise what is wrong with a job whatever the load: NotFoundError or BadRequestError."""
        self.engines.check(job)

    def set_policy(self, policy: Policy, now: float) -> list[Action]:
        """Put another policy in force: what waits is ordered and placed by it."""
        actions: list[Action] = []
        self._actions = actions
        for record in self._live.values():  # what they have used they have used
            charged, record.charged = record.charged, 0.0
            if charged:
                policy.charge(record, charged)
        self._lanes.set_policy(policy, now)
        self._placement.set_policy(policy)
        self._place(now)
        return actions

    def next_wake(self) -> float | None:
        """When a `Tick` is due; None when only an event can change something."""
        wake = self._next_look if self._attempts or self._scaling else None
        times = [self._attempts.next_due()]
        if self._lanes.waiting:
            times += self._lanes.next_expiry(), self._placement.next_wake(), self._roster.next_probe
        for at in times:
            if at is not None and (wake is None or at < wake):
                wake = at
        return wake

    @property
    def policy(self) -> Policy:
        """The one in force."""
        return self._placement.policy

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
        return self._lanes.counts[request_class]

    def oldest(self, request_class: RequestClass) -> float | None:
        """When the longest-waiting request of a class began to wait."""
        return self._lanes.oldest(request_class)

    # ---- requests ------------------------------------------------------------------------------------

    def _arrived(self, event: Arrived) -> None:
        job, now = event.job, event.at
        self._arrivals += 1
        self._retries.earn()
        deadline = self._deadline(event) if job.parent else event.deadline
        record = self._estimator.record(job, self._arrivals, self.policy.name, now, deadline)
        self._live[job.id] = record
        self._history.add(record)
        if deadline is not None and now >= deadline:  # its chain took all the time there was
            self._shed(record, *expiry(record, now), now)
            return
        lane = self._lanes.lane(job)
        engines = lane.engines(self.engines, now)
        if not engines:
            self._hold(record, lane, now)
            return
        lane.estimate(record)
        if not lane.records and self._placement.place(lane, record, now, self._actions):
            if not record.waiting_units:
                return
        elif refused := refusal(
            record, lane, engines, self._lanes.counts[job.request_class], self._limits, self.policy, now
        ):
            self._shed(record, *refused, now)
            return
        self._lanes.push(lane, record, now)
        self._lanes.watch(record)
        if lane.discipline.head(now) is record:
            self._place(now)

    def _hold(self, record: Record, lane: Lane, now: float) -> None:
        """No engine can take a newcomer: it waits for one that starts, if that is soon enough."""
        if self._scaling.held(record.job, record.deadline, now) == 0.0:
            counts = self._lanes.counts[record.job.request_class]
            if refused := full(record, lane, 1, counts, self._limits):
                self._shed(record, *refused, now)
                return
            self._lanes.push(lane, record, now)
            self._lanes.watch(record)
            self._scale(now)
        else:
            self._scaling.shed(record.job)
            self._reject_unserved(record, now)

    def _deadline(self, event: Arrived) -> float | None:
        """Its own hard deadline, or what is left of the chain that it belongs to."""
        parent = self.record(event.job.parent)
        if parent is None or parent.deadline is None:
            return event.deadline
        return parent.deadline if event.deadline is None else min(parent.deadline, event.deadline)

    def _first_byte(self, event: FirstByte) -> None:
        attempt = self._attempts.get(event.attempt)
        if attempt is None:
            return
        self._roster.alive(attempt.engine, event.at)
        for record, _, _, _ in attempt.slices:
            if record.first_byte is None:
                record.first_byte = event.at
        if attempt.first_byte is not None:  # it was presumed, or there is another answer to the same call
            return
        attempt.engine.began(attempt, event.at)
        if self.policy.traits.predicts:
            self._estimator.began(attempt, event.at)
        if self._lanes.waiting:
            self._place(event.at)

    def _progress(self, event: Progress) -> None:
        for number in event.attempts:
            attempt = self._attempts.get(number)
            if attempt is not None:
                attempt.progress = event.at
                self._roster.alive(attempt.engine, event.at)

    def _finished(self, event: Finished) -> None:
        attempt = self._attempts.get(event.attempt)
        if attempt is None:
            return
        now, load = event.at, attempt.engine
        if self.policy.traits.predicts:
            self._estimator.finished(attempt, event.usage, now)
        self._roster.alive(load, now, served=True)
        self._drop(attempt, now)
        load.served += 1
        if attempt.twin is not None:
            self._break_off(attempt.twin, now)
        if not load.generates:
            self.books.answered(attempt)
        for record, start, stop, _ in attempt.slices:
            record.left -= stop - start
            record.usage = usage_of(record, stop - start, attempt, event.usage)
            if record.left == 0 and record.outcome == "running":
                self._complete(record, record.usage, load, now)
        if self._lanes.waiting:
            self._place(now)

    def _complete(self, record: Record, usage: Usage, load: EngineLoad, now: float) -> None:
        self.policy.settle(record, load.seconds(record, record.units, usage.completion_tokens))
        self._end(record, "done", "", now)

    def _failed(self, event: Failed) -> None:
        attempt = self._attempts.get(event.attempt)
        if attempt is not None:
            self._lose(attempt, event)

    def _lose(self, attempt: Attempt, event: Failed, *, known: bool = True) -> None:
        """An attempt has failed: try again, or end what it was for. `known`: the driver told us so."""
        now, load = event.at, attempt.engine
        self._drop(attempt, now)
        load.failed += 1
        if event.fault:
            load.breaker.fault(now, refused=event.refused)
            load.changed_health()
            self._roster.health_changed(now)
        twin = attempt.twin
        if twin is not None:  # the same slices still run elsewhere
            twin.twin = None
        again = event.retryable and event.fault
        affordable = again and twin is None and self._retries.spend()
        for record, start, stop, tries in attempt.slices:
            if event.fault:
                self._roster.fault(load, record, now)
            if twin is not None or record.job.id not in self._live:
                continue
            if again:
                self._retry(record, (start, stop, tries), event.reason, now, affordable=affordable)
            elif known:
                self._close(record, "failed", event.reason, now)
            else:
                self._reject(record, 502, event.reason, None, now)
        self._reject_stranded(now)
        self._place(now)

    def _retry(
        self, record: Record, part: tuple[int, int, int], reason: str, now: float, *, affordable: bool
    ) -> None:
        """Let a slice wait again, or refuse its request."""
        lane = self._lanes.lane(record.job)
        objection = self._retries.objection(record, part[2], reason, affordable=affordable)
        if objection:
            self._reject(record, 502, objection, None, now)
            return
        held = self._scaling.held(record.job, record.deadline, now)
        if held != 0.0 and not lane.engines(self.engines, now):
            self._reject_unserved(record, now)
            return
        record.returned += (part,)
        self._lanes.took(lane, record, part[0] - part[1])
        record.retries += 1
        if not record.running and record.left == record.units:
            record.outcome = "waiting"
        if record.job.id not in lane.records:
            record.queued = now
            record.reason = f"waiting for a second attempt; the first one failed: {reason}"
            self._lanes.push(lane, record, now)
            self._lanes.watch(record)

    def _cancelled(self, event: Cancelled) -> None:
        self._leave(event.id, "cancelled", "the client went away while it waited", event.at)

    def _gave_up(self, event: GaveUp) -> None:
        record = self._live.get(event.id)
        if record is not None:
            record.reason = event.reason
            self._leave(event.id, "failed", event.reason, event.at)

    def _leave(self, ident: str, outcome: Outcome, reason: str, now: float) -> None:
        record = self._live.get(ident)
        if record is not None:
            self._close(record, outcome, reason if record.outcome == "waiting" else "", now)
            self._place(now)

    # ---- time ----------------------------------------------------------------------------------------

    def _ticked(self, event: Tick) -> None:
        now = event.at
        for attempt in self._attempts.presumed_begun(now):
            attempt.engine.began(attempt, now)
        if now >= self._next_look:
            self._next_look = now + LOOK_S
            self.engines.version += 1  # models have learned: another engine may be the quickest now
            self._look(now)
            self._scale(now)
            self._reject_stranded(now)
        self._placement.hedge(now, self._actions)
        self._place(now)

    # ---- engines -------------------------------------------------------------------------------------

    def _look(self, now: float) -> None:
        """Eject engines that hang. What runs there is given up: those that are not ours may never end it."""
        hung, actions = self._roster.look(now)
        self._actions += actions
        for load in hung:
            for attempt in list(load.attempts.values()):
                self._actions.append(Cancel(attempt.number))
                reason = f"{load.name} has fallen silent"
                held = attempt.first_byte is None or not attempt.slices[0][0].job.stream
                self._lose(
                    attempt, Failed(now, attempt.number, reason, retryable=held, fault=True), known=False
                )

    def _engine_changed(self, event: Event) -> None:
        self._actions += self._roster.handle(event)
        self._lanes.price(self.engines, event.at)
        self._reject_stranded(event.at)
        self._place(event.at)

    def _scale(self, now: float) -> None:
        """Carry out what the autoscaler wants."""
        if not self._scaling:
            return
        for intent in self._scaling.decide(now):
            if isinstance(intent, StartEngine):
                self._actions.append(intent)
            else:
                self._actions += self._roster.drain(intent.name, intent.reason)

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
            record.running = tuple([other for other in record.running if other is not attempt])
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
        for attempt in record.running:
            if all(other.job.id not in self._live for other, _, _, _ in attempt.slices):
                self._break_off(attempt, now)

    def _shed(self, record: Record, shed: Shed, kind: ShedReason, now: float) -> None:
        """Refuse it because of the load."""
        record.refusal = kind
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
        self._actions.append(Reject(record.job.id, status, reason, retry_after))
        self._close(record, "failed" if record.attempts else "rejected", reason, now)

    def _end(self, record: Record, outcome: Outcome, reason: str, now: float) -> None:
        record.end(outcome, reason, now)
        if record.charged and record.dispatched is not None and outcome != "done":
            spent = record.attempts * (now - record.dispatched)  # no call took more than the time that it had
            self.policy.settle(record, min(record.charged, spent))
        if record.job.blocks:  # they are for placing it: too many to remember
            record.job = structs.replace(record.job, blocks=())
        del self._live[record.job.id]
        counts = self._lanes.counts[record.job.request_class]
        counts.completed += outcome == "done"
        counts.failed += outcome == "failed"
        counts.shed += outcome == "rejected"
        self.books.ended(record, now)
