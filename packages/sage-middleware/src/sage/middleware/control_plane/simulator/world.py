"""The simulated driver: the live one's part in virtual time, over a cluster of modelled engines."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

from msgspec.structs import replace

from sage.common.errors import UsageError
from sage.middleware.control_plane.core import Core
from sage.middleware.control_plane.options import CoreOptions
from sage.middleware.control_plane.policy import PolicyOptions, load_policy
from sage.middleware.control_plane.records import Record
from sage.middleware.control_plane.simulator.agenda import Agenda
from sage.middleware.control_plane.simulator.cluster import Call, Cluster, Member
from sage.middleware.control_plane.simulator.engines import NEVER
from sage.middleware.control_plane.simulator.faults import Fault
from sage.middleware.control_plane.simulator.fleet import Fleet
from sage.middleware.control_plane.simulator.invariants import Checker, InvariantError
from sage.middleware.control_plane.simulator.mishaps import plan
from sage.middleware.control_plane.simulator.types import Client, RequestResult, Result, SimRequest
from sage.middleware.control_plane.types import (
    Action,
    Arrived,
    Cancel,
    Cancelled,
    Dispatch,
    Event,
    GaveUp,
    Job,
    Reject,
    RestartEngine,
    Slice,
    Slo,
    StartEngine,
    StopEngine,
    Tick,
)

__all__ = ["Trace", "simulate"]

PATIENCE_S: Final = 6 * 3600.0  # a run in which nothing ended for so long will not end
WAKES: Final = 100  # in a row at one moment
RETRY_S: Final = 0.1  # that a client which was not served waits at least
PREFIX_BLOCK: Final = 256  # bytes of a prompt that one of `Job.blocks` stands for

Trace = Callable[[Event, Sequence[Action]], object]
_Live = tuple[SimRequest, Record, int]  # from arrival to end; the number is its place in the results


def simulate(
    policy: str,
    fleet: Fleet,
    workload: Iterable[SimRequest],
    *,
    seed: int,
    faults: Sequence[Fault] = (),
    options: CoreOptions | None = None,
    policy_options: PolicyOptions | None = None,
    check: bool = False,
    trace: Trace | None = None,
) -> Result:
    """Run `workload`, which comes in order of arrival, to its last request's end. SIMULATED.

    `check`: look at every invariant after every step. `options` without templates gets those of the fleet,
    if it has engines that may be started and stopped. `policy_options` are those of a default server with
    the options' goals and the run's seed unless they are given. `trace` gets every event with its actions.

    Raises UsageError for a workload out of order, ids used twice or an unknown engine of a fault;
    NotFoundError and BadRequestError for a job that no engine of the fleet can serve; InvariantError.
    """
    options = options or CoreOptions(details_per_s=0.0)  # nobody reads what else could have been chosen
    if not options.templates:
        cores = {name: device.cores for name, device in fleet.devices.items() if device.cores}
        options = replace(options, templates=fleet.templates(), device_cores=cores)
    made = load_policy(policy, policy_options or PolicyOptions(seed=seed, slos=options.slos))
    return World(Core(made, options), options, fleet, seed, check=check, trace=trace).run(workload, faults)


class World:
    """Drives one core through one run."""

    def __init__(
        self,
        core: Core,
        options: CoreOptions,
        fleet: Fleet,
        seed: int,
        *,
        check: bool,
        trace: Trace | None,
    ) -> None:
        self._core = core
        self._fleet = fleet
        self._seed = seed
        self._agenda = Agenda()
        self._cluster = Cluster(fleet, seed, self._agenda, self._feed)
        self._checker = Checker(core, options.limits.queue_max_wait_s) if check else None
        self._trace = trace
        self._watched = check or trace is not None
        self._live: dict[str, _Live] = {}
        self._results: list[RequestResult | None] = []
        self._checked: set[tuple[str, frozenset[str]]] = set()
        self._coming = 0  # requests that follow others and wait for their time
        self._events = 0
        self._last_end = 0.0

    def run(self, workload: Iterable[SimRequest], faults: Sequence[Fault]) -> Result:
        """See `simulate`."""
        started = time.perf_counter()
        plan(faults, self._cluster, self._agenda)
        self._cluster.open()
        try:
            self._loop(iter(workload))
            if self._checker is not None:
                self._checker.at_end()
        except InvariantError as error:
            where = f"seed {self._seed}, step {self._events}, at {self._agenda.now:.6f} s"
            raise InvariantError(f"{error} ({where}; policy {self._core.policy.name})") from error
        return Result(
            self._core.policy.name,
            self._fleet.name,
            self._seed,
            [result for result in self._results if result is not None],
            [member.result() for member in self._cluster.members.values()],
            self._events,
            self._agenda.now,
            time.perf_counter() - started,
        )

    # ---- time ----------------------------------------------------------------------------------------

    def _loop(self, workload: Iterator[SimRequest]) -> None:
        agenda, core, heap = self._agenda, self._core, self._agenda.heap
        coming = next(workload, None)
        told = wakes = 0
        wake = core.next_wake()
        while coming is not None or self._live or self._coming:
            at = heap[0][0] if heap else NEVER
            arrival = coming.at if coming is not None else NEVER
            if wake is not None and wake <= at and wake <= arrival:
                wakes = wakes + 1 if wake <= agenda.now else 0
                if wakes > WAKES:
                    raise InvariantError("the core wants to be woken again and again at the same moment")
                agenda.now = max(agenda.now, wake)
                self._feed(Tick(agenda.now), ())
            elif at <= arrival:
                wakes = 0
                if at == NEVER:
                    raise InvariantError(f"{len(self._live)} requests live and nothing will ever happen")
                agenda.step()
            elif coming is not None:
                wakes = 0
                if arrival < agenda.now:
                    raise UsageError(f"The workload is not in order: {coming.job.id} arrives at {arrival} s.")
                agenda.now = arrival
                self._arrive(coming)
                coming = next(workload, None)
            self._cluster.settle()
            if self._events != told:  # else the core is as it was
                told, wake = self._events, core.next_wake()
                if self._checker is not None:
                    self._checker.after([record for _, record, _ in self._live.values()], agenda.now)
                if self._live and agenda.now - self._last_end > PATIENCE_S:
                    raise InvariantError(f"no request has ended for {PATIENCE_S:.0f} s")

    # ---- requests ------------------------------------------------------------------------------------

    def _arrive(self, request: SimRequest) -> None:
        job, now = request.job, self._agenda.now
        if (job.model, job.needs) not in self._checked:
            self._core.check(job)
            self._checked.add((job.model, job.needs))
        if job.id in self._live:
            raise UsageError(f"The workload uses the id {job.id} twice.")
        if not self._live:
            self._last_end = now
        event = Arrived(now, job, None if request.deadline is None else now + request.deadline)
        self._events += 1
        actions = self._core.handle(event)
        record = self._core.record(job.id)
        if record is None:
            raise InvariantError(f"the core has no record of {job.id}, which it was just told of")
        self._live[job.id] = (request, record, len(self._results))
        self._results.append(None)
        if event.deadline is not None:
            self._agenda.at(event.deadline, self._give_up, job)
        if request.cancel_after is not None:
            self._agenda.at(now + request.cancel_after, self._client_leaves, job)
        self._carry_out(event, actions)

    def _follow(self, request: SimRequest) -> None:
        self._coming -= 1
        self._arrive(request)

    def _client_leaves(self, job: Job) -> None:
        if job.id in self._live:
            self._feed(Cancelled(self._agenda.now, job.id), (Slice(job.id, 0, 1),))

    def _give_up(self, job: Job) -> None:
        if job.id in self._live:
            self._feed(GaveUp(self._agenda.now, job.id, "its deadline passed"), (Slice(job.id, 0, 1),))

    def _end(self, live: _Live, retry_after: float = 0.0) -> None:
        """Take down how a request went, and let those come that follow it."""
        request, record, place = live
        job = request.job
        del self._live[job.id]
        self._last_end = now = self._agenda.now
        if self._checker is not None:
            self._checker.ended(record)
        done = record.outcome == "done"
        first = record.first_byte
        if done and first is None:
            first = now  # not a stream: all of it came at once
        arrived = record.arrived
        gaps = request.output_tokens - 1
        self._results[place] = RequestResult(
            job.id,
            job.request_class,
            job.tenant,
            arrived,
            record.outcome,
            record.engine,
            None if record.dispatched is None else record.dispatched - arrived,
            None if first is None else first - arrived,
            (now - first) / gaps if done and first is not None and gaps > 0 and first < now else None,
            now - arrived,
            request.output_tokens if done else 0,
            record.attempts,
            request.prompt_tokens,
            record.slo,
            record.reason,
            record.predicted,
        )
        if done:
            for follower in request.follow:
                self._coming += 1
                self._agenda.at(now + follower.at, self._follow, follower)
        elif record.outcome != "cancelled":  # whoever goes away wants no more of it
            self._results += [_unsent(step, job.id, now) for step in _steps_after(request)]
        if request.client is not None:
            self._ask_again(request.client, 0.0 if done else max(RETRY_S, retry_after))

    def _ask_again(self, client: Client, pause: float) -> None:
        """A client in a closed loop has its answer: it sends its next request, if it still does."""
        coming = next(client.turns, None)
        if coming is None:
            return
        at = self._agenda.now + max(pause, coming.at)
        if at < client.until:
            self._coming += 1
            self._agenda.at(at, self._follow, replace(coming, client=client))

    # ---- the core ------------------------------------------------------------------------------------

    def _feed(self, event: Event, slices: tuple[Slice, ...]) -> None:
        """Tell the core, do what it says, and see which of the slices' requests have ended."""
        self._events += 1
        actions = self._core.handle(event)
        if actions or self._watched:
            self._carry_out(event, actions)
        for piece in slices:
            live = self._live.get(piece.id)
            if live is not None and live[1].ended is not None:
                self._end(live)

    def _carry_out(self, event: Event, actions: list[Action]) -> None:
        if self._checker is not None:
            self._checker.saw(event, actions)
        if self._trace is not None:
            self._trace(event, actions)
        cluster = self._cluster
        for action in actions:
            if type(action) is Dispatch:  # nearly all are: quicker than isinstance
                cluster.send(self._call(action))
            elif isinstance(action, Reject):
                self._end(self._live[action.id], action.retry_after or 0.0)
            elif isinstance(action, Cancel):
                cluster.cancel(action.attempt)
            elif isinstance(action, StartEngine):
                cluster.start(action.template, action.name)
            elif isinstance(action, StopEngine):
                cluster.stop(action.name)
            elif isinstance(action, RestartEngine):
                cluster.restart(action.name)

    def _call(self, action: Dispatch) -> Call:
        """What an attempt is to its engine."""
        slices, member = action.slices, self._cluster.members[action.engine]
        live = self._live.get(slices[0].id)
        if live is None or live[0].job.texts:
            return self._embedding(action, member)
        request = live[0]
        job, prompt, blocks = request.job, request.prompt_tokens, request.job.blocks
        per_block = 0
        if blocks:
            size = job.prompt_bytes or PREFIX_BLOCK * len(blocks)
            per_block = max(1, prompt * PREFIX_BLOCK // size)
        return Call(
            action.attempt,
            prompt,
            request.output_tokens,
            stream=job.stream,
            blocks=blocks,
            per_block=per_block,
            member=member,
            slices=slices,
        )

    def _embedding(self, action: Dispatch, member: Member) -> Call:
        """The texts of a call for vectors or scores."""
        prompt = texts = 0
        for piece in action.slices:
            live = self._live.get(piece.id)
            if live is not None:  # of what is sent a second time some may be wanted no more
                request, count = live[0], piece.stop - piece.start
                prompt += round(request.prompt_tokens * count / request.job.texts)
                texts += count
        return Call(
            action.attempt,
            prompt,
            0,
            texts=max(1, texts),
            threads=action.threads,
            member=member,
            slices=action.slices,
        )


def _steps_after(request: SimRequest) -> Iterator[SimRequest]:
    """All that follows a request, however far off."""
    for step in request.follow:
        yield step
        yield from _steps_after(step)


def _unsent(step: SimRequest, ended: str, now: float) -> RequestResult:
    """What became of a step when an earlier one, `ended`, was not served."""
    job, missed = step.job, (None, None, None, None)
    reason = f"never sent: {ended} before it was not served"
    return RequestResult(
        job.id,
        job.request_class,
        job.tenant,
        now,
        "unsent",
        *missed,
        0.0,
        0,
        0,
        step.prompt_tokens,
        job.slo or Slo(),
        reason,
    )
