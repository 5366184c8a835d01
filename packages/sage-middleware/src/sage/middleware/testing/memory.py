"""An engine and a sink without sockets or processes: for tests of everything that sits on the engine port.

They wait on events, never on time, so that a test decides when each byte comes.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import struct
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import msgspec

from sage.common.errors import BadRequestError
from sage.middleware.engines.port import Call, Capability, EngineSpec, Route, Sink, Usage

__all__ = ["Behaviour", "MemoryCall", "MemoryEngine", "MemorySink", "pair_score"]

DIMENSIONS = 8
WORDS = ("one ", "two ", "three")


@dataclass(frozen=True, slots=True)
class Behaviour:
    """How one call goes: wait for `gate` and raise `fault`, each after so many chunks.

    `every_s`: seconds between chunks, of a loop in virtual time. `bad_text`: a call that holds it is refused.
    """

    gate: asyncio.Event | None = None
    gate_after: int = 0
    fault: Exception | None = None
    fault_after: int = 0
    every_s: float = 0.0
    bad_text: str = ""


class MemoryEngine:
    """Answers in OpenAI's shape from this process. Fits `Engine`.

    `behaviour` is in force for every call, unless `next_behaviours` holds one for the next.
    """

    def __init__(
        self,
        name: str = "memory-0",
        model: str = "memory",
        *,
        max_running: int = 4,
        capabilities: frozenset[Capability] = frozenset(Capability),
    ) -> None:
        self._spec = EngineSpec(name, "memory", model, capabilities, max_running)
        self.behaviour = Behaviour()
        self.next_behaviours: deque[Behaviour] = deque()
        self.calls: list[Call] = []
        self.usages: list[Usage] = []  # of the calls that were answered
        self.running = 0
        self.most_running = 0
        self.served = 0
        self.cancelled = 0
        self.healthy = True
        self._changed = asyncio.Event()

    @property
    def spec(self) -> EngineSpec:
        """What it is."""
        return self._spec

    def begin(self, call: Call, told: Callable[[Usage | Exception], None]) -> MemoryCall | None:
        """As `send`, for a call that is no stream."""
        return None if call.stream else MemoryCall(self, call, told)

    async def ready(self) -> bool:
        """Whether `healthy` is set."""
        return self.healthy

    async def close(self) -> None:
        """Nothing is open."""

    async def until_running(self, count: int) -> None:
        """Wait until exactly `count` calls are in progress."""
        while self.running != count:
            self._changed.clear()
            await self._changed.wait()

    async def send(self, call: Call, sink: Sink) -> Usage:
        """Serve one call as the behaviour says."""
        behaviour = self.next_behaviours.popleft() if self.next_behaviours else self.behaviour
        self.calls.append(call)
        self._count(1)
        try:
            usage = await self._answer(call, sink, behaviour)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self._count(-1)
        self.served += 1
        self.usages.append(usage)
        return usage

    def answer(self, call: Call, request: dict[str, Any], usage: Usage) -> list[bytes]:
        """The chunks of a whole answer."""
        return [*_chunks(call, request, usage)]

    def _count(self, change: int) -> None:
        self.running += change
        self.most_running = max(self.most_running, self.running)
        self._changed.set()

    async def _answer(self, call: Call, sink: Sink, behaviour: Behaviour) -> Usage:
        request = msgspec.json.decode(call.body)
        given = [request.get(name, ()) for name in ("input", "documents", "text_2")]
        if behaviour.bad_text and any(behaviour.bad_text in texts for texts in given):
            raise BadRequestError(f"cannot embed {behaviour.bad_text!r}", param="input")
        writes = call.route in (Route.CHAT, Route.COMPLETIONS)
        usage = Usage(len(str(request).split()), len(WORDS) if writes else 0)
        chunks = self.answer(call, request, usage)
        for index in range(len(chunks) + 1):
            if behaviour.gate is not None and index == behaviour.gate_after:
                await behaviour.gate.wait()
            if behaviour.fault is not None and index == behaviour.fault_after:
                raise behaviour.fault
            if behaviour.every_s and index < len(chunks):
                await asyncio.sleep(behaviour.every_s)
            if index == len(chunks):
                break
            if index == 0:
                sink.head(200, "text/event-stream" if call.stream else "application/json")
            sink.data(chunks[index])
            if sink.full:
                await sink.drain()
        sink.end()
        return usage


class MemoryCall:
    """A call that nobody awaits. Fits `Begun`. Its answer is told in a turn of its own, as a socket would."""

    def __init__(self, engine: MemoryEngine, call: Call, told: Callable[[Usage | Exception], None]) -> None:
        self._told = told
        self._sink = MemorySink()
        self._task = asyncio.get_running_loop().create_task(engine.send(call, self._sink))
        self._task.add_done_callback(self._over)

    @property
    def body(self) -> bytes:
        """What has come."""
        return self._sink.body

    def abort(self) -> None:
        """End it, and tell nothing."""
        self._task.cancel()

    def _over(self, task: asyncio.Task[Usage]) -> None:
        if not task.cancelled():
            error = task.exception()
            assert error is None or isinstance(error, Exception)
            self._told(error or task.result())


class MemorySink:
    """Keeps an answer, and checks that it comes in order. Fits `Sink`."""

    def __init__(self) -> None:
        self.status: int | None = None
        self.content_type = ""
        self.chunks: list[bytes] = []
        self.ended = False
        self._changed = asyncio.Event()

    @property
    def body(self) -> bytes:
        """All bytes so far."""
        return b"".join(self.chunks)

    def head(self, status: int, content_type: str) -> None:
        """Keep status and type; only once."""
        assert self.status is None, "head was called twice"
        self.status, self.content_type = status, content_type

    def data(self, chunk: bytes) -> None:
        """Keep the bytes; only between head and end."""
        assert self.status is not None, "data before head"
        assert not self.ended, "data after end"
        self.chunks.append(chunk)
        self._changed.set()

    def end(self) -> None:
        """Note the end; only once."""
        assert self.status is not None, "end before head"
        assert not self.ended, "end was called twice"
        self.ended = True

    def whole(self, content_type: str, body: bytes) -> None:
        """All of it."""
        self.head(200, content_type)
        self.data(body)
        self.end()

    async def until_chunks(self, count: int) -> None:
        """Wait until `count` chunks have come."""
        while len(self.chunks) < count:
            self._changed.clear()
            await self._changed.wait()

    @property
    def full(self) -> bool:
        """Never: memory reads at once."""
        return False

    async def drain(self) -> None:
        """Nothing to wait for."""


def _chunks(call: Call, request: dict[str, Any], usage: Usage) -> Iterator[bytes]:
    tokens = {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }
    if call.route is Route.EMBEDDINGS:
        texts = request["input"] if isinstance(request["input"], list) else [request["input"]]
        base64_wanted = request.get("encoding_format") == "base64"
        data = [{"index": at, "embedding": _vector(text, base64_wanted)} for at, text in enumerate(texts)]
        yield msgspec.json.encode(
            {"object": "list", "data": data, "model": request["model"], "usage": tokens}
        )
    elif call.route in (Route.RERANK, Route.SCORE):
        yield msgspec.json.encode({**_scores(call.route, request), "usage": tokens})
    elif call.route is Route.TOKENIZE:
        tokens_of = list(request["prompt"].encode())
        yield msgspec.json.encode({"tokens": tokens_of, "count": len(tokens_of), "max_model_len": 4096})
    elif call.route is Route.DETOKENIZE:
        yield msgspec.json.encode({"prompt": bytes(request["tokens"]).decode()})
    elif not call.stream:
        message = {"role": "assistant", "content": "".join(WORDS)}
        choice = {"index": 0, "message": message, "text": "".join(WORDS), "finish_reason": "stop"}
        yield msgspec.json.encode({"choices": [choice], "model": request["model"], "usage": tokens})
    else:
        for word in WORDS:
            yield _event({"choices": [{"index": 0, "delta": {"content": word}, "text": word}]})
        if call.include_usage:
            yield _event({"choices": [], "usage": tokens})
        yield b"data: [DONE]\n\n"


def _event(chunk: dict[str, Any]) -> bytes:
    return b"data: " + msgspec.json.encode(chunk) + b"\n\n"


def _scores(route: Route, request: dict[str, Any]) -> dict[str, Any]:
    """Of a rerank the best first, as engines answer."""
    if route is Route.RERANK:
        scores = {at: pair_score(request["query"], one) for at, one in enumerate(request["documents"])}
        order = sorted(scores, key=lambda at: -scores[at])
        return {"results": [{"index": at, "relevance_score": scores[at]} for at in order]}
    left, right = request["text_1"], request["text_2"]
    lefts = [left] * len(right) if isinstance(left, str) else left
    data = [
        {"index": at, "object": "score", "score": pair_score(*pair)}
        for at, pair in enumerate(zip(lefts, right, strict=True))
    ]
    return {"data": data}


def pair_score(left: str, right: str) -> float:
    """A number from 0 to 1 that depends on both texts alone."""
    return hashlib.shake_256(f"{left}\0{right}".encode()).digest(1)[0] / 255


def _vector(text: str, base64_wanted: bool) -> str | list[float]:
    """A vector that depends on the text alone."""
    values = [byte / 255 for byte in hashlib.shake_256(text.encode()).digest(DIMENSIONS)]
    return base64.b64encode(struct.pack(f"<{DIMENSIONS}f", *values)).decode() if base64_wanted else values
