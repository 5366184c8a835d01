"""The states of a job: which steps there are, and that no other ones are taken."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage.common.errors import ConflictError
from sage.common.jobs import ENDED, STATES, CheckpointInfo, JobState
from sage.kernel.jobs import states
from sage.kernel.jobs.restart import Restart
from sage.kernel.jobs.states import NEXT, Job

NOW = 1000.0


def job(state: JobState = "queued", **changes: Any) -> Job:
    usual = {"id": "job-1", "name": "words", "flow": "words", "created": 1.0, "every": 10.0}
    return Job(state=state, restart=Restart.parse("fixed:2:3"), **{**usual, **changes})


def test_the_way_of_a_job_that_goes_well() -> None:
    placed = states.place(job(), "here", "pack: room")
    assert (placed.state, placed.node, placed.placement) == ("starting", "here", "pack: room")
    running = states.began(placed, NOW)
    assert (running.state, running.started) == ("running", NOW)
    done = states.finish(running, NOW + 1)
    assert (done.state, done.ended, done.detail, done.over) == ("finished", NOW + 1, "", True)


def test_the_first_start_counts_as_its_start() -> None:
    again = states.began(job("starting", started=5.0), NOW, 3)
    assert (again.started, again.detail) == (5.0, "it went on from checkpoint 3")


def test_a_checkpoint_that_nobody_told_of_is_known_once_a_job_goes_on_from_it() -> None:
    told = CheckpointInfo(number=3, at=7.0)
    assert states.began(job("starting", checkpoint=told), NOW, 3).checkpoint == told
    assert states.began(job("starting", checkpoint=told), NOW, 4).checkpoint == CheckpointInfo(
        number=4, at=NOW
    )
    assert states.began(job("starting"), NOW).checkpoint is None


ASKED: list[tuple[Callable[[Job], Job], dict[JobState, JobState | None]]] = [
    (
        states.ask_pause,
        {
            "queued": "paused",
            "starting": "paused",
            "running": "pausing",
            "pausing": "pausing",
            "paused": "paused",
            "draining": None,
            "finished": None,
            "failed": None,
            "cancelled": None,
        },
    ),
    (
        states.ask_resume,
        {
            "queued": "queued",
            "starting": "starting",
            "running": "running",
            "pausing": None,
            "paused": "queued",
            "draining": None,
            "finished": None,
            "failed": "queued",
            "cancelled": "queued",
        },
    ),
    (
        lambda one: states.ask_stop(one, NOW, at_once=False),
        {
            "queued": "cancelled",
            "starting": "cancelled",
            "running": "draining",
            "pausing": None,
            "paused": "cancelled",
            "draining": "draining",
            "finished": None,
            "failed": None,
            "cancelled": None,
        },
    ),
    (
        lambda one: states.ask_stop(one, NOW, at_once=True),
        {
            "queued": "cancelled",
            "starting": "cancelled",
            "running": "cancelled",
            "pausing": "cancelled",
            "paused": "cancelled",
            "draining": "cancelled",
            "finished": None,
            "failed": None,
            "cancelled": None,
        },
    ),
    (
        lambda one: states.recover(one, NOW),
        {
            "queued": "queued",
            "starting": "queued",
            "running": "queued",
            "pausing": "paused",
            "paused": "paused",
            "draining": "cancelled",
            "finished": "finished",
            "failed": "failed",
            "cancelled": "cancelled",
        },
    ),
]


@pytest.mark.parametrize(("ask", "expected"), ASKED, ids=["pause", "resume", "stop", "stop now", "recover"])
def test_what_can_be_asked_in_each_state(
    ask: Callable[[Job], Job], expected: dict[JobState, JobState | None]
) -> None:
    assert set(expected) == set(STATES)
    for before, after in expected.items():
        if after is None:
            with pytest.raises(ConflictError, match=f"words is {before}"):
                ask(job(before))
        else:
            assert ask(job(before)).state == after, before


def test_a_refusal_says_what_would_do() -> None:
    with pytest.raises(ConflictError, match="--now"):
        states.ask_stop(job("pausing"), NOW, at_once=False)
    with pytest.raises(ConflictError, match="can be resumed"):
        states.ask_pause(job("failed"))


def test_a_crash_is_followed_by_another_start_as_long_as_the_strategy_allows() -> None:
    running = job("running", started=1.0, placement="x")
    again, delay = states.crash(running, NOW, "it died")
    assert (again.state, delay, again.restarts, again.crashes) == ("queued", 3.0, 1, (NOW,))
    assert again.detail == "it died; starts again in 3 s"
    again, delay = states.crash(states.began(states.place(again, "n", "w"), NOW), NOW + 1, "it died")
    assert (again.state, delay, again.restarts) == ("queued", 3.0, 2)
    last, delay = states.crash(states.place(again, "n", "w"), NOW + 2, "it died")
    assert (last.state, delay, last.detail) == ("failed", None, "it died; gave up after 2 restarts")
    assert (last.ended, last.restarts, len(last.crashes)) == (NOW + 2, 2, 3)


def test_resuming_begins_to_count_anew() -> None:
    worn = job("failed", started=1.0, crashes=(1.0, 2.0, 3.0), restarts=2, detail="it died", ended=NOW)
    fresh = states.ask_resume(worn)
    assert (fresh.crashes, fresh.detail, fresh.ended, fresh.restarts) == ((), "", None, 2)
    assert states.crash(states.place(fresh, "n", "w"), NOW, "again")[1] == 3.0


@pytest.mark.parametrize(
    ("before", "started", "after"),
    [("starting", None, "failed"), ("pausing", 1.0, "paused"), ("draining", 1.0, "failed")],
)
def test_a_crash_that_no_start_follows(before: JobState, started: float | None, after: JobState) -> None:
    found, delay = states.crash(job(before, started=started), NOW, "it died", told=True)
    assert (found.state, delay) == (after, None)
    assert "it died" in found.detail


def test_a_process_that_was_lost_before_it_ran_is_started_again() -> None:
    assert states.crash(job("starting"), NOW, "it was killed")[0].state == "queued"
    assert states.crash(job("starting", started=1.0), NOW, "no such model", told=True)[0].state == "queued"


def test_without_a_strategy_a_crash_is_the_end_and_says_nothing_of_restarts() -> None:
    found, _ = states.crash(job("running", started=1.0), NOW, "x")
    assert found.state == "queued"
    bare = Job(
        id="j", name="n", flow="f", created=0.0, every=1.0, restart=Restart(), state="running", started=1.0
    )
    found, delay = states.crash(bare, NOW, "it died")
    assert (found.state, found.detail, delay) == ("failed", "it died", None)


def test_the_times_of_crashes_are_bounded() -> None:
    held = job("running", started=1.0, crashes=tuple(float(n) for n in range(500)))
    found, _ = states.crash(held, NOW, "x")
    assert len(found.crashes) == 101
    assert found.crashes[-1] == NOW


def test_what_was_drained_says_so() -> None:
    assert states.finish(job("draining"), NOW).detail == "stopped; what was read was finished"


def test_from_an_end_only_a_resume_leads_on() -> None:
    assert {state for state in STATES if NEXT[state] <= {"queued"}} - {"starting"} == ENDED


EVENTS: list[Callable[[Job], Job]] = [
    states.ask_pause,
    states.ask_resume,
    lambda one: states.crash(one, NOW, "why", told=True)[0],
    lambda one: states.ask_stop(one, NOW, at_once=False),
    lambda one: states.ask_stop(one, NOW, at_once=True),
    lambda one: states.place(one, "n", "w"),
    lambda one: states.began(one, NOW),
    states.paused,
    lambda one: states.finish(one, NOW),
    lambda one: states.fail(one, NOW, "why"),
    lambda one: states.crash(one, NOW, "why")[0],
    lambda one: states.recover(one, NOW),
]


@given(st.lists(st.sampled_from(EVENTS), max_size=40))
def test_whatever_happens_every_step_is_one_of_the_table(events: list[Callable[[Job], Job]]) -> None:
    one = job()
    for event in events:
        try:
            after = event(one)
        except ConflictError:
            continue
        assert after.state == one.state or after.state in NEXT[one.state]
        assert after.over == (after.ended is not None)
        assert after.restarts >= one.restarts
        one = after
