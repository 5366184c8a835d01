"""The simulated world: what becomes of requests, and that a seed gives a run."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import Any

import msgspec
import pytest

from sage.common.errors import NotFoundError, UsageError
from sage.middleware.control_plane.options import CoreOptions, Limits
from sage.middleware.control_plane.policy import PolicyOptions
from sage.middleware.control_plane.simulator.faults import Kill
from sage.middleware.control_plane.simulator.fleet import Fleet
from sage.middleware.control_plane.simulator.report import summarise
from sage.middleware.control_plane.simulator.scenarios import random_scenario
from sage.middleware.control_plane.simulator.types import Client, RequestResult, Result, SimRequest
from sage.middleware.control_plane.simulator.world import simulate
from sage.middleware.testing.simulated import (
    chat_request,
    embed_engine,
    embed_request,
    fleet_of,
    llm_engine,
)

ONE = fleet_of(llm_engine(), embed_engine())


def run(*requests: SimRequest, fleet: Fleet = ONE, policy: str = "fifo", **more: Any) -> Result:
    return simulate(policy, fleet, requests, seed=1, check=True, **more)


def outcomes(result: Result) -> dict[str, str]:
    return {one.id: one.outcome for one in result.requests}


def test_a_chat_takes_its_prefill_and_its_tokens() -> None:
    (one,) = run(chat_request("a", 1.0, prompt=100, output=11)).requests
    assert (one.arrived, one.outcome, one.engine, one.queue_s) == (1.0, "done", "llm", 0.0)
    assert one.ttft_s == pytest.approx(0.01 + 100 * 0.0001)
    assert one.tpot_s == pytest.approx(0.011)
    assert one.total_s == pytest.approx(0.02 + 10 * 0.011)
    assert (one.prompt_tokens, one.output_tokens, one.attempts) == (100, 11, 1)
    assert one.slo.ttft == 2.0


def test_what_is_no_stream_comes_all_at_once() -> None:
    (one,) = run(chat_request("a", prompt=100, output=11, job_stream=False)).requests
    assert one.ttft_s == one.total_s == pytest.approx(0.02 + 10 * 0.011)
    assert one.tpot_s is None


def test_the_engine_counts_as_it_is_not_as_it_was_estimated() -> None:
    request = msgspec.structs.replace(chat_request("a", prompt=100, output=1), prompt_tokens=200)
    result = run(request)
    assert result.requests[0].total_s == pytest.approx(0.01 + 200 * 0.0001)
    assert result.engines[0].prompt_tokens == 200


def test_texts_are_embedded_in_batches() -> None:
    fleet = fleet_of(embed_engine(max_running=8))
    result = run(*(embed_request(str(number), number * 1e-4) for number in range(6)), fleet=fleet)
    ends = sorted({round(one.arrived + one.total_s, 6) for one in result.requests})
    assert ends == [0.021, round(0.021 + 0.01 + 0.05 + 0.005, 6)]  # the first alone, then the five that wait


def test_the_answers_of_a_batch_leave_one_after_the_other() -> None:
    fleet = fleet_of(embed_engine(max_running=8, handover_s=0.002))
    result = run(*(embed_request(str(number), number * 1e-4) for number in range(4)), fleet=fleet)
    ends = [one.arrived + one.total_s for one in result.requests]
    assert ends[0] == pytest.approx(0.021), "one alone has nobody to wait for"
    second = 0.021 + 0.01 + 0.03 + 0.003
    assert ends[1:] == pytest.approx([second, second + 0.002, second + 0.004])


def test_an_answer_that_was_broken_off_on_its_way_is_not_given() -> None:
    fleet = fleet_of(embed_engine(max_running=8, handover_s=0.01))
    gone = embed_request("gone", 2e-4, cancel_after=0.021 + 0.043 - 2e-4 + 0.005)
    result = run(embed_request("a"), embed_request("b", 1e-4), gone, embed_request("c", 3e-4), fleet=fleet)
    assert outcomes(result) == {"a": "done", "b": "done", "gone": "cancelled", "c": "done"}


def test_equal_requests_over_equal_engines_are_shared_evenly() -> None:
    fleet = fleet_of(llm_engine(count=4))
    requests = [chat_request(str(number), number * 1.0) for number in range(40)]
    options = PolicyOptions(exploration=0.0)
    for policy in ("round_robin", "least_load"):
        result = run(*requests, fleet=fleet, policy=policy, policy_options=options)
        assert Counter(one.engine for one in result.requests) == {f"llm{index}": 10 for index in range(4)}


def test_followers_come_when_their_predecessor_is_done() -> None:
    chain = embed_request("embed", 1.0, follow=(chat_request("chat", 0.5),))
    embedded, chatted = run(chain).requests
    assert chatted.arrived == pytest.approx(1.0 + embedded.total_s + 0.5)


def test_nothing_follows_what_was_not_served() -> None:
    chain = embed_request("embed", 1.0, cancel_after=0.001, follow=(chat_request("chat", 0.5),))
    assert outcomes(run(chain)) == {"embed": "cancelled"}


def test_steps_that_were_never_sent_because_an_earlier_one_was_not_served_are_offered_and_missed() -> None:
    fleet = fleet_of(llm_engine(max_running=1), embed_engine())
    last = embed_request("last", 0.5)
    chain = chat_request(
        "first", output=5000, deadline=2.0, follow=(chat_request("next", 0.5, follow=(last,)),)
    )
    result = run(chain, fleet=fleet)
    assert outcomes(result) == {"first": "failed", "next": "unsent", "last": "unsent"}
    unsent = result.requests[-1]
    assert (unsent.arrived, unsent.total_s, unsent.engine, unsent.attempts) == (2.0, 0.0, None, 0)
    assert "first before it" in unsent.reason
    report = summarise(result)
    assert report.outcomes == {"chat": {"failed": 1, "unsent": 1}, "embed_interactive": {"unsent": 1}}
    attained = {one.group: one.value for one in report.figures if one.name == "attainment"}
    assert attained == {"all": 0.0, "chat": 0.0, "embed_interactive": 0.0}
    assert report.wall_s == 2.0


def in_a_loop(until: float, count: int, *, pause: float = 0.5, **changes: Any) -> SimRequest:
    turns = iter([chat_request(f"n{number}", pause) for number in range(count)])
    return chat_request("first", client=Client(until, turns), **changes)


def test_a_client_asks_again_when_it_was_answered() -> None:
    first, second, third = run(in_a_loop(until=60.0, count=2)).requests
    assert [one.id for one in (first, second, third)] == ["first", "n0", "n1"]
    assert second.arrived == pytest.approx(first.total_s + 0.5)
    assert third.arrived == pytest.approx(second.arrived + second.total_s + 0.5)


def test_a_client_stops_at_its_time() -> None:
    last = run(in_a_loop(until=3.0, count=99)).requests[-1]
    assert last.arrived < 3.0 <= last.arrived + last.total_s + 0.5


def test_a_slower_fleet_is_asked_less_often() -> None:
    slow = fleet_of(llm_engine(a=0.1), embed_engine())
    asked = [len(run(in_a_loop(until=30.0, count=999), fleet=fleet).requests) for fleet in (ONE, slow)]
    assert asked[0] > 1.5 * asked[1]


def test_a_client_that_is_refused_waits_before_it_asks_again() -> None:
    fleet = fleet_of(llm_engine(starts_up=False, cold_start_s=5.0))
    result = run(in_a_loop(until=60.0, count=200, pause=0.0), fleet=fleet)
    refused = [one for one in result.requests if one.outcome == "rejected"]
    assert refused
    assert all(later.arrived - one.arrived >= 0.1 for one, later in pairwise(refused))
    assert result.requests[-1].outcome == "done"


def test_a_client_that_leaves_frees_its_slot() -> None:
    fleet = fleet_of(llm_engine(max_running=1))
    left, next_one = run(
        chat_request("a", 0.0, output=10_000 - 100, cancel_after=1.0), chat_request("b", 0.5), fleet=fleet
    ).requests
    assert (left.outcome, left.total_s, left.output_tokens) == ("cancelled", 1.0, 0)
    assert next_one.queue_s == 0.5


def test_a_request_ends_at_its_deadline() -> None:
    fleet = fleet_of(llm_engine(max_running=1))
    running, waiting = run(
        chat_request("a", output=5000, deadline=2.0), chat_request("b", deadline=1.0), fleet=fleet
    ).requests
    assert (running.outcome, waiting.outcome) == ("failed", "rejected")
    assert (running.total_s, waiting.total_s) == (2.0, 1.0)


def test_waiting_is_bounded() -> None:
    fleet = fleet_of(llm_engine(max_running=1))
    options = CoreOptions(limits=Limits(queue_max_wait_s=3.0))
    result = run(chat_request("a", output=5000), chat_request("b"), fleet=fleet, options=options)
    assert result.requests[1].outcome == "rejected"
    assert result.requests[1].total_s == pytest.approx(3.0)


def test_what_no_engine_can_keep_is_the_requests_own_fault() -> None:
    (one,) = run(chat_request("a", prompt=9000, output=2000)).requests
    assert (one.outcome, one.attempts) == ("failed", 1)
    assert "10999 tokens" in one.reason


def test_an_engine_that_loads_first_serves_when_it_is_up() -> None:
    fleet = fleet_of(llm_engine(starts_up=False, cold_start_s=5.0))
    result = run(chat_request("early", 1.0), chat_request("late", 6.0), fleet=fleet)
    assert outcomes(result) == {"early": "rejected", "late": "done"}


def test_load_starts_engines_and_quiet_stops_them() -> None:
    fleet = fleet_of(llm_engine(max_running=1, max_replicas=3))
    crowd = [chat_request(f"r{number}", number * 0.1, output=200) for number in range(300)]
    result = run(*crowd, chat_request("last", 1000.0), fleet=fleet)
    started = {engine.name: engine.calls for engine in result.engines}
    assert set(started) == {"llm", "llm.2", "llm.3"}
    assert all(started.values())
    assert [engine.state for engine in result.engines].count("up") == 1


def test_engines_sleep_and_are_woken() -> None:
    fleet = fleet_of(llm_engine(min_replicas=0, cold_start_s=2.0), embed_engine())
    keep_busy = [embed_request(f"e{number}", number * 1.0) for number in range(700)]
    result = run(*keep_busy, chat_request("a", 700.0, output=1), fleet=fleet)
    llm = result.engines[0]
    assert result.requests[-1].outcome == "done"
    assert result.requests[-1].total_s == pytest.approx(2.02, abs=0.01)
    assert llm.starts == 2


# ---- the run as a whole ------------------------------------------------------------------------------------


def scenario_run(seed: int, **more: Any) -> Result:
    scenario = random_scenario(seed)
    return simulate(
        "least_load",
        scenario.fleet,
        scenario.workload,
        seed=seed,
        faults=scenario.faults,
        options=scenario.options,
        **more,
    )


@pytest.mark.parametrize("seed", [2, 6])
def test_one_seed_is_one_run_watched_or_not(seed: int) -> None:
    first = msgspec.structs.replace(scenario_run(seed), wall_s=0.0)
    assert msgspec.structs.replace(scenario_run(seed), wall_s=0.0) == first
    assert msgspec.structs.replace(scenario_run(seed, check=True), wall_s=0.0) == first


def test_another_seed_is_another_run() -> None:
    fleet = fleet_of(llm_engine(noise=0.2))
    one, other = (simulate("fifo", fleet, [chat_request("a")], seed=seed) for seed in (1, 2))
    assert one.requests[0].total_s != other.requests[0].total_s


def test_every_request_of_the_workload_is_in_the_result_by_arrival() -> None:
    result = scenario_run(2)
    arrivals = [one.arrived for one in result.requests]
    assert arrivals == sorted(arrivals)
    assert {one.job.id for one in random_scenario(2).workload} <= {one.id for one in result.requests}


def test_all_of_it_says_that_it_is_simulated() -> None:
    result = run(chat_request("a"))
    assert result.simulated
    plain = msgspec.to_builtins(result)
    labels = [plain["label"], plain["requests"][0]["label"], plain["engines"][0]["label"]]
    assert labels == ["SIMULATED"] * 3
    again = msgspec.convert(plain, Result)
    assert again == result
    with pytest.raises(msgspec.ValidationError, match="label"):
        msgspec.convert({**plain["requests"][0], "label": "MEASURED"}, RequestResult)


def test_a_workload_out_of_order_is_refused() -> None:
    with pytest.raises(UsageError, match="b arrives at"):
        run(chat_request("a", 2.0), chat_request("b", 1.0))


def test_an_id_that_still_lives_is_refused() -> None:
    with pytest.raises(UsageError, match="the id a twice"):
        run(chat_request("a", 1.0), chat_request("a", 1.0))


def test_a_model_that_the_fleet_lacks_is_refused() -> None:
    with pytest.raises(NotFoundError, match="'vectors' does not exist; there are: chat"):
        run(embed_request("a"), fleet=fleet_of(llm_engine()))


def test_a_fault_of_an_engine_that_the_fleet_lacks_is_refused() -> None:
    with pytest.raises(UsageError, match="strikes the engine 'x'; the fleet has llm, embed"):
        run(chat_request("a"), faults=[Kill(1.0, "x")])
