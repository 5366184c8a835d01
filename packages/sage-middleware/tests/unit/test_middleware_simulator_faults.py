"""Each fault, and what becomes of the requests that meet it."""

from __future__ import annotations

from typing import Any

import pytest

from sage.middleware.control_plane.options import CoreOptions, Limits
from sage.middleware.control_plane.simulator.faults import (
    Brownout,
    Fault,
    Hang,
    Kill,
    Mute,
    Refuse,
    Reload,
    Slow,
)
from sage.middleware.control_plane.simulator.fleet import Fleet
from sage.middleware.control_plane.simulator.types import Result, SimRequest
from sage.middleware.control_plane.simulator.world import simulate
from sage.middleware.testing.simulated import (
    chat_request,
    embed_engine,
    embed_request,
    fleet_of,
    llm_engine,
)

ONE = fleet_of(llm_engine(max_running=8, kv_tokens=100_000))
TWO = fleet_of(llm_engine(max_running=8, count=2))


def run(faults: list[Fault], *requests: SimRequest, fleet: Fleet = TWO, **more: Any) -> Result:
    return simulate("fifo", fleet, requests, seed=1, faults=faults, check=True, **more)


def test_what_ran_on_an_engine_that_is_killed_is_sent_elsewhere_before_its_first_byte() -> None:
    silent, streaming = chat_request("a", 0.0, job_stream=False, output=100), chat_request("b", output=100)
    one, other = run([Kill(0.5, "llm0")], silent, streaming).requests
    assert (one.outcome, one.engine, one.attempts) == ("done", "llm1", 2)
    assert one.total_s == pytest.approx(0.5 + 0.02 + 99 * 0.011)
    assert (other.outcome, other.attempts) == ("failed", 1)
    assert "connection broke" in other.reason


def test_a_killed_engine_stays_down_or_comes_back() -> None:
    late = chat_request("a", 10.0)
    gone = run([Kill(1.0, "llm")], late, fleet=ONE)
    back = run([Kill(1.0, "llm", restart_after=3.0)], late, fleet=ONE)
    assert [one.outcome for one in gone.requests + back.requests] == ["rejected", "done"]
    assert [result.engines[0].state for result in (gone, back)] == ["down", "up"]
    assert [result.engines[0].starts for result in (gone, back)] == [1, 2]


def test_until_a_death_is_noticed_connects_are_refused() -> None:
    fault = Kill(1.0, "llm0", noticed_after=2.0)
    between, after = run([fault], chat_request("a", 2.0), chat_request("b", 4.0)).requests
    assert (between.outcome, between.engine, between.attempts) == ("done", "llm1", 2)
    assert (after.outcome, after.attempts) == ("done", 1)


def test_a_reload_loses_what_runs_and_takes_its_time() -> None:
    (one,) = run([Reload(0.005, "llm", 2.0)], chat_request("a"), fleet=ONE).requests
    late = run([Reload(0.005, "llm", 2.0)], chat_request("b", 3.0), fleet=ONE)
    assert (one.outcome, late.requests[0].outcome) == ("failed", "done")
    assert late.engines[0].starts == 2


def test_a_slow_engine_is_slow_for_as_long_as_the_fault_lasts() -> None:
    requests = [chat_request("before"), chat_request("during", 10.0), chat_request("after", 30.0)]
    before, during, after = run([Slow(9.0, "llm", 20.0, 5.0)], *requests, fleet=ONE).requests
    assert during.total_s == pytest.approx(5 * before.total_s)
    assert after.total_s == pytest.approx(before.total_s)


def test_of_two_windows_the_longer_one_decides_when_it_is_over() -> None:
    faults: list[Fault] = [Slow(0.0, "llm", 100.0, 5.0), Slow(1.0, "llm", 2.0, 3.0)]
    (one,) = run(faults, chat_request("a", 50.0, output=1), fleet=ONE).requests
    assert one.total_s == pytest.approx(3 * 0.02)


def test_a_brown_out_fails_its_share_of_calls() -> None:
    requests = [chat_request(f"r{number}", number * 1.0, output=1) for number in range(200)]
    options = CoreOptions(limits=Limits(retry_share=1.0))
    result = run([Brownout(0.0, "llm0", 1e6, 0.3, after=0.2)], *requests, options=options)
    retried = [one for one in result.requests if one.attempts > 1]
    assert 20 <= result.engines[0].failed <= 100
    assert all(one.outcome == "done" and one.total_s > 0.2 for one in retried)
    assert len(retried) == result.engines[0].failed


def test_refused_connects_are_sent_elsewhere_and_what_runs_goes_on() -> None:
    running, refused = run(
        [Refuse(0.5, "llm0", 10.0)], chat_request("a", output=100), chat_request("b", 1.0)
    ).requests
    assert (running.outcome, running.engine) == ("done", "llm0")
    assert (refused.engine, refused.attempts) == ("llm1", 2)


def test_a_short_hang_is_waited_for() -> None:
    undisturbed = run([], chat_request("a", output=100)).requests[0].total_s
    (one,) = run([Hang(0.5, "llm0", 7.0)], chat_request("a", output=100)).requests
    assert one.total_s == pytest.approx(undisturbed + 7.0)


def test_an_engine_that_hangs_on_is_restarted_if_it_is_ours() -> None:
    requests = [chat_request("a", output=100), chat_request("b", 200.0)]
    result = run([Hang(0.5, "llm", 100.0)], *requests, fleet=ONE)
    assert [one.outcome for one in result.requests] == ["failed", "done"]
    assert result.engines[0].starts == 2


def test_an_engine_that_is_not_ours_is_left_to_itself() -> None:
    fleet = fleet_of(llm_engine(managed=False))
    requests = [chat_request("a", output=100), chat_request("b", 200.0)]
    result = run([Hang(0.5, "llm", 100.0)], *requests, fleet=fleet)
    assert [one.outcome for one in result.requests] == ["failed", "done"]  # nobody waits for ever
    assert result.engines[0].starts == 1


def test_a_process_that_is_started_in_a_hang_hangs_too() -> None:
    faults: list[Fault] = [Hang(0.0, "llm", 20.0), Kill(1.0, "llm", restart_after=1.0)]
    (one,) = run(faults, chat_request("a", 5.0, output=1), fleet=ONE).requests
    assert one.total_s == pytest.approx(15.0 + 0.02)


def test_a_mute_engine_works_and_only_looks_hung() -> None:
    long = chat_request("a", output=20_000)
    heard = run([], long, fleet=ONE)
    mute = run([Mute(1.0, "llm", 100.0)], long, chat_request("b", 200.0, output=1), fleet=ONE)
    assert heard.requests[0].outcome == "done"
    assert heard.engines[0].starts == 1
    assert mute.requests[0].outcome == "failed"  # restarted, as nothing was heard of it for a minute
    assert mute.requests[0].total_s == pytest.approx(61.0, abs=2.0)
    assert mute.engines[0].busy_s == pytest.approx(mute.requests[0].total_s, abs=0.1)


def test_faults_strike_embedding_engines_too() -> None:
    fleet = fleet_of(embed_engine(count=2))
    requests = [embed_request("a", tokens=2000, texts=8), embed_request("b", 1.0)]
    one, other = run([Kill(0.1, "embed0")], *requests, fleet=fleet).requests
    assert (one.engine, one.attempts) == ("embed1", 2)
    assert (other.engine, other.attempts) == ("embed1", 1)
