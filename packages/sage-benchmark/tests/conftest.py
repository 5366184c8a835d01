"""A small OpenAI server on a real socket: answers, sheds, breaks and stalls as it is told."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp import web

from sage.benchmark.load import Target

KEY = "sk-sage-test"


@dataclass
class OpenAIServer:
    """`chat` is one of ok, shed, broken, cut, error, garbage, empty, finish, stall.

    With `refuse_embeddings` it answers embeddings with 429 and that `Retry-After`.
    """

    chat: str = "ok"
    tokens: int = 3
    vectors: int = 2048  # at most so many come back
    refuse_embeddings: str = ""
    url: str = ""
    connections: int = 0
    seen: list[dict[str, Any]] = field(default_factory=list)
    _known: list[Any] = field(default_factory=list)

    @property
    def target(self) -> Target:
        return Target(self.url, KEY, timeout=5.0)

    @web.middleware
    async def counted(self, request: web.Request, handler: Any) -> web.StreamResponse:
        if request.transport not in self._known:
            self._known.append(request.transport)
        self.connections = len(self._known)
        answer: web.StreamResponse = await handler(request)
        return answer

    async def models(self, request: web.Request) -> web.Response:
        if request.headers["Authorization"] != f"Bearer {KEY}":
            return web.json_response({"error": {"message": "no"}}, status=401)
        return web.json_response({"data": [{"id": "mini"}, {"id": "tiny"}]})

    async def embeddings(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.seen.append(body)
        if self.refuse_embeddings:
            retry = {"Retry-After": self.refuse_embeddings}
            return web.json_response({"error": {"message": "full"}}, status=429, headers=retry)
        if body["model"] != "mini":
            return web.json_response({"error": {"message": "not an embedding model"}}, status=400)
        texts = [body["input"]] if isinstance(body["input"], str) else body["input"]
        vectors = [{"embedding": [0.0]} for _ in texts[: self.vectors]]
        return web.json_response({"data": vectors, "usage": {"prompt_tokens": 4}})

    async def completions(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.seen.append(body)
        if body["model"] != "tiny":
            return web.json_response({"error": {"message": "not a chat model"}}, status=400)
        if self.chat == "shed":
            return web.json_response({"error": {"message": "queue full"}}, status=429)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "x-request-id": "req-1"})
        await response.prepare(request)
        await self._stream(request, response)
        return response

    async def _stream(self, request: web.Request, response: web.StreamResponse) -> None:
        await self._event(response, {"choices": [{"delta": {"role": "assistant", "content": ""}}]})
        if self.chat == "stall":
            await asyncio.Event().wait()
        for number in range(0 if self.chat == "empty" else self.tokens):
            await self._event(response, {"choices": [{"delta": {"content": f"w{number} "}}]})
        if self.chat == "error":
            await self._event(response, {"error": {"message": "engine died"}})
            return
        if self.chat == "cut" and request.transport is not None:
            request.transport.abort()
            return
        if self.chat == "garbage":
            await response.write(b"data: {nothing\n\n")
        if self.chat == "finish":
            await self._event(response, {"choices": [{"delta": {}, "finish_reason": "stop"}]})
            return
        usage = {"prompt_tokens": 5, "completion_tokens": self.tokens}
        await self._event(response, {"choices": [], "usage": usage})
        if self.chat != "broken":
            await response.write(b"data: [DONE]\n\n")

    async def _event(self, response: web.StreamResponse, payload: dict[str, Any]) -> None:
        await response.write(b"data: " + json.dumps(payload).encode() + b"\n\n")


@pytest.fixture
async def server() -> AsyncIterator[OpenAIServer]:
    double = OpenAIServer()
    app = web.Application()
    app.router.add_get("/v1/models", double.models)
    app.router.add_post("/v1/embeddings", double.embeddings)
    app.router.add_post("/v1/chat/completions", double.completions)
    app.middlewares.append(double.counted)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    double.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    yield double
    await runner.cleanup()
