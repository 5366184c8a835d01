"""Whom the core refuses: by the p90 of what an answer takes, and with a time to come back for each."""

from __future__ import annotations

import pytest
from msgspec import structs

from sage.common.telemetry import ShedReason
from sage.middleware.control_plane.options import CoreOptions, Limits
from sage.middleware.control_plane.types import EngineAdded, EngineUp, Slo
from sage.middleware.engines.port import Usage
from sage.middleware.testing.core import CoreBench
from sage.middleware.testing.policies import chat_job, chat_spec


def refused(seed: int, kind: ShedReason) -> list[float]:
    """What fifty clients are told that are refused for one reason."""
    options = CoreOptions(Limits(queue_max_requests=0 if kind is ShedReason.QUEUE_FULL else 100), seed=seed)
    one = CoreBench("fifo", options=options)
    one.feed(EngineAdded(0.0, chat_spec("e0", max_running=1)))
    if kind is not ShedReason.NO_ENGINE:
        one.feed(EngineUp(0.0, chat_spec("e0", max_running=1)))
        one.arrive(chat_job("runs"))
    for number in range(50):
        one.arrive(chat_job(f"r{number}"), within=10.0 if kind is ShedReason.DEADLINE else None)
    one.wait(40.0)
    found = [one.rejected[f"r{number}"] for number in range(50)]
    assert {one.record(action.id).refusal for action in found} == {kind}
    return [action.retry_after or 0.0 for action in found]


@pytest.mark.parametrize(
    ("kind", "seconds"),
    [
        (ShedReason.QUEUE_FULL, 1.0),
        (ShedReason.EXPIRED, 30.0),
        (ShedReason.DEADLINE, 10.0),
        (ShedReason.NO_ENGINE, 1.0),
    ],
)
def test_whatever_clients_are_refused_for_they_do_not_come_again_all_at_once(
    kind: ShedReason, seconds: float
) -> None:
    told = refused(7, kind)
    assert len(set(told)) == 50
    assert 0.8 * seconds <= min(told) < 0.85 * seconds
    assert 1.15 * seconds < max(told) <= 1.2 * seconds
    assert refused(7, kind) == told != refused(8, kind)


def learned(slots: int = 1) -> CoreBench:
    """An engine that runs something, whose first token takes 10 ms and each further one 10 ms as well."""
    one = CoreBench("hybrid", chat_spec("e0", max_running=slots))
    (load,) = one.core.engines
    for _ in range(100):
        load.llm.observe_ttft(10.0, 1.0, 0.01)
        load.llm.observe_tpot(1.0, 0.0, 0.0, 0.01)
    one.arrive(chat_job("runs"))
    return one


@pytest.mark.parametrize("slots", [1, 4])
def test_a_deadline_is_judged_by_the_p90_of_the_answer_at_the_pace_of_the_engines(slots: int) -> None:
    one = learned(slots)
    assert one.record("runs").output_p90 == 512.0
    one.arrive(chat_job("enough"), within=6.0)
    assert one.outcome("enough") in ("waiting", "running")
    assert one.record("enough").due == pytest.approx(min(2.0, 6.0 - 1.28), rel=0.1)
    one.arrive(chat_job("tight"), within=4.0)  # the p50 would do
    assert one.record("tight").refusal is ShedReason.FORECAST
    assert one.rejected["tight"].retry_after is not None
    one.arrive(structs.replace(chat_job("short"), max_tokens=100), within=4.0)
    assert one.outcome("short") != "rejected"


def test_a_goal_for_the_whole_answer_is_judged_with_what_waits_before_it() -> None:
    one = learned()
    slo = Slo(ttft=60.0, total=12.0)
    for number in range(20):
        one.arrive(chat_job(f"r{number}", slo=slo))
    let_in = [number for number in range(20) if one.outcome(f"r{number}") == "waiting"]
    assert let_in == list(range(len(let_in)))
    assert 3 <= len(let_in) <= 8  # 1.28 s each at the p50, and 5 s for its own p90
    assert one.record("r19").refusal is ShedReason.FORECAST


def test_what_an_idle_engine_could_serve_is_not_refused_for_its_length() -> None:
    one = learned()
    one.finish("runs", Usage(10, 100))
    one.arrive(chat_job("tight"), within=3.0)
    assert one.engine("tight") == "e0"


def test_a_goal_for_the_whole_answer_that_no_engine_meets_is_stretched() -> None:
    one = learned()
    one.arrive(chat_job("hopeless", slo=Slo(ttft=60.0, total=0.5)))  # its p90 takes 5 s on an idle engine
    assert one.outcome("hopeless") == "waiting"
    assert one.record("hopeless").ends_by == pytest.approx(10.3, rel=0.1)
