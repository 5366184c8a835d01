"""Embedding calls of the core: requests coalesced, bulk cut, slices that come back, threads lent."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import structs

from sage.common.telemetry import RequestClass
from sage.middleware.control_plane.policies.hybrid import Hybrid
from sage.middleware.control_plane.policy import BatchLimits, EngineView, PolicyOptions
from sage.middleware.control_plane.records import Record
from sage.middleware.control_plane.types import Action, Dispatch, EngineUp, Job, Slice
from sage.middleware.engines.port import EngineSpec, Usage
from sage.middleware.testing.core import CoreBench
from sage.middleware.testing.policies import chat_job, chat_spec, embed_job, embed_spec


class Sized(Hybrid):
    """Calls of at most `texts` texts, held for company for `hold` seconds."""

    def __init__(self, texts: int = 8, hold: float = 0.0) -> None:
        super().__init__(PolicyOptions(exploration=0.0))
        self.texts = texts
        self.hold = hold

    def batch(self, record: Record, engine: EngineView, now: float) -> BatchLimits:
        return BatchLimits(self.texts, 10 * self.texts, record.queued + self.hold)


def bench(texts: int = 8, *, slots: int = 1, hold: float = 0.0, engines: int = 1) -> CoreBench:
    return CoreBench(
        Sized(texts, hold), *(embed_spec(f"v{index}", max_running=slots) for index in range(engines))
    )


def sent(actions: Sequence[Action]) -> list[tuple[tuple[str, int, int], ...]]:
    """What the calls among actions carry."""
    return [
        tuple((part.id, part.start, part.stop) for part in action.slices)
        for action in actions
        if isinstance(action, Dispatch)
    ]


def arrive(one: CoreBench, **texts: int) -> list[Action]:
    actions: list[Action] = []
    for ident, count in texts.items():
        actions += one.arrive(embed_job(ident, texts=count))
    return actions


def test_bulk_is_cut_and_its_parts_go_one_after_the_other() -> None:
    one = bench()
    assert sent(arrive(one, bulk=20)) == [(("bulk", 0, 8),)]
    assert one.waiting(RequestClass.EMBED_BULK) == 1
    assert sent(one.finish("bulk")) == [(("bulk", 8, 16),)]
    assert sent(one.finish("bulk")) == [(("bulk", 16, 20),)]
    assert one.waiting(RequestClass.EMBED_BULK) == 0
    assert one.outcome("bulk") == "running"
    one.finish("bulk")
    assert (one.outcome("bulk"), one.record("bulk").attempts) == ("done", 3)


def test_bulk_uses_every_engine_that_is_free() -> None:
    one = bench(engines=3)
    assert len(sent(arrive(one, bulk=20))) == 3
    for _ in range(3):
        one.finish("bulk")
    assert one.outcome("bulk") == "done"


def test_requests_of_different_clients_share_a_call() -> None:
    one = bench()
    arrive(one, first=1, a=1, b=3, c=4, d=1)
    assert sent(one.finish("first")) == [(("a", 0, 1), ("b", 0, 3), ("c", 0, 4))]
    assert sent(one.finish("c")) == [(("d", 0, 1),)]
    assert [one.outcome(ident) for ident in "abcd"] == ["done", "done", "done", "running"]


def test_interactive_and_bulk_never_share_a_call() -> None:
    one = bench()
    arrive(one, first=1, bulk=9, quick=1, other=1)
    assert sent(one.finish("first")) == [(("quick", 0, 1), ("other", 0, 1))]
    assert sent(one.finish("quick")) == [(("bulk", 0, 8),)]


def test_requests_that_want_other_vectors_never_share_a_call() -> None:
    one = bench()
    arrive(one, first=1, a=1)
    one.arrive(structs.replace(embed_job("short"), batch_key="other"))
    assert sent(one.finish("first")) == [(("a", 0, 1),)]
    assert sent(one.finish("a")) == [(("short", 0, 1),)]


def test_a_request_without_a_batch_key_goes_alone_and_whole() -> None:
    one = bench()
    alone = structs.replace(embed_job("alone", texts=20), batch_key="")
    assert sent(one.arrive(alone)) == [(("alone", 0, 20),)]


def test_other_policies_send_requests_as_they_are() -> None:
    one = CoreBench("fifo", embed_spec("v0", max_running=9))
    assert sent(arrive(one, bulk=900, a=1)) == [(("bulk", 0, 900),), (("a", 0, 1),)]


def test_a_failed_call_comes_back_slice_by_slice_each_alone() -> None:
    one = bench(slots=2)
    one.feed(EngineUp(0.0, embed_spec("v1", max_running=1)))
    arrive(one, hold0=1, hold1=1, hold2=1, a=1, b=1, c=1)
    for ident in ("hold0", "hold1", "hold2"):
        one.finish(ident)
    before = [tuple(part.id for part in action.slices) for action in one.running.values()]
    assert ("a", "b", "c") in before or ("b", "c") in before
    carrying = next(ident for ident in "abc" if len(one.running[one.attempt(ident)].slices) > 1)
    one.fail(carrying)
    while any(one.outcome(ident) == "running" for ident in "abc"):
        ident = next(ident for ident in "abc" if one.outcome(ident) == "running")
        if one.record(ident).retries:
            assert [part.id for part in one.running[one.attempt(ident)].slices] == [ident]
        one.finish(ident)
    assert {one.outcome(ident) for ident in "abc"} == {"done"}


def test_of_bulk_only_the_failed_part_is_computed_again() -> None:
    one = bench(engines=2)
    arrive(one, bulk=20)
    first = min(one.running)
    assert one.running[first].slices == (Slice("bulk", 0, 8),)
    one.finish("bulk")  # the second part
    one.finish("bulk")  # the third
    (left,) = one.running.values()
    assert left.slices == (Slice("bulk", 0, 8),)
    assert sent(one.fail("bulk")) == [(("bulk", 0, 8),)]
    assert one.outcome("bulk") == "running"
    one.finish("bulk")
    assert one.outcome("bulk") == "done"


def test_who_leaves_a_call_leaves_the_others_in_it() -> None:
    one = bench()
    arrive(one, first=1, a=1, b=1)
    one.finish("first")
    assert one.cancel("a") == []
    assert one.outcome("b") == "running"
    (action,) = one.cancel("b")  # nobody is left
    assert not one.running
    assert one.core.engines["v0"].running == 0
    assert type(action).__name__ == "Cancel"


def test_a_call_waits_for_company_only_while_it_may_and_only_when_it_is_small() -> None:
    one = bench(4, hold=0.002)
    assert arrive(one, a=1) == []
    assert arrive(one, b=1) == []
    assert one.wait(0.001) == []
    assert sent(one.wait(0.001)) == [(("a", 0, 1), ("b", 0, 1))]
    one.finish("a")
    assert sent(arrive(one, c=4)) == [(("c", 0, 4),)]


class Kneed(Sized):
    """Calls of up to 80 tokens, held for company only below 20."""

    def batch(self, record: Record, engine: EngineView, now: float) -> BatchLimits:
        return BatchLimits(8, 80, record.queued + self.hold, enough=20)


def test_a_call_that_gains_nothing_from_company_does_not_wait_for_it() -> None:
    one = CoreBench(Kneed(hold=0.5), embed_spec("v0"))
    assert arrive(one, a=1) == []
    assert sent(arrive(one, b=1)) == [(("a", 0, 1), ("b", 0, 1))]


def test_hybrid_holds_a_call_only_below_the_knee() -> None:
    spec = structs.replace(embed_spec("v0"), batches=False)
    one = CoreBench("hybrid", spec)
    arrive(one, first=1, a=1)
    load = one.core.engines["v0"]
    limits = one.core.policy.batch(one.record("a"), load, 0.0)
    assert 0.0 < limits.hold_until <= 0.002
    assert limits.enough == min(limits.tokens, load.embed.knee)


def test_usage_is_shared_out_by_size() -> None:
    one = bench()
    arrive(one, first=1, a=1, b=3)
    one.finish("first")
    one.finish("a", Usage(80, 0))
    assert one.record("a").usage == Usage(20, 0)
    assert one.record("b").usage == Usage(60, 0)


def test_usage_of_the_parts_of_a_request_adds_up() -> None:
    one = bench()
    arrive(one, bulk=20)
    for count in (80, 80, 40):
        one.finish("bulk", Usage(count, 0))
    assert one.record("bulk").usage == Usage(200, 0)


# ---- devices -----------------------------------------------------------------------------------------------


def shared() -> CoreBench:
    """A generating engine and one that embeds on the same device, a core each."""
    chat = structs.replace(chat_spec("llm"), group="cpu", cores=1)
    embed = structs.replace(embed_spec("v0"), group="cpu", cores=1, elastic=True)
    return CoreBench(Sized(), chat, embed)


def test_bulk_is_lent_the_cores_of_an_idle_neighbour_and_interactive_is_not() -> None:
    one = shared()
    arrive(one, bulk=9)
    assert one.running[one.attempt("bulk")].threads == 2
    one.finish("bulk")
    one.arrive(chat_job("a"))
    assert one.running[one.attempt("bulk")].threads == 2  # sent before the neighbour had work
    one.finish("bulk")
    arrive(one, more=9)
    assert one.running[one.attempt("more")].threads == 0
    one.finish("more")
    one.finish("more")
    one.finish("a")
    arrive(one, quick=1)
    assert one.running[one.attempt("quick")].threads == 0


def test_bulk_gives_way_to_a_generation_that_it_would_slow_down_too_much() -> None:
    one = shared()
    llm = one.core.engines["llm"].llm
    for _ in range(200):
        llm.observe_tpot(1.0, 0.0, 0.0, 0.06)
        llm.observe_tpot(1.0, 0.0, 1.0, 0.14)  # beside a busy neighbour; the goal is 0.1
    one.arrive(chat_job("a"))
    assert sent(arrive(one, bulk=9)) == []
    assert one.wait(0.5) == []
    assert sent(arrive(one, quick=1)) == [(("quick", 0, 1),)]  # it has a goal of its own
    one.finish("quick")
    assert sent(one.finish("a")) == [(("bulk", 0, 8),)]


def test_engines_of_other_devices_do_not_matter() -> None:
    one = CoreBench(
        Sized(),
        structs.replace(chat_spec("llm"), group="gpu"),
        structs.replace(embed_spec("v0"), group="cpu"),
    )
    one.arrive(chat_job("a"))
    assert sent(arrive(one, bulk=9)) == [(("bulk", 0, 8),)]


def spec_and_job() -> tuple[EngineSpec, Job]:
    return embed_spec("v0"), embed_job("a", texts=4)


def test_the_time_of_a_batch_counts_from_the_end_of_the_one_before() -> None:
    spec, job = spec_and_job()
    one = CoreBench("hybrid", structs.replace(spec, max_running=2))
    one.arrive(job)
    one.arrive(structs.replace(job, id="b"))
    load = one.core.engines["v0"]
    assert load.running == 2
    one.at = 1.0
    one.finish("a", Usage(40, 0))
    one.at = 1.5
    one.finish("b", Usage(40, 0))
    assert load.embed.samples == 2
    assert 0.5 <= load.embed.seconds(40, 4) <= 1.0


def test_a_call_whose_texts_another_one_computed_teaches_nothing() -> None:
    spec, job = spec_and_job()
    one = CoreBench("hybrid", spec)
    one.arrive(job)
    one.at = 0.001
    one.finish("a", Usage())
    assert one.core.engines["v0"].embed.samples == 0


def test_of_two_answers_of_one_batch_the_second_teaches_nothing() -> None:
    spec, job = spec_and_job()
    one = CoreBench("hybrid", structs.replace(spec, max_running=2))
    one.arrive(job)
    one.arrive(structs.replace(job, id="b"))
    load = one.core.engines["v0"]
    one.at = 1.0
    one.finish("a", Usage(40, 0))
    one.at = 1.0005
    one.finish("b", Usage(40, 0))
    assert load.embed.samples == 1


def interactive(number: int) -> Job:
    _, job = spec_and_job()
    return structs.replace(job, id=f"i{number}", request_class=RequestClass.EMBED_INTERACTIVE)


def test_an_engine_that_is_not_trusted_keeps_a_short_queue_and_wins_trust_back() -> None:
    spec, job = spec_and_job()
    one = CoreBench("hybrid", structs.replace(spec, max_running=32))
    load = one.core.engines["v0"]
    for _ in range(60):
        load.embed.observe(40.0, 4.0, 0.02)
    for _ in range(60):  # a machine that stalls now and then
        load.embed.observe(40.0, 4.0, 0.02)
        load.embed.observe(40.0, 4.0, 0.5)
    load.embed.trusted = False
    for number in range(20):
        one.arrive(interactive(number))
    bulk = structs.replace(job, id="bulk", texts=64, request_class=RequestClass.EMBED_BULK)
    one.arrive(bulk)
    assert load.running == 2
    assert one.waiting(RequestClass.EMBED_INTERACTIVE) + one.waiting(RequestClass.EMBED_BULK) > 0
    for number in range(20, 400):  # steady again
        one.arrive(interactive(number))
        one.at += 0.02
        part = one.running[min(one.running)].slices[0]
        one.finish(part.id, Usage(40, 0))
        assert load.running <= 2
    assert load.embed.trusted


def test_bulk_waits_until_an_engine_that_is_not_trusted_has_nothing_to_do() -> None:
    spec, job = spec_and_job()
    one = CoreBench("hybrid", structs.replace(spec, max_running=32))
    one.core.engines["v0"].embed.trusted = False
    one.arrive(interactive(1))
    bulk = structs.replace(job, id="bulk", request_class=RequestClass.EMBED_BULK)
    assert not sent(one.arrive(bulk))
    assert sent(one.finish("i1", Usage(40, 0)))
