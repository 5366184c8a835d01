"""An OpenAI-compatible engine inside the test's own process, on a real socket, that fails as it is told.

It waits on events, never on time, so that a test decides when each byte comes.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import struct
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Self

import msgspec

from sage.common.config import EngineConfig
from sage.middleware.engines.server import Exchange, Request, ServerProtocol
from sage.middleware.engines.sse import Splitter
from sage.middleware.testing.media import fields_of, media_answer
from sage.middleware.testing.memory import pair_score
from sage.middleware.testing.obedience import Said, heed

__all__ = ["Flaw", "Script", "ScriptedEngine"]

DIMENSIONS = 8


@dataclass(frozen=True, slots=True)
class Flaw:
    """What is wrong with a body.

    `garble_at`: that byte is sent as 0xFF. `no_done`: a stream ends without `[DONE]`. `endless`: a
    stream repeats its words until the client goes away.
    """

    garble_at: int | None = None
    no_done: bool = False
    endless: bool = False


@dataclass(frozen=True, slots=True)
class Script:
    """What to do with one request.

    `words` are the streamed pieces, unless the request has tools or a schema that the engine heeds. With
    `gate`, the engine waits for that event after `gate_after` pieces (-1 = before the status line). `cut_at`
    closes the connection after that many bytes of the body; `fragment` sends the body in pieces of that many
    bytes. `error` is the body that goes with a `status` other than 200; a stream holds it as an event, after
    the words and in place of the end. `raw` is sent as the answer, whatever was asked for: event by event if
    it is a stream.
    """

    words: tuple[str, ...] = ("one ", "two ", "three")
    status: int = 200
    gate: asyncio.Event | None = None
    gate_after: int = -1
    cut_at: int | None = None
    fragment: int | None = None
    error: bytes | None = None
    raw: bytes | None = None
    flaw: Flaw = Flaw()


@dataclass(slots=True)
class ScriptedEngine:
    """Use as an async context manager; `url` is then its address.

    `script` is in force for every request, unless `next_scripts` holds one for the next. `active` counts
    requests in progress, `served` those answered to the end, `cancelled` those whose client went away.
    """

    model: str = "scripted"
    script: Script = field(default_factory=Script)
    next_scripts: deque[Script] = field(default_factory=deque)
    healthy: bool = True
    requests: list[Request] = field(default_factory=list)
    active: int = 0
    served: int = 0
    cancelled: int = 0
    connections: int = 0
    url: str = ""
    _server: asyncio.Server | None = None
    _open: set[ServerProtocol] = field(default_factory=set)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def start(self, port: int = 0) -> str:
        """Listen on loopback and return the URL; port 0 = any free one."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: ServerProtocol(self._handle, self._connection), "127.0.0.1", port
        )
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self.url

    async def stop(self) -> None:
        """Die: close the listener and every connection, whatever is in progress."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for protocol in list(self._open):
            protocol.drop()
        await self.until(lambda: not self._open)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.stop()

    def config(self, name: str = "scripted", **changes: Any) -> EngineConfig:
        """A configuration (kind `openai`) by which the stack reaches this engine."""
        return EngineConfig(
            **{"name": name, "kind": "openai", "model": self.model, "url": self.url, **changes}
        )

    async def until(self, condition: Callable[[], bool], timeout: float = 60.0) -> None:
        """Wait until `condition` holds, tried after each change of the counters. Raises TimeoutError."""
        async with asyncio.timeout(timeout):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    def drop_idle(self) -> None:
        """Close every open connection, as a server does whose keep-alive time is over."""
        for protocol in list(self._open):
            protocol.drop()

    # ---- the server ----

    def _connection(self, protocol: ServerProtocol, opened: bool) -> None:
        if opened:
            self._open.add(protocol)
            self.connections += 1
        else:
            self._open.discard(protocol)
        self._changed.set()

    def _handle(self, exchange: Exchange) -> None:
        if exchange.request.method == "GET":
            self._describe(exchange)
            return
        self.requests.append(exchange.request)
        self.active += 1
        self._changed.set()
        script = self.next_scripts.popleft() if self.next_scripts else self.script
        task = asyncio.get_running_loop().create_task(self._answer(exchange, script))
        exchange.on_close = task.cancel
        self._tasks.add(task)
        task.add_done_callback(self._over)

    def _over(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self.active -= 1
        if task.cancelled():
            self.cancelled += 1
        else:
            self.served += 1
        self._changed.set()

    def _describe(self, exchange: Exchange) -> None:
        if exchange.request.path == "/v1/models":
            entry = {"id": self.model, "object": "model", "created": 0, "owned_by": "sage"}
            exchange.respond(200, msgspec.json.encode({"object": "list", "data": [entry]}))
        else:
            exchange.respond(200 if self.healthy else 503, b"{}")

    async def _answer(self, exchange: Exchange, script: Script) -> None:
        if script.gate is not None and script.gate_after < 0:
            await script.gate.wait()
        request = fields_of(exchange.request)
        status = 400 if (request.get("max_tokens") or 0) < 0 else script.status
        if status != 200:
            error = {"message": f"scripted {status}", "type": "scripted", "param": None, "code": None}
            exchange.respond(status, script.error or msgspec.json.encode({"error": error}))
            return
        if script.raw is not None:
            streams = bool(request.get("stream"))
            parts = Splitter().feed(script.raw) if streams else [script.raw]
            exchange.begin(200, "text/event-stream" if streams else "application/json")
        elif (media := media_answer(exchange.request.path, request, script.words)) is not None:
            kind, parts = media
            if script.error is not None:
                parts[-1:] = [b"data: " + script.error + b"\n\n"]
            exchange.begin(200, kind)
        elif request.get("stream"):
            said = heed(request, script.words)
            parts = _stream(exchange.request.path, request, self.model, said)
            if script.error is not None:
                parts[len(said.pieces) :] = [b"data: " + script.error + b"\n\n"]
            elif script.flaw.no_done:
                del parts[-1]
            exchange.begin(200, "text/event-stream; charset=utf-8")
        else:
            parts = [_whole(exchange.request.path, request, self.model, script.words)]
            exchange.begin(200, "application/json")
        await _send(exchange, script, parts)


async def _send(exchange: Exchange, script: Script, parts: list[bytes]) -> None:
    sent = 0
    if script.flaw.garble_at is not None:
        whole = bytearray(b"".join(parts))
        whole[script.flaw.garble_at] = 0xFF
        parts = [bytes(whole)]
    for index, part in enumerate(_repeated(parts[:-1]) if script.flaw.endless else parts):
        if script.gate is not None and index == script.gate_after:
            await script.gate.wait()
        if script.cut_at is not None and sent + len(part) > script.cut_at:
            exchange.write(part[: script.cut_at - sent])
            exchange.abort()
            return
        sent += len(part)
        size = script.fragment or len(part)
        for at in range(0, len(part), size):
            exchange.write(part[at : at + size])
            await asyncio.sleep(0)  # each piece is a write of its own
    exchange.finish()


def _repeated(parts: list[bytes]) -> Iterator[bytes]:
    while True:
        yield from parts


def _usage(request: dict[str, Any], words: tuple[str, ...]) -> dict[str, int]:
    text = request.get("messages") or request.get("prompt") or request.get("input")
    prompt = max(1, len(str(text).split()))
    return {"prompt_tokens": prompt, "completion_tokens": len(words), "total_tokens": prompt + len(words)}


def _stream(path: str, request: dict[str, Any], model: str, said: Said) -> list[bytes]:
    chat = path.endswith("chat/completions")
    kind = "chat.completion.chunk" if chat else "text_completion"
    base = {"id": "scripted-1", "object": kind, "created": 0, "model": model}

    def chunk(choices: list[dict[str, Any]], **more: Any) -> bytes:
        return b"data: " + msgspec.json.encode({**base, "choices": choices, **more}) + b"\n\n"

    def choice(body: dict[str, Any], finish: str | None) -> dict[str, Any]:
        return {"index": 0, **({"delta": body} if chat else {"text": "", **body}), "finish_reason": finish}

    parts = [chunk([choice(_delta(said, at, chat), None)]) for at in range(len(said.pieces))]
    parts.append(chunk([choice({}, "tool_calls" if said.tool else "stop")]))
    if (request.get("stream_options") or {}).get("include_usage"):
        parts.append(chunk([], usage=_usage(request, said.pieces)))
    parts.append(b"data: [DONE]\n\n")
    return parts


def _delta(said: Said, at: int, chat: bool) -> dict[str, Any]:
    """The piece at `at` as a chunk tells it; the first says whose it is."""
    piece, first = said.pieces[at], at == 0
    if not chat:
        return {"text": piece}
    role = {"role": "assistant"} if first else {}
    if not said.tool:
        return {**role, "content": piece}
    call: dict[str, Any] = {"index": 0, "function": {"arguments": piece}}
    if first:
        call |= {"id": "call-1", "type": "function", "function": {"name": said.tool, "arguments": piece}}
    return {**role, "tool_calls": [call]}


def _whole(path: str, request: dict[str, Any], model: str, words: tuple[str, ...]) -> bytes:
    if path.endswith("embeddings"):
        return _embeddings(request, model)
    if path.endswith(("rerank", "score")):
        return _scores(request, model)
    chat = path.endswith("chat/completions")
    said = heed(request, words)
    body: dict[str, Any] = {"message": _message(said)} if chat else {"text": said.text}
    answer = {
        "id": "scripted-1",
        "object": "chat.completion" if chat else "text_completion",
        "created": 0,
        "model": model,
        "choices": [{"index": 0, **body, "finish_reason": "tool_calls" if said.tool else "stop"}],
        "usage": _usage(request, said.pieces),
    }
    return msgspec.json.encode(answer)


def _message(said: Said) -> dict[str, Any]:
    if not said.tool:
        return {"role": "assistant", "content": said.text}
    function = {"name": said.tool, "arguments": said.text}
    call = {"id": "call-1", "type": "function", "function": function}
    return {"role": "assistant", "content": None, "tool_calls": [call]}


def _embeddings(request: dict[str, Any], model: str) -> bytes:
    texts = request["input"] if isinstance(request["input"], list) else [request["input"]]
    data = []
    for index, text in enumerate(texts):
        vector: Any = _vector(str(text), int(request.get("dimensions") or DIMENSIONS))
        if request.get("encoding_format") == "base64":
            vector = base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
        data.append({"object": "embedding", "index": index, "embedding": vector})
    tokens = sum(len(str(text).split()) for text in texts)
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return msgspec.json.encode({"object": "list", "data": data, "model": model, "usage": usage})


def _scores(request: dict[str, Any], model: str) -> bytes:
    """As cross-encoders answer: documents by their scores, or pairs in their order."""
    reranks = "documents" in request
    left, right = (
        (request["query"], request["documents"]) if reranks else (request["text_1"], request["text_2"])
    )
    rights = [right] if isinstance(right, str) else right
    lefts = [left] * len(rights) if isinstance(left, str) else left
    scores = [pair_score(one, other) for one, other in zip(lefts, rights, strict=True)]
    tokens = sum(len(f"{one} {other}".split()) for one, other in zip(lefts, rights, strict=True))
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    if not reranks:
        data = [{"index": at, "object": "score", "score": one} for at, one in enumerate(scores)]
        return msgspec.json.encode({"object": "list", "data": data, "model": model, "usage": usage})
    order = sorted(range(len(scores)), key=lambda at: -scores[at])
    results = [{"index": at, "relevance_score": scores[at], "document": {"text": rights[at]}} for at in order]
    return msgspec.json.encode({"id": "scripted-1", "results": results, "model": model, "usage": usage})


def _vector(text: str, dimensions: int) -> list[float]:
    """A unit vector that depends on the text alone."""
    digest = hashlib.shake_256(text.encode()).digest(dimensions)
    raw = [byte - 127.5 for byte in digest]
    norm = sum(x * x for x in raw) ** 0.5
    return [x / norm for x in raw]
