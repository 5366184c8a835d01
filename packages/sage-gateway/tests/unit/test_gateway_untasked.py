"""Plain requests that no task serves: charged, answered and accounted for once, however they end."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
from collections.abc import Callable
from typing import Any, cast

import pytest

from sage.common.errors import EngineError, SageError
from sage.common.testing import VirtualClock
from sage.gateway.accounts import Accounts, Visit
from sage.gateway.conversations import Conversations
from sage.gateway.dataplane import DataPlane
from sage.gateway.edge import Admission
from sage.gateway.keys import Principal
from sage.gateway.limits import Limits
from sage.gateway.reply import Flow, Reply
from sage.gateway.requests import HotRequest
from sage.gateway.tokens import TokenDecoder
from sage.gateway.untasked import Untasked
from sage.gateway.usage import Meter, UsageStore
from sage.gateway.watch import Watch
from sage.middleware.control_plane.classify import ParseLimits
from sage.middleware.control_plane.router import ModelRouter
from sage.middleware.engines.dialects.envelopes import envelope_of
from sage.middleware.engines.port import Route
from sage.middleware.testing.bench import Bench
from sage.middleware.testing.memory import Behaviour
from sage.middleware.testing.virtual import virtual

CHAT = {"model": "memory", "messages": [{"role": "user", "content": "hi"}]}
TEXTS = {"model": "memory", "input": "some text"}
KEY = Principal("key-1")


class Wire(asyncio.Transport):
    """A client's socket: keeps what is written."""

    def __init__(self, fault: Exception | None = None) -> None:
        super().__init__()
        self.written = b""
        self._fault = fault

    def write(self, data: Any) -> None:
        if self._fault is not None:
            raise self._fault
        self.written += data


class Door:
    """A data plane in front of a bench. `overs`: requests that are over, in order."""

    def __init__(self, bench: Bench, limits: Limits | None = None) -> None:
        self.bench = bench
        self.meter = Meter(cast(UsageStore, None))
        self.accounts = Accounts(VirtualClock(), self.meter, lambda _: True)
        self.accounts.put("key-1", limits or Limits())
        self.watch = Watch()
        self.router = ModelRouter(bench.plane, VirtualClock())
        conversations = cast(Conversations, None)  # of chats there are none
        self.plane = DataPlane(
            self.router,
            ParseLimits(),
            TokenDecoder(),
            lambda: False,
            self.accounts,
            self.watch,
            conversations,
        )
        self.overs: list[str] = []
        self.requests: dict[str, HotRequest] = {}

    def begin(
        self,
        ident: str,
        *,
        route: Route = Route.CHAT,
        principal: Principal = KEY,
        wire: Wire | None = None,
        headers: dict[bytes, bytes] | None = None,
        **fields: Any,
    ) -> Reply | None:
        """Begin a request; its reply, or None where it needs a task."""
        body = json.dumps({**(TEXTS if route is Route.EMBEDDINGS else CHAT), **fields}).encode()
        admission = Admission(principal, route, 4096, expect_continue=False)
        request = self.requests[ident] = HotRequest(ident, admission, headers or {}, body)
        reply = Reply(wire or Wire(), cast(Flow, None), envelope_of(route, ident), b"")
        begun = self.plane.begin(request, reply, lambda over, _: self.overs.append(over.id))
        return reply if begun else None

    def cancel(self, ident: str) -> None:
        """Its client has gone, or it was told to end."""
        task = self.requests[ident].task
        assert task is not None
        task.cancel()

    def visits(self) -> int:
        """Requests of the key under way."""
        return len(self.accounts._accounts["key-1"].visits)

    def counts(self) -> tuple[int, int, int, int]:
        """What was counted for the key: requests, tokens, errors, refusals."""
        tallies = list(self.meter._pending.values())
        return (
            sum(one.requests for one in tallies),
            sum(one.prompt_tokens + one.completion_tokens for one in tallies),
            sum(one.errors for one in tallies),
            sum(one.refusals for one in tallies),
        )


def written(reply: Reply | None) -> bytes:
    assert reply is not None
    return cast(Wire, reply._transport).written


