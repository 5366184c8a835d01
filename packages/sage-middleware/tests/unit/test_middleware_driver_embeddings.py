"""Embedding calls through the live control plane: coalesced, cut, shared, refused one by one, bit-equal."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import pytest

from sage.common.errors import BadRequestError, EngineError
from sage.middleware.control_plane.core import Core
from sage.middleware.control_plane.options import CoreOptions
from sage.middleware.control_plane.policies.fifo import Fifo
from sage.middleware.control_plane.policy import BatchLimits, Choice, EngineView, PolicyOptions, Traits, Wait
from sage.middleware.control_plane.records import Record
from sage.middleware.engines.port import Call
from sage.middleware.testing.bench import Bench, Submitted, embedding
from sage.middleware.testing.memory import Behaviour, MemoryEngine, MemorySink
from sage.middleware.testing.virtual import virtual

FAULT = EngineError("it broke")


class Batching(Fifo):
    """Fifo with calls of at most `texts` texts, lent `threads`."""

    traits = Traits(batches=True, hedges=True)

    def __init__(self, texts: int, threads: int = 0) -> None:
        super().__init__(PolicyOptions())
        self.texts = texts
        self.threads = threads

    def choose(self, record: Record, engines: Sequence[EngineView], now: float) -> Choice | Wait:
        choice = super().choose(record, engines, now)
        if isinstance(choice, Wait):
            return choice
        return Choice(choice.engine, choice.reason, threads=self.threads)

    def batch(self, record: Record, engine: EngineView, now: float) -> BatchLimits:
        return BatchLimits(self.texts, 1_000_000)


def batching(engines: int = 1, *, texts: int = 64, threads: int = 0, slots: int = 1) -> Bench:
    return Bench(engines, slots=slots, core=Core(Batching(texts, threads), CoreOptions()))


def inputs(call: Call) -> Any:
    return json.loads(call.body)["input"]


async def alone(*texts: str, **fields: Any) -> Sequence[Any]:
    """The vectors of a request that nobody else is beside."""
    async with Bench() as bench:
        assert await bench.start(embedding("alone", *texts, **fields)) == "done"
        return bench.vectors("alone")


async def queued(bench: Bench, *requests: Any) -> list[Submitted]:
    """Let requests wait behind one that holds the only engine, then let that one go."""
    return await bench.queued(embedding("first", "occupies the engine"), requests)


@virtual
async def test_a_request_that_is_a_call_of_its_own_goes_through_as_it_is() -> None:
    async with Bench() as bench:
        parsed = embedding("a", "x", "y", user="me", encoding_format="base64")
        assert await bench.start(parsed) == "done"
        (call,) = bench.engines[0].calls
        assert call.body is parsed.call.body
        assert len(bench.vectors("a")) == 2


@pytest.mark.parametrize("encoding", ["float", "base64"])
@virtual
async def test_requests_of_several_clients_share_a_call_and_get_their_own_vectors(encoding: str) -> None:
    async with batching() as bench:
        texts = {"a": ["one"], "b": ["two", "three"], "c": ["four"]}
        requests = [embedding(name, *some, encoding_format=encoding) for name, some in texts.items()]
        assert await asyncio.gather(*await queued(bench, *requests)) == ["done"] * 3
        assert [inputs(call) for call in bench.engines[0].calls[1:]] == [["one", "two", "three", "four"]]
        used = 0
        for name, some in texts.items():
            assert bench.vectors(name) == await alone(*some, encoding_format=encoding)
            body = bench.body(name)
            assert (body["object"], body["model"]) == ("list", "memory")
            assert body["usage"]["prompt_tokens"] == body["usage"]["total_tokens"]
            used += body["usage"]["prompt_tokens"]
        assert used == bench.engines[0].usages[1].prompt_tokens


@virtual
async def test_bulk_is_cut_and_its_answers_are_merged_in_input_order() -> None:
    async with batching(3, texts=4) as bench:
        gates = [asyncio.Event() for _ in bench.engines]
        for engine, gate in zip(bench.engines, gates, strict=True):
            engine.behaviour = Behaviour(gate=gate)
        texts = [f"text {number}" for number in range(10)]
        task = bench.start(embedding("a", *texts, user="me"))
        await bench.engines[2].until_running(1)
        for gate in reversed(gates):  # the last part is answered first
            gate.set()
            await bench.settled()
        assert await task == "done"
        assert [inputs(engine.calls[0]) for engine in bench.engines] == [texts[:4], texts[4:8], texts[8:]]
        assert json.loads(bench.engines[0].calls[0].body)["user"] == "me"
        assert bench.vectors("a") == await alone(*texts)
        used = sum(engine.usages[0].prompt_tokens for engine in bench.engines)
        assert bench.body("a")["usage"]["prompt_tokens"] == used


@virtual
async def test_a_part_that_fails_is_sent_again_alone() -> None:
    async with batching(2, texts=2) as bench:
        bench.engines[1].next_behaviours.append(Behaviour(fault=FAULT))
        texts = ["a", "b", "c", "d"]
        assert await bench.start(embedding("r", *texts)) == "done"
        calls = sorted(inputs(call) for engine in bench.engines for call in engine.calls)
        assert calls == [["a", "b"], ["c", "d"], ["c", "d"]]
        assert bench.vectors("r") == await alone(*texts)


@virtual
async def test_a_call_that_fails_for_good_fails_its_requests() -> None:
    async with batching(texts=8) as bench:
        bench.engines[0].behaviour = Behaviour(fault=FAULT)
        tasks = await queued(bench, embedding("a", "x"), embedding("b", "y"))
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [str(result) for result in results] == ["it broke"] * 2
        assert [bench.outcome(name) for name in "ab"] == ["failed"] * 2


@virtual
async def test_one_bad_text_fails_its_own_request_alone() -> None:
    async with batching() as bench:
        requests = [embedding("a", "good"), embedding("b", "bad", "fine"), embedding("c", "better")]
        bench.engines[0].behaviour = Behaviour(bad_text="bad")
        results = await asyncio.gather(*await queued(bench, *requests), return_exceptions=True)
        assert [results[0], results[2]] == ["done", "done"]
        assert isinstance(results[1], BadRequestError)
        assert [bench.outcome(name) for name in "abc"] == ["done", "failed", "done"]
        assert bench.vectors("c") == await alone("better")
        assert bench.plane.engines()[0].state == "ready"


@virtual
async def test_a_bad_text_in_one_part_ends_a_bulk_request() -> None:
    async with batching(2, texts=1) as bench:
        bench.engines[0].behaviour = Behaviour(gate=bench.gate)
        bench.engines[1].behaviour = Behaviour(bad_text="bad")
        with pytest.raises(BadRequestError, match="'bad'"):
            await bench.start(embedding("a", "good", "bad"))
        await bench.settled()
        assert bench.engines[0].cancelled == 1


# ---- the client goes away ----


@virtual
async def test_a_cancelled_request_leaves_the_others_of_its_call_bit_equal() -> None:
    async with batching() as bench:
        bench.hold()
        bench.engines[0].next_behaviours.append(Behaviour())
        await bench.start(embedding("first", "x"))
        tasks = await queued(bench, *(embedding(name, f"text {name}") for name in "abc"))
        await bench.engines[0].until_running(1)
        tasks[0].cancel()
        await bench.settled()
        assert bench.engines[0].running == 1
        bench.gate.set()
        assert await asyncio.gather(*tasks[1:]) == ["done", "done"]
        assert bench.engines[0].cancelled == 0
        assert [bench.vectors(name) for name in "bc"] == [await alone(f"text {name}") for name in "bc"]
        assert bench.outcome("a") == "cancelled"


@virtual
async def test_a_call_that_nobody_waits_for_is_cancelled_at_the_engine() -> None:
    async with batching() as bench:
        bench.hold()
        tasks = await queued(bench, embedding("a", "x"), embedding("b", "y"))
        await bench.engines[0].until_running(1)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await bench.settled()
        assert (bench.engines[0].running, bench.engines[0].cancelled) == (0, 1)


@virtual
async def test_a_bulk_request_that_is_cancelled_ends_all_of_its_calls() -> None:
    async with batching(3, texts=1) as bench:
        bench.hold()
        task = bench.start(embedding("a", *"vwxyz"))
        await bench.engines[2].until_running(1)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await bench.settled()
        assert [engine.cancelled for engine in bench.engines] == [1, 1, 1]
        assert [len(engine.calls) for engine in bench.engines] == [1, 1, 1]


# ---- the same text ----


@virtual
async def test_the_same_text_twice_is_computed_once() -> None:
    async with batching() as bench:
        requests = [embedding("a", "same", "other"), embedding("b", "same", "same")]
        assert await asyncio.gather(*await queued(bench, *requests)) == ["done"] * 2
        assert inputs(bench.engines[0].calls[1]) == ["same", "other"]
        same, other = await alone("same", "other")
        assert bench.vectors("a") == [same, other]
        assert bench.vectors("b") == [same, same]


@virtual
async def test_a_text_that_another_call_computes_is_not_sent() -> None:
    async with Bench(2) as bench:
        bench.hold()
        first = bench.start(embedding("a", "same", "mine"))
        await bench.engines[0].until_running(1)
        second = bench.start(embedding("b", "same", "yours"))
        third = bench.start(embedding("c", "same", key="another model's"))
        await bench.engines[1].until_running(1)
        assert inputs(bench.engines[1].calls[0]) == ["yours"]
        bench.gate.set()
        assert [await task for task in (first, second, third)] == ["done"] * 3
        assert [inputs(call) for call in bench.engines[0].calls] == [["same", "mine"], ["same"]]
        assert bench.vectors("b") == await alone("same", "yours")


@pytest.mark.parametrize("fails", [False, True])
@virtual
async def test_who_waits_for_another_s_text_does_not_depend_on_what_becomes_of_that(fails: bool) -> None:
    async with Bench(2) as bench:
        fault = BadRequestError("no") if fails else None
        bench.engines[0].next_behaviours.append(Behaviour(gate=bench.gate, fault=fault))
        first = bench.start(embedding("a", "same"))
        await bench.engines[0].until_running(1)
        second = bench.start(embedding("b", "same"))
        await bench.settled()
        assert bench.engines[1].calls == []
        if fails:
            bench.gate.set()
        else:
            first.cancel()
        assert await second == "done"
        assert inputs(bench.engines[1].calls[0]) == ["same"]
        assert bench.vectors("b") == await alone("same")
        await asyncio.gather(first, return_exceptions=True)


@virtual
async def test_without_a_batch_key_nothing_is_shared() -> None:
    async with Bench(2) as bench:
        bench.hold()
        tasks = [bench.start(embedding(name, "same", key="")) for name in "ab"]
        await bench.engines[1].until_running(1)
        bench.gate.set()
        assert await asyncio.gather(*tasks) == ["done"] * 2


# ---- what the engine is told, and what it answers ----


@virtual
async def test_lent_threads_are_passed_on() -> None:
    async with batching(threads=2) as bench:
        await asyncio.gather(*await queued(bench, embedding("a", "x"), embedding("b", "y")))
        assert [call.threads for call in bench.engines[0].calls] == [2, 2]


@virtual
async def test_a_late_call_runs_twice_without_waiting_for_itself() -> None:
    async with batching(2) as bench:
        bench.engines[0].behaviour = Behaviour(gate=asyncio.Event())
        assert await bench.start(embedding("a", "x", "y", hedgeable=True)) == "done"
        await bench.settled()
        assert (bench.engines[0].cancelled, bench.engines[1].served) == (1, 1)
        assert bench.vectors("a") == await alone("x", "y")


class Wrong(MemoryEngine):
    """Answers with the body that it is told."""

    def __init__(self, body: bytes) -> None:
        super().__init__()
        self.body = body

    def answer(self, call: Call, request: Any, usage: Any) -> list[bytes]:
        return [self.body]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"no JSON",
        b'{"data":[]}',
        b'{"data":[{"index":0,"embedding":[1]}]}',
        b'{"data":[{"index":0,"embedding":[1]},{"index":0,"embedding":[1]}]}',
        b'{"data":[{"index":0,"embedding":[1]},{"index":1,"embedding":[1,2]}]}',
        b'{"data":[{"index":0,"embedding":null},{"index":1,"embedding":null}]}',
        b'{"data":[{"index":0,"embedding":"\xff"},{"index":1,"embedding":"A"}]}',
        b'{"data":[{"index":0,"embedding":[1]},{"index":1,"embedding":[1]}],"object":"\xff\xfe"}',
        b'{"data":[{"index":0,"embedding":[1]},{"index":1,"embedding":',
    ],
)
@virtual
async def test_an_answer_that_cannot_be_right_is_a_fault_of_the_engine(body: bytes) -> None:
    async with Bench(0) as bench:
        bench.plane.add_engine(Wrong(body))
        with pytest.raises(EngineError):
            await bench.start(embedding("a", "x", "y"))
        assert bench.plane.engines()[0].failed == 2
        assert not bench.sinks["a"].chunks


class Torn(MemorySink):
    """A client whose socket fails at the first byte."""

    def head(self, status: int, content_type: str) -> None:
        raise RuntimeError("the socket is gone")


@virtual
async def test_a_client_whose_socket_fails_leaves_those_that_share_its_call_alone() -> None:
    async with batching() as bench:
        torn = embedding("torn", "x")
        gate = asyncio.Event()
        bench.engines[0].next_behaviours.append(Behaviour(gate=gate))
        first = bench.start(embedding("first", "occupies the engine"))
        await bench.engines[0].until_running(1)
        tasks = [asyncio.create_task(bench.submit(torn, Torn())), bench.start(embedding("other", "y"))]
        await bench.settled()
        gate.set()
        results = await asyncio.gather(first, *tasks, return_exceptions=True)
        assert [type(one) for one in results] == [str, RuntimeError, str]
        assert bench.engines[0].served == 2
        assert bench.vectors("other") == await alone("y")
