"""The core: placement, queues, bounds, ends."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
from msgspec import structs

from sage.common.errors import BadRequestError, NotFoundError
from sage.common.telemetry import RequestClass, ShedReason
from sage.middleware.control_plane.core import Core
from sage.middleware.control_plane.options import CoreOptions, Limits
from sage.middleware.control_plane.policies.base import BasePolicy
from sage.middleware.control_plane.policy import Choice, EngineView, PolicyOptions, Wait, load_policy
from sage.middleware.control_plane.records import Record
from sage.middleware.control_plane.types import (
    Cancelled,
    Dispatch,
    EngineAdded,
    EngineRemoved,
    EngineUp,
    Failed,
    Finished,
    FirstByte,
    GaveUp,
    Reject,
    Slo,
)
from sage.middleware.engines.port import Capability, EngineSpec, Usage
from sage.middleware.testing.core import CoreBench
from sage.middleware.testing.policies import chat_job, chat_spec, embed_job, embed_spec


def bench(engines: int = 1, *, slots: int = 1, policy: str = "least_load", **limits: Any) -> CoreBench:
    return CoreBench(
        policy, *(chat_spec(f"e{index}", max_running=slots) for index in range(engines)), **limits
    )


def rejection(actions: Sequence[object]) -> Reject:
    (action,) = actions
    assert isinstance(action, Reject)
    return action


@pytest.mark.parametrize("policy", ["least_load", "round_robin", "hybrid"])
@pytest.mark.parametrize("finish_at_once", [True, False])
def test_forty_equal_requests_over_four_idle_equal_engines_give_ten_each(
    policy: str, finish_at_once: bool
) -> None:
    one = bench(4, slots=10, policy=policy)
    placed: Counter[str] = Counter()
    for number in range(40):
        one.wait(1.0)
        one.arrive(chat_job(f"r{number}"))
        placed[one.engine(f"r{number}")] += 1
        if finish_at_once:
            one.finish(f"r{number}")
    assert placed == {"e0": 10, "e1": 10, "e2": 10, "e3": 10}


def test_fifo_fills_the_first_engine_first() -> None:
    one = bench(2, slots=2, policy="fifo")
    for ident in "abcd":
        one.arrive(chat_job(ident))
    assert [one.engine(ident) for ident in "abcd"] == ["e0", "e0", "e1", "e1"]


def test_a_busy_engine_gets_no_more_and_the_rest_waits_in_order() -> None:
    one = bench()
    one.arrive(chat_job("a"))
    assert one.arrive(chat_job("b")) == []
    assert one.arrive(chat_job("c")) == []
    one.finish("a", Usage(3, 4))
    assert one.engine("b") == "e0"
    assert one.record("a").usage == Usage(3, 4)
    assert one.waiting() == 1


def test_fifo_keeps_the_order_of_arrival_across_classes() -> None:
    one = CoreBench("fifo", embed_spec("v0"))
    for job in (embed_job("first"), embed_job("bulk", texts=20), embed_job("quick")):
        one.arrive(job)
    one.finish("first")
    assert one.outcome("bulk") == "running"


def test_hybrid_lets_interactive_pass_bulk_that_came_earlier() -> None:
    one = CoreBench("hybrid", embed_spec("v0"))
    for job in (embed_job("first"), embed_job("bulk", texts=20), embed_job("quick")):
        one.arrive(job)
    one.finish("first")
    assert (one.outcome("quick"), one.outcome("bulk")) == ("running", "waiting")


def test_a_model_whose_engine_is_busy_does_not_hold_up_another_one() -> None:
    one = bench(queue_max_requests=1)
    one.feed(EngineUp(0.0, chat_spec("other", model="n")))
    one.arrive(chat_job("a"))
    one.arrive(chat_job("b"))
    one.arrive(chat_job("x", model="n"))
    assert one.engine("x") == "other"


# ---- bounds ------------------------------------------------------------------------------------------------


def test_a_full_queue_sheds_the_newcomer_with_a_time_to_come_back() -> None:
    one = bench(queue_max_requests=1)
    one.arrive(chat_job("a"))
    one.arrive(chat_job("b"))
    action = rejection(one.arrive(chat_job("c")))
    assert (action.id, action.status) == ("c", 429)
    assert action.retry_after is not None
    assert action.retry_after >= 0.8
    assert "1 requests" in action.reason
    assert one.core.counts(RequestClass.CHAT).shed == 1
    assert (one.outcome("c"), one.record("c").refusal) == ("rejected", ShedReason.QUEUE_FULL)


def test_queues_are_bounded_by_bytes_too() -> None:
    one = bench(queue_max_bytes=79)
    one.arrive(chat_job("a"))
    assert one.arrive(chat_job("b")) == []  # 40 bytes
    assert "79 bytes" in rejection(one.arrive(chat_job("c"))).reason


def test_waiting_too_long_ends_in_429() -> None:
    one = bench(queue_max_wait_s=30.0)
    one.arrive(chat_job("a"))
    one.at = 1.0
    one.arrive(chat_job("b"))
    assert one.wait(29.9) == []
    action = rejection(one.wait(0.2))
    assert (action.id, action.status) == ("b", 429)
    assert one.record("b").refusal is ShedReason.EXPIRED


def test_bulk_may_wait_longer() -> None:
    one = CoreBench("fifo", embed_spec("v0"), queue_max_wait_s=3.0)
    one.arrive(embed_job("first"))
    one.arrive(embed_job("bulk", texts=20))
    one.wait(29.0)
    assert one.outcome("bulk") == "waiting"
    one.wait(2.0)
    assert one.outcome("bulk") == "rejected"


def test_a_deadline_ends_waiting_earlier() -> None:
    one = bench()
    one.arrive(chat_job("a"))
    one.arrive(chat_job("b"), within=2.0)
    action = rejection(one.wait(2.0))
    assert "deadline" in action.reason
    assert one.record("b").refusal is ShedReason.DEADLINE


def test_a_chain_shares_one_deadline() -> None:
    one = bench(slots=3)
    one.arrive(chat_job("first"), within=5.0)
    one.at = 1.0
    one.arrive(structs.replace(chat_job("second"), parent="first"))
    one.arrive(structs.replace(chat_job("stricter"), parent="first"), within=1.0)
    assert [one.record(ident).deadline for ident in ("first", "second", "stricter")] == [5.0, 5.0, 2.0]


def test_a_chain_keeps_its_deadline_when_its_records_are_forgotten() -> None:
    one = CoreBench("fifo", chat_spec("e0", max_running=9), options=CoreOptions(history=1))
    one.arrive(chat_job("first"), within=5.0)
    for ident, parent in [("other", ""), ("child", "first"), ("another", ""), ("grandchild", "child")]:
        one.arrive(structs.replace(chat_job(ident), parent=parent))
        one.finish(ident)
    assert one.record("grandchild").deadline == 5.0
    one.finish("first")
    assert one.core.record("first") is None
    one.at = 6.0
    one.arrive(structs.replace(chat_job("late"), parent="child"))
    assert one.record("late").refusal is ShedReason.DEADLINE


def test_goals_come_from_the_class_unless_the_caller_has_its_own() -> None:
    one = bench(slots=3, policy="hybrid")
    one.arrive(chat_job("a"))
    one.arrive(chat_job("b", slo=Slo(ttft=0.5)))
    assert one.record("a").slo == Slo(ttft=2.0, tpot=0.1)
    assert one.record("b").slo == Slo(ttft=0.5, tpot=0.1)
    assert (one.record("a").due, one.record("b").due) == (2.0, 0.5)


def test_a_goal_that_no_engine_meets_is_stretched_and_a_deadline_is_not() -> None:
    one = bench(slots=3, policy="hybrid")
    (load,) = one.core.engines
    for _ in range(100):
        load.llm.observe_ttft(10.0, 0.0, 5.0)
    for ident in ("a", "b", "c"):
        one.arrive(chat_job(ident))
        assert one.outcome(ident) != "rejected"
        assert one.record(ident).due == pytest.approx(10.0, rel=0.1)
    one.arrive(chat_job("hard"), within=3.0)
    assert one.record("hard").due < 3.0


# ---- engines that are not there ----------------------------------------------------------------------------


def test_no_engine_up_is_503_with_a_time_to_come_back() -> None:
    one = CoreBench("fifo")
    one.feed(EngineAdded(0.0, chat_spec("e0")))
    action = rejection(one.arrive(chat_job("a")))
    assert action.status == 503
    assert action.retry_after == pytest.approx(1.0, rel=0.2)
    assert "e0 is starting" in action.reason
    assert one.record("a").refusal is ShedReason.NO_ENGINE


def test_a_removed_engine_finishes_what_it_has_and_is_forgotten() -> None:
    one = bench(2)
    one.arrive(chat_job("a"))
    one.feed(EngineRemoved(1.0, "e0"))
    assert [(load.name, load.state) for load in one.core.engines] == [("e0", "draining"), ("e1", "ready")]
    one.finish("a")
    assert [load.name for load in one.core.engines] == ["e1"]
    one.feed(EngineRemoved(3.0, "e1"))
    assert list(one.core.engines) == []
    assert one.feed(EngineRemoved(3.0, "e1")) == []


def test_a_namesake_that_serves_something_else_is_what_it_says_now() -> None:
    one = bench(slots=2, policy="hybrid")
    one.arrive(chat_job("old"))
    (load,) = one.core.engines
    load.llm.observe_ttft(10.0, 0.0, 9.0)
    one.feed(EngineRemoved(0.0, "e0"))
    one.feed(EngineUp(0.0, structs.replace(embed_spec("e0", max_running=2), chunk=64)))
    with pytest.raises(NotFoundError):
        one.core.check(chat_job("x"))
    assert (load.generates, load.free, load.llm.chunk) == (False, 1, 64)
    one.arrive(embed_job("new"))
    assert one.engine("new") == "e0"
    one.finish("old", Usage(3, 4))
    one.begin("new")
    assert one.wait(0.5) == []
    one.finish("new", Usage(10, 0))
    assert (load.running, load.free, load.busy_until, load.prefill_tokens) == (0, 2, 0.5, 0)
    assert (load.embed.samples, load.llm.samples) == (1, 0)


def test_an_engine_that_moves_to_another_device_leaves_the_first_one() -> None:
    specs = [structs.replace(chat_spec(name), group="gpu0") for name in ("e0", "e1")]
    one = CoreBench("fifo", *specs)
    for group, beside, own in [
        ("gpu1", ["e1"], ["e0"]),
        ("", ["e1"], ["e0"]),
        ("gpu0", ["e0", "e1"], ["e0", "e1"]),
    ]:
        one.feed(EngineUp(0.0, structs.replace(specs[0], group=group)))
        assert [load.name for load in one.core.engines["e1"].device] == beside
        assert [load.name for load in one.core.engines["e0"].device] == own


def test_an_unknown_model_is_not_found_and_the_models_are_named() -> None:
    one = bench()
    with pytest.raises(NotFoundError, match=r"'x' does not exist; there are: m") as caught:
        one.core.check(chat_job("a", model="x"))
    assert (caught.value.param, caught.value.code) == ("model", "model_not_found")
    with pytest.raises(NotFoundError, match="no engine is configured"):
        Core(load_policy("fifo")).check(chat_job("a"))


def test_what_no_engine_of_the_model_can_do_names_the_field_and_those_that_can() -> None:
    one = bench()
    one.feed(EngineUp(0.0, able("big", model="n")))
    job = structs.replace(chat_job("a"), needs=frozenset((Capability.CHAT, Capability.N)))
    with pytest.raises(
        BadRequestError, match=r"does not honour 'n'. Engines that can: big \(model n\)"
    ) as caught:
        one.core.check(job)
    assert caught.value.param == "n"
    one.core.check(structs.replace(job, model="n"))
    with pytest.raises(BadRequestError, match=r"does not serve embeddings. No engine here can"):
        one.core.check(structs.replace(job, needs=frozenset((Capability.EMBEDDINGS,))))


def able(name: str, *, model: str = "m") -> EngineSpec:
    spec = chat_spec(name, model=model)
    return structs.replace(spec, capabilities=spec.capabilities | {Capability.N})


def test_a_request_goes_only_to_engines_that_can_serve_it() -> None:
    one = bench()
    one.feed(EngineUp(0.0, able("able")))
    one.arrive(structs.replace(chat_job("a"), needs=frozenset((Capability.CHAT, Capability.N))))
    assert one.engine("a") == "able"


# ---- ends --------------------------------------------------------------------------------------------------


def test_a_cancelled_request_frees_its_place_once() -> None:
    one = bench()
    one.arrive(chat_job("a"))
    one.arrive(chat_job("b"))
    assert one.feed(Cancelled(1.0, "b")) == []
    assert one.waiting() == 0
    one.feed(Cancelled(1.0, "a"))
    one.feed(Cancelled(1.0, "a"))
    assert next(iter(one.core.engines)).running == 0
    assert one.running == {}
    assert one.outcome("a") == one.outcome("b") == "cancelled"


def test_what_we_give_up_has_failed_and_says_why() -> None:
    one = bench()
    one.arrive(chat_job("a"))
    one.arrive(chat_job("b"))
    one.feed(GaveUp(1.0, "a", "shutting down"))
    assert (one.outcome("a"), one.record("a").reason) == ("failed", "shutting down")
    assert one.outcome("b") == "running"


def test_events_about_what_has_ended_change_nothing() -> None:
    one = bench()
    one.arrive(chat_job("a"))
    number = one.attempt("a")
    one.finish("a")
    before = structs.asdict(one.record("a"))
    for event in (
        Finished(2.0, number, Usage(9, 9)),
        FirstByte(2.0, number),
        Failed(2.0, number, "x", retryable=True, fault=True),
        Cancelled(2.0, "a"),
        GaveUp(2.0, "a", "x"),
    ):
        assert one.feed(event) == []
    assert structs.asdict(one.record("a")) == before


def test_the_history_is_bounded_and_newest_first() -> None:
    options = CoreOptions(Limits(), history=3)
    one = CoreBench("fifo", chat_spec("e0", max_running=10), options=options)
    for ident in "abcda":
        one.arrive(chat_job(ident))
        one.finish(ident)
    assert [record.job.id for record in one.core.records(10)] == ["a", "d", "c"]
    assert [record.job.id for record in one.core.records(1)] == ["a"]
    assert one.core.record("b") is None


# ---- policies ----------------------------------------------------------------------------------------------


class Reluctant(BasePolicy):
    """Waits whatever happens, and wants to be asked again."""

    name = "reluctant"

    def choose(self, record: Record, engines: Sequence[EngineView], now: float) -> Wait:
        return Wait(now + 0.5)


class Wrong(BasePolicy):
    """Chooses an engine that is full."""

    name = "wrong"

    def choose(self, record: Record, engines: Sequence[EngineView], now: float) -> Choice:
        return Choice(next(engine.name for engine in engines if not engine.free), "because")


def test_a_change_of_policy_loses_nothing() -> None:
    one = CoreBench(Reluctant(PolicyOptions()), chat_spec("e0", max_running=2))
    assert one.arrive(chat_job("a")) == []
    assert one.arrive(chat_job("b")) == []
    one.note(one.core.set_policy(load_policy("round_robin"), 1.0))
    assert [action.slices[0].id for action in one.actions if isinstance(action, Dispatch)] == ["a", "b"]
    assert one.record("a").policy == one.core.policy.name == "round_robin"


def test_a_policy_that_waits_is_asked_again_when_it_wants_to_be() -> None:
    one = CoreBench(Reluctant(PolicyOptions()), chat_spec("e0"))
    one.arrive(chat_job("a"))
    assert one.core.next_wake() == 0.5
    one.wait(0.5)
    assert one.core.next_wake() == 1.0


def test_a_policy_that_chooses_a_full_engine_is_a_bug_that_shows() -> None:
    one = bench(2, policy="fifo")
    one.arrive(chat_job("a"))
    one.core.set_policy(Wrong(PolicyOptions()), 0.0)
    with pytest.raises(RuntimeError, match="'wrong' chose 'e0', which has no free slot"):
        one.arrive(chat_job("b"))


def test_candidates_are_kept_for_so_many_decisions_a_second_and_on_demand() -> None:
    options = CoreOptions(details_per_s=2.0)
    one = CoreBench("hybrid", chat_spec("e0", max_running=9), chat_spec("e1", max_running=9), options=options)
    for ident in "abc":
        one.arrive(chat_job(ident))
    one.arrive(structs.replace(chat_job("asked"), explain=True))
    kept = [len(one.record(ident).candidates) for ident in ("a", "b", "c", "asked")]
    assert kept == [2, 2, 0, 2]
    first, second = one.record("b").candidates
    assert (first.engine, first.running, second.running) == ("e0", 1, 0)
    assert first.predicted > second.predicted > 0.0
    one.wait(1.0)
    one.arrive(chat_job("d"))
    assert len(one.record("d").candidates) == 2