@virtual
async def test_a_plain_chat_is_answered_and_counted_without_a_task() -> None:
    async with Bench() as bench:
        door = Door(bench)
        tasks = asyncio.all_tasks()
        reply = door.begin("a")
        assert (door.visits(), door.overs) == (1, [])
        assert len(asyncio.all_tasks() - tasks) == 1  # the engine's own
        await bench.settled()
        assert written(reply).startswith(b"HTTP/1.1 200 OK\r\n")
        assert json.loads(written(reply).partition(b"\r\n\r\n")[2])["choices"]
        assert (door.visits(), door.overs) == (0, ["a"])
        (usage,) = bench.engines[0].usages
        assert door.counts() == (1, usage.prompt_tokens + usage.completion_tokens, 0, 0)
        assert reply is not None
        assert reply.record is not None
        assert reply.record.outcome == "done"


@virtual
async def test_vectors_are_answered_and_counted_without_a_task() -> None:
    async with Bench() as bench:
        door = Door(bench)
        tasks = asyncio.all_tasks()
        reply = door.begin("a", route=Route.EMBEDDINGS)
        assert len(asyncio.all_tasks() - tasks) == 1  # the engine's own
        await bench.settled()
        assert len(json.loads(written(reply).partition(b"\r\n\r\n")[2])["data"]) == 1
        assert (door.visits(), door.overs) == (0, ["a"])
        assert door.counts() == (1, bench.engines[0].usages[0].prompt_tokens, 0, 0)


@virtual
async def test_what_waits_for_an_engine_waits_without_a_task() -> None:
    async with Bench() as bench:
        door = Door(bench)
        bench.hold()
        door.begin("first")
        await bench.settled()
        tasks = asyncio.all_tasks()
        reply = door.begin("a")
        await bench.settled()
        assert asyncio.all_tasks() == tasks
        bench.gate.set()
        await bench.settled()
        assert written(reply).startswith(b"HTTP/1.1 200")
        assert door.overs == ["first", "a"]


@virtual
async def test_a_refusal_comes_with_the_record_of_its_decision() -> None:
    async with Bench(queue_max_requests=1) as bench:
        door = Door(bench)
        bench.hold()
        replies = [door.begin(ident) for ident in ("runs", "waits", "a")]
        await bench.settled()
        assert written(replies[2]).startswith(b"HTTP/1.1 429")
        assert replies[2] is not None
        assert replies[2].record is not None
        assert replies[2].record.outcome == "rejected"
        assert (door.overs, door.counts()[3]) == (["a"], 1)


@pytest.mark.parametrize(
    "more",
    [
        {"stream": True},
        {"headers": {b"x-sage-deadline-ms": b"5000"}},
        {"headers": {b"x-sage-parent": b"req-0"}},
        {"route": Route.EMBEDDINGS, "input": [1, 2]},
        {"route": Route.RERANK},
        {"n": 99},
        {"principal": Principal("revoked")},
        {"model": "name"},
    ],
    ids=lambda more: next(iter(more)),
)
@virtual
async def test_what_needs_a_task_is_left_to_it_untouched(more: dict[str, Any]) -> None:
    async with Bench() as bench:
        door = Door(bench, Limits(rpm=1))
        door.router._table = {"name": cast(Any, None)}
        assert door.begin("a", **more) is None
        assert door.requests["a"].task is None
        assert (door.visits(), door.overs, door.counts()) == (0, [], (0, 0, 0, 0))
        assert door.begin("b") is not None  # nothing was charged
        assert not door.watch.bounds


@virtual
async def test_an_engine_that_fails_is_answered_for() -> None:
    async with Bench() as bench:
        door = Door(bench)
        bench.engines[0].next_behaviours.extend([Behaviour(fault=EngineError("it broke"))] * 2)
        reply = door.begin("a")
        await bench.settled()
        await asyncio.sleep(1.0)
        assert written(reply).startswith(b"HTTP/1.1 502")
        assert (door.visits(), door.overs, door.counts()) == (0, ["a"], (1, 0, 1, 0))


@virtual
async def test_a_model_that_nobody_has_is_named_at_once() -> None:
    async with Bench() as bench:
        door = Door(bench)
        reply = door.begin("a", model="none")
        assert b"404" in written(reply).split(b"\r\n")[0]
        assert (door.visits(), door.overs, door.counts()[2]) == (0, ["a"], 1)


