"""Names before a live control plane: who serves, when a fallback does, and what is told of it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from sage.common.config import ControlPlaneConfig, ModelConfig, TargetConfig
from sage.common.errors import (
    BadRequestError,
    EngineError,
    ModelNotFoundError,
    OverloadedError,
    TimedOutError,
    UnavailableError,
)
from sage.middleware.control_plane.classify import Parsed
from sage.middleware.control_plane.router import ModelRouter
from sage.middleware.engines.port import Usage
from sage.middleware.testing.bench import Bench, chat, tokenize
from sage.middleware.testing.memory import Behaviour, MemoryEngine, MemorySink
from sage.middleware.testing.virtual import LoopClock, virtual

FAULT = Behaviour(fault=EngineError("it broke"))


def entry(name: str, *to: str, fallbacks: tuple[str, ...] = ()) -> ModelConfig:
    return ModelConfig(name=name, to=tuple(TargetConfig(model=one) for one in to), fallbacks=fallbacks)


X: tuple[ModelConfig, ...] = (entry("x", "m", fallbacks=("n",)),)


class Routed(Bench):
    """A bench with a router and an engine for each model, named like it."""

    def __init__(self, *models: str, names: tuple[ModelConfig, ...] = X, **config: Any) -> None:
        super().__init__(0, **config)
        self.engines = [MemoryEngine(model, model, max_running=2) for model in models]
        for engine in self.engines:
            self.plane.add_engine(engine)
        self.router = ModelRouter(self.plane, LoopClock())
        self.router.configure(names, ControlPlaneConfig(**config))
        self.usages: list[Usage] = []

    async def ask(self, parsed: Parsed, *, deadline: float | None = None) -> str:
        sink = self.sinks[parsed.job.id] = MemorySink()
        return await self.router.submit(
            parsed.job, parsed.call, sink, deadline=deadline, used=self.usages.append
        )

    @property
    def served(self) -> list[int]:
        return [engine.served for engine in self.engines]

    def fallbacks(self) -> dict[tuple[str, ...], Any]:
        return {tuple(labels.values()): count for _, count, labels in self.router.samples()}


@virtual
async def test_an_alias_is_served_by_its_model_and_says_so() -> None:
    async with Routed("m", "n") as bench:
        assert await bench.ask(chat("r", model="x", stream=False)) == "done"
        assert bench.body("r")["model"] == "m"
        decision = bench.router.decision("r")
        assert decision is not None
        assert (decision.model, decision.asked, decision.fallback) == ("m", "x", "")
        assert bench.served == [1, 0]
        assert bench.fallbacks() == {}
        assert len(bench.usages) == 1


@virtual
async def test_a_model_by_its_own_id_takes_no_detour() -> None:
    async with Routed("m", "n") as bench:
        assert await bench.ask(chat("r", model="n")) == "done"
        decision = bench.router.decision("r")
        assert decision is not None
        assert (decision.model, decision.asked) == ("n", "")
        bench.engines[1].behaviour = FAULT
        with pytest.raises(EngineError):
            await bench.ask(chat("s", model="n"))


@virtual
async def test_a_model_without_a_ready_engine_falls_back_and_is_told_of() -> None:
    async with Routed("m", "n") as bench:
        bench.plane.engine_down("m", "it is gone")
        assert await bench.ask(chat("r", model="x")) == "done"
        assert bench.served == [0, 1]
        decision = bench.router.decision("r")
        assert decision is not None
        assert (decision.model, decision.asked) == ("n", "x")
        assert decision.fallback.startswith("m: Refused: no engine for 'm' can take requests now")
        assert bench.fallbacks() == {("x", "n", "engine_unavailable"): 1}


@virtual
async def test_a_fault_before_the_first_byte_falls_back() -> None:
    async with Routed("m", "n") as bench:
        bench.engines[0].behaviour = FAULT
        assert await bench.ask(chat("r", model="x")) == "done"
        assert bench.sinks["r"].body.endswith(b"data: [DONE]\n\n")
        assert bench.fallbacks() == {("x", "n", "engine_error"): 1}


@virtual
async def test_overload_falls_back() -> None:
    async with Routed("m", "n", queue_max_requests=1) as bench:
        gate = asyncio.Event()
        bench.engines[0].behaviour = Behaviour(gate=gate)
        tasks = [asyncio.create_task(bench.ask(chat(f"r{number}", model="x"))) for number in range(3)]
        await bench.settled()
        assert await bench.ask(chat("r", model="x")) == "done"
        assert bench.served == [0, 1]
        assert bench.fallbacks() == {("x", "n", "overloaded"): 1}
        gate.set()
        assert await asyncio.gather(*tasks) == ["done"] * 3


@virtual
async def test_a_provider_that_is_over_its_limit_falls_back() -> None:
    async with Routed("m", "n") as bench:
        bench.engines[0].behaviour = Behaviour(fault=OverloadedError("over its limit", retry_after=7.0))
        assert await bench.ask(chat("r", model="x")) == "done"
        assert bench.served == [0, 1]


@virtual
async def test_never_after_a_byte_has_gone_out() -> None:
    async with Routed("m", "n") as bench:
        bench.engines[0].behaviour = Behaviour(fault=EngineError("it broke"), fault_after=2)
        assert await bench.ask(chat("r", model="x")) == "failed"
        assert b'"error"' in bench.sinks["r"].body
        assert bench.served == [0, 0]
        assert bench.engines[1].calls == []


@virtual
async def test_never_for_what_is_wrong_with_the_request() -> None:
    async with Routed("m", "n") as bench:
        bench.engines[0].behaviour = Behaviour(fault=BadRequestError("a bad field", param="temperature"))
        with pytest.raises(BadRequestError, match="a bad field"):
            await bench.ask(chat("r", model="x"))
        assert bench.engines[1].calls == []
        assert bench.fallbacks() == {}


@virtual
async def test_the_error_at_the_end_is_that_of_the_first() -> None:
    async with Routed("m", "n") as bench:
        bench.plane.engine_down("m", "it is gone")
        bench.engines[1].behaviour = FAULT
        with pytest.raises(UnavailableError, match="no engine for 'm'"):
            await bench.ask(chat("r", model="x"))
        assert bench.fallbacks() == {("x", "n", "engine_unavailable"): 1}


@virtual
async def test_a_fallback_has_what_is_left_of_the_deadline() -> None:
    async with Routed("m", "n", queue_max_wait_s=2.0) as bench:
        gate = asyncio.Event()
        bench.engines[0].behaviour = bench.engines[1].behaviour = Behaviour(gate=gate)
        first = [asyncio.create_task(bench.ask(chat(f"r{number}", model="m"))) for number in range(2)]
        await bench.settled()
        with pytest.raises(OverloadedError, match="no engine became free in time"):
            await bench.ask(chat("r", model="x"), deadline=5.0)
        assert asyncio.get_running_loop().time() == pytest.approx(5.0)
        gate.set()
        await asyncio.gather(*first)


@virtual
async def test_a_deadline_that_has_passed_ends_it() -> None:
    async with Routed("m", "n") as bench:
        gate = asyncio.Event()
        bench.engines[0].behaviour = Behaviour(gate=gate)
        with pytest.raises(TimedOutError):
            await bench.ask(chat("r", model="x"), deadline=1.0)
        assert bench.engines[1].calls == []


@virtual
async def test_fallbacks_after_faults_are_a_share_of_the_traffic() -> None:
    """The engine's breaker is kept out of it by an answer between the faults."""
    async with Routed("m", "n", retry_share=0.0) as bench:
        outcomes = []
        for number in range(30):
            bench.engines[0].behaviour = FAULT
            try:
                outcomes.append(await bench.ask(chat(f"f{number}", model="x")))
            except EngineError:
                outcomes.append("refused")
            bench.engines[0].behaviour = Behaviour()
            await bench.ask(chat(f"g{number}", model="m"))
        assert outcomes == ["done"] * 10 + ["refused"] * 20


