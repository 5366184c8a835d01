"""A control plane that is configured anew while requests wait and run."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from sage.common.config import ControlPlaneConfig, SlosConfig, StreamSlo, TenantConfig
from sage.common.errors import ConfigError, OverloadedError, UnavailableError
from sage.middleware.control_plane.fleet import Template
from sage.middleware.control_plane.options import CoreOptions
from sage.middleware.control_plane.trace import Goals, PolicyChanged, read_trace
from sage.middleware.testing.bench import Bench, chat
from sage.middleware.testing.memory import MemoryEngine
from sage.middleware.testing.virtual import virtual


def configure(bench: Bench, policy: str = "fifo", **fields: Any) -> None:
    config = ControlPlaneConfig(**fields)
    bench.plane.reconfigure(config, CoreOptions.of(config), policy)


@virtual
async def test_bounds_hold_for_what_comes_and_what_waits_stays() -> None:
    async with Bench() as bench:
        bench.hold()
        tasks = [bench.start(chat(f"r{number}")) for number in range(4)]
        await bench.engines[0].until_running(1)
        configure(bench, queue_max_requests=2)
        with pytest.raises(OverloadedError, match=r"full \(2 requests\)"):
            await bench.start(chat("late"))
        bench.gate.set()
        assert set(await asyncio.gather(*tasks)) == {"done"}


@virtual
async def test_a_longer_wait_is_for_newcomers() -> None:
    async with Bench(queue_max_wait_s=5.0) as bench:
        bench.hold()
        first = bench.start(chat("first"))
        await bench.engines[0].until_running(1)
        before = bench.start(chat("before"))
        await bench.settled()
        configure(bench, queue_max_wait_s=50.0)
        after = bench.start(chat("after"))
        with pytest.raises(OverloadedError):
            await before
        assert asyncio.get_running_loop().time() == pytest.approx(5.0)
        with pytest.raises(OverloadedError):
            await after
        assert asyncio.get_running_loop().time() == pytest.approx(50.0)
        bench.gate.set()
        await first


@virtual
async def test_goals_and_tenants_and_history() -> None:
    async with Bench(decision_history=8) as bench:
        for number in range(6):
            await bench.start(chat(f"r{number}"))
        slos = SlosConfig(chat=StreamSlo(ttft_s=0.5))
        configure(bench, "fair", slos=slos, tenants=(TenantConfig(name="t", weight=3.0),), decision_history=2)
        assert bench.plane.policy == "fair"
        assert [one.request_id for one in bench.plane.decisions()] == ["r5", "r4"]
        await bench.start(chat("new"))
        decision = bench.plane.decision("new")
        assert decision is not None
        assert (decision.slo.ttft_s, decision.policy) == (0.5, "fair")
        assert len(bench.plane.decisions()) == 2


@virtual
async def test_what_waits_is_ordered_by_the_new_policy() -> None:
    async with Bench() as bench:
        bench.hold()
        first = bench.start(chat("first"))
        await bench.engines[0].until_running(1)
        waiting = [bench.start(chat(name)) for name in ("low", "high")]
        await bench.settled()
        configure(bench, "sjf")
        bench.gate.set()
        assert await asyncio.gather(first, *waiting) == ["done"] * 3
        assert {bench.plane.decision(name).policy for name in ("low", "high")} == {"sjf"}  # type: ignore[union-attr]


@virtual
async def test_an_unknown_policy_changes_nothing() -> None:
    async with Bench() as bench:
        with pytest.raises(ConfigError, match="astrology"):
            configure(bench, "astrology", queue_max_requests=1)
        assert bench.plane.policy == "fifo"
        bench.hold()
        tasks = [bench.start(chat(f"r{number}")) for number in range(4)]
        await bench.settled()
        bench.gate.set()
        assert set(await asyncio.gather(*tasks)) == {"done"}


@virtual
async def test_the_same_again_keeps_the_policy_that_is_in_force() -> None:
    async with Bench() as bench:
        policy = bench.plane.core.policy
        configure(bench)
        assert bench.plane.core.policy is policy
        configure(bench, exploration=0.2)
        assert bench.plane.core.policy is not policy


@virtual
async def test_engines_that_may_be_started_from_now_on() -> None:
    async with Bench() as bench:
        started: list[str] = []
        bench.plane.on_engine_action = lambda action: started.append(action.name)
        config = ControlPlaneConfig()
        templates = (Template("e0", "memory", "generate", 1, 2, "", 1, 1.0), _sleeper())
        options = structs.replace(CoreOptions.of(config), templates=templates)
        bench.plane.announce(MemoryEngine("sleeper", "other").spec)
        bench.plane.engine_down("sleeper", "it sleeps")
        bench.plane.reconfigure(config, options, "fifo")
        asked = bench.start(chat("r", model="other"))
        await bench.settled()
        assert started == ["sleeper"]
        sleeper = MemoryEngine("sleeper", "other")
        bench.plane.add_engine(sleeper)
        assert await asked == "done"
        bench.plane.reconfigure(config, CoreOptions.of(config), "fifo")
        bench.plane.engine_down("sleeper", "it sleeps again")
        with pytest.raises(UnavailableError):
            await bench.start(chat("s", model="other"))


def _sleeper() -> Template:
    return Template("sleeper", "other", "generate", 0, 1, "", 1, 1.0)


# ---- an engine that is made anew ----


@virtual
async def test_a_queue_waits_for_an_engine_that_is_made_anew() -> None:
    async with Bench() as bench:
        bench.plane.engine_leaves("e0", "it is being replaced")
        task = bench.start(chat("r"))
        await bench.settled()
        assert bench.plane.core.waiting == 1
        bench.plane.announce(bench.engines[0].spec)  # it is starting, and still waited for
        await bench.settled()
        assert bench.plane.core.waiting == 1
        anew = MemoryEngine("e0")
        bench.plane.replace_engine(anew)
        assert await task == "done"
        assert (bench.engines[0].served, anew.served) == (0, 1)
        bench.plane.engine_down("e0", "it is gone")  # and now it is not
        with pytest.raises(UnavailableError):
            await bench.start(chat("s"))


@virtual
async def test_a_queue_is_refused_when_that_comes_to_nothing() -> None:
    async with Bench() as bench:
        bench.plane.engine_leaves("e0", "it is being replaced")
        task = bench.start(chat("r"))
        await bench.settled()
        bench.plane.engine_down("e0", "it cannot be started")
        with pytest.raises(UnavailableError, match="no engine"):
            await task


@virtual
async def test_it_is_not_waited_for_longer_than_anything() -> None:
    async with Bench(queue_max_wait_s=7.0) as bench:
        bench.plane.engine_leaves("e0", "it is being replaced")
        with pytest.raises(OverloadedError):
            await bench.start(chat("r"))
        assert asyncio.get_running_loop().time() == pytest.approx(7.0)


@virtual
async def test_another_connection_takes_the_place_of_one_that_is_busy() -> None:
    async with Bench() as bench:
        old = bench.engines[0]
        bench.hold(after=1)
        running = bench.start(chat("r"))
        await old.until_running(1)
        anew = MemoryEngine("e0", max_running=2)
        bench.plane.replace_engine(anew)
        assert await bench.start(chat("s")) == "done"
        assert (old.running, anew.served) == (1, 1)
        (status,) = bench.plane.engines()
        assert (status.running, status.max_running) == (1, 2)
        bench.gate.set()
        assert await running == "done"


@virtual
async def test_more_slots_are_used_at_once() -> None:
    async with Bench() as bench:
        bench.hold()
        tasks = [bench.start(chat(f"r{number}")) for number in range(3)]
        await bench.engines[0].until_running(1)
        bench.plane.change_engine(structs.replace(bench.engines[0].spec, max_running=3))
        await bench.engines[0].until_running(3)
        bench.gate.set()
        await asyncio.gather(*tasks)
        (status,) = bench.plane.engines()
        assert (status.state, status.max_running) == ("ready", 3)


@virtual
async def test_the_trace_tells_of_it(tmp_path: Path) -> None:
    file = tmp_path / "trace.ndjson"
    async with Bench(trace=file) as bench:
        configure(bench, "edf", slos=SlosConfig(chat=StreamSlo(ttft_s=0.25)))
    found = list(read_trace(file))
    assert [one.policy for one in found if isinstance(one, PolicyChanged)] == ["fifo", "edf"]
    goals = [one for one in found if isinstance(one, Goals)]
    assert [one.slos[next(iter(one.slos))].ttft for one in goals] == [2.0, 0.25]
