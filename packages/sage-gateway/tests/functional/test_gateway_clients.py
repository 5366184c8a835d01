"""Clients as their users install them, against one `base_url`: each in its environment, none changed.

Chat is a scripted engine that heeds tools and schemas; vectors are of MiniLM on the embedding server.
"""

from __future__ import annotations

import ast
import asyncio
import json
import os
import shutil
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from sage.middleware.models import minilm_folder
from sage.middleware.testing.engines import ScriptedEngine

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.engine, pytest.mark.timeout(300)]

CLIENTS = Path(__file__).parent.parent / "clients"
NAMES = [
    {"name": "gpt-4o-mini", "to": [{"model": "talker"}]},
    {"name": "claude-haiku", "to": [{"model": "talker"}]},
    {"name": "text-embedding-3-small", "to": [{"model": "minilm"}]},
    {"name": "with-a-spare", "to": [{"model": "dead"}], "fallbacks": ["gpt-4o-mini"]},
]
# What others pin would hold these back: they have an environment of their own.
NEWEST = ("anthropic", "openai", "openai_batches", "openai_responses", "pydantic_ai")


def interpreter(client: str) -> Path:
    name = ".venv-clients-newest" if client in NEWEST else ".venv-clients"
    return Path(__file__).parents[4] / name / "bin" / "python"


def checks() -> Iterator[tuple[str, str]]:
    """Each client and each of its checks; read, as the clients are not installed beside these tests."""
    for file in sorted(CLIENTS.glob("with_*.py")):
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("check_"):
                yield file.stem.removeprefix("with_"), node.name


@dataclass
class Clients:
    """Runs each client once, and keeps what it found."""

    gateway: Any
    environment: dict[str, str]
    found: dict[str, dict[str, str | None]] = field(default_factory=dict)

    async def outcome(self, client: str, check: str) -> str | None:
        if client not in self.found:
            self.found[client] = await self._run(client)
        return self.found[client][check]

    async def _run(self, client: str) -> dict[str, str | None]:
        process = await asyncio.create_subprocess_exec(
            *(str(interpreter(client)), str(CLIENTS / "run.py"), client),
            *(self.gateway.run.base_url, self.gateway.keys.default),
            env=self.environment,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, words = await process.communicate()
        assert process.returncode == 0, words.decode()
        found: dict[str, str | None] = json.loads(out.splitlines()[-1])
        return found


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def clients(module_spawner: Any, encodings: Path) -> AsyncIterator[Clients]:
    if not all(interpreter(client).exists() for client, _ in checks()):
        pytest.skip("the clients are not installed; ./manage.sh clients does that")
    embedding = {
        "name": "embed-0",
        "kind": "embedding",
        "model": str(minilm_folder()),
        "served_as": "minilm",
        "task": "embed",
    }
    async with ScriptedEngine(model="talker") as chat, ScriptedEngine(model="dead") as dead:
        talker, mortal = (
            one.model_dump(mode="json") for one in (chat.config("chat-0"), dead.config("dead-0"))
        )
        ports = {"gateway": 0, "admin": 0, "health": 0, "embedding": [22090, 22199]}
        gateway = await module_spawner.start(
            {"engines": [talker, mortal, embedding], "models": NAMES, "ports": ports}
        )
        await gateway.until_ready()
        await dead.stop()
        own = {"TIKTOKEN_CACHE_DIR": str(encodings), "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
        yield Clients(gateway, {**os.environ, **own})
        assert await gateway.stop() == 0


@pytest.mark.parametrize(("client", "check"), list(checks()))
async def test_client(clients: Clients, client: str, check: str) -> None:
    fault = await clients.outcome(client, check)
    assert fault is None, fault


# ---- curl --------------------------------------------------------------------------------------------------


async def curl(clients: Clients, path: str, *arguments: str) -> str:
    """What curl prints, with the key of the gateway; it exits with a fault for a status of 400 and more."""
    if (program := shutil.which("curl")) is None:
        pytest.skip("curl is not installed")
    process = await asyncio.create_subprocess_exec(
        *(program, "--silent", "--show-error", "--fail-with-body", "--no-buffer", "--max-time", "60"),
        *("--header", f"authorization: Bearer {clients.gateway.keys.default}", *arguments),
        f"{clients.gateway.run.base_url}/{path}",
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, words = await process.communicate()
    assert process.returncode == 0, words.decode() + out.decode()
    return out.decode()


async def test_curl_asks_and_streams(clients: Clients) -> None:
    body = {"model": "talker", "messages": [{"role": "user", "content": "Say something."}]}
    answer = json.loads(await curl(clients, "chat/completions", "--json", json.dumps(body)))
    assert answer["choices"][0]["message"]["content"] == "one two three"
    events = await curl(clients, "chat/completions", "--json", json.dumps({**body, "stream": True}))
    assert events.endswith("data: [DONE]\n\n")
    texts = await curl(clients, "embeddings", "--json", '{"model": "minilm", "input": "a red apple"}')
    assert len(json.loads(texts)["data"][0]["embedding"]) == 384


async def test_curl_with_a_body_that_comes_in_chunks(clients: Clients) -> None:
    body = json.dumps({"model": "talker", "prompt": "word " * 2000})
    sent = ("--header", "transfer-encoding: chunked", "--header", "expect: 100-continue", "--json", body)
    answer = json.loads(await curl(clients, "completions", *sent))
    assert answer["choices"][0]["text"] == "one two three"