@virtual
async def test_a_chain_stays_on_its_side_of_a_split() -> None:
    async with Routed("m", "n", names=(entry("x", "m", "n"),)) as bench:
        for number in range(12):
            await bench.ask(chat(f"r{number}", model="x"))
        assert all(bench.served)
        before = bench.served
        for number in range(12):
            parsed = chat(f"s{number}", model="x")
            await bench.ask(Parsed(_child(parsed), parsed.call))
        after = [now - then for now, then in zip(bench.served, before, strict=True)]
        assert sorted(after) == [0, 12]


def _child(parsed: Parsed) -> Any:
    from msgspec import structs

    return structs.replace(parsed.job, parent="root")


@virtual
async def test_tokens_are_those_of_the_first_model_alone() -> None:
    async with Routed("m", "n") as bench:
        bench.plane.engine_down("m", "it is gone")
        with pytest.raises(UnavailableError):
            await bench.ask(tokenize("r", model="x"))
        assert bench.engines[1].calls == []


@virtual
async def test_what_can_be_asked_for() -> None:
    names = (*X, entry("y", "z"))
    async with Routed("m", "n", names=names) as bench:
        assert bench.router.models() == ["m", "n", "x"]
        bench.plane.engine_down("m", "it is gone")
        assert bench.router.models() == ["n", "x"]
        assert bench.router.known() == {"m", "n", "x", "y"}
        assert [bench.router.is_known(one) for one in ("m", "y", "z")] == [True, True, False]
        with pytest.raises(ModelNotFoundError, match="there are: m, n, x, y"):
            await bench.ask(chat("r", model="gpt"))


@virtual
async def test_other_names_from_now_on_and_what_runs_goes_on() -> None:
    async with Routed("m", "n") as bench:
        gate = asyncio.Event()
        bench.engines[0].next_behaviours.append(Behaviour(gate=gate, gate_after=1))
        running = asyncio.create_task(bench.ask(chat("r", model="x")))
        await bench.engines[0].until_running(1)
        bench.router.configure((entry("y", "n"),), ControlPlaneConfig())
        with pytest.raises(ModelNotFoundError):
            await bench.ask(chat("s", model="x"))
        assert await bench.ask(chat("t", model="y")) == "done"
        gate.set()
        assert await running == "done"
