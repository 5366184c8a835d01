"""OpenAI's own client for tests of files and batches, and the lines that they send."""

from __future__ import annotations

import asyncio
from typing import Any, Final

import msgspec
import openai

from sage.middleware.testing.engines import ScriptedEngine

__all__ = ["CHAT", "BatchClient", "BatchStack", "jsonl", "line"]

CHAT: Final = "/v1/chat/completions"


def line(ident: str, content: str = "hi", **changes: Any) -> dict[str, Any]:
    """A chat, with other fields in its body."""
    body = {"model": "talker", "messages": [{"role": "user", "content": content}], "max_tokens": 5}
    return {"custom_id": ident, "method": "POST", "url": CHAT, "body": {**body, **changes}}


def jsonl(*lines: dict[str, Any]) -> bytes:
    """The input of a batch."""
    return b"".join(msgspec.json.encode(one) + b"\n" for one in lines)


class BatchClient(openai.AsyncOpenAI):
    """It, with what tests do again and again."""

    async def store(self, content: bytes, name: str = "in.jsonl") -> str:
        """Upload a file for a batch; its id."""
        return (await self.files.create(file=(name, content), purpose="batch")).id

    async def batch(self, content: bytes, endpoint: Any = CHAT, **more: Any) -> str:
        """Upload and start; the id of the batch."""
        made = await self.batches.create(
            input_file_id=await self.store(content),
            endpoint=endpoint,
            **{"completion_window": "24h", **more},
        )
        return made.id

    async def until(self, ident: str, *statuses: str) -> Any:
        """Poll another process: there is no event to wait on."""
        async with asyncio.timeout(60):
            while True:
                found = await self.batches.retrieve(ident)
                if found.status in statuses:
                    return found
                await asyncio.sleep(0.02)

    async def lines(self, ident: str | None) -> list[Any]:
        """The lines of an output file."""
        assert ident is not None
        content = (await self.files.content(ident)).content
        return [msgspec.json.decode(one) for one in content.splitlines()]


class BatchStack:
    """A gateway with an engine for each of two models, and clients of it."""

    def __init__(self, gateway: Any, chat: ScriptedEngine, embed: ScriptedEngine) -> None:
        self.gateway = gateway
        self.chat = chat
        self.embed = embed
        self.clients: list[BatchClient] = []

    def client(self, key: str = "") -> BatchClient:
        """A client with this key; the default one if none is given."""
        url = self.gateway.run.base_url
        made = BatchClient(api_key=key or self.gateway.keys.default, base_url=url, max_retries=0)
        self.clients.append(made)
        return made

    async def key(self, name: str, **settings: Any) -> BatchClient:
        """One with a new key."""
        made = await self.gateway.admin("POST", "/keys", {"name": name, **settings})
        assert made.status == 200, made.body
        return self.client(made.json["secret"])

    async def metrics(self, name: str) -> dict[str, float]:
        """The values of a metric by its one label."""
        listed = (await self.gateway.admin("GET", "/metrics")).json["metrics"]
        samples = next(one["samples"] for one in listed if one["name"] == name)
        return {str(*sample["labels"].values()): sample["value"] for sample in samples}

    async def until(self, metric: str, label: str, value: float) -> None:
        """Poll another process until a metric is as large."""
        async with asyncio.timeout(60):
            while True:
                if (await self.metrics(metric))[label] >= value:
                    return
                await asyncio.sleep(0.02)

    async def close(self) -> None:
        """Close the clients."""
        for client in self.clients:
            await client.close()
