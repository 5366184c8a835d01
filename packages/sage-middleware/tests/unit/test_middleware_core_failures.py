"""The core when engines fail, crash, hang and come back; what is sent twice and what is not."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec import structs

from sage.common.telemetry import RequestClass, ShedReason
from sage.middleware.control_plane.breaker import FAULTS_TO_EJECT
from sage.middleware.control_plane.types import (
    Cancel,
    Dispatch,
    EngineDown,
    EngineUp,
    Progress,
    Reject,
    RestartEngine,
)
from sage.middleware.engines.port import EngineSpec
from sage.middleware.testing.core import CoreBench
from sage.middleware.testing.policies import chat_job, chat_spec, embed_job, embed_spec


def bench(engines: int = 1, *, slots: int = 1, policy: str = "least_load", **limits: Any) -> CoreBench:
    return CoreBench(
        policy, *(chat_spec(f"e{index}", max_running=slots) for index in range(engines)), **limits
    )


def eject(one: CoreBench, engine: str, *, refused: bool = False) -> None:
    """Faults until its breaker opens; other engines are kept well by answers."""
    load = one.core.engines[engine]
    count = 0
    while not load.breaker.tripped:
        count += 1
        ident = f"{engine}-{count}-{one.at}"
        one.arrive(chat_job(ident))
        if one.engine(ident) == engine:
            one.fail(ident, retryable=False, refused=refused)
        else:
            one.finish(ident)


# ---- retries -----------------------------------------------------------------------------------------------


def test_a_fault_before_the_first_byte_is_tried_on_another_engine() -> None:
    one = bench(2)
    one.arrive(chat_job("a"))
    assert one.engine("a") == "e0"
    one.fail("a")
    assert one.engine("a") == "e1"
    one.fail("a")
    assert one.rejected["a"].status == 502
    assert (one.outcome("a"), one.record("a").attempts, one.record("a").retries) == ("failed", 2, 1)
    assert one.core.counts(RequestClass.CHAT).failed == 1


def test_with_one_engine_the_second_attempt_is_there() -> None:
    one = bench()
    one.arrive(chat_job("a"))
    one.fail("a")
    assert one.engine("a") == "e0"


@pytest.mark.parametrize(("retryable", "fault"), [(False, True), (True, False), (False, False)])
def test_nothing_is_retried_once_bytes_are_out_or_when_the_request_is_to_blame(
    retryable: bool, fault: bool
) -> None:
    one = bench(2)
    one.arrive(chat_job("a"))
    assert one.fail("a", retryable=retryable, fault=fault) == []
    assert (one.outcome("a"), one.record("a").reason) == ("failed", "it broke")


def test_retries_are_at_most_a_tenth_of_the_traffic_after_a_reserve() -> None:
    one = bench(3, slots=100)
    retried = 0
    for number in range(300):
        ident = f"r{number}"
        one.arrive(chat_job(ident))
        one.fail(ident)
        if one.outcome(ident) == "running":
            retried += 1
            one.finish(ident)
        for load in one.core.engines:
            load.breaker.success()
    assert 30 <= retried <= 10 + 30


def test_a_retry_goes_before_what_came_later() -> None:
    one = bench(policy="fifo")
    for ident in "abc":
        one.arrive(chat_job(ident))
    one.fail("a")
    assert one.outcome("a") == "running"
    one.finish("a")
    assert one.outcome("b") == "running"


# ---- crashes -----------------------------------------------------------------------------------------------


def test_what_waits_for_an_engine_that_dies_is_refused() -> None:
    one = bench()
    one.arrive(chat_job("a"))
    one.arrive(chat_job("b"))
    one.feed(EngineDown(1.0, "e0", "killed"))
    assert one.rejected["b"].status == 503
    one.fail("a")
    assert one.rejected["a"].status == 503
    assert one.outcome("a") == "failed"
    assert one.core.live == 0


@pytest.mark.parametrize("first", ["the connection", "the process"])
def test_a_request_that_was_in_two_crashes_is_quarantined(first: str) -> None:
    one = bench(4, max_attempts=4)
    one.arrive(chat_job("poison"))
    for _ in range(2):
        engine = one.engine("poison")
        if first == "the process":
            one.feed(EngineDown(one.at, engine, "killed", crashed=True))
            one.fail("poison")
        else:
            one.fail("poison")
            one.feed(EngineDown(one.at, engine, "killed", crashed=True))
        one.wait(1.0)
    if first == "the connection":  # it was sent on before anybody knew of the second crash
        one.fail("poison")
    assert one.record("poison").crashes == 2
    assert (one.outcome("poison"), one.rejected["poison"].status) == ("failed", 502)
    assert "quarantined: 2 engines crashed" in one.rejected["poison"].reason


def test_a_stop_is_no_crash() -> None:
    one = bench(2)
    one.arrive(chat_job("a"))
    one.feed(EngineDown(0.0, "e0", "stopped"))
    one.fail("a")
    assert (one.record("a").crashes, one.engine("a")) == (0, "e1")


def test_a_crash_long_after_a_fault_is_not_the_faults() -> None:
    one = bench(2)
    one.arrive(chat_job("a"))
    one.fail("a")
    one.wait(5.0)
    one.feed(EngineDown(one.at, "e0", "killed", crashed=True))
    assert one.record("a").crashes == 0


# ---- breaker -----------------------------------------------------------------------------------------------


def test_five_faults_eject_an_engine_and_one_probe_brings_it_back() -> None:
    one = bench(slots=4)
    one.at = 4.0
    eject(one, "e0")
    one.at = 5.0
    one.arrive(chat_job("a"))
    (refused,) = one.rejected.values()
    assert refused.status == 503
    assert refused.retry_after == pytest.approx(9.0, rel=0.2)  # ejected at 4 for 10 s
    one.at = 14.0
    one.arrive(chat_job("probe"))
    assert one.engine("probe") == "e0"
    assert one.arrive(chat_job("behind")) == []  # one at a time
    one.finish("probe")
    assert one.engine("behind") == "e0"
    assert not one.core.engines["e0"].breaker.tripped


def test_a_failed_probe_doubles_the_ejection_and_refuses_what_waits() -> None:
    one = bench(slots=4)
    eject(one, "e0")
    one.at = 10.0
    one.arrive(chat_job("probe"))
    one.arrive(chat_job("behind"))
    one.at = 11.0
    one.fail("probe", retryable=False)
    refused = one.rejected["behind"]
    assert refused.status == 503
    assert refused.retry_after == pytest.approx(20.0, rel=0.2)


def test_an_engine_that_came_up_again_is_trusted() -> None:
    one = bench()
    eject(one, "e0")
    one.feed(EngineDown(1.0, "e0", "restarting"))
    one.feed(EngineUp(2.0, chat_spec("e0")))
    one.arrive(chat_job("a"))
    assert one.engine("a") == "e0"


def candidates(one: CoreBench) -> list[str]:
    return [load.name for load in one.core.engines.candidates(chat_job("x"), one.at)]


def test_engines_that_still_answer_are_ejected_for_at_most_half_of_a_pool() -> None:
    one = bench(4, slots=9, policy="round_robin")
    for name in ("e0", "e1"):
        eject(one, name)
    assert candidates(one) == ["e2", "e3"]
    one.wait(1.0)
    eject(one, "e2")
    assert candidates(one) == ["e0", "e3"]  # who was ejected first is tried first


def test_dead_engines_stay_out_however_many_they_are() -> None:
    one = bench(4, slots=9, policy="round_robin")
    for name in ("e0", "e1", "e2"):
        eject(one, name, refused=True)
    assert candidates(one) == ["e3"]


def test_the_only_engine_of_a_model_is_ejected_all_the_same() -> None:
    one = bench(1, slots=9)
    eject(one, "e0")
    assert candidates(one) == []
    assert one.core.engines["e0"].breaker.faults == FAULTS_TO_EJECT


# ---- hangs -------------------------------------------------------------------------------------------------


def hanging(*, managed: bool) -> CoreBench:
    spec = structs.replace(chat_spec("e0"), managed=managed)
    one = CoreBench("least_load", spec, chat_spec("e1"))
    one.arrive(structs.replace(chat_job("a"), stream=True))
    assert one.engine("a") == "e0"
    one.begin("a")
    return one


def test_an_engine_without_progress_is_passed_over_then_ejected_and_restarted() -> None:
    one = hanging(managed=True)
    assert one.wait(29.0) == []
    assert candidates(one) == ["e0", "e1"]
    one.wait(4.0)
    assert candidates(one) == ["e1"]
    action, *given_up = one.wait(35.0)
    assert isinstance(action, RestartEngine)
    assert action.name == "e0"
    assert "1 requests run there" in action.reason
    assert [type(other) for other in given_up] == [Cancel, Reject]
    assert one.wait(60.0) == []  # said once


def test_an_engine_that_is_not_ours_is_only_ejected() -> None:
    one = hanging(managed=False)
    assert not any(isinstance(action, RestartEngine) for action in one.wait(120.0))
    assert one.core.engines["e0"].breaker.tripped


def test_tokens_are_a_sign_of_life() -> None:
    one = hanging(managed=True)
    for _ in range(10):
        one.wait(20.0)
        one.feed(Progress(one.at, (one.attempt("a"),)))
    assert candidates(one) == ["e0", "e1"]


def test_a_long_answer_that_is_not_streamed_is_no_hang() -> None:
    one = bench(1, policy="hybrid")
    one.arrive(structs.replace(chat_job("a"), max_tokens=8000))
    (attempt,) = one.core.engines["e0"].attempts.values()
    assert attempt.silence > 5.0  # its tokens take their time
    one.wait(attempt.silence + 25.0)
    assert candidates(one) == ["e0"]


def test_an_idle_engine_does_not_hang() -> None:
    one = bench(1)
    assert one.wait(1000.0) == []
    assert candidates(one) == ["e0"]


# ---- hedges ------------------------------------------------------------------------------------------------


def hedging(*specs: EngineSpec) -> CoreBench:
    one = CoreBench("hybrid", *(specs or (embed_spec("v0"), embed_spec("v1"))))
    for number in range(60):  # its p95 is learned
        one.arrive(embed_job(f"warm{number}"))
        one.wait(0.02)
        one.finish(f"warm{number}")
    one.arrive(structs.replace(embed_job("late"), hedgeable=True))
    return one


def test_a_late_short_call_is_sent_a_second_time_and_the_first_answer_counts() -> None:
    one = hedging()
    (first,) = one.running.values()
    hedges = [action for action in one.wait(1.0) if isinstance(action, Dispatch)]
    (hedge,) = hedges
    assert (hedge.hedge, hedge.slices) == (True, first.slices)
    assert hedge.engine != first.engine
    one.finish("late")  # the newest: the hedge
    assert one.actions == [Cancel(first.attempt)]
    assert (one.outcome("late"), one.record("late").hedges) == ("done", 1)
    sampled = sum(calls.error.count for _, calls in one.core.books.calls())
    assert sampled == 60  # of the first ones: nobody predicted a second attempt
    assert all(load.running == 0 for load in one.core.engines)


def test_when_one_of_two_fails_the_other_goes_on() -> None:
    one = hedging()
    one.wait(1.0)
    assert one.fail("late") == []
    assert one.outcome("late") == "running"
    one.finish("late")
    assert one.outcome("late") == "done"


def test_both_are_broken_off_when_the_client_goes() -> None:
    one = hedging()
    one.wait(1.0)
    attempts = set(one.running)
    one.cancel("late")
    assert {action.attempt for action in one.actions if isinstance(action, Cancel)} == attempts


def test_hedges_are_few() -> None:
    one = hedging()
    hedged = 0
    for number in range(200):
        hedged += sum(isinstance(action, Dispatch) and action.hedge for action in one.wait(1.0))
        one.finish("late" if number == 0 else f"r{number}")
        one.arrive(structs.replace(embed_job(f"r{number + 1}"), hedgeable=True))
    assert 1 <= hedged <= 2 + 0.02 * 262


def test_what_is_not_idempotent_is_not_sent_twice() -> None:
    one = CoreBench("hybrid", embed_spec("v0"), embed_spec("v1"))
    one.arrive(embed_job("late"))
    assert one.wait(20.0) == []


def test_where_there_is_no_other_engine_nobody_watches_for_what_is_late() -> None:
    one = CoreBench("hybrid", embed_spec("v0"), chat_spec("e0"))
    one.arrive(structs.replace(embed_job("late"), hedgeable=True))
    assert not one.core._attempts._late
    one.feed(EngineUp(one.at, embed_spec("v1")))
    one.arrive(structs.replace(embed_job("other"), hedgeable=True))
    assert len(one.core._attempts._late) == 1


def test_no_hedge_where_nothing_is_free() -> None:
    one = hedging(embed_spec("v0"))
    assert not any(isinstance(action, Dispatch | Reject) for action in one.wait(5.0))


# ---- what a new process is known by ------------------------------------------------------------------------


def test_nothing_is_refused_by_what_an_earlier_process_took() -> None:
    one = CoreBench("hybrid", chat_spec("e0", max_running=1))
    (load,) = one.core.engines
    for _ in range(100):
        load.llm.observe_ttft(10.0, 0.0, 1.5)
    slow = load.llm.ttft(10.0, 0)
    one.feed(EngineDown(one.at, "e0", "killed", crashed=True))
    one.feed(EngineUp(one.at, chat_spec("e0", max_running=1)))
    assert load.llm.ttft(10.0, 0) == pytest.approx(slow)
    for ident in "abcd":  # three wait for 4.5 s by the old figures, and each has a goal of 3 s
        one.arrive(chat_job(ident))
    assert one.rejected == {}
    for _ in range(100):
        load.llm.observe_ttft(10.0, 0.0, 1.5)
    one.arrive(chat_job("e"))
    assert one.record("e").refusal is ShedReason.FORECAST
