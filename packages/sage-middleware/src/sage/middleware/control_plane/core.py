"""The control plane's core: a state machine without clock, I/O, await or randomness but from a given seed.

Events with their time go in, actions come out. Two drivers run the same object: the live one and the
simulator. Each request reaches exactly one of done, failed, rejected, cancelled.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from sage.common.errors import BadRequestError
from sage.common.telemetry import RequestClass
from sage.middleware.control_plane.admission import RetryBudget, expiry, full, refusal
from sage.middleware.control_plane.chains import Chains
from sage.middleware.control_plane.direct import direct_steps
from sage.middleware.control_plane.engine_table import Attempt, EngineLoad
from sage.middleware.control_plane.estimator import Estimator, usage_of
from sage.middleware.control_plane.lanes import ClassCounts, Lane
from sage.middleware.control_plane.options import CoreOptions
from sage.middleware.control_plane.policy import Policy
from sage.middleware.control_plane.records import Outcome, Record
from sage.middleware.control_plane.requests import Requests
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
    StartEngine,
    Tick,
)
from sage.middleware.engines.port import Usage

__all__ = ["Core"]

LOOK_S: Final = 1.0  # between two looks at the engines


class Core(Requests):
    """What each event changes."""

    __slots__ = (
        "_arrivals",
        "_chains",
        "_direct",
        "_estimator",
        "_handlers",
        "_next_look",
        "_retries",
    )

    def __init__(self, policy: Policy, options: CoreOptions | None = None) -> None:
        super().__init__(policy, options or CoreOptions())
        self._estimator = Estimator(self._options.slos)
        self._chains = Chains()
        self._arrivals = 0
        self._retries = RetryBudget(self._limits)
        self._next_look = 0.0
        self._direct = direct_steps()
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
        if self._direct is None or not self._direct(self, event, actions):
            self._handlers[type(event)](event)
        return actions

    def check(self, job: Job) -> None:
        """Raise what is wrong with a job whatever the load: NotFoundError or BadRequestError."""
        try:
            self.engines.check(job)
        except BadRequestError as error:
            self.books.met(error)
            raise

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

    def reconfigure(self, options: CoreOptions, policy: Policy | None, now: float) -> list[Action]:
        """Other bounds, goals and templates from now on; `policy` is None where the present one stays.

        What waits or runs keeps its deadline and its goals. What was learned is kept, but for the times that
        engines took to start where templates have changed. The seed stays.
        """
        before, self._options = self._options, options
        self._limits = limits = options.limits
        self._lanes.set_max_wait(limits.queue_max_wait_s)
        self._placement.set_limits(limits)
        self._retries.change(limits)
        self._estimator.set_goals(options.slos)
        self._history.resize(options.history)
        if (options.templates, options.device_cores) != (before.templates, before.device_cores):
            self._scaling = Scaling(options, self.engines, self._lanes)
            self._scales = bool(options.templates)
        return [] if policy is None else self.set_policy(policy, now)

    def next_wake(self) -> float | None:
        """When a `Tick` is due; None when only an event can change something."""
        attempts = self._attempts
        wake = self._next_look if attempts or self._scales else None
        due = attempts.next_due()
        if due is not None and (wake is None or due < wake):
            wake = due
        if self._lanes.waiting:
            for at in (self._lanes.next_expiry(), self._placement.next_wake(), self._roster.next_probe):
                if at is not None and (wake is None or at < wake):
                    wake = at
        return wake

    def wakes_before(self, at: float) -> bool:
        """Whether a `Tick` may be due before `at`: quicker to say than `next_wake`, and never wrongly no."""
        if self._next_look < at or self._attempts.due_before(at):
            return True
        if not self._lanes.waiting:
            return False
        wake, probe = self._placement.next_wake(), self._roster.next_probe
        if (wake is not None and wake < at) or (probe is not None and probe < at):
            return True
        return self._lanes.expires_before(at)

    @property
    def waiting(self) -> int:
        """Requests in queues."""
        return self._lanes.waiting

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
        deadline = self._chains.deadline(job.parent, event.deadline) if job.parent else event.deadline
        self._chains.note(job.id, deadline)
        record = self._estimator.record(job, self._arrivals, self._placement.name, now, deadline)
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
            if record.taken == record.units:
                return
        elif refused := refusal(
            record, lane, engines, self._lanes.counts[job.request_class], self._limits, self.policy, now
        ):
            self._shed(record, *refused, now)
            return
        self._lanes.push(lane, record, now)
        self._lanes.watch(record)
        if lane.held or (self._placement.can_send(lane, now) and lane.discipline.head(now) is record):
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
        if self._placement.traits.predicts:
            self._estimator.began(attempt, event.at)
        if self._lanes.waiting:
            self._place(event.at)

    def _progress(self, event: Progress) -> None:
        for number in event.attempts:
            attempt = self._attempts.get(number)
            if attempt is not None:
                self._roster.alive(attempt.engine, event.at)

    def _finished(self, event: Finished) -> None:
        attempt = self._attempts.get(event.attempt)
        if attempt is None:
            return
        now, load = event.at, attempt.engine
        if self._placement.traits.predicts:
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
        seconds = load.seconds(record, record.units, usage.completion_tokens)
        self._placement.policy.settle(record, seconds)
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
                if attempt.number not in self._attempts:  # its request was ended by the loss of another part
                    continue
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
        if not self._scales:
            return
        for intent in self._scaling.decide(now):
            if isinstance(intent, StartEngine):
                self._actions.append(intent)
            else:
                self._actions += self._roster.drain(intent.name, intent.reason)
