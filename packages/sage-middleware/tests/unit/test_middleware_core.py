"""The core: placement, queues, retries, breaker."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from sage.common.errors import BadRequestError, NotFoundError
from sage.common.telemetry import RequestClass
from sage.middleware.control_plane.core import Core, Limits
from sage.middleware.control_plane.engine_table import FAULTS_TO_EJECT
from sage.middleware.control_plane.policy import Choice, EngineView, available_policies, load_policy
from sage.middleware.control_plane.reports import engine_status
from sage.middleware.control_plane.types import (
    Action,
    Arrived,
    Cancelled,
    Dispatch,
    EngineAdded,
    EngineDown,
    EngineRemoved,
    EngineUp,
    Failed,
    Finished,
    FirstByte,
    Job,
    Reject,
    Tick,
)
from sage.middleware.engines.port import Capability, EngineSpec, Usage
from sage.middleware.testing.policies import chat_job, chat_spec

EMBED = frozenset((Capability.EMBEDDINGS,))


def make(engines: int = 1, *, slots: int = 1, policy: str = "least_load", **limits: Any) -> Core:
    core = Core(load_policy(policy), Limits(**limits), 100)
    for index in range(engines):
        core.handle(EngineUp(0.0, chat_spec(f"e{index}", max_running=slots)))
    return core


def arrive(core: Core, ident: str, at: float = 0.0, **job: Any) -> list[Action]:
    deadline = job.pop("deadline", None)
    return core.handle(Arrived(at, chat_job(ident, **job), deadline))


def fail(
    core: Core, ident: str, at: float = 0.0, *, retryable: bool = True, fault: bool = True
) -> list[Action]:
    return core.handle(Failed(at, ident, "it broke", retryable, fault))


def test_an_engine_is_degraded_while_it_is_sent_no_work() -> None:
    """Ejected it is; on probation it needs a request to show that it is well, so that it counts as ready."""
    core = make()
    for index in range(FAULTS_TO_EJECT):
        arrive(core, f"r{index}")
        fail(core, f"r{index}", retryable=False)
    (load,) = core.engines
    ejected, probation = engine_status(load, 1.0), engine_status(load, load.breaker.until)
    faults = f"{FAULTS_TO_EJECT} faults in a row"
    assert (ejected.state, ejected.detail) == ("degraded", f"{faults}; ejected for 9 s")
    assert (probation.state, probation.detail) == ("ready", f"{faults}; on probation")
    assert [type(action) for action in arrive(core, "late", at=load.breaker.until)] == [Dispatch]


def embed_job(ident: str, request_class: RequestClass) -> Job:
    return Job(ident, "v", request_class, "t", EMBED, 40, 10, None, texts=1)


def outcome(core: Core, ident: str) -> str:
    record = core.record(ident)
    assert record is not None
    return record.outcome


@pytest.mark.parametrize("policy", ["least_load", "round_robin"])
@pytest.mark.parametrize("finish_at_once", [True, False])
def test_forty_equal_requests_over_four_idle_equal_engines_give_ten_each(
    policy: str, finish_at_once: bool
) -> None:
    core = make(4, slots=10, policy=policy)
    placed: Counter[str] = Counter()
    for number in range(40):
        (action,) = arrive(core, f"r{number}", float(number))
        assert isinstance(action, Dispatch)
        placed[action.engine] += 1
        if finish_at_once:
            core.handle(Finished(float(number), action.id, Usage()))
    assert placed == {"e0": 10, "e1": 10, "e2": 10, "e3": 10}


def test_fifo_fills_the_first_engine_first() -> None:
    core = make(2, slots=2, policy="fifo")
    engines = [arrive(core, f"r{number}")[0].engine for number in range(4)]  # type: ignore[union-attr]
    assert engines == ["e0", "e0", "e1", "e1"]


def test_a_busy_engine_gets_no_more_and_the_rest_waits_in_order() -> None:
    core = make()
    arrive(core, "a")
    assert arrive(core, "b") == []
    assert arrive(core, "c") == []
    (action,) = core.handle(Finished(1.0, "a", Usage(3, 4)))
    assert isinstance(action, Dispatch)
    assert (action.id, action.engine, action.attempt) == ("b", "e0", 1)
    record = core.record("a")
    assert record is not None
    assert record.usage == Usage(3, 4)
    assert core.counts(RequestClass.CHAT).waiting == 1


def test_interactive_goes_before_bulk_that_came_earlier() -> None:
    core = Core(load_policy("fifo"), Limits(), 10)
    core.handle(EngineUp(0.0, EngineSpec("v0", "memory", "v", EMBED, 1)))
    core.handle(Arrived(0.0, embed_job("first", RequestClass.EMBED_BULK)))
    core.handle(Arrived(1.0, embed_job("bulk", RequestClass.EMBED_BULK)))
    core.handle(Arrived(2.0, embed_job("quick", RequestClass.EMBED_INTERACTIVE)))
    assert [action.id for action in core.handle(Finished(3.0, "first", Usage()))] == ["quick"]
    assert [action.id for action in core.handle(Finished(4.0, "quick", Usage()))] == ["bulk"]


def test_a_model_whose_engine_is_busy_does_not_hold_up_another_one() -> None:
    core = make(queue_max_requests=1)
    core.handle(EngineUp(0.0, chat_spec("other", model="n")))
    for ident in ("a", "b"):
        arrive(core, ident)
    (action,) = arrive(core, "x", model="n")
    assert isinstance(action, Dispatch)
    assert action.engine == "other"


def test_a_full_queue_sheds_the_newcomer_with_a_time_to_come_back() -> None:
    core = make(queue_max_requests=1)
    arrive(core, "a")
    arrive(core, "b", 1.0)
    (action,) = arrive(core, "c", 6.0)
    assert isinstance(action, Reject)
    assert (action.id, action.status, action.retry_after) == ("c", 429, 5.0)
    assert "1 requests" in action.reason
    assert core.counts(RequestClass.CHAT).shed == 1
    assert outcome(core, "c") == "rejected"


def test_queues_are_bounded_by_bytes_too() -> None:
    core = make(queue_max_bytes=79)
    arrive(core, "a")
    assert arrive(core, "b") == []  # 40 bytes
    (action,) = arrive(core, "c")
    assert isinstance(action, Reject)
    assert "79 bytes" in action.reason


def test_waiting_too_long_ends_in_429() -> None:
    core = make(queue_max_wait_s=30.0)
    arrive(core, "a")
    arrive(core, "b", 1.0)
    assert core.next_expiry() == 31.0
    assert core.handle(Tick(30.9)) == []
    (action,) = core.handle(Tick(31.0))
    assert isinstance(action, Reject)
    assert (action.id, action.status) == ("b", 429)
    assert core.next_expiry() is None


def test_a_deadline_ends_waiting_earlier() -> None:
    core = make()
    arrive(core, "a")
    arrive(core, "b", 1.0, deadline=3.0)
    assert core.next_expiry() == 3.0
    (action,) = core.handle(Tick(3.0))
    assert isinstance(action, Reject)
    assert "deadline" in action.reason


def test_what_was_served_does_not_pile_up_in_the_expiries() -> None:
    core = make(slots=1)
    arrive(core, "r0")
    for number in range(1, 500):
        arrive(core, f"r{number}", float(number))
        core.handle(Finished(number + 0.5, f"r{number - 1}", Usage()))
    assert len(core._queues._expiries) <= 70


def test_no_engine_up_is_503_with_a_time_to_come_back() -> None:
    core = Core(load_policy("fifo"), Limits(), 10)
    core.handle(EngineAdded(0.0, chat_spec("e0")))
    (action,) = arrive(core, "a")
    assert isinstance(action, Reject)
    assert (action.status, action.retry_after) == (503, 1.0)
    assert "e0 is starting" in action.reason


def test_what_waits_for_an_engine_that_dies_is_refused() -> None:
    core = make()
    arrive(core, "a")
    arrive(core, "b")
    (action,) = core.handle(EngineDown(1.0, "e0", "killed"))
    assert isinstance(action, Reject)
    assert (action.id, action.status) == ("b", 503)
    (action,) = fail(core, "a", 1.0)
    assert isinstance(action, Reject)
    assert (action.id, action.status) == ("a", 503)
    assert outcome(core, "a") == "failed"
    assert core.live == 0


def test_a_removed_engine_finishes_what_it_has_and_is_forgotten() -> None:
    core = make(2)
    arrive(core, "a")
    core.handle(EngineRemoved(1.0, "e0"))
    assert [(load.name, load.state) for load in core.engines] == [("e0", "draining"), ("e1", "ready")]
    core.handle(Finished(2.0, "a", Usage()))
    assert [load.name for load in core.engines] == ["e1"]
    core.handle(EngineRemoved(3.0, "e1"))
    assert list(core.engines) == []
    assert core.handle(EngineRemoved(3.0, "e1")) == []


def test_a_fault_before_the_first_byte_is_tried_on_another_engine() -> None:
    core = make(2)
    (first,) = arrive(core, "a")
    (second,) = fail(core, "a", 1.0)
    assert isinstance(first, Dispatch)
    assert isinstance(second, Dispatch)
    assert (first.engine, second.engine, second.attempt) == ("e0", "e1", 2)
    (action,) = fail(core, "a", 2.0)
    assert isinstance(action, Reject)
    assert action.status == 502
    assert outcome(core, "a") == "failed"
    assert core.counts(RequestClass.CHAT).failed == 1


def test_with_one_engine_the_second_attempt_is_there() -> None:
    core = make()
    arrive(core, "a")
    (action,) = fail(core, "a")
    assert isinstance(action, Dispatch)
    assert (action.engine, action.attempt) == ("e0", 2)


@pytest.mark.parametrize(("retryable", "fault"), [(False, True), (True, False), (False, False)])
def test_nothing_is_retried_once_bytes_are_out_or_when_the_request_is_to_blame(
    retryable: bool, fault: bool
) -> None:
    core = make(2)
    arrive(core, "a")
    assert fail(core, "a", retryable=retryable, fault=fault) == []
    record = core.record("a")
    assert record is not None
    assert (record.outcome, record.reason) == ("failed", "it broke")


def test_retries_are_at_most_a_tenth_of_the_traffic_after_a_reserve() -> None:
    core = make(3, slots=100)
    retried = 0
    for number in range(300):
        arrive(core, f"r{number}")
        actions = fail(core, f"r{number}")
        if isinstance(actions[0], Dispatch):
            retried += 1
            core.handle(Finished(0.0, f"r{number}", Usage()))
        for load in core.engines:
            load.breaker.success()
    assert 30 <= retried <= 10 + 30


def test_five_faults_eject_an_engine_and_one_probe_brings_it_back() -> None:
    core = make(slots=4)
    for number in range(5):
        arrive(core, f"r{number}", float(number))
        fail(core, f"r{number}", float(number), retryable=False)
    (action,) = arrive(core, "a", 5.0)
    assert isinstance(action, Reject)
    assert (action.status, action.retry_after) == (503, 9.0)  # ejected at 4 for 10 s
    assert isinstance(arrive(core, "probe", 14.0)[0], Dispatch)
    assert arrive(core, "behind", 14.0) == []  # one at a time
    (action,) = core.handle(Finished(15.0, "probe", Usage()))
    assert isinstance(action, Dispatch)
    assert not next(iter(core.engines)).breaker.tripped


def test_a_failed_probe_doubles_the_ejection_and_refuses_what_waits() -> None:
    core = make(slots=4)
    for number in range(5):
        arrive(core, f"r{number}")
        fail(core, f"r{number}", retryable=False)
    arrive(core, "probe", 10.0)
    arrive(core, "behind", 10.0)
    (action,) = fail(core, "probe", 11.0, retryable=False)
    assert isinstance(action, Reject)
    assert (action.id, action.status, action.retry_after) == ("behind", 503, 20.0)


def test_an_engine_that_came_up_again_is_trusted() -> None:
    core = make()
    for number in range(5):
        arrive(core, f"r{number}")
        fail(core, f"r{number}", retryable=False)
    core.handle(EngineDown(1.0, "e0", "restarting"))
    core.handle(EngineUp(2.0, chat_spec("e0")))
    assert isinstance(arrive(core, "a", 2.0)[0], Dispatch)


def test_a_cancelled_request_frees_its_place_once() -> None:
    core = make()
    arrive(core, "a")
    arrive(core, "b")
    assert core.handle(Cancelled(1.0, "b")) == []
    assert core.counts(RequestClass.CHAT).waiting == 0
    core.handle(Cancelled(1.0, "a"))
    core.handle(Cancelled(1.0, "a"))
    assert next(iter(core.engines)).running == 0
    assert outcome(core, "a") == outcome(core, "b") == "cancelled"


def test_events_about_ended_requests_change_nothing() -> None:
    core = make()
    arrive(core, "a")
    core.handle(Finished(1.0, "a", Usage()))
    for event in (Finished(2.0, "a", Usage(9, 9)), FirstByte(2.0, "a"), Failed(2.0, "a", "x", True, True)):
        assert core.handle(event) == []
    record = core.record("a")
    assert record is not None
    assert (record.outcome, record.usage, record.first_byte) == ("done", Usage(), None)


def test_an_unknown_model_is_not_found_and_the_models_are_named() -> None:
    core = make()
    with pytest.raises(NotFoundError, match=r"'x' does not exist; there are: m") as caught:
        core.check(chat_job("a", model="x"))
    assert (caught.value.param, caught.value.code) == ("model", "model_not_found")
    with pytest.raises(NotFoundError, match="no engine is configured"):
        Core(load_policy("fifo"), Limits(), 10).check(chat_job("a"))


def test_what_no_engine_of_the_model_can_do_names_the_field_and_those_that_can() -> None:
    core = make()
    able = chat_spec("big", model="n")
    core.handle(EngineUp(0.0, replace(able, capabilities=able.capabilities | {Capability.N})))
    job = replace(chat_job("a"), needs=frozenset((Capability.CHAT, Capability.N)))
    with pytest.raises(
        BadRequestError, match=r"does not honour 'n'. Engines that can: big \(model n\)"
    ) as caught:
        core.check(job)
    assert caught.value.param == "n"
    core.check(replace(job, model="n"))
    with pytest.raises(BadRequestError, match=r"does not serve embeddings. No engine here can"):
        core.check(replace(job, needs=EMBED))


def test_a_request_goes_only_to_engines_that_can_serve_it() -> None:
    core = make()
    able = chat_spec("able")
    core.handle(EngineUp(0.0, replace(able, capabilities=able.capabilities | {Capability.N})))
    job = replace(chat_job("a"), needs=frozenset((Capability.CHAT, Capability.N)))
    (action,) = core.handle(Arrived(0.0, job))
    assert isinstance(action, Dispatch)
    assert action.engine == "able"


class Reluctant:
    """Waits whatever happens."""

    name = "reluctant"

    def choose(self, engines: Sequence[EngineView], job: Job, now: float) -> Choice | None:
        return None


class Wrong:
    """Chooses an engine that is full."""

    name = "wrong"

    def choose(self, engines: Sequence[EngineView], job: Job, now: float) -> Choice | None:
        return Choice(next(engine.name for engine in engines if not engine.free), "because")


def test_a_change_of_policy_loses_nothing() -> None:
    core = make()
    core.policy = Reluctant()
    assert arrive(core, "a") == []
    core.policy = load_policy("round_robin")
    (action,) = core.handle(Tick(1.0))
    assert isinstance(action, Dispatch)
    record = core.record("a")
    assert record is not None
    assert record.policy == "round_robin"


def test_a_policy_that_chooses_a_full_engine_is_a_bug_that_shows() -> None:
    core = make(2)
    arrive(core, "a")
    core.policy = Wrong()
    with pytest.raises(RuntimeError, match="'wrong' chose 'e0', which has no free slot"):
        arrive(core, "b")


def test_the_history_is_bounded_and_newest_first() -> None:
    core = Core(load_policy("fifo"), Limits(), 3)
    core.handle(EngineUp(0.0, chat_spec("e0", max_running=10)))
    for ident in "abcda":
        arrive(core, ident)
        core.handle(Finished(0.0, ident, Usage()))
    assert [record.job.id for record in core.records(10)] == ["a", "d", "c"]
    assert [record.job.id for record in core.records(1)] == ["a"]
    assert core.record("b") is None


def test_every_shipped_policy_is_available_by_name() -> None:
    assert {"fifo", "least_load", "round_robin"} <= set(available_policies())
