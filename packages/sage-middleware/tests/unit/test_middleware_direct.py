"""The native steps of plain generations and vectors do what the core's own steps do, bit by bit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from msgspec import structs

from sage.common.telemetry import RequestClass
from sage.middleware import _native
from sage.middleware.control_plane import direct
from sage.middleware.control_plane.core import Core
from sage.middleware.control_plane.engine_table import EngineLoad
from sage.middleware.control_plane.options import CoreOptions, Limits
from sage.middleware.control_plane.policies.hybrid import Hybrid
from sage.middleware.control_plane.policy import PolicyOptions, load_policy
from sage.middleware.control_plane.simulator.scenarios import Scenario, random_scenario
from sage.middleware.control_plane.simulator.world import World
from sage.middleware.control_plane.types import (
    Action,
    Arrived,
    Cancelled,
    Dispatch,
    EngineUp,
    Event,
    Failed,
    Finished,
    FirstByte,
    Job,
    Slo,
    Tick,
)
from sage.middleware.engines.port import Usage
from sage.middleware.testing.policies import chat_job, chat_spec, embed_job, embed_spec

_LEARNED = ("llm", "embed", "latency", "breaker", "silence")
_LINKS = ("device", "attempts")


def values_of(thing: Any) -> Any:
    """All that an object holds, as plain values that compare."""
    if isinstance(thing, EngineLoad):
        told = {name: getattr(thing, name) for name in thing.__slots__ if name not in _LINKS}
        told |= {name: values_of(told[name]) for name in _LEARNED}
        return told | {"attempts": [attempt_of(one) for one in thing.attempts.values()]}
    if isinstance(thing, float | int | str | bytes | tuple | frozenset | Counter) or thing is None:
        return thing
    if isinstance(thing, list):
        return [values_of(one) for one in thing]
    if isinstance(thing, dict):
        return {key: values_of(one) for key, one in thing.items()}
    names = getattr(thing, "__struct_fields__", None) or thing.__slots__
    return {name: values_of(getattr(thing, name)) for name in names}


def attempt_of(attempt: Any) -> dict[str, Any]:
    """An attempt, with its engine and its requests by name."""
    told = structs.asdict(attempt)
    slices = [(record.job.id, *rest) for record, *rest in attempt.slices]
    twin = None if attempt.twin is None else attempt.twin.number
    return told | {"engine": attempt.engine.name, "slices": slices, "twin": twin}


class Pair:
    """Two cores that take the same events in, one with native steps. `taken`: events that those took."""

    def __init__(self, make: Callable[[], Core]) -> None:
        self.native, self.plain = make(), make()
        self.plain._direct = None
        self.taken: Counter[type[Event]] = Counter()

        def counted(core: Any, event: Any, actions: list[Any]) -> bool:
            took = _native.direct(core, event, actions)
            self.taken[type(event)] += took
            return took

        self.native._direct = counted

    def handle(self, event: Event) -> list[Action]:
        """Hand it to both; the actions, which have to be the same."""
        actions = self.native.handle(event)
        assert actions == self.plain.handle(event)
        for one, other in zip(self.native.engines, self.plain.engines, strict=True):
            assert values_of(one) == values_of(other)
        return actions

    def next_wake(self) -> float | None:
        """When both want a tick."""
        wake = self.native.next_wake()
        assert wake == self.plain.next_wake()
        return wake

    def __getattr__(self, name: str) -> Any:
        return getattr(self.native, name)

    def compare(self) -> None:
        """Whatever else they hold."""
        native, plain = self.native, self.plain
        ours, theirs = native.records(100_000), plain.records(100_000)
        assert [structs.asdict(one) for one in ours] == [structs.asdict(one) for one in theirs]
        assert list(native._live) == list(plain._live)
        self.next_wake()
        for of in (
            lambda core: values_of(core._lanes.counts),
            lambda core: [(*key, values_of(tally)) for *key, tally in core.books.tallies()],
            lambda core: [(name, values_of(calls)) for name, calls in core.books.calls()],
            lambda core: core.books.tokens,
            lambda core: (core._retries._left, core._placement._hedges, core._placement._details),
            lambda core: core._arrivals,
        ):
            assert of(native) == of(plain)
        if isinstance(native.policy, Hybrid) and isinstance(plain.policy, Hybrid):
            accounts, others = native.policy._accounts, plain.policy._accounts
            assert accounts._served == others._served
            used = {key: account.used for key, account in accounts._accounts.items()}
            assert used == {key: account.used for key, account in others._accounts.items()}
            assert native.policy._random.getstate() == plain.policy._random.getstate()


def pair(
    options: CoreOptions | None = None, policy: str = "hybrid", exploration: float = 0.0, engines: int = 1
) -> Pair:
    chosen = PolicyOptions(exploration=exploration, seed=3)
    made = Pair(lambda: Core(load_policy(policy, chosen), options or CoreOptions()))
    for number in range(engines):
        made.handle(EngineUp(0.0, chat_spec(f"e{number}", max_running=4)))
    return made


def embedding_pair(**fields: Any) -> Pair:
    """Both with one engine that computes vectors."""
    made = pair(engines=0)
    made.handle(EngineUp(0.0, structs.replace(embed_spec("v", max_running=4), **fields)))
    return made


def run(both: Any, scenario: Scenario, options: CoreOptions, seed: int) -> None:
    """A simulated driver with both in the place of a core."""
    World(both, options, scenario.fleet, seed, check=False, trace=None).run(
        scenario.workload, scenario.faults
    )


@pytest.mark.parametrize("seed", range(60))
def test_simulated_runs_are_the_same(seed: int) -> None:
    scenario = random_scenario(seed)
    options = scenario.options
    made = PolicyOptions(seed=seed, slos=options.slos, exploration=0.1)
    both = Pair(lambda: Core(load_policy("hybrid", made), options))
    run(both, scenario, options, seed)
    both.compare()


def test_simulated_runs_have_plain_cases() -> None:
    taken: Counter[type[Event]] = Counter()
    for seed in range(12):
        scenario = random_scenario(seed)
        options = scenario.options
        both = Pair(lambda: Core(load_policy("hybrid", PolicyOptions()), options))  # noqa: B023 - used at once
        run(both, scenario, options, seed)
        taken += both.taken
    assert taken[Arrived] > 50
    assert taken[Finished] > 50


CHATS = st.builds(
    lambda tokens, most, stream, tenant, blocks, prompt, low: structs.replace(
        chat_job("", tokens=tokens, tenant=tenant),
        max_tokens=most,
        stream=stream,
        blocks=tuple(range(blocks)),
        prompt_bytes=prompt,
        request_class=RequestClass.BATCH if low else RequestClass.CHAT,
    ),
    st.integers(1, 6000),
    st.none() | st.integers(1, 2000),
    st.booleans(),
    st.sampled_from("abc"),
    st.sampled_from([0, 0, 3, 12]),
    st.sampled_from([0, 80, 7000]),
    st.sampled_from([False, False, False, True]),
)
TEXTS = st.builds(
    lambda texts, tenant, prompt, key, hedgeable: structs.replace(
        embed_job("", texts=texts, tenant=tenant), prompt_bytes=prompt, batch_key=key, hedgeable=hedgeable
    ),
    st.sampled_from([1, 1, 1, 2, 30]),
    st.sampled_from("abc"),
    st.sampled_from([0, 80, 7000]),
    st.sampled_from(["", "b", "b"]),
    st.booleans(),
)
STEPS = st.one_of(
    CHATS,
    TEXTS,
    st.tuples(st.just("first byte"), st.integers(0, 9)),
    st.tuples(st.sampled_from(["done", "done", "done", "fails"]), st.integers(0, 9), st.integers(0, 400)),
    st.tuples(st.just("leaves"), st.integers(0, 9)),
    st.tuples(st.just("waits"), st.sampled_from([0.0, 0.0004, 0.02, 0.3, 2.0, 70.0])),
)


@settings(max_examples=150, deadline=None)
@given(
    steps=st.lists(STEPS, max_size=60),
    engines=st.integers(1, 3),
    vectors=st.lists(st.booleans(), min_size=1, max_size=2),
    exploration=st.sampled_from([0.0, 0.5]),
    history=st.sampled_from([3, 4096]),
)
def test_any_order_of_events_is_the_same(
    steps: list[Any], engines: int, vectors: list[bool], exploration: float, history: int
) -> None:
    both = pair(CoreOptions(history=history), exploration=exploration, engines=0)
    for number in range(engines):
        spec = chat_spec(f"e{number}", max_running=4)
        both.handle(EngineUp(0.0, structs.replace(spec, group="" if number else "device")))
    for number, batches in enumerate(vectors):
        spec = embed_spec(f"v{number}", max_running=4)
        more = {"batches": batches, "cores": 2 * number, "group": "" if number else "device"}
        both.handle(EngineUp(0.0, structs.replace(spec, **more)))
    now, running, count = 1.0, list[tuple[int, str]](), 0
    for step in steps:
        actions: list[Action] = []
        if isinstance(step, Job):
            count += 1
            actions = both.handle(Arrived(now, structs.replace(step, id=f"r{count}")))
        elif step[0] == "waits":
            now += step[1]
            actions = both.handle(Tick(now))
        elif running:
            now += 0.001
            number, ident = running[step[1] % len(running)]
            if step[0] == "first byte":
                actions = both.handle(FirstByte(now, number))
            else:
                running.remove((number, ident))
                event: Event = Finished(now, number, Usage(step[-1], step[-1]))
                if step[0] == "fails":
                    event = Failed(now, number, "it broke", retryable=True, fault=True)
                elif step[0] == "leaves":
                    event = Cancelled(now, ident)
                actions = both.handle(event)
        running += [(one.attempt, one.slices[0].id) for one in actions if isinstance(one, Dispatch)]
        gone = {one.attempt for one in actions if not isinstance(one, Dispatch) and hasattr(one, "attempt")}
        running = [one for one in running if one[0] not in gone]
    both.compare()


@pytest.mark.parametrize("job", [chat_job("r"), embed_job("r")], ids=["chat", "text"])
def test_what_is_plain_is_taken_whole(job: Job) -> None:
    both = embedding_pair() if job.texts else pair()
    for number in range(150):  # learning, lumps of histograms, details
        at = 1.0 + number / 100
        [sent] = both.handle(Arrived(at, structs.replace(job, id=f"r{number}")))
        assert isinstance(sent, Dispatch)
        assert both.handle(Finished(at + 0.004, sent.attempt, Usage(9, 0 if job.texts else 7))) == []
    both.compare()
    assert +both.taken == {Arrived: 149, Finished: 150}  # the first one makes its lane


def test_a_call_for_several_requests_ends_whole() -> None:
    both = embedding_pair()
    numbers = []
    for number in range(5):
        actions = both.handle(Arrived(1.0 + number / 1000, embed_job(f"r{number}", texts=1 + number % 2)))
        numbers += [one.attempt for one in actions if isinstance(one, Dispatch)]
    assert len(numbers) == 2
    [sent] = both.handle(Finished(1.1, numbers[0], Usage(7)))
    assert isinstance(sent, Dispatch)
    assert len(sent.slices) > 1
    both.handle(Finished(1.2, sent.attempt, Usage(1001)))
    both.compare()
    assert both.taken[Finished] == 2
    ended = {one.job.id for one in both.native.records(99) if one.outcome == "done"}
    assert ended >= {part.id for part in sent.slices}


@pytest.mark.parametrize(
    ("fields", "engine", "deadline"),
    [
        ({}, {}, 9.0),
        ({"slo": Slo(total=1.0)}, {}, None),
        ({"explain": True}, {}, None),
        ({"parent": "r0"}, {}, None),
        ({"texts": 2}, {}, None),
        ({"request_class": RequestClass.EMBED_BULK}, {}, None),
        ({}, {"batches": False}, None),
    ],
)
def test_texts_that_are_not_plain_are_left_to_the_core(
    fields: dict[str, Any], engine: dict[str, Any], deadline: float | None
) -> None:
    both = embedding_pair(**engine)
    job = structs.replace(embed_job("r"), **fields)
    first = both.handle(Arrived(1.0, structs.replace(job, id="before"), deadline))
    [sent] = first or both.handle(Tick(1.01))
    assert isinstance(sent, Dispatch)
    both.handle(Finished(1.1, sent.attempt, Usage(1)))
    both.handle(Arrived(2.0, job, deadline))
    both.compare()
    assert both.taken[Arrived] == 0


def test_a_text_that_goes_alone_needs_no_engine_that_batches() -> None:
    both = embedding_pair(batches=False)
    for number in range(2):
        [sent] = both.handle(Arrived(1.0, structs.replace(embed_job(f"r{number}"), batch_key="")))
        assert isinstance(sent, Dispatch)
        both.handle(Finished(1.1, sent.attempt, Usage(1)))
    assert both.taken[Arrived] == 1


@pytest.mark.parametrize(
    ("job", "deadline"),
    [
        (chat_job("r"), 9.0),
        (structs.replace(chat_job("r"), slo=Slo(1.0)), None),
        (structs.replace(chat_job("r"), explain=True), None),
        (structs.replace(chat_job("r"), hedgeable=True), None),
        (structs.replace(chat_job("r"), parent="r0"), None),
        (embed_job("r"), None),
        (chat_job("r", tokens=500_000), None),  # late whatever is done
    ],
)
def test_what_is_not_plain_is_left_to_the_core(job: Job, deadline: float | None) -> None:
    both = pair()
    both.handle(EngineUp(0.0, embed_spec("v")))
    both.handle(Arrived(1.0, structs.replace(job, id="before"), deadline))  # makes its lane
    both.handle(Arrived(2.0, job, deadline))
    both.compare()
    assert both.taken[Arrived] == 0


@pytest.mark.parametrize("policy", ["fifo", "slo", "least_load"])
def test_other_policies_are_left_to_the_core(policy: str) -> None:
    both = pair(policy=policy)
    for number in range(3):
        [sent] = both.handle(Arrived(1.0, chat_job(f"r{number}")))
        assert isinstance(sent, Dispatch)
        both.handle(Finished(1.1, sent.attempt, Usage(1, 1)))
    assert not both.taken.total()


class Mine(Hybrid):
    """A policy of somebody's own, which may have changed anything."""


