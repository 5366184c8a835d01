"""The whole stack on real engines: `transformers serve` with random weights, and the embedding server."""

from __future__ import annotations

import asyncio
from typing import Any

import openai
import psutil
import pytest

pytestmark = [pytest.mark.engine, pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    models = pytest.importorskip("sage.middleware.models")
    llm = pytest.importorskip("sage.middleware.random_models").random_model(tmp_path_factory.mktemp("cache"))
    return [
        {
            "name": "llm-0",
            "kind": "transformers",
            "model": str(llm),
            "served_as": "tiny",
            "random_weights": True,
        },
        {
            "name": "embed-0",
            "kind": "embedding",
            "model": str(models.minilm_folder()),
            "served_as": "minilm",
            "task": "embed",
        },
    ]


async def test_chat_stream_embed_and_no_orphan_after_kill_9(
    spawner: Any, engines: list[dict[str, Any]]
) -> None:
    span = {"llm": [21001, 21089], "embedding": [21090, 21199]}
    gateway = await spawner.start(
        {"engines": engines, "ports": {"gateway": 0, "admin": 0, "health": 0, **span}}
    )
    await gateway.until_ready()
    async with openai.AsyncOpenAI(base_url=gateway.run.base_url, api_key=gateway.keys.default) as client:
        assert sorted([model.id async for model in client.models.list()]) == ["minilm", "tiny"]
        messages: Any = [{"role": "user", "content": "Say something."}]
        answer = await client.chat.completions.create(model="tiny", messages=messages, max_tokens=8)
        assert answer.usage is not None
        assert answer.usage.completion_tokens > 0
        stream = await client.chat.completions.create(
            model="tiny", messages=messages, max_tokens=8, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
        assert chunks[-1].usage is not None
        response = await client.responses.create(model="tiny", input="Say something.", max_output_tokens=8)
        assert response.usage is not None
        assert response.usage.output_tokens > 0
        texts = await client.embeddings.create(model="minilm", input=["Hello world", "a cat"])
        ids = await client.embeddings.create(model="minilm", input=[9906, 1917])
        assert len(texts.data[0].embedding) == 384
        assert ids.data[0].embedding == pytest.approx(texts.data[0].embedding, abs=1e-4)
    children = psutil.Process(gateway.process.pid).children(recursive=True)
    assert len(children) >= 2
    gateway.process.kill()
    await gateway.process.wait()
    _, alive = await asyncio.to_thread(psutil.wait_procs, children, 15)
    assert alive == []
