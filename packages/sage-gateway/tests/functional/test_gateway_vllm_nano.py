"""vLLM serves the bundled small model as it is: its chat template, its tokenizer, its weights."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
import pytest_asyncio

from sage.middleware.models import NANO

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.vllm, pytest.mark.timeout(900)]

PASSAGES = (
    "Passages:\n\n[1] (a.md)\nFiles are kept until they are deleted. A batch is a file of requests.\n\n"
    "[2] (b.md)\nThe gateway listens on port 80. The studio waits for the gateway."
)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(module_spawner: Any) -> AsyncIterator[openai.AsyncOpenAI]:
    python = os.environ.get("SAGE_VLLM_PYTHON", "")
    if not python:
        pytest.skip("SAGE_VLLM_PYTHON names no interpreter with vLLM; ./manage.sh test-vllm makes one")
    engine = {"name": "vllm-0", "kind": "vllm", "model": NANO, "python": python}
    ports = {"gateway": 0, "admin": 0, "health": 0, "llm": [22201, 22289]}
    gateway = await module_spawner.start({"engines": [engine], "ports": ports})
    await gateway.until_ready(seconds=600)
    async with openai.AsyncOpenAI(base_url=gateway.run.base_url, api_key=gateway.keys.default) as client:
        yield client
    assert await gateway.stop() == 0


async def _said(client: openai.AsyncOpenAI, text: str) -> str:
    models = [model.id async for model in client.models.list()]
    answer = await client.chat.completions.create(
        model=models[0], messages=[{"role": "user", "content": text}], max_tokens=120
    )
    return (answer.choices[0].message.content or "").strip()


async def test_it_copies_the_sentence_that_answers(client: openai.AsyncOpenAI) -> None:
    said = await _said(client, f"{PASSAGES}\n\nQuestion: Which port does the gateway listen on?")
    assert said == "The gateway listens on port 80. [2]"


async def test_it_says_what_it_is(client: openai.AsyncOpenAI) -> None:
    assert "SAGE Nano" in await _said(client, "Hello, who are you?")
