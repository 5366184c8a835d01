"""A batch outlives its process: killed at any point, every line has one result in the end."""

from __future__ import annotations

import asyncio
import json
import random
import signal
from typing import Any

import pytest

from sage.gateway.testing.batches import BatchStack, jsonl, line
from sage.middleware.testing.engines import Script, ScriptedEngine
from sage.platform.storage.sqlite import Database

LINES = 60


def config_for(engine: ScriptedEngine) -> dict[str, Any]:
    engines = [engine.config("engine-0").model_dump(mode="json")]
    return {"engines": engines, "batches": {"in_flight": 6}, "gateway": {"drain_s": 20.0}}


async def begun(spawner: Any, engine: ScriptedEngine) -> BatchStack:
    gateway = await spawner.start(config_for(engine))
    return BatchStack(gateway, engine, engine)


async def check(stack: BatchStack, ident: str, lines: int) -> None:
    """All lines are there once, and nothing is left over."""
    client = stack.client()
    done = await client.until(ident, "completed", "failed", "expired")
    assert (done.status, done.request_counts.completed) == ("completed", lines), done
    found = await client.lines(done.output_file_id)
    assert [one["custom_id"] for one in found] == [f"k-{n}" for n in range(lines)]
    stored = {one.id for one in (await client.files.list()).data}
    assert {path.name for path in (stack.gateway.state / "files").iterdir()} == stored
    await stack.close()


async def served(engine: ScriptedEngine, lines: int) -> None:
    await engine.until(lambda: engine.served >= lines)


@pytest.mark.parametrize("seed", range(3))
async def test_a_kill_at_any_point_loses_no_line_and_doubles_none(spawner: Any, seed: int) -> None:
    chance = random.Random(seed)  # noqa: S311
    async with ScriptedEngine(model="talker") as engine:
        stack = await begun(spawner, engine)
        await stack.gateway.until_ready()
        content = jsonl(*(line(f"k-{n}") for n in range(LINES)))
        ident = await stack.client().batch(content)  # acknowledged: it may not be lost
        for _ in range(3):
            # Anywhere from before the first line to the writing of the files.
            aim = engine.served + chance.choice((0, 0, 1, 7, 15, 30))
            await served(engine, min(aim, LINES - 6))
            await stack.gateway.stop(signal.SIGKILL)
            await stack.close()
            stack = await begun(spawner, engine)
        await check(stack, ident, LINES)


async def test_a_result_that_was_stored_is_not_computed_again(spawner: Any) -> None:
    async with ScriptedEngine(model="talker") as engine:
        stack = await begun(spawner, engine)
        await stack.gateway.until_ready()
        gate = asyncio.Event()
        engine.next_scripts.extend([*[Script()] * 4, *[Script(gate=gate)] * 6])
        ident = await stack.client().batch(jsonl(*(line(f"k-{n}") for n in range(12))))
        await stack.until("sage_batch_lines_total", "completed", 4)
        await engine.until(lambda: engine.active == 6)
        await stack.gateway.stop(signal.SIGKILL)
        await stack.close()
        gate.set()
        await engine.until(lambda: engine.active == 0)
        before = len(engine.requests)
        stack = await begun(spawner, engine)
        await check(stack, ident, 12)
        assert len(engine.requests) - before == 8  # six were lost under way, two had not begun


@pytest.mark.parametrize("answered", [True, False])
async def test_a_stop_lets_lines_finish_and_puts_back_the_rest(spawner: Any, answered: bool) -> None:
    async with ScriptedEngine(model="talker") as engine:
        stack = await begun(spawner, engine)
        await stack.gateway.until_ready()
        gate = asyncio.Event()
        engine.next_scripts.extend([Script(gate=gate)] * 6)
        ident = await stack.client().batch(jsonl(*(line(f"k-{n}") for n in range(20))))
        await engine.until(lambda: engine.active == 6)
        await stack.close()
        stopping = asyncio.create_task(stack.gateway.stop())
        await stack.gateway.until_refused()
        if answered:
            gate.set()
        else:  # the second signal: now
            stack.gateway.process.send_signal(signal.SIGTERM)
        code = await stopping
        gate.set()
        assert code == (0 if answered else 128 + signal.SIGTERM)
        await engine.until(lambda: engine.active == 0)
        served = len(engine.requests)
        assert served == 6
        stack = await begun(spawner, engine)
        await check(stack, ident, 20)
        assert len(engine.requests) - served == (14 if answered else 20)


async def test_the_window_ends_a_batch_that_could_not_be_served(spawner: Any) -> None:
    async with ScriptedEngine(model="talker") as engine:
        stack = await begun(spawner, engine)
        await stack.gateway.until_ready()
        gate = asyncio.Event()
        engine.next_scripts.extend([Script(), *[Script(gate=gate)] * 7])
        client = stack.client()
        ident = await client.batch(jsonl(*(line(f"k-{n}") for n in range(3))), completion_window="1m")
        await stack.until("sage_batch_lines_total", "completed", 1)
        await stack.gateway.stop(signal.SIGKILL)
        await stack.close()
        database = Database(stack.gateway.state / "batches.db")  # a minute later
        sql = "UPDATE batch SET record = CAST(json_set(CAST(record AS TEXT), '$.expires', 1) AS BLOB)"
        await database.write(lambda db: db.execute(sql).fetchall())
        await database.close()
        stack = await begun(spawner, engine)
        client = stack.client()
        done = await client.until(ident, "expired")
        assert done.request_counts.completed == 1
        assert [one["custom_id"] for one in await client.lines(done.output_file_id)] == ["k-0"]
        errors = await client.lines(done.error_file_id)
        assert {one["error"]["code"] for one in errors} == {"batch_expired"}
        assert [one["custom_id"] for one in errors] == ["k-1", "k-2"]
        gate.set()
        await stack.close()


@pytest.mark.parametrize("since", [(), ("files", "batches")])
async def test_a_default_key_of_an_earlier_version_opens_what_came_since(
    spawner: Any, since: tuple[str, ...]
) -> None:
    async with ScriptedEngine(model="talker") as engine:
        stack = await begun(spawner, engine)
        await stack.gateway.stop()
        database = Database(stack.gateway.state / "gateway.db")
        former = json.dumps(["chat", "completions", "embeddings", "rerank", "tokens", "models", *since])
        record = "CAST(json_set(CAST(record AS TEXT), '$.scopes', json(?)) AS BLOB)"
        sql = f"UPDATE gateway_key SET record = {record}"  # noqa: S608
        await database.write(lambda db: db.execute(sql, (former,)).fetchall())
        await database.close()
        stack = await begun(spawner, engine)
        assert (await stack.client().batches.list()).data == []
        url, key = f"{stack.gateway.run.base_url}/audio/speech", stack.gateway.keys.default
        answer = await stack.gateway.http("POST", url, key=key, body={"model": "talker", "input": "a"})
        assert (answer.status, "does not serve audio/speech" in answer.error["message"]) == (400, True)
        await stack.close()