@virtual
async def test_a_key_gets_what_its_limits_leave_and_each_end_gives_back() -> None:
    async with Bench(slots=4) as bench:
        door = Door(bench, Limits(concurrent=1, rpm=3))
        bench.hold()
        first = door.begin("a")
        second = door.begin("b")
        assert written(second).startswith(b"HTTP/1.1 429")
        assert b"x-ratelimit-remaining-requests: 2" in written(second)
        bench.gate.set()
        await bench.settled()
        assert written(first).startswith(b"HTTP/1.1 200")
        assert b"x-ratelimit-remaining-requests: 2" in written(first)
        third = door.begin("c")
        await bench.settled()
        assert written(third).startswith(b"HTTP/1.1 200")
        assert door.overs == ["b", "a", "c"]
        assert door.counts()[3] == 1
        assert door.watch.bounds == {"key_max_concurrent": 1}


@virtual
async def test_a_model_that_is_not_the_keys_is_refused() -> None:
    async with Bench() as bench:
        door = Door(bench)
        reply = door.begin("a", principal=Principal("key-1", models=frozenset(("other",))))
        assert written(reply).startswith(b"HTTP/1.1 403")
        assert (door.overs, door.counts()[3], bench.plane.core.live) == (["a"], 1, 0)


@pytest.mark.parametrize("waits", [False, True])
@virtual
async def test_a_client_that_leaves_is_forgotten_wherever_its_request_is(waits: bool) -> None:
    async with Bench() as bench:
        door = Door(bench)
        bench.hold()
        if waits:
            door.begin("first")
        reply = door.begin("a")
        await bench.settled()
        door.cancel("a")
        await bench.settled()
        assert (written(reply), door.overs) == (b"", ["a"])
        assert door.visits() == int(waits)
        assert bench.outcome("a") == "cancelled"
        assert bench.engines[0].cancelled == int(not waits)


@virtual
async def test_a_revoked_key_and_a_drain_are_told_to_the_client() -> None:
    async with Bench(slots=2) as bench:
        door = Door(bench)
        bench.hold()
        revoked, drained = door.begin("a"), door.begin("b")
        await bench.engines[0].until_running(2)
        door.requests["b"].ending = EngineError("shutting down")
        door.cancel("b")
        door.accounts.drop("key-1")
        await bench.settled()
        assert written(revoked).startswith(b"HTTP/1.1 401")
        assert b"shutting down" in written(drained)
        assert sorted(door.overs) == ["a", "b"]
        assert bench.engines[0].cancelled == 2


@virtual
async def test_a_fault_of_ours_is_logged_and_ends_the_request(caplog: pytest.LogCaptureFixture) -> None:
    async with Bench() as bench:
        door = Door(bench)
        with caplog.at_level(logging.ERROR, "sage"):
            door.begin("a", wire=Wire(RuntimeError("a bug")))
            await bench.settled()
            await asyncio.sleep(1.0)
        assert "a bug" in caplog.text
        assert (door.visits(), door.overs) == (0, ["a"])


ENDS: dict[str, Callable[[Door], object]] = {
    "done": lambda door: door.bench.gate.set(),
    "cancelled": lambda door: door.cancel("a"),
    "revoked": lambda door: door.accounts.drop("key-1"),
}


@pytest.mark.parametrize("end", sorted(ENDS))
@pytest.mark.parametrize("limits", [Limits(), Limits(rpm=9)], ids=["free", "limited"])
@virtual
async def test_nothing_of_it_is_left_to_the_garbage_collector(end: str, limits: Limits) -> None:
    async with Bench() as bench:
        door = Door(bench, limits)
        bench.hold()
        gc.collect()
        gc.disable()
        gc.set_debug(gc.DEBUG_SAVEALL)
        try:
            door.begin("a")
            await bench.settled()
            ENDS[end](door)
            await bench.settled()
            door.requests.clear()
            gc.collect()
            ours = (Untasked, Visit, Reply, HotRequest, SageError)
            assert [type(one).__name__ for one in gc.garbage if isinstance(one, ours)] == []
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
            gc.enable()
