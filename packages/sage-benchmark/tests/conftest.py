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
    """`chat` is one of ok, shed, broken, error, empty, stall."""

    chat: str = "ok"
    tokens: int = 3
    url: str = ""
    seen: list[dict[str, Any]] = field(default_factory=list)

    @property
    def target(self) -> Target:
        return Target(self.url, KEY, timeout=5.0)

    async def models(self, request: web.Request) -> web.Response:
        if request.headers["Authorization"] != f"Bearer {KEY}":
            return web.json_response({"error": {"message": "no"}}, status=401)
        return web.json_response({"data": [{"id": "mini"}, {"id": "tiny"}]})

    async def embeddings(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.seen.append(body)
        if body["model"] != "mini":
            return web.json_response({"error": {"message": "not an embedding model"}}, status=400)
        return web.json_response({"data": [{"embedding": [0.0]}], "usage": {"prompt_tokens": 4}})

    async def completions(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.seen.append(body)
        if body["model"] != "tiny":
            return web.json_response({"error": {"message": "not a chat model"}}, status=400)
        if self.chat == "shed":
            return web.json_response({"error": {"message": "queue full"}}, status=429)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "x-request-id": "req-1"})
        await response.prepare(request)
        await self._stream(response)
        return response

    async def _stream(self, response: web.StreamResponse) -> None:
        await self._event(response, {"choices": [{"delta": {"role": "assistant", "content": ""}}]})
        if self.chat == "stall":
            await asyncio.Event().wait()
        for number in range(0 if self.chat == "empty" else self.tokens):
            await self._event(response, {"choices": [{"delta": {"content": f"w{number} "}}]})
        if self.chat == "error":
            await self._event(response, {"error": {"message": "engine died"}})
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
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    double.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    yield double
    await runner.cleanup()
