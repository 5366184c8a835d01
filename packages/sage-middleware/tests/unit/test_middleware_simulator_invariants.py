"""The checker finds what is wrong, and finds nothing wrong with any policy over hundreds of random runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from sage.middleware.control_plane.core import Core
from sage.middleware.control_plane.policies.least_load import LeastLoad
from sage.middleware.control_plane.policy import PolicyOptions, available_policies, load_policy
from sage.middleware.control_plane.simulator import soak
from sage.middleware.control_plane.simulator.fleet import engine_spec
from sage.middleware.control_plane.simulator.invariants import Checker, InvariantError
from sage.middleware.control_plane.simulator.soak import main, replay_command, run_seed
from sage.middleware.control_plane.simulator.world import simulate
from sage.middleware.control_plane.types import (
    Arrived,
    Cancel,
    Dispatch,
    EngineDown,
    EngineUp,
    Finished,
    Reject,
    Slice,
)
from sage.middleware.engines.port import Usage
from sage.middleware.testing.simulated import chat_request, embed_engine, fleet_of, llm_engine

SEEDS_PER_POLICY = 14
NAMES = available_policies()


@pytest.mark.parametrize("policy", NAMES)
def test_every_invariant_holds_in_random_runs(policy: str) -> None:
    first = NAMES.index(policy) * SEEDS_PER_POLICY
    problems = [
        (report.problem, replay_command(report))
        for report in (run_seed(seed, [policy]) for seed in range(first, first + SEEDS_PER_POLICY))
        if report.problem
    ]
    assert problems == []


# ---- what the checker finds --------------------------------------------------------------------------------


def checked() -> tuple[Core, Checker]:
    """A core with one engine and one running request `a`, and a checker that saw all of it."""
    core = Core(load_policy("fifo"))
    checker = Checker(core, 30.0)
    spec = engine_spec("llm", fleet_of(llm_engine()).engines[0])
    for event in (EngineUp(0.0, spec), Arrived(1.0, chat_request("a").job)):
        checker.saw(event, core.handle(event))
    checker.after([core.record("a")], 1.0)  # type: ignore[list-item]  # it lives
    return core, checker


def saw_more_than_the_core(core: Core, checker: Checker) -> None:
    checker.saw(Arrived(1.0, chat_request("b").job), [Dispatch(9, "llm", (Slice("b", 0, 1),), "")])
    checker.after([core.record("a")], 1.0)  # type: ignore[list-item]


def lost_request(core: Core, checker: Checker) -> None:
    record = core.record("a")
    assert record is not None
    record.running = ()
    checker.after([record], 1.0)


def starved(core: Core, checker: Checker) -> None:
    record = core.record("a")
    assert record is not None
    record.running = ()
    record.taken, record.outcome = 0, "waiting"
    checker.after([record], 31.5)


def too_many(core: Core, checker: Checker) -> None:
    (load,) = core.engines
    load.max_running = 0
    checker.after([core.record("a")], 1.0)  # type: ignore[list-item]


def forgotten(core: Core, checker: Checker) -> None:
    checker.after([], 1.0)


def sent_to_a_dead_engine(core: Core, checker: Checker) -> None:
    checker.saw(EngineDown(2.0, "llm", "died"), [Dispatch(9, "llm", (Slice("b", 0, 1),), "")])


def sent_twice(core: Core, checker: Checker) -> None:
    checker.saw(Arrived(2.0, chat_request("b").job), [Dispatch(1, "llm", (Slice("b", 0, 1),), "")])


def cancelled_what_does_not_run(core: Core, checker: Checker) -> None:
    checker.saw(Arrived(2.0, chat_request("b").job), [Cancel(9)])


def ended(core: Core, checker: Checker) -> None:
    event = Finished(2.0, 1, Usage(1, 1))
    checker.saw(event, core.handle(event))
    record = core.record("a")
    assert record is not None
    checker.ended(record)


def ended_twice(core: Core, checker: Checker) -> None:
    ended(core, checker)
    ended(core, checker)


def rejected_after_its_end(core: Core, checker: Checker) -> None:
    ended(core, checker)
    checker.saw(Arrived(2.0, chat_request("b").job), [Reject("a", 429, "", None)])


def sent_after_its_end(core: Core, checker: Checker) -> None:
    ended(core, checker)
    checker.saw(Arrived(2.0, chat_request("b").job), [Dispatch(9, "llm", (Slice("a", 0, 1),), "")])


def half_done(core: Core, checker: Checker) -> None:
    record = core.record("a")
    assert record is not None
    record.outcome = "done"
    checker.ended(record)


def not_ended(core: Core, checker: Checker) -> None:
    record = core.record("a")
    assert record is not None
    checker.ended(record)


def left_over(core: Core, checker: Checker) -> None:
    checker.at_end()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (saw_more_than_the_core, "llm has 1 slots taken, the driver 2"),
        (lost_request, "a neither waits nor runs"),
        (starved, "a has waited 30.500 s, the bound is 30.000 s"),
        (too_many, "llm has 1 of 0 slots taken"),
        (forgotten, "the core has 1 live requests, the driver 0"),
        (sent_to_a_dead_engine, "attempt 9 was sent to llm, which is"),
        (sent_twice, "attempt 1 was sent twice"),
        (cancelled_what_does_not_run, "attempt 9 is cancelled, which does not run"),
        (ended_twice, "a ended twice, now as done"),
        (rejected_after_its_end, "a is rejected after its end"),
        (sent_after_its_end, "a was sent to llm after its end"),
        (half_done, "a is done, and 1 of its 1 units are not"),
        (not_ended, "a ended as running"),
        (left_over, "1 requests and 1 attempts are left at the end"),
    ],
)
def test_a_violation_is_found(wrong: Callable[[Core, Checker], None], message: str) -> None:
    core, checker = checked()
    with pytest.raises(InvariantError, match=message):
        wrong(core, checker)


def test_what_ended_well_is_no_violation() -> None:
    core, checker = checked()
    ended(core, checker)
    checker.after([], 2.0)
    checker.at_end()


# ---- from the outside --------------------------------------------------------------------------------------


class Forgetful(LeastLoad):
    """Leaves in the queue whatever does not go at once, and wants to be asked without end."""

    def choose(self, record: Any, engines: Any, now: float) -> Any:
        from sage.middleware.control_plane.policy import Wait

        return Wait(now)


def broken(name: str, options: PolicyOptions | None = None) -> Any:
    return Forgetful(options or PolicyOptions())


def test_a_broken_policy_is_reported_with_seed_and_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sage.middleware.control_plane.simulator.world.load_policy", broken)
    fleet = fleet_of(llm_engine(), embed_engine())
    with pytest.raises(InvariantError, match=r"woken again and again .*\(seed 7, step \d+, at 0\.\d+ s"):
        simulate("fifo", fleet, [chat_request("a")], seed=7)


def test_the_soak_prints_the_one_command_that_replays_a_seed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sage.middleware.control_plane.simulator.world.load_policy", broken)
    assert main(["--seeds", "3..4", "--policy", "fifo", "--jobs", "1"]) == 1
    printed = capsys.readouterr().out
    assert f"replay: python -m {soak.__name__} --seeds 3 --policy fifo" in printed
    assert "SIMULATED 2 seeds" in printed
    assert "2 failed [3, 4]" in printed


def test_the_soak_is_quiet_about_what_is_well(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--seeds", "5", "--policy", "all", "--jobs", "1"]) == 0
    assert capsys.readouterr().out.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--seeds", "a..b"], "valid is a seed or FIRST..LAST"), (["--policy", "x"], "valid are all, adaptive")],
)
def test_the_soak_says_what_it_takes(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(arguments)
    assert message in capsys.readouterr().err
