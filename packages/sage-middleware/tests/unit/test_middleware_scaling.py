"""Core and autoscaler together: engines that are started, drained, stopped, woken and moved."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from msgspec import structs

from sage.middleware.control_plane.autoscale import AutoscaleOptions, Template
from sage.middleware.control_plane.options import CoreOptions, Limits
from sage.middleware.control_plane.types import (
    Action,
    EngineAdded,
    EngineDown,
    EngineRemoved,
    EngineUp,
    StartEngine,
    StopEngine,
)
from sage.middleware.engines.port import EngineSpec
from sage.middleware.testing.core import CoreBench
from sage.middleware.testing.policies import chat_job, chat_spec, embed_job, embed_spec

START_S = 5.0


def llm(minimum: int = 1, maximum: int = 3, *, group: str = "", cores: int = 0) -> Template:
    return Template("e0", "m", "generate", minimum, maximum, group, cores, start_s=START_S)


def spec(name: str, *, slots: int = 1) -> EngineSpec:
    return structs.replace(chat_spec(name, max_running=slots), template="" if name == "e0" else "e0")


def bench(
    *templates: Template,
    up: Sequence[EngineSpec] = (),
    cores: dict[str, int] | None = None,
    policy: str = "hybrid",
) -> CoreBench:
    """A core with these templates and, of their engines, those that are `up`."""
    options = CoreOptions(
        Limits(),
        templates=templates,
        device_cores=cores or {},
        autoscale=AutoscaleOptions(cool_down_s=20.0, sleep_after_s=30.0),
    )
    one = CoreBench(policy, *up, options=options)
    one.wait(1.0)
    return one


def asleep() -> CoreBench:
    one = bench(llm(0, 1))
    one.feed(EngineAdded(one.at, spec("e0")))
    one.feed(EngineDown(one.at, "e0", "asleep"))
    return one


def starts(actions: list[Action]) -> list[str]:
    return [action.name for action in actions if isinstance(action, StartEngine)]


def stops(actions: list[Action]) -> list[str]:
    return [action.name for action in actions if isinstance(action, StopEngine)]


def state(one: CoreBench, name: str) -> str:
    return one.core.engines[name].state


# ---- more and fewer ----------------------------------------------------------------------------------------


def test_one_more_is_started_under_pressure_that_lasts_and_takes_what_waits() -> None:
    one = bench(llm(), up=[spec("e0")], policy="least_load")
    one.arrive(chat_job("running"))
    for number in range(100):
        one.arrive(chat_job(f"r{number}", tokens=20_000))
    assert starts(one.wait(1.5)) == []
    assert starts(one.wait(5.0)) == ["e0.2"]
    one.feed(EngineAdded(one.at, spec("e0.2")))
    assert starts(one.wait(3.0)) == []  # one at a time
    one.feed(EngineUp(one.at, spec("e0.2")))
    assert one.engine("r0") == "e0.2"


def idle_pair() -> CoreBench:
    """Two engines of which one is too many; `a` runs on the first, `b` on the second for a while."""
    one = bench(llm(), up=[spec("e0", slots=4), spec("e0.2", slots=4)], policy="least_load")
    one.arrive(structs.replace(chat_job("a"), stream=True))
    one.arrive(structs.replace(chat_job("b"), stream=True))
    assert (one.engine("a"), one.engine("b")) == ("e0", "e0.2")
    one.begin("a")
    one.begin("b")
    return one


def test_one_too_many_is_drained_and_stopped_after_its_last_request() -> None:
    one = idle_pair()
    actions = one.wait(25.0)
    assert (stops(actions), state(one, "e0.2")) == ([], "draining")
    for number in range(3):
        one.arrive(chat_job(f"new{number}"))
        assert one.engine(f"new{number}") == "e0"
    one.finish("b")
    assert stops(one.actions) == ["e0.2"]
    one.feed(EngineRemoved(one.at, "e0.2"))
    assert one.core.engines.get("e0.2") is None
    assert one.outcome("a") == "running"


def test_a_client_that_leaves_frees_the_engine_that_drains() -> None:
    one = idle_pair()
    one.wait(25.0)
    one.cancel("b")
    assert stops(one.actions) == ["e0.2"]


def test_what_hangs_on_a_draining_engine_does_not_keep_it() -> None:
    one = idle_pair()
    assert stops(one.wait(70.0)) == ["e0.2"]


def test_the_last_ones_stay() -> None:
    one = bench(llm(), up=[spec("e0")])
    assert one.wait(1000.0) == []
    assert state(one, "e0") == "ready"


# ---- from zero and to zero ---------------------------------------------------------------------------------


def test_an_idle_engine_goes_to_sleep_and_is_woken_by_a_request_that_waits_for_it() -> None:
    one = bench(llm(0, 1), up=[spec("e0")])
    assert stops(one.wait(60.0)) == ["e0"]
    one.feed(EngineAdded(one.at, spec("e0")))
    one.feed(EngineDown(one.at, "e0", "asleep"))
    assert one.wait(60.0) == []
    assert starts(one.arrive(chat_job("a"))) == ["e0"]
    assert one.outcome("a") == "waiting"
    assert starts(one.arrive(chat_job("b"))) == []
    one.feed(EngineAdded(one.at, spec("e0", slots=2)))
    one.wait(START_S)
    one.feed(EngineUp(one.at, spec("e0", slots=2)))
    assert {one.engine("a"), one.engine("b")} == {"e0"}


def test_what_cannot_wait_so_long_is_told_how_long_it_takes_and_wakes_it_all_the_same() -> None:
    one = asleep()
    one.arrive(chat_job("a"), within=START_S - 1.0)
    assert one.rejected["a"].status == 503
    assert one.rejected["a"].retry_after == pytest.approx(START_S, rel=0.2)
    assert starts(one.wait(2.0)) == ["e0"]
    one.feed(EngineAdded(one.at, spec("e0")))
    one.arrive(chat_job("b"), within=START_S)
    assert one.outcome("b") == "waiting"


def test_a_start_that_fails_is_tried_again_while_somebody_waits() -> None:
    one = asleep()
    assert starts(one.arrive(chat_job("a"))) == ["e0"]
    one.feed(EngineAdded(one.at, spec("e0")))
    one.wait(2.0)
    one.feed(EngineDown(one.at, "e0", "no memory"))
    assert one.outcome("a") == "waiting"
    assert starts(one.wait(25.0)) == ["e0"]


def test_what_waits_for_an_engine_that_never_comes_is_refused_in_the_end() -> None:
    one = asleep()
    one.arrive(chat_job("a"))
    one.wait(31.0)
    assert one.outcome("a") == "rejected"
    assert one.core.live == 0


def test_a_fault_while_nothing_else_is_up_waits_for_what_starts() -> None:
    one = bench(llm(0, 1), up=[spec("e0")])
    one.arrive(chat_job("a"))
    one.feed(EngineDown(one.at, "e0", "killed", crashed=True))
    one.fail("a")
    assert one.outcome("a") == "waiting"
    assert starts(one.wait(15.0)) == ["e0"]
    one.feed(EngineUp(one.at, spec("e0")))
    assert one.engine("a") == "e0"


# ---- one device --------------------------------------------------------------------------------------------


def test_cores_move_from_an_idle_embedding_engine_to_generation_and_back() -> None:
    vectors = Template("v0", "v", "embed", 0, 1, group="box", cores=2, start_s=2.0)
    embedder = structs.replace(embed_spec("v0"), group="box", cores=2)
    one = bench(
        llm(1, 2, group="box", cores=2),
        vectors,
        up=[structs.replace(spec("e0"), group="box", cores=2), embedder],
        cores={"box": 4},
        policy="least_load",
    )
    one.wait(25.0)
    one.arrive(chat_job("running"))
    for number in range(100):
        one.arrive(chat_job(f"r{number}", tokens=20_000))
    actions = one.wait(8.0)
    assert (stops(actions), starts(actions)) == (["v0"], [])  # its cores first
    one.feed(EngineAdded(one.at, embedder))
    one.feed(EngineDown(one.at, "v0", "asleep"))
    assert starts(one.wait(3.0)) == ["e0.2"]
    one.feed(EngineAdded(one.at, structs.replace(spec("e0.2"), group="box", cores=2)))
    assert starts(one.arrive(embed_job("text"))) == ["v0"]  # late is better than never
    assert one.outcome("text") == "waiting"
    one.feed(EngineUp(one.at, embedder))
    assert one.engine("text") == "v0"


def test_without_templates_nothing_is_started_nor_waited_for() -> None:
    one = CoreBench("hybrid", chat_spec("e0"))
    one.feed(EngineDown(0.0, "e0", "killed"))
    one.arrive(chat_job("a"))
    assert one.rejected["a"].status == 503
    assert one.core.next_wake() is None
