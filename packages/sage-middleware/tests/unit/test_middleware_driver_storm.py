"""Random traffic with every fault at once: one end for each request, right answers, nothing left behind."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from sage.common.errors import BadRequestError, EngineError, SageError, UnreachableError
from sage.middleware.control_plane.core import Core
from sage.middleware.control_plane.options import CoreOptions
from sage.middleware.control_plane.policies.fifo import Fifo
from sage.middleware.control_plane.policy import BatchLimits, EngineView, PolicyOptions, Traits
from sage.middleware.control_plane.records import Record
from sage.middleware.testing.bench import Bench, chat, embedding
from sage.middleware.testing.memory import Behaviour, MemorySink
from sage.middleware.testing.virtual import VirtualLoop

BAD = "refused"
TEXTS = ("a", "b", "c", "d", "e", BAD)


class Batching(Fifo):
    """Fifo with small calls, sent twice where they are late."""

    traits = Traits(batches=True, hedges=True)

    def batch(self, record: Record, engine: EngineView, now: float) -> BatchLimits:
        return BatchLimits(3, 1_000_000)


FAULTS = (None, None, None, EngineError("broke"), UnreachableError("gone"), BadRequestError("no"))

behaviours = st.builds(
    Behaviour,
    fault=st.sampled_from(FAULTS),
    fault_after=st.integers(0, 3),
    every_s=st.sampled_from((0.0, 0.1, 0.7)),
    bad_text=st.just(BAD),
)
requests = st.fixed_dictionaries(
    {
        "kind": st.sampled_from(("stream", "whole", "embedding")),
        "texts": st.lists(st.sampled_from(TEXTS), min_size=1, max_size=7),
        "start": st.floats(0, 2),
        "cancel": st.none() | st.floats(0, 3),
        "deadline": st.none() | st.floats(0.05, 3),
        "hedgeable": st.booleans(),
    }
)


async def expected() -> dict[str, Any]:
    """Each text's vector, asked for alone."""
    async with Bench() as bench:
        await bench.start(embedding("all", *TEXTS))
        return dict(zip(TEXTS, bench.vectors("all"), strict=True))


async def one(bench: Bench, ident: str, plan: dict[str, Any]) -> str:
    await asyncio.sleep(plan["start"])
    if plan["kind"] == "embedding":
        parsed = embedding(ident, *plan["texts"], hedgeable=plan["hedgeable"])
    else:
        parsed = chat(ident, stream=plan["kind"] == "stream")
    task = bench.start(parsed, deadline=plan["deadline"])
    if plan["cancel"] is not None:
        asyncio.get_running_loop().call_later(plan["cancel"], task.cancel)
    try:
        return await task
    except SageError:
        return "failed"
    except asyncio.CancelledError:
        return "cancelled"


def check(
    plan: dict[str, Any], outcome: str, sink: MemorySink, right: dict[str, Any], bench: Bench, ident: str
) -> None:
    if outcome != "done":
        if plan["kind"] != "stream":
            assert sink.status is None
        assert b"data: [DONE]" not in sink.body or outcome == "cancelled"
    elif plan["kind"] == "embedding":
        assert bench.vectors(ident) == [right[text] for text in plan["texts"]]
        assert BAD not in plan["texts"]
    else:
        assert sink.ended
        assert sink.body.count(b"three") == 2  # as `content` and as `text`


async def storm(plans: Sequence[dict[str, Any]], faults: Sequence[Sequence[Behaviour]]) -> None:
    right = await expected()
    async with Bench(2, slots=2, core=Core(Batching(PolicyOptions()), CoreOptions())) as bench:
        for engine, some in zip(bench.engines, faults, strict=True):
            engine.behaviour = Behaviour(bad_text=BAD, every_s=0.01)
            engine.next_behaviours.extend(some)
        names = [f"r{number}" for number in range(len(plans))]
        outcomes = await asyncio.gather(
            *(one(bench, name, plan) for name, plan in zip(names, plans, strict=True))
        )
        for name, plan, outcome in zip(names, plans, outcomes, strict=True):
            check(plan, outcome, bench.sinks[name], right, bench, name)
            known = bench.outcome(name).replace("rejected", "failed")
            assert known == outcome or outcome == "cancelled"  # it may have ended just before
        counts = [(status.waiting, status.waiting_bytes) for status in bench.plane.queues()]
        assert set(counts) == {(0, 0)}


@settings(max_examples=60, deadline=None)
@given(
    st.lists(requests, min_size=1, max_size=14),
    st.tuples(st.lists(behaviours, max_size=8), st.lists(behaviours, max_size=8)),
)
def test_whatever_happens(
    plans: list[dict[str, Any]], faults: tuple[list[Behaviour], list[Behaviour]]
) -> None:
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(storm(plans, faults))
