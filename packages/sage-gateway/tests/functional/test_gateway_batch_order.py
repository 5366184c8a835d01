"""A batch never makes interactive work wait: whoever asks goes before its lines, and has room of its own."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

from sage.gateway.testing.batches import BatchStack, jsonl, line
from sage.middleware.testing.engines import Script, ScriptedEngine


def content(engine: ScriptedEngine) -> list[str]:
    """What the engine was asked, in this order."""
    bodies = [msgspec.json.decode(request.body) for request in engine.requests]
    return [body["messages"][0]["content"] for body in bodies]


async def ask(stack: BatchStack, key: str, text: str) -> int:
    body = {"model": "talker", "messages": [{"role": "user", "content": text}], "max_tokens": 5}
    answer = await stack.gateway.http(
        "POST", f"{stack.gateway.run.base_url}/chat/completions", key=key, body=body
    )
    return int(answer.status)


async def test_a_chat_goes_before_the_lines_that_wait(spawner: Any) -> None:
    async with ScriptedEngine(model="talker") as engine:
        engines = [engine.config("chat-0", max_running=1).model_dump(mode="json")]
        gateway = await spawner.start({"engines": engines, "batches": {"in_flight": 5}})
        await gateway.until_ready()
        stack = BatchStack(gateway, engine, engine)
        gate = asyncio.Event()
        engine.next_scripts.append(Script(gate=gate))
        client = stack.client()
        ident = await client.batch(jsonl(*(line(f"b-{n}", f"line {n}") for n in range(8))))
        await engine.until(lambda: engine.active == 1)
        await stack.until("sage_queue_waiting_requests", "batch", 4)
        chat = asyncio.create_task(ask(stack, gateway.keys.default, "now"))
        await stack.until("sage_queue_waiting_requests", "chat", 1)
        gate.set()
        assert await chat == 200
        await client.until(ident, "completed")
        asked = content(engine)
        assert asked[1] == "now"
        assert sorted(asked) == ["line 0", *(f"line {n}" for n in range(1, 8)), "now"]
        await stack.close()
        assert await gateway.stop() == 0


async def test_a_batch_leaves_its_key_half_of_what_may_run(spawner: Any) -> None:
    async with ScriptedEngine(model="talker") as engine:
        engines = [engine.config("chat-0").model_dump(mode="json")]
        gateway = await spawner.start({"engines": engines})
        await gateway.until_ready()
        stack = BatchStack(gateway, engine, engine)
        made = await gateway.admin("POST", "/keys", {"name": "small", "max_concurrent": 4})
        key = made.json["secret"]
        gate = asyncio.Event()
        engine.next_scripts.extend([Script(gate=gate)] * 2)
        client = stack.client(key)
        idents = [await client.batch(jsonl(*(line(f"b-{n}") for n in range(5)))) for _ in range(2)]
        await engine.until(lambda: engine.active == 2)
        assert [await ask(stack, key, "now") for _ in range(3)] == [200] * 3
        assert engine.active == 2
        gate.set()
        for ident in idents:
            assert (await client.until(ident, "completed")).request_counts.completed == 5
        await stack.close()
        assert await gateway.stop() == 0
