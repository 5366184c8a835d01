"""What the driver tells of a request's tokens to whoever submitted it."""

from __future__ import annotations

import asyncio

import pytest

from sage.common.errors import EngineError, OverloadedError
from sage.middleware.control_plane.classify import Parsed
from sage.middleware.engines.port import Usage
from sage.middleware.testing.bench import Bench, chat, embedding
from sage.middleware.testing.memory import Behaviour, MemorySink
from sage.middleware.testing.virtual import virtual


async def submit(bench: Bench, parsed: Parsed, told: list[Usage]) -> str:
    return await bench.plane.submit(parsed.job, parsed.call, MemorySink(), used=told.append)


@virtual
@pytest.mark.parametrize("parsed", [chat("a"), chat("a", stream=False), embedding("a", "x", "y")])
async def test_what_the_engine_counted_is_told_once(parsed: Parsed) -> None:
    async with Bench() as bench:
        told: list[Usage] = []
        assert await submit(bench, parsed, told) == "done"
        decision = bench.plane.decision("a")
        assert decision is not None
        assert told == [Usage(decision.prompt_tokens or 0, decision.completion_tokens or 0)]
        assert told[0].prompt_tokens > 0


@virtual
async def test_also_of_a_request_that_has_left_the_history() -> None:
    async with Bench(slots=4, decision_history=1) as bench:
        bench.hold(1)
        told: list[Usage] = []
        long = asyncio.create_task(submit(bench, chat("a"), told))
        await bench.settled()
        others = [bench.start(chat(str(n))) for n in range(3)]
        await bench.settled()
        bench.gate.set()
        await asyncio.gather(long, *others)
        assert bench.plane.decision("a") is None
        assert [usage.completion_tokens for usage in told] == [3]


@virtual
async def test_nothing_is_told_of_a_request_that_no_engine_answered() -> None:
    async with Bench(queue_max_requests=1) as bench:
        told: list[Usage] = []
        bench.engines[0].behaviour = Behaviour(fault=EngineError("it broke"))
        with pytest.raises((EngineError, OverloadedError)):
            await submit(bench, chat("a"), told)
        assert told == []
