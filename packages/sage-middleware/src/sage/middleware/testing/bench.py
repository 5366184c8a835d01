"""A live control plane over in-memory engines, for tests of what happens between them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, Self

import msgspec

from sage.common.config import ControlPlaneConfig
from sage.middleware.control_plane.classify import Parsed, ParseLimits, parse
from sage.middleware.control_plane.core import Core
from sage.middleware.control_plane.driver import ControlPlane
from sage.middleware.engines.port import Route
from sage.middleware.testing.memory import Behaviour, MemoryEngine, MemorySink
from sage.middleware.testing.virtual import LoopClock

__all__ = ["Bench", "Submitted", "chat", "embedding", "rerank", "score", "submit", "tokenize"]

_BEGUN = (Route.CHAT, Route.EMBEDDINGS)

Submitted = asyncio.Task[Literal["done", "failed"]]


def chat(ident: str, *, model: str = "memory", stream: bool = True, **fields: Any) -> Parsed:
    """A short chat request."""
    body = {"model": model, "messages": [{"role": "user", "content": "hi"}], "stream": stream, **fields}
    return _parse(Route.CHAT, ident, body)


def embedding(ident: str, *texts: str, key: str = "k", hedgeable: bool = False, **fields: Any) -> Parsed:
    """An embedding request; `key` is its batch key."""
    parsed = _parse(Route.EMBEDDINGS, ident, {"model": "memory", "input": list(texts), **fields})
    return msgspec.structs.replace(
        parsed, job=msgspec.structs.replace(parsed.job, batch_key=key, hedgeable=hedgeable)
    )


def rerank(ident: str, query: str, *documents: str, **fields: Any) -> Parsed:
    """A rerank request."""
    return _parse(Route.RERANK, ident, {"model": "memory", "query": query, "documents": documents, **fields})


def score(ident: str, left: str | list[str], right: str | list[str]) -> Parsed:
    """A score request."""
    return _parse(Route.SCORE, ident, {"model": "memory", "text_1": left, "text_2": right})


def tokenize(ident: str, prompt: str = "hi", *, model: str = "memory") -> Parsed:
    """A request for the tokens of a prompt."""
    return _parse(Route.TOKENIZE, ident, {"model": model, "prompt": prompt})


def _parse(route: Route, ident: str, body: dict[str, Any]) -> Parsed:
    headers = {"x-request-id": ident}
    return parse(route, json.dumps(body).encode(), limits=ParseLimits(), tenant="t", headers=headers)


async def submit(
    plane: ControlPlane, parsed: Parsed, sink: MemorySink, *, begins: bool, deadline: float | None = None
) -> Literal["done", "failed"]:
    """Have it served; with `begins` a whole chat or vectors are begun. Raises what it ends with."""
    job, call = parsed.job, parsed.call
    plain = deadline is None and not job.parent and not call.stream and call.route in _BEGUN
    if not (begins and plain):
        return await plane.submit(job, call, sink, deadline=deadline)
    over: asyncio.Future[BaseException | None] = asyncio.get_running_loop().create_future()
    ticket = plane.begin(job, call, sink, over.set_result)
    try:
        error = await asyncio.shield(over)
    except asyncio.CancelledError:
        plane.cancel(ticket)
        await over
        raise
    if error is not None:
        raise error
    return "done"


class Bench:
    """A control plane, its engines, and the requests that a test has started. Made within a running loop.

    `begins`: whole chats and vectors are begun, where no task awaits them. As a context manager it opens the
    gate, lets everything end and checks that nothing is left.
    """

    begins: ClassVar[bool] = False

    def __init__(
        self,
        engines: int = 1,
        *,
        slots: int = 1,
        core: Core | None = None,
        policy: str = "fifo",
        **config: Any,
    ) -> None:
        self.plane = ControlPlane(ControlPlaneConfig(policy=policy, **config), LoopClock(), core=core)
        self.engines = [MemoryEngine(f"e{index}", max_running=slots) for index in range(engines)]
        for engine in self.engines:
            self.plane.add_engine(engine)
        self.gate = asyncio.Event()
        self.sinks: dict[str, MemorySink] = {}

    def start(self, parsed: Parsed, *, deadline: float | None = None) -> Submitted:
        """Submit it in a task of its own; its answer goes to `sinks`."""
        sink = self.sinks[parsed.job.id] = MemorySink()
        return asyncio.create_task(self.submit(parsed, sink, deadline=deadline))

    async def submit(
        self, parsed: Parsed, sink: MemorySink, *, deadline: float | None = None
    ) -> Literal["done", "failed"]:
        """Serve it; as `begins` says. Raises what it ends with."""
        return await submit(self.plane, parsed, sink, begins=self.begins, deadline=deadline)

    async def queued(self, first: Parsed, requests: Sequence[Parsed]) -> list[Submitted]:
        """Let requests wait behind `first`, which holds the only engine, then let that one go."""
        gate = asyncio.Event()
        self.engines[0].next_behaviours.append(Behaviour(gate=gate))
        holder = self.start(first)
        await self.engines[0].until_running(1)
        tasks = [self.start(request) for request in requests]
        await self.settled()
        gate.set()
        await holder
        return tasks

    def hold(self, after: int = 0) -> None:
        """From now on engines wait for `gate` after so many chunks."""
        for engine in self.engines:
            engine.behaviour = Behaviour(gate=self.gate, gate_after=after)

    def body(self, ident: str) -> Any:
        """The JSON that a request was answered with."""
        sink = self.sinks[ident]
        assert sink.ended
        return json.loads(sink.body)

    def vectors(self, ident: str) -> Sequence[Any]:
        """The embeddings of an answer, after a look at their order."""
        data = self.body(ident)["data"]
        assert [item["index"] for item in data] == list(range(len(data)))
        return [item["embedding"] for item in data]

    def outcome(self, ident: str) -> str:
        """How a request ended, as the core has it."""
        decision = self.plane.decision(ident)
        assert decision is not None
        return decision.outcome

    async def settled(self) -> None:
        """Let every task run until it waits."""
        for _ in range(10):
            await asyncio.sleep(0)

    def assert_idle(self) -> None:
        """Nothing of any request is left: in the core, in the driver, at the engines."""
        assert self.plane.core.live == 0
        assert self.plane._tickets == {}
        assert len(self.plane._upstreams) == 0
        assert len(self.plane._upstreams._texts) == 0
        assert len(self.plane._asides) == 0
        assert not any(status.running for status in self.plane.engines())
        assert not any(engine.running for engine in self.engines)
        assert not any(queue.waiting for queue in self.plane.queues())

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            return  # the test has failed: let that be seen
        self.gate.set()
        await self.plane.close(5.0)
        await self.settled()
        self.assert_idle()
        assert len(asyncio.all_tasks()) == 1
