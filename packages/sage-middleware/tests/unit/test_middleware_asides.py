"""Calls about tokens: judged like others, sent at once, bounded, retried, ended."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from sage.common.errors import (
    BadRequestError,
    EngineError,
    ModelNotFoundError,
    OverloadedError,
    TimedOutError,
    UnavailableError,
    UnreachableError,
)
from sage.middleware.control_plane.asides import MOST
from sage.middleware.control_plane.classify import Parsed, ParseLimits, parse
from sage.middleware.engines.port import Capability, Route
from sage.middleware.testing.bench import Bench, chat, tokenize
from sage.middleware.testing.memory import Behaviour, MemoryEngine
from sage.middleware.testing.virtual import virtual

HI = [{"role": "user", "content": "hi"}]
FAULT = EngineError("it broke")


def read(route: Route, headers: dict[str, str] | None = None, **fields: Any) -> Parsed:
    body = json.dumps({"model": "m", **fields}).encode()
    limits = ParseLimits(max_input_tokens=5, tenants=frozenset(("search",)))
    return parse(route, body, limits=limits, tenant="t", headers=headers or {})


# ---- bodies and headers ----


def test_a_prompt_needs_a_tokenizer_and_a_chat_its_template_too() -> None:
    assert read(Route.TOKENIZE, prompt="").job.needs == {Capability.TOKENIZE}
    assert read(Route.TOKENIZE, messages=HI).job.needs == {Capability.TOKENIZE, Capability.CHAT}
    assert read(Route.DETOKENIZE, tokens=[1]).job.needs == {Capability.TOKENIZE}


@pytest.mark.parametrize(
    ("route", "fields", "param", "says"),
    [
        (Route.TOKENIZE, {}, "prompt", "either"),
        (Route.TOKENIZE, {"prompt": "a", "messages": HI}, "prompt", "either"),
        (Route.TOKENIZE, {"prompt": ["a"]}, "prompt", "Expected"),
        (Route.TOKENIZE, {"messages": []}, "messages", "is empty"),
        (Route.TOKENIZE, {"prompt": "a", "add_generation_prompt": True}, "add_generation_prompt", "messages"),
        (Route.TOKENIZE, {"prompt": "a", "truncate": 3}, "truncate", "valid are: model, prompt"),
        (Route.DETOKENIZE, {}, "tokens", "missing"),
        (Route.DETOKENIZE, {"tokens": []}, "tokens", "is empty"),
        (Route.DETOKENIZE, {"tokens": [1] * 6}, "tokens", "between 1 and 5"),
        (Route.DETOKENIZE, {"tokens": [1, -2]}, "tokens[1]", "at least 0"),
        (Route.DETOKENIZE, {"tokens": ["a"]}, "tokens[0]", "Expected"),
    ],
    ids=str,
)
def test_what_is_wrong_is_refused_by_name(
    route: Route, fields: dict[str, Any], param: str, says: str
) -> None:
    with pytest.raises(BadRequestError) as caught:
        read(route, **fields)
    assert caught.value.param == param
    assert says in caught.value.message


def test_a_deadline_and_a_tenant_are_heeded_and_what_schedules_is_refused() -> None:
    parsed = read(Route.TOKENIZE, {"x-sage-deadline-ms": "50", "x-sage-tenant": "search"}, prompt="a")
    assert (parsed.deadline, parsed.job.tenant) == (0.05, "search")
    for name, value in (
        ("x-sage-class", "batch"),
        ("x-sage-priority", "1"),
        ("x-sage-slo-ttft-ms", "20"),
        ("x-sage-slo-tpot-ms", "20"),
        ("x-sage-parent", "req-1"),
        ("x-sage-explain", "1"),
    ):
        with pytest.raises(BadRequestError, match="waits in no queue") as caught:
            read(Route.TOKENIZE, {name: value}, prompt="a")
        assert caught.value.param == name


# ---- through the control plane ----


@virtual
async def test_tokens_do_not_wait_behind_generations() -> None:
    async with Bench(1, slots=1) as bench:
        bench.engines[0].next_behaviours.append(Behaviour(gate=bench.gate))
        first, second = bench.start(chat("a")), bench.start(chat("b"))
        await bench.engines[0].until_running(1)
        assert await bench.start(tokenize("c", "hey")) == "done"
        assert bench.body("c") == {"tokens": [104, 101, 121], "count": 3, "max_model_len": 4096}
        assert not first.done()
        assert bench.plane.engines()[0].running == 1  # it took no slot
        assert bench.plane.decision("c") is None
        bench.gate.set()
        await asyncio.gather(first, second)


@virtual
async def test_the_least_busy_engine_is_asked_and_then_the_next() -> None:
    async with Bench(3) as bench:
        bench.engines[0].next_behaviours.append(Behaviour(gate=bench.gate))
        busy = bench.start(chat("a"))
        await bench.engines[0].until_running(1)
        bench.engines[1].next_behaviours.append(Behaviour(fault=UnreachableError("gone")))
        assert await bench.start(tokenize("b")) == "done"
        assert [len(engine.calls) for engine in bench.engines] == [1, 1, 1]
        bench.gate.set()
        await busy


@pytest.mark.parametrize(("fault", "calls"), [(FAULT, 2), (BadRequestError("no"), 1)])
@virtual
async def test_a_fault_is_tried_twice_and_a_refusal_once(fault: Exception, calls: int) -> None:
    async with Bench(3) as bench:
        for engine in bench.engines:
            engine.behaviour = Behaviour(fault=fault)
        with pytest.raises(type(fault)):
            await bench.start(tokenize("a"))
        assert sum(len(engine.calls) for engine in bench.engines) == calls
        assert all(status.state == "ready" for status in bench.plane.engines())


@virtual
async def test_a_client_that_goes_frees_the_engine() -> None:
    async with Bench() as bench:
        bench.hold()
        task = bench.start(tokenize("a"))
        await bench.engines[0].until_running(1)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert bench.engines[0].cancelled == 1


@virtual
async def test_a_deadline_ends_it() -> None:
    async with Bench() as bench:
        bench.hold()
        with pytest.raises(TimedOutError, match=r"within 0\.05 s"):
            await bench.start(tokenize("a"), deadline=0.05)
        with pytest.raises(TimedOutError, match="within 10 s"):
            await bench.start(tokenize("b"), deadline=60.0)
        assert bench.engines[0].cancelled == 2


@virtual
async def test_more_than_so_many_are_refused() -> None:
    async with Bench() as bench:
        bench.hold()
        tasks = [bench.start(tokenize(f"t{number}")) for number in range(MOST)]
        await bench.engines[0].until_running(MOST)
        with pytest.raises(OverloadedError) as refused:
            await bench.start(tokenize("one more"))
        assert refused.value.retry_after == 1.0
        bench.gate.set()
        assert await asyncio.gather(*tasks) == ["done"] * MOST


@virtual
async def test_a_shutdown_ends_those_that_are_open() -> None:
    async with Bench() as bench:
        bench.hold()
        task = bench.start(tokenize("a"))
        await bench.engines[0].until_running(1)
        await bench.plane.close(0.0)
        with pytest.raises(UnavailableError, match="shutting down"):
            await task
        with pytest.raises(UnavailableError, match="shutting down"):
            await bench.start(tokenize("b"))


@virtual
async def test_who_cannot_is_told_who_can() -> None:
    async with Bench() as bench:
        writer = MemoryEngine("w", "writer", capabilities=frozenset({Capability.CHAT}))
        bench.plane.add_engine(writer)
        with pytest.raises(BadRequestError, match=r"tokenize\. Engines that can: e0 \(model memory\)"):
            await bench.start(tokenize("a", model="writer"))
        with pytest.raises(ModelNotFoundError):
            await bench.start(tokenize("b", model="nobody"))
        bench.plane.engine_down("e0", "it stopped")
        with pytest.raises(UnavailableError):
            await bench.start(tokenize("c"))
        assert writer.calls == []
