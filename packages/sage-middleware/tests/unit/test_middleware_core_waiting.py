"""What waits in the core: bounds, the end of waiting, what it is thought to cost, who pays for it."""

from __future__ import annotations

import pytest
from msgspec import structs

from sage.common.telemetry import RequestClass
from sage.middleware.control_plane.autoscale import Template
from sage.middleware.control_plane.options import CoreOptions, Limits
from sage.middleware.control_plane.policies.hybrid import Hybrid
from sage.middleware.control_plane.policy import PolicyOptions, load_policy
from sage.middleware.control_plane.types import (
    Dispatch,
    EngineAdded,
    EngineDown,
    EngineRemoved,
    EngineUp,
    Job,
    StartEngine,
)
from sage.middleware.testing.core import CoreBench
from sage.middleware.testing.policies import chat_job, chat_spec, embed_job, embed_spec


def hybrid() -> Hybrid:
    return Hybrid(PolicyOptions(exploration=0.0))


def asleep(**limits: int) -> CoreBench:
    """A model whose only engine sleeps until it is asked for."""
    options = CoreOptions(Limits(**limits), templates=(Template("e0", "m", "generate", min_replicas=0),))
    one = CoreBench("hybrid", options=options)
    one.feed(EngineAdded(0.0, chat_spec("e0")))
    one.feed(EngineDown(0.0, "e0", "asleep"))
    return one


def lane_seconds(one: CoreBench, job: Job) -> float:
    """Engine-seconds that a newcomer finds before it."""
    one.arrive(structs.replace(job, id=f"look{one.at}"))
    found = one.record(f"look{one.at}").ahead_seconds
    one.cancel(f"look{one.at}")
    assert found is not None
    return found


# ---- bounds ------------------------------------------------------------------------------------------------


def test_the_queue_is_bounded_while_an_engine_wakes() -> None:
    one = asleep(queue_max_requests=3)
    actions = [action for number in range(5) for action in one.arrive(chat_job(f"r{number}"))]
    assert sum(isinstance(action, StartEngine) for action in actions) == 1
    assert one.waiting() == 3
    assert {ident: action.status for ident, action in one.rejected.items()} == {"r3": 429, "r4": 429}


def test_what_waited_for_an_engine_to_wake_is_priced_when_it_does() -> None:
    one = asleep()
    for number in range(6):
        one.arrive(chat_job(f"r{number}", tokens=5000))
    assert one.record("r0").cost == 0.0
    one.at = 3.0
    one.feed(EngineUp(3.0, chat_spec("e0", max_running=1)))
    assert one.outcome("r0") == "running"
    assert one.record("r0").charged == one.record("r0").cost > 0.0
    assert lane_seconds(one, chat_job("x")) == pytest.approx(5 * one.record("r5").cost)


# ---- the end of waiting ------------------------------------------------------------------------------------


def test_bulk_that_makes_progress_is_not_too_old() -> None:
    one = CoreBench("hybrid", embed_spec("v0"), queue_max_wait_s=1.0)  # bulk may wait for 10 s
    one.arrive(embed_job("bulk", texts=10_000))
    before = one.record("bulk").left
    for _ in range(3):
        one.wait(4.0)
        one.finish("bulk")
    one.fail("bulk")  # so that nothing runs for a moment
    assert one.record("bulk").left < before
    for _ in range(4):
        one.wait(4.0)
        if one.outcome("bulk") == "running" and one.running:
            one.finish("bulk")
    assert one.outcome("bulk") == "running"


def test_bulk_is_not_given_up_between_two_of_its_chunks() -> None:
    one = CoreBench("hybrid", embed_spec("v0"), queue_max_wait_s=1.0)
    one.arrive(embed_job("bulk", texts=10_000))
    one.wait(9.8)
    one.arrive(embed_job("short"))
    one.wait(0.1)
    one.finish("bulk")
    assert one.engine("short") == "v0"
    assert one.record("bulk").running in ((), [])
    one.wait(1.0)  # it came 10.9 s ago, and was served 1 s ago
    assert one.outcome("bulk") == "running"
    one.finish("short")
    assert one.running


def test_bulk_without_progress_is_given_up_in_the_end() -> None:
    one = CoreBench("hybrid", embed_spec("v0"), queue_max_wait_s=1.0)
    one.arrive(embed_job("first", texts=10_000))
    one.arrive(embed_job("second", texts=10_000))
    one.wait(10.5)
    assert one.outcome("second") == "rejected"


def test_a_chain_whose_time_is_over_gets_no_engine() -> None:
    one = CoreBench("hybrid", chat_spec("e0"))
    one.arrive(chat_job("parent"), within=2.0)
    one.at = 2.5
    one.finish("parent")
    one.arrive(structs.replace(chat_job("child"), parent="parent"))
    assert one.rejected["child"].status == 429
    assert "deadline passed" in one.rejected["child"].reason
    assert one.running == {}


def test_an_id_that_is_used_again_is_another_chain() -> None:
    one = CoreBench("fifo", chat_spec("e0"))
    one.arrive(chat_job("first"), within=5.0)
    one.finish("first")
    one.arrive(chat_job("first"))
    one.arrive(structs.replace(chat_job("second"), parent="first"))
    assert one.record("second").deadline is None


def test_nothing_is_sent_after_its_deadline_however_late_the_tick_comes() -> None:
    one = CoreBench("fifo", chat_spec("e0", max_running=1))
    one.arrive(chat_job("a"))
    one.arrive(chat_job("b"), within=2.0)
    one.at = 2.5  # no tick in between
    one.finish("a")
    assert not any(isinstance(action, Dispatch) for action in one.actions)
    assert one.outcome("b") == "rejected"


