"""Engines that say nothing: who is passed over, what is given up, and how they come back."""

from __future__ import annotations

import pytest
from msgspec import structs

from sage.common.telemetry import RequestClass
from sage.middleware.control_plane.types import (
    Cancel,
    EngineRemoved,
    FirstByte,
    Progress,
    Reject,
    RestartEngine,
)
from sage.middleware.testing.core import CoreBench
from sage.middleware.testing.policies import chat_job, chat_spec, embed_job, embed_spec

STREAM = structs.replace(chat_job("a"), stream=True)


def bench(engines: int = 1, *, slots: int = 4, managed: bool = False) -> CoreBench:
    specs = (chat_spec(f"e{index}", max_running=slots) for index in range(engines))
    return CoreBench("least_load", *(structs.replace(spec, managed=managed) for spec in specs))


# ---- what hangs is given up --------------------------------------------------------------------------------


@pytest.mark.parametrize("managed", [False, True])
def test_what_hangs_before_its_first_byte_is_sent_elsewhere(managed: bool) -> None:
    one = bench(2, managed=managed)
    one.arrive(STREAM)
    first = one.attempt("a")
    actions = one.wait(70.0)
    assert Cancel(first) in actions
    assert sum(isinstance(action, RestartEngine) for action in actions) == managed
    assert one.engine("a") == "e1"
    assert one.record("a").retries == 1
    assert one.core.engines["e0"].running == 0
    one.finish("a")
    assert one.outcome("a") == "done"


def test_a_stream_that_has_begun_is_failed_and_the_driver_hears_of_it() -> None:
    one = bench(2)
    one.arrive(STREAM)
    one.begin("a")
    attempt = one.attempt("a")
    actions = one.wait(70.0)
    assert [action for action in actions if isinstance(action, Cancel | Reject)] == [
        Cancel(attempt),
        Reject("a", 502, "e0 has fallen silent", None),
    ]
    assert (one.outcome("a"), one.core.live) == ("failed", 0)
    assert one.core.counts(RequestClass.CHAT).failed == 1


def test_where_there_is_no_other_engine_what_hangs_is_refused() -> None:
    one = bench()
    one.arrive(STREAM)
    one.wait(70.0)
    assert one.rejected["a"].status == 503
    assert one.core.live == 0
    assert one.core.next_wake() is None


def test_an_answer_that_is_not_streamed_is_tried_again_even_if_its_bytes_had_begun() -> None:
    one = bench(2)
    one.arrive(chat_job("a"))
    one.begin("a")
    one.wait(120.0)
    assert one.engine("a") == "e1"


def test_a_batch_that_hangs_is_given_up_for_each_of_its_requests() -> None:
    one = CoreBench("hybrid", embed_spec("v0"))
    for ident in ("a", "b", "c"):
        one.arrive(embed_job(ident))
    one.finish("a")
    assert one.attempt("b") == one.attempt("c")
    one.wait(100.0)
    assert one.running == {}
    assert {ident: action.status for ident, action in one.rejected.items()} == {"b": 503, "c": 503}


def test_a_hang_while_an_engine_drains_does_not_keep_it_forever() -> None:
    one = bench(2)
    one.arrive(STREAM)
    one.begin("a")
    one.feed(EngineRemoved(one.at, "e0"))
    one.wait(70.0)
    assert one.outcome("a") == "failed"
    assert one.core.engines.get("e0") is None


# ---- signs of life -----------------------------------------------------------------------------------------


def names(one: CoreBench) -> list[str]:
    return [load.name for load in one.core.engines.candidates(STREAM, one.at)]


def test_what_is_presumed_is_no_sign_of_life() -> None:
    one = bench(2, slots=64)
    one.arrive(STREAM)
    one.begin("a")
    for number in range(40):  # answers that are not streamed are presumed to have begun; e0 answers none
        one.wait(1.0)
        one.arrive(chat_job(f"r{number}"))
        if one.engine(f"r{number}") == "e1":
            one.finish(f"r{number}")
    assert names(one) == ["e1"]


def test_a_late_first_byte_of_an_answer_that_was_presumed_is_still_seen() -> None:
    one = bench()
    one.arrive(chat_job("a"))
    one.wait(20.0)
    attempt = one.attempt("a")
    assert one.core.engines["e0"].attempts[one.record("a").running[0]].first_byte is not None  # presumed
    one.feed(FirstByte(one.at, attempt))
    assert one.record("a").first_byte == 20.0
    one.finish("a")
    status = next(iter(one.core.books.classes()))
    assert (status.done, status.met) == (1, 0)


def test_an_engine_that_speaks_again_is_sent_work_again_at_once() -> None:
    one = bench(2, slots=2)
    one.arrive(STREAM)
    one.begin("a")
    one.wait(33.0)
    one.arrive(chat_job("b"))
    assert one.engine("b") == "e1"
    one.feed(Progress(one.at, (one.attempt("a"),)))
    one.arrive(chat_job("c"))
    assert one.engine("c") == "e0"


def test_an_engine_that_nobody_waits_for_any_more_is_tried_again_with_one_request() -> None:
    one = bench(2, slots=4)
    one.arrive(STREAM)
    one.begin("a")
    one.wait(33.0)
    one.cancel("a")  # the client was tired of it
    assert names(one) == ["e1"]
    one.wait(11.0)
    assert names(one) == ["e0", "e1"]
    assert one.core.engines["e0"].free == 1
    one.arrive(chat_job("elsewhere"))
    one.arrive(chat_job("probe"))
    assert one.engine("probe") == "e0"
    one.finish("probe")
    assert one.core.engines["e0"].free == 4


def test_the_only_engine_is_not_given_up_before_it_is_ejected() -> None:
    one = bench(slots=1)
    one.arrive(STREAM)
    one.begin("a")
    one.wait(20.0)
    one.arrive(chat_job("b"))
    one.wait(15.0)
    assert one.outcome("b") == "waiting"
    one.finish("a")
    assert one.engine("b") == "e0"


def test_an_answer_during_an_ejection_brings_all_slots_back_at_once() -> None:
    one = bench(slots=7)
    for ident in "abcdefg":
        one.arrive(chat_job(ident))
    for ident in "abcde":
        one.fail(ident, retryable=False)
    assert one.core.engines["e0"].breaker.tripped
    one.finish("f")
    assert one.core.engines["e0"].free == 6
    one.arrive(chat_job("next"))
    assert one.engine("next") == "e0"
