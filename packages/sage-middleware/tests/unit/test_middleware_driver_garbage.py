"""However a request ends, it is freed at once: nothing of it stays in a circle for the garbage collector."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import Iterator

import msgspec
import pytest

from sage.common.errors import EngineError, SageError
from sage.middleware.control_plane.classify import Parsed
from sage.middleware.control_plane.core import Core
from sage.middleware.control_plane.options import CoreOptions
from sage.middleware.control_plane.policies.fifo import Fifo
from sage.middleware.control_plane.policy import PolicyOptions, Traits
from sage.middleware.control_plane.relay import Collector, Relay
from sage.middleware.control_plane.tickets import Part, Ticket, Upstream
from sage.middleware.testing.bench import Bench, chat, embedding
from sage.middleware.testing.memory import Behaviour, MemorySink
from sage.middleware.testing.virtual import virtual

OURS = (Ticket, Upstream, Part, Relay, Collector)


@contextlib.contextmanager
def collected(kinds: list[str]) -> Iterator[None]:
    """Add the kinds of those objects of ours that are made meanwhile and that only a collector can free."""
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        yield
        gc.collect()
        kinds += sorted({type(one).__name__ for one in gc.garbage if isinstance(one, OURS)})
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


async def submit(bench: Bench, parsed: Parsed) -> str:
    """How it ended."""
    try:
        return await bench.submit(parsed, MemorySink())
    except SageError as error:
        return error.code


@pytest.mark.parametrize("policy", ["fifo", "hybrid"])
@pytest.mark.parametrize(
    ("parsed", "behaviour", "end"),
    [
        (chat("a"), Behaviour(), "done"),
        (chat("a", stream=False), Behaviour(), "done"),
        (embedding("a", "x", "y"), Behaviour(), "done"),
        (chat("a"), Behaviour(fault=EngineError("it broke")), "engine_error"),
        (chat("a"), Behaviour(fault=EngineError("it broke"), fault_after=1), "failed"),
        (chat("a", model="nobody"), Behaviour(), "model_not_found"),
    ],
    ids=["stream", "whole", "vectors", "fault", "broken", "unknown"],
)
@virtual
async def test_nothing_is_left(policy: str, parsed: Parsed, behaviour: Behaviour, end: str) -> None:
    kinds: list[str] = []
    async with Bench(policy=policy) as bench:
        bench.engines[0].behaviour = behaviour
        with collected(kinds):
            assert await submit(bench, parsed) == end
    assert kinds == []


@virtual
async def test_nothing_is_left_of_one_that_was_refused() -> None:
    kinds: list[str] = []
    async with Bench(queue_max_requests=1) as bench:
        bench.hold()
        running = [bench.start(chat(ident)) for ident in ("a", "b")]
        await bench.settled()
        with collected(kinds):
            assert await submit(bench, chat("c")) == "overloaded"
        bench.gate.set()
        assert await asyncio.gather(*running) == ["done", "done"]
    assert kinds == []


@virtual
async def test_nothing_is_left_of_one_whose_client_left_in_the_middle() -> None:
    kinds: list[str] = []
    async with Bench() as bench:
        bench.hold(after=1)
        with collected(kinds):
            task = bench.start(chat("a"))
            await bench.sinks["a"].until_chunks(1)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            del task
    assert kinds == []


class _Hedging(Fifo):
    traits = Traits(hedges=True)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("late_wins", [True, False])
@virtual
async def test_nothing_is_left_of_one_that_ran_twice(late_wins: bool, stream: bool) -> None:
    kinds: list[str] = []
    parsed = chat("a", stream=stream)
    twice = Parsed(msgspec.structs.replace(parsed.job, hedgeable=True), parsed.call)
    async with Bench(2, core=Core(_Hedging(PolicyOptions()), CoreOptions())) as bench:
        late, second = bench.engines
        late.behaviour = Behaviour(gate=bench.gate)
        second.behaviour = Behaviour(gate=asyncio.Event() if late_wins else None)
        with collected(kinds):
            task = bench.start(twice)
            if late_wins:
                await second.until_running(1)
                bench.gate.set()
            assert await task == "done"
            await bench.settled()
            del task
    assert kinds == []
