"""What the core writes into its books: each request once, under the kind of its end."""

from __future__ import annotations

from typing import Any

from sage.common.api import ClassStatus
from sage.common.telemetry import ShedReason
from sage.middleware.control_plane.core import Core
from sage.middleware.control_plane.options import CoreOptions, Limits
from sage.middleware.control_plane.policy import load_policy
from sage.middleware.control_plane.records import Record
from sage.middleware.control_plane.reports import decision_of
from sage.middleware.control_plane.types import (
    Action,
    Arrived,
    Cancelled,
    Dispatch,
    EngineDown,
    EngineUp,
    Failed,
    Finished,
    FirstByte,
    Tick,
)
from sage.middleware.engines.port import Usage
from sage.middleware.testing.policies import chat_job, chat_spec


def make(engines: int = 1, **limits: Any) -> Core:
    """One slot per engine, first come first served."""
    core = Core(load_policy("fifo"), CoreOptions(limits=Limits(**limits)))
    for index in range(engines):
        core.handle(EngineUp(0.0, chat_spec(f"e{index}", max_running=1)))
    return core


def arrive(core: Core, ident: str, at: float = 0.0, deadline: float | None = None) -> list[Action]:
    return core.handle(Arrived(at, chat_job(ident), deadline))


def attempt(actions: list[Action]) -> int:
    (number,) = (action.attempt for action in actions if isinstance(action, Dispatch))
    return number


def record(core: Core, ident: str) -> Record:
    found = core.record(ident)
    assert found is not None
    return found


def only(core: Core) -> ClassStatus:
    (status,) = core.books.classes()
    return status


def test_a_request_that_is_served_is_counted_with_its_times() -> None:
    core = make()
    number = attempt(arrive(core, "a"))
    core.handle(FirstByte(0.5, number))
    assert core.books.classes() == []
    core.handle(Finished(1.5, number, Usage(10, 11)))
    status = only(core)
    assert (status.offered, status.done, status.met) == (1, 1, 1)


def test_refusals_are_counted_by_their_kind() -> None:
    core = make(queue_max_requests=2, queue_max_wait_s=10.0)
    arrive(core, "running")
    arrive(core, "waits")
    arrive(core, "late", deadline=3.0)
    arrive(core, "too many")
    core.handle(Tick(5.0))
    core.handle(Tick(11.0))
    core.handle(EngineDown(12.0, "e0", "gone"))
    arrive(core, "nobody there", 13.0)
    kinds = (ShedReason.QUEUE_FULL, ShedReason.DEADLINE, ShedReason.EXPIRED, ShedReason.NO_ENGINE)
    assert only(core).shed == dict.fromkeys(map(str, kinds), 1)
    assert decision_of(record(core, "too many"), 0.0).refusal == "queue_full"
    assert decision_of(record(core, "running"), 0.0).refusal == ""


def test_what_waited_before_a_request_is_remembered() -> None:
    core = make()
    for ident in ("a", "b", "c"):
        arrive(core, ident)
    found = [record(core, ident) for ident in ("a", "b", "c")]
    assert [one.ahead for one in found] == [0, 0, 1]
    assert found[2].ahead_seconds == found[1].cost > 0.0


def test_a_client_that_goes_away_is_not_offered_load() -> None:
    core = make()
    arrive(core, "a")
    arrive(core, "b")
    core.handle(Cancelled(1.0, "b"))
    core.handle(Cancelled(1.0, "a"))
    status = only(core)
    assert (status.cancelled, status.offered, status.attainment()) == (2, 0, None)


def test_a_retry_is_counted_with_its_request() -> None:
    core = make(2)
    number = attempt(arrive(core, "a"))
    again = attempt(core.handle(Failed(0.1, number, "it broke", retryable=True, fault=True)))
    core.handle(Finished(0.2, again, Usage(1, 1)))
    status = only(core)
    assert (status.done, status.retries, status.quarantined) == (1, 1, 0)


def test_a_request_under_which_two_engines_crashed_is_counted_as_quarantined() -> None:
    core = make(3)
    actions = arrive(core, "a")
    for at in (1.0, 2.0):
        (dispatch,) = (action for action in actions if isinstance(action, Dispatch))
        actions = core.handle(EngineDown(at, dispatch.engine, "its process ended", crashed=True))
        actions += core.handle(Failed(at, dispatch.attempt, "it broke", retryable=True, fault=True))
    status = only(core)
    assert (status.failed, status.quarantined, status.offered) == (1, 1, 1)
