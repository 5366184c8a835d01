"""From queues to engines: asks the policy about the head of each lane and sends what it says."""

from __future__ import annotations

from typing import Final

from sage.middleware.control_plane.attempts import Attempts
from sage.middleware.control_plane.batches import Taken, fill, whole
from sage.middleware.control_plane.engine_table import Attempt, EngineLoad, EngineTable
from sage.middleware.control_plane.lanes import Lane, Lanes
from sage.middleware.control_plane.options import CoreOptions, Limits
from sage.middleware.control_plane.policy import Choice, Policy, Shed
from sage.middleware.control_plane.prefix import BLOCK, new_prefix_index
from sage.middleware.control_plane.records import Candidate, Record
from sage.middleware.control_plane.types import Action, Dispatch, Job, Slice
from sage.middleware.engines.port import asks_media

__all__ = ["Placement"]

HEDGE_RESERVE: Final = 1.0
MEDIA_SILENT_S: Final = 120.0  # that a picture may take: no token tells, and the adapter waits no longer
BYTES_PER_TOKEN: Final = 4  # of cached blocks; the prompt's own ratio is used where it is known


class Placement:
    """Runs a policy over the lanes."""

    __slots__ = (
        "_attempts",
        "_details",
        "_details_at",
        "_details_per_s",
        "_engines",
        "_hedges",
        "_lanes",
        "_limits",
        "_prefixes",
        "_wake",
        "name",
        "policy",
        "traits",
    )

    def __init__(
        self, policy: Policy, options: CoreOptions, engines: EngineTable, lanes: Lanes, attempts: Attempts
    ) -> None:
        self._limits = options.limits
        self._details_per_s = options.details_per_s
        self._engines = engines
        self._lanes = lanes
        self._attempts = attempts
        self._prefixes = new_prefix_index()
        self._wake: float | None = None
        self._hedges = HEDGE_RESERVE
        self._details = options.details_per_s
        self._details_at = 0.0
        self.set_policy(policy)

    def set_policy(self, policy: Policy) -> None:
        """From now on this one decides. What nobody keeps up to date is forgotten."""
        self.policy = policy
        self.name, self.traits = policy.name, policy.traits
        if not policy.traits.prefixes:
            for load in self._engines:
                self.forget(load)

    def set_limits(self, limits: Limits) -> None:
        """From now on these bounds on what is sent a second time."""
        self._limits = limits

    def forget(self, load: EngineLoad) -> None:
        """An engine's process is new, or gone: nothing is cached there."""
        self._prefixes.drop(load.name)
        if self._engines.get(load.name) is load:
            self._prefixes.resize(load.name, max(1, load.spec.kv_tokens * BYTES_PER_TOKEN // BLOCK))

    def next_wake(self) -> float | None:
        """When the policy wants to be asked again; None when there is nothing to ask it about."""
        return self._wake if self._lanes.waiting else None

    def can_send(self, lane: Lane, now: float) -> bool:
        """Whether any engine would take a request of a lane: until then nobody need know whose turn it is."""
        return self.traits.unbounded or _any_free(lane.engines(self._engines, now))

    def run(self, now: float, actions: list[Action]) -> list[tuple[Record, Shed]]:
        """Send heads of lanes, the most urgent first, until none can go; what the policy sheds comes back."""
        if self._wake is not None and self._wake <= now:
            self._wake = None
        shed: list[tuple[Record, Shed]] = []
        lanes = [lane for lane in self._lanes.busy() if self.can_send(lane, now)]
        while lanes:
            lane = lanes[0] if len(lanes) == 1 else min(lanes, key=lambda one: _urgency(one, now))
            head = lane.discipline.head(now)
            verdict = head is not None and self._send(lane, head, now, actions)
            if isinstance(verdict, Shed) and head is not None:
                shed.append((head, verdict))
                self._lanes.remove(lane, head)
            if not verdict or not lane.records:
                lanes.remove(lane)
        return shed

    def place(self, lane: Lane, record: Record, now: float, actions: list[Action]) -> bool:
        """Send a newcomer that finds its lane empty, as much of it as goes; False when it must wait."""
        if self._hedges < HEDGE_RESERVE:
            self._hedges += self._limits.hedge_share
        sent = self._send(lane, record, now, actions) is True
        while sent and record.taken < record.units and self._send(lane, record, now, actions) is True:
            pass
        return sent

    def _send(self, lane: Lane, record: Record, now: float, actions: list[Action]) -> bool | Shed:
        """Ask the policy about one request and carry its choice out; False when it waits."""
        engines = lane.engines(self._engines, now)
        if record.engine is not None and record.returned:  # it failed there: any other free one is better
            others = [load for load in engines if load.name != record.engine]
            if _any_free(others):
                engines = others
        policy, traits = self.policy, self.traits
        if not engines or not (traits.unbounded or _any_free(engines)):
            return False
        if traits.prefixes and record.job.blocks:
            record.cached = self.cached(record.job, record.prompt_tokens)
        choice = policy.choose(record, engines, now)
        if not isinstance(choice, Choice):
            if isinstance(choice, Shed):
                return choice
            self._wake_at(choice.until)
            return False
        load = self._engines[choice.engine]
        if load not in engines or (load.free <= 0 and not traits.unbounded):
            raise RuntimeError(f"The policy {policy.name!r} chose {choice.engine!r}, which has no free slot.")
        if traits.batches and record.job.batch_key:
            limits = policy.batch(record, load, now)
            enough = limits.enough or limits.tokens
            lane.held = limits.hold_until > now and not record.returned and _tokens(lane, enough) < enough
            if lane.held:
                self._wake_at(limits.hold_until)
                return False
            taken = fill(self._lanes, lane, record, limits, now, coalesce=load.spec.coalesces)
        else:
            taken = [whole(record)]
            if record.job.id in lane.records:  # it waited
                self._lanes.took(lane, record, taken[0][2] - taken[0][1])
                if not record.waiting_units:
                    self._lanes.remove(lane, record)
        self._dispatch(load, taken, choice, engines, now, actions)
        return True

    def _wake_at(self, at: float | None) -> None:
        if at is not None and (self._wake is None or at < self._wake):
            self._wake = at

    # ---- sending ---------------------------------------------------------------------------------------

    def _dispatch(
        self,
        load: EngineLoad,
        taken: list[Taken],
        choice: Choice,
        engines: list[EngineLoad],
        now: float,
        actions: list[Action],
    ) -> None:
        detail = self._detail(taken[0][0], engines, now)
        attempt = self._attempt(load, taken, choice, now)
        name, reason = load.name, choice.reason
        prefixes, hedgeable = self.traits.prefixes, self.traits.hedges and len(engines) > 1
        charge = self.policy.charge
        for record, start, stop, _ in taken:
            job = record.job
            record.outcome, record.engine, record.reason = "running", name, reason
            if record.policy != self.name:  # it has waited while that was changed
                record.policy = self.name
            record.attempts += 1
            record.predicted = choice.predicted
            if detail or record.candidates:
                record.candidates = detail
            if record.dispatched is None:
                record.dispatched = now
            charge(record, record.cost * (stop - start) / record.units)
            record.running += (attempt.number,)
            hedgeable = hedgeable and job.hedgeable
            if prefixes and job.blocks:
                self._prefixes.insert(name, job.blocks)
        self._begin(attempt, reason, now, actions)
        if hedgeable:
            self._attempts.watch(attempt, now + load.latency.value)

    def _attempt(self, load: EngineLoad, taken: list[Taken], choice: Choice, now: float) -> Attempt:
        record = taken[0][0]
        if not load.generates:
            texts = sum(stop - start for _, start, stop, _ in taken)
            tokens = sum(one.prompt_tokens * (stop - start) // one.units for one, start, stop, _ in taken)
            threads = choice.threads or load.spec.cores or 1
            service = load.embed.seconds(tokens, texts, threads, load.beside)
            outstanding, silence = tokens, 4.0 * (service + max(0.0, load.busy_until - now))
            ready = 0.0
            mark = load.mark(now)
        else:
            texts, service, mark = 1, 0.0, (0.0, 0.0, 0.0)  # its sample begins with its first byte
            tokens, llm = record.prompt_tokens, load.llm
            if record.cached:
                tokens -= record.cached.get(load.name, 0)
            if tokens < 1:
                tokens = 1
            outstanding = record.prompt_tokens + (record.job.max_tokens or 0)
            ready = silence = llm.ttft(load.prefill_tokens + tokens, load.running)
            if not record.job.stream:
                silence += record.output_p90 * llm.tpot(load.max_running)
            if load.media and asks_media(record.job.needs):
                silence = MEDIA_SILENT_S
        # in the order of the fields: by name it would take three times as long
        return Attempt(
            self._attempts.number(),
            load,
            taken,
            now,
            texts,
            tokens,
            outstanding,
            load.prefill_tokens,
            load.running,
            choice.predicted,
            service,
            silence,
            ready,
            choice.threads,
            mark=mark,
        )

    def _begin(self, attempt: Attempt, reason: str, now: float, actions: list[Action]) -> None:
        load, taken = attempt.engine, attempt.slices
        load.take(attempt, now)
        self._attempts[attempt.number] = attempt
        job = taken[0][0].job
        if load.generates and not job.stream:
            self._attempts.presume(attempt, now + attempt.ready)
        slices = tuple([Slice(record.job.id, start, stop) for record, start, stop, _ in taken])
        actions.append(Dispatch(attempt.number, load.name, slices, reason, attempt.threads, attempt.hedge))

    # ---- a second time -----------------------------------------------------------------------------------

    def hedge(self, now: float, actions: list[Action]) -> None:
        """Send late short calls a second time, to an engine that is free, while the budget lasts."""
        for attempt in self._attempts.late(now):
            record = attempt.slices[0][0]
            if attempt.twin is not None or self._hedges < 1.0 or record.outcome != "running":
                continue
            lane = self._lanes.lane(record.job)
            others = [
                load
                for load in lane.engines(self._engines, now)
                if load is not attempt.engine and load.free > 0
            ]
            if not others:
                continue
            self._hedges -= 1.0
            load = min(others, key=lambda one: one.busy_until)
            waited = now - attempt.sent
            reason = f"hedge: {attempt.engine.name} has not answered for {waited * 1000:.0f} ms"
            wanted = [part for part in attempt.slices if part[0].ended is None]
            twin = self._attempt(load, wanted, Choice(load.name, reason), now)
            twin.hedge, twin.twin, attempt.twin = True, attempt, twin
            for one, _, _, _ in twin.slices:
                one.running += (twin.number,)
                one.hedges += 1
            self._begin(twin, reason, now, actions)

    # ---- what the policy and the curious see ---------------------------------------------------------------

    def cached(self, job: Job, prompt_tokens: int) -> dict[str, int]:
        """How many of its prompt tokens engines have cached; at least one is always computed."""
        per_block = BLOCK * prompt_tokens / job.prompt_bytes if job.prompt_bytes else BLOCK / BYTES_PER_TOKEN
        most = prompt_tokens - 1
        cached = self._prefixes.match(job.blocks)
        for name, blocks in cached.items():
            tokens = int(blocks * per_block)
            cached[name] = tokens if tokens < most else most
        return cached

    def _detail(self, record: Record, engines: list[EngineLoad], now: float) -> tuple[Candidate, ...]:
        """All candidates as they are now, for so many decisions a second, and where it was asked for."""
        earned = self._details + (now - self._details_at) * self._details_per_s
        self._details = earned if earned < self._details_per_s else self._details_per_s
        self._details_at = now
        if self._details < 1.0 and not record.job.explain:
            return ()
        self._details -= 1.0
        return tuple(_candidate(load, record, now) for load in engines)


def _candidate(load: EngineLoad, record: Record, now: float) -> Candidate:
    cached = record.cached.get(load.name, 0) if record.cached else 0
    if not load.generates:
        predicted = max(0.0, load.busy_until - now) + load.seconds(record, record.units)
    else:
        predicted = load.llm.ttft(load.prefill_tokens + record.prompt_tokens - cached, load.running)
    return Candidate(load.name, load.running, load.free, predicted, cached)


def _any_free(engines: list[EngineLoad]) -> bool:
    for load in engines:  # noqa: SIM110 - a generator costs more than what it looks at
        if load.free:
            return True
    return False


def _urgency(lane: Lane, now: float) -> tuple[object, int]:
    """Of the head of a lane that holds something."""
    head = lane.discipline.head(now)
    return (lane.discipline.key(head, now), head.sequence) if head is not None else ((), 0)


def _tokens(lane: Lane, enough: int) -> int:
    """Tokens that wait in a lane, counted until there are enough."""
    total = 0
    for record in lane.records.values():
        total += record.prompt_tokens
        if total >= enough:
            break
    return total
