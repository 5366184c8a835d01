"""The conformance suite of the policy port: subclass it in a test module and give it the fixture `factory`.

Also what its tests and others need: engines as a policy sees them, jobs, records, and a small world in
virtual time in which a core serves them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from math import inf
from random import Random
from typing import Any

import pytest
from msgspec import structs

from sage.common.telemetry import RequestClass
from sage.middleware.control_plane.core import Core
from sage.middleware.control_plane.cost import EmbedCost, LlmCost
from sage.middleware.control_plane.policy import Choice, EngineView, Policy, PolicyOptions, Wait
from sage.middleware.control_plane.records import Record
from sage.middleware.control_plane.types import (
    Arrived,
    Cancelled,
    Dispatch,
    EngineUp,
    Event,
    Finished,
    FirstByte,
    Job,
    Slo,
    Tick,
)
from sage.middleware.engines.port import Capability, EngineSpec, Usage

__all__ = [
    "FakeView",
    "PolicySuite",
    "chat_job",
    "chat_spec",
    "embed_job",
    "embed_spec",
    "serve",
    "waiting_record",
]

CHAT = frozenset((Capability.CHAT,))
EMBED = frozenset((Capability.EMBEDDINGS,))
Factory = Callable[[PolicyOptions], Policy]


def chat_spec(name: str, *, model: str = "m", max_running: int = 4) -> EngineSpec:
    """An engine that can only chat."""
    return EngineSpec(name, "memory", model, CHAT, max_running)


def embed_spec(name: str, *, model: str = "v", max_running: int = 1) -> EngineSpec:
    """An engine that can only embed."""
    return EngineSpec(name, "memory", model, EMBED, max_running)


def chat_job(
    ident: str, *, model: str = "m", tokens: int = 10, tenant: str = "tenant", slo: Slo | None = None
) -> Job:
    """A chat request that needs nothing special."""
    return Job(ident, model, RequestClass.CHAT, tenant, CHAT, 40, tokens, None, slo=slo)


def embed_job(ident: str, *, texts: int = 1, model: str = "v", tenant: str = "tenant") -> Job:
    """A request for embeddings of `texts` texts of 10 tokens; more than 8 are bulk."""
    kind = RequestClass.EMBED_BULK if texts > 8 else RequestClass.EMBED_INTERACTIVE
    return Job(ident, model, kind, tenant, EMBED, 40 * texts, 10 * texts, None, texts=texts, batch_key="b")


def waiting_record(job: Job, sequence: int = 1, **fields: Any) -> Record:
    """A record that waits since time 0, is due whenever and is predicted to cost 0.1 s, but for `fields`."""
    units = job.texts or 1
    known: dict[str, Any] = {
        "policy": "test",
        "arrived": 0.0,
        "queued": 0.0,
        "deadline": None,
        "slo": Slo(),
        "due": inf,
        "prompt_tokens": job.prompt_tokens,
        "output_p50": 0.0 if job.texts else 20.0,
        "output_p90": 0.0 if job.texts else 40.0,
        "units": units,
        "left": units,
        "cost": 0.1,
    }
    return Record(job=job, sequence=sequence, **(known | fields))


@dataclass(slots=True, eq=False)
class FakeView:
    """An engine as a policy sees it. Fits `EngineView`."""

    name: str
    running: int = 0
    free: int = 1
    max_running: int = 4
    outstanding_tokens: int = 0
    last_dispatch: int = 0
    prefill_tokens: int = 0
    busy_until: float = 0.0
    generates: bool = True
    spec: EngineSpec = field(default_factory=lambda: chat_spec("any"))
    llm: LlmCost = field(default_factory=LlmCost)
    embed: EmbedCost = field(default_factory=EmbedCost)
    device: Sequence[EngineView] = ()
    beside: float = 0.0


def serve(core: Core, events: Sequence[Event], service: Callable[[Dispatch], float]) -> list[Dispatch]:
    """Feed `events` to a core whose engines take `service(dispatch)` seconds, until nothing is left to do.

    The first byte comes after a fifth of that. Returns what was dispatched, in order.
    """
    queue: list[tuple[float, int, Event]] = [(event.at, number, event) for number, event in enumerate(events)]
    heapify(queue)
    dispatched: list[Dispatch] = []
    now, pushed = 0.0, len(queue)
    while True:
        wake = core.next_wake()
        if wake is not None and (not queue or wake < queue[0][0]):
            event: Event = Tick(max(now, wake))
        elif queue:
            event = heappop(queue)[2]
        else:
            return dispatched
        now = event.at
        for action in core.handle(event):
            if isinstance(action, Dispatch):
                dispatched.append(action)
                seconds = service(action)
                begun = FirstByte(now + 0.2 * seconds, action.attempt)
                ended = Finished(now + seconds, action.attempt, Usage(10, 20))
                heappush(queue, (begun.at, pushed, begun))
                heappush(queue, (ended.at, pushed + 1, ended))
                pushed += 2


def _view(job: Job, name: str, **fields: Any) -> FakeView:
    """An engine for such a job."""
    spec = embed_spec(name) if job.texts else chat_spec(name)
    return FakeView(name, spec=spec, generates=not job.texts, **fields)


def _kind(job: Job) -> str:
    return job.request_class


JOBS = [chat_job("chat"), embed_job("embed"), embed_job("bulk", texts=20)]


def _assorted(count: int) -> list[Record]:
    """Records of all classes, three tenants, several priorities, costs and times due; always the same."""
    random = Random(count)  # noqa: S311  (not a secret)
    return [
        waiting_record(
            structs.replace(
                random.choice(JOBS),
                id=f"r{number}",
                tenant=random.choice("abc"),
                priority=random.randrange(-2, 3),
            ),
            number,
            due=random.choice((inf, random.uniform(0.0, 60.0))),
            cost=random.uniform(0.01, 2.0),
            arrived=number / 10,
            queued=number / 10,
        )
        for number in range(count)
    ]


class PolicySuite:
    """What every policy keeps to. The fixture `factory` makes one from its options."""

    @pytest.fixture
    def policy(self, factory: Factory) -> Policy:
        """One of its own for each test."""
        return factory(PolicyOptions())

    def test_it_has_a_name(self, policy: Policy) -> None:
        """The name under which it is configured."""
        assert policy.name
        assert policy.name == policy.name.lower()

    @pytest.mark.parametrize("job", JOBS, ids=_kind)
    def test_it_chooses_a_free_engine_and_says_why(self, policy: Policy, job: Job) -> None:
        """Whatever the position of the free one."""
        for at in range(3):
            views = [_view(job, f"e{one}", free=int(one == at), running=3 * (one != at)) for one in range(3)]
            choice = policy.choose(waiting_record(job), views, 0.0)
            assert isinstance(choice, Choice)
            assert policy.traits.unbounded or choice.engine == f"e{at}"
            assert choice.reason

    @pytest.mark.parametrize("job", JOBS, ids=_kind)
    def test_it_waits_when_none_is_free(self, policy: Policy, job: Job) -> None:
        """A full engine is never chosen, unless engines queue by themselves."""
        verdict = policy.choose(waiting_record(job), [_view(job, "e0", free=0, running=4)], 0.0)
        assert isinstance(verdict, Choice if policy.traits.unbounded else Wait)

    @pytest.mark.parametrize("job", JOBS, ids=_kind)
    def test_an_idle_engine_is_never_refused(self, policy: Policy, job: Job) -> None:
        """However late it will be: the prediction may be wrong, and nobody is in its way."""
        record = waiting_record(job, due=1e-6)
        views = [_view(job, "e0"), _view(job, "e1", free=0, running=4)]
        assert policy.admit(record, views, 0.0, 0.0) is None
        choice = policy.choose(record, views, 0.0)
        assert isinstance(choice, Choice)
        assert policy.traits.unbounded or choice.engine == "e0"

    def test_one_seed_gives_one_sequence_of_choices(self, factory: Factory) -> None:
        """Two of them that see the same do the same."""
        options = PolicyOptions(exploration=0.2, seed=7)
        one, other = factory(options), factory(options)
        for record in _assorted(60):
            random = Random(record.sequence)  # noqa: S311  (not a secret)
            views = [
                _view(record.job, f"e{index}", running=random.randrange(3), last_dispatch=random.randrange(9))
                for index in range(4)
            ]
            assert one.choose(record, views, record.queued) == other.choose(record, views, record.queued)

    def test_a_call_carries_something(self, policy: Policy) -> None:
        """A batch has room for one text at least."""
        job = embed_job("r")
        limits = policy.batch(waiting_record(job), _view(job, "e0"), 0.0)
        assert limits.texts >= 1
        assert limits.tokens >= 1

    def test_what_waits_comes_out_once(self, policy: Policy) -> None:
        """All of it, but for what was taken out; and heads of two lanes can be compared."""
        lane, other = policy.discipline(), policy.discipline()
        records = _assorted(40)
        other.push(records.pop(), 0.0)
        for record in records:
            lane.push(record, record.queued)
        assert len(lane) == len(records)
        for record in records[::3]:
            lane.remove(record)
        left = [record for record in records if record not in records[::3]]
        assert len(lane) == len(left)
        out = []
        while (head := lane.head(9.0)) is not None:
            rival = other.head(9.0)
            assert rival is not None
            urgencies = [lane.key(head, 9.0), other.key(rival, 9.0)]
            assert sorted(urgencies) in (urgencies, urgencies[::-1])
            assert lane.head(9.0) is head
            lane.remove(head)
            out.append(head)
        assert sorted(record.sequence for record in out) == [record.sequence for record in left]
        assert len(lane) == 0

    def test_everything_is_served(self, policy: Policy) -> None:
        """Under a core with engines of several sizes: nothing is lost, nothing refused that can be served."""
        core = Core(policy)
        for index in range(3):
            core.handle(EngineUp(0.0, chat_spec(f"c{index}", max_running=index + 1)))
            core.handle(EngineUp(0.0, embed_spec(f"v{index}", max_running=index + 1)))
        events: list[Event] = []
        for number in range(300):
            ident, at, tenant = f"r{number}", number * 0.04, "abc"[number % 3]
            texts = number % 4 and 1 + number % 23
            job = embed_job(ident, texts=texts, tenant=tenant) if texts else chat_job(ident, tenant=tenant)
            events.append(Arrived(at, job))
            if number % 10 == 0:
                events.append(Cancelled(at + 0.03, ident))
        serve(core, events, lambda call: 0.02 + 0.005 * sum(one.stop - one.start for one in call.slices))
        outcomes = Counter(record.outcome for record in core.records(300))
        assert core.live == 0
        assert set(outcomes) <= {"done", "cancelled"}
        assert outcomes["done"] >= 270
        assert not any(load.running or load.outstanding_tokens for load in core.engines)

    def test_nothing_starves(self, policy: Policy) -> None:
        """Work without a goal is served within a minute while too much that has one comes in."""
        core = Core(policy)
        core.handle(EngineUp(0.0, embed_spec("v0")))
        events: list[Event] = [Arrived(index * 0.08, embed_job(f"r{index}")) for index in range(1200)]
        events.append(Arrived(2.0, embed_job("bulk", texts=20)))
        serve(core, events, lambda call: 0.09 + 0.01 * sum(one.stop - one.start for one in call.slices))
        bulk = core.record("bulk")
        assert bulk is not None
        assert bulk.outcome == "done"
        assert bulk.ended is not None
        assert bulk.ended <= 62.0