# ---- what it is thought to cost ----------------------------------------------------------------------------


def test_only_the_texts_that_wait_are_counted_as_backlog() -> None:
    one = CoreBench("hybrid", embed_spec("v0"))
    bulk = embed_job("bulk", texts=20_000)
    one.arrive(bulk)
    record = one.record("bulk")
    left = record.cost
    for _ in range(5):
        found = lane_seconds(one, bulk)
        assert found == pytest.approx(record.cost * record.waiting_units / record.units)
        assert found < left
        left = found
        one.wait(1.0)
        one.finish("bulk")
    one.fail("bulk")
    one.cancel("bulk")
    assert lane_seconds(one, bulk) == 0.0


def test_what_is_refused_is_counted_as_shed_whatever_the_reason() -> None:
    one = CoreBench("fifo", chat_spec("e0", max_running=1), queue_max_requests=1)
    for ident in "abc":
        one.arrive(chat_job(ident))
    one.feed(EngineDown(0.0, "e0", "killed"))
    one.fail("a")
    counts = one.core.counts(RequestClass.CHAT)
    assert (counts.shed, counts.failed, counts.completed) == (2, 1, 0)  # full, no engine; the running one


# ---- who pays ----------------------------------------------------------------------------------------------


def test_whoever_leaves_at_once_pays_for_next_to_nothing() -> None:
    policy = hybrid()
    one = CoreBench(policy, chat_spec("e0", max_running=1))
    one.arrive(chat_job("a", tokens=100_000))
    assert policy._accounts.used("m", "tenant") > 1.0
    one.at = 0.1
    one.cancel("a")
    assert policy._accounts.used("m", "tenant") == pytest.approx(0.1)


def test_whoever_leaves_late_pays_for_what_was_predicted() -> None:
    policy = hybrid()
    one = CoreBench(policy, chat_spec("e0", max_running=1))
    one.arrive(chat_job("a"))
    used = policy._accounts.used("m", "tenant")
    one.at = 500.0
    one.cancel("a")
    assert policy._accounts.used("m", "tenant") == pytest.approx(used)


def test_nobody_gains_credit_by_a_change_of_policy() -> None:
    one = CoreBench("hybrid", chat_spec("e0", max_running=1))
    one.arrive(chat_job("a", tokens=100_000))
    policy = hybrid()
    one.note(one.core.set_policy(policy, one.at))
    assert policy._accounts.used("m", "tenant") == pytest.approx(one.record("a").charged)
    assert one.record("a").charged > 0.0
    one.cancel("a")
    assert policy._accounts.used("m", "tenant") == pytest.approx(0.0)
    one.note(one.core.set_policy(load_policy("fifo"), one.at))
    one.note(one.core.set_policy(hybrid(), one.at))
    assert one.core.live == 0


# ---- what is remembered ------------------------------------------------------------------------------------

SMALL = [structs.replace(chat_spec(name), kv_tokens=640) for name in ("e0", "e1")]  # 10 blocks each


def test_the_blocks_of_a_prompt_are_forgotten_with_its_end() -> None:
    one = CoreBench("hybrid", chat_spec("e0"))
    one.arrive(structs.replace(chat_job("a"), blocks=tuple(range(1000))))
    assert len(one.core._placement._prefixes) == 1000
    one.finish("a")
    assert one.record("a").job.blocks == ()
    assert one.record("a").job.id == "a"


def test_what_engines_had_cached_of_a_prompt_is_forgotten_with_its_end() -> None:
    one = CoreBench("hybrid", *SMALL)
    for ident in ("a", "b"):
        one.arrive(structs.replace(chat_job(ident), blocks=(1, 2, 3)))
    assert one.record("b").cached
    one.finish("b")
    assert one.record("b").cached is None


def test_what_a_removed_engine_had_cached_is_forgotten() -> None:
    one = CoreBench("hybrid", *SMALL)
    one.arrive(structs.replace(chat_job("a"), blocks=(1, 2, 3)))
    gone = one.engine("a")
    one.feed(EngineRemoved(one.at, gone))
    one.finish("a")
    prefixes = one.core._placement._prefixes
    assert len(prefixes) == 0
    prefixes.insert(gone, tuple(range(100)))
    assert len(prefixes) == 100  # nor is it known how much it could keep


def test_a_policy_without_prefixes_forgets_what_engines_have_cached() -> None:
    one = CoreBench("hybrid", *SMALL)
    one.arrive(structs.replace(chat_job("a"), blocks=(1, 2, 3)))
    one.note(one.core.set_policy(load_policy("adaptive", PolicyOptions()), one.at))
    one.arrive(structs.replace(chat_job("b"), blocks=(1, 2, 3)))  # nobody notes where this one goes
    one.note(one.core.set_policy(load_policy("hybrid", PolicyOptions()), one.at))
    assert len(one.core._placement._prefixes) == 0
    one.arrive(structs.replace(chat_job("c"), blocks=tuple(range(100))))
    assert not one.record("c").cached
    assert len(one.core._placement._prefixes) == 10  # what an engine can keep is still known


def test_a_policy_with_prefixes_keeps_what_another_one_learned() -> None:
    one = CoreBench("hybrid", chat_spec("e0"), chat_spec("e1"))
    one.arrive(structs.replace(chat_job("a"), blocks=(1, 2, 3)))
    one.note(one.core.set_policy(load_policy("prefix_affinity", PolicyOptions()), one.at))
    assert len(one.core._placement._prefixes) == 3