def test_a_policy_that_extends_hybrid_is_left_to_the_core() -> None:
    both = Pair(lambda: Core(Mine(PolicyOptions())))
    both.handle(EngineUp(0.0, chat_spec("e")))
    for number in range(3):
        both.handle(Arrived(1.0, chat_job(f"r{number}")))
    assert not both.taken.total()


def test_what_waits_goes_when_a_plain_one_has_ended() -> None:
    both = pair(CoreOptions(Limits(queue_max_requests=8)))
    numbers = []
    for number in range(6):
        numbers += [
            one.attempt
            for one in both.handle(Arrived(1.0, chat_job(f"r{number}")))
            if isinstance(one, Dispatch)
        ]
    assert both.native.waiting > 0
    [sent] = both.handle(Finished(1.5, numbers[0], Usage(3, 3)))
    assert isinstance(sent, Dispatch)
    assert both.taken[Finished] == 1
    both.compare()


def test_without_native_operators_there_are_no_native_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(direct, "uses_native", lambda: False)
    core = Core(load_policy("hybrid"))
    core.handle(EngineUp(0.0, chat_spec("e")))
    assert core._direct is None
    assert core.handle(Arrived(1.0, chat_job("r")))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "direct takes 3 arguments; found 0"),
        ((Core(load_policy("hybrid")), None, ()), "actions has to be a list; found tuple"),
    ],
)
def test_wrong_arguments_are_refused(arguments: tuple[Any, ...], words: str) -> None:
    with pytest.raises(TypeError, match=words):
        _native.direct(*arguments)


def test_what_is_no_core_or_no_event_is_left_alone() -> None:
    assert _native.direct(object(), object(), []) is False
    assert _native.direct(Core(load_policy("hybrid")), Tick(1.0), []) is False
