"""The serving process from start to end: what it refuses, what it leaves, how it drains."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import stat
from typing import Any

import psutil
import pytest

from sage.gateway.serve import bind
from sage.middleware.testing.engines import Script, ScriptedEngine

BODY = {"model": "scripted", "messages": [{"role": "user", "content": "hi"}], "stream": True}


def config_for(*engines: ScriptedEngine, **more: Any) -> dict[str, Any]:
    entries = [engine.config(f"engine-{n}").model_dump(mode="json") for n, engine in enumerate(engines)]
    return {"engines": entries, **more}


async def begin_stream(gateway: Any, engine: ScriptedEngine, gate: asyncio.Event) -> asyncio.Task[Any]:
    """A stream whose first word is out and whose second waits for `gate`."""
    engine.next_scripts.append(Script(gate=gate, gate_after=1))
    url = f"{gateway.run.base_url}/chat/completions"
    asking = asyncio.create_task(gateway.http("POST", url, key=gateway.keys.default, body=BODY))
    await engine.until(lambda: engine.active == 1)
    return asking


async def test_first_start_makes_private_files_and_the_next_keeps_the_keys(spawner: Any) -> None:
    async with ScriptedEngine() as engine:
        gateway = await spawner.start(config_for(engine))
        for name in ("run.json", "default.key", "admin.token"):
            assert stat.S_IMODE((gateway.state / name).stat().st_mode) == 0o600
        keys = gateway.keys
        assert keys.default.startswith("sk-sage-")
        assert gateway.run.pid == gateway.process.pid
        assert await gateway.stop() == 0
        assert not (gateway.state / "run.json").exists()
        again = await spawner.start(config_for(engine))
        assert again.keys == keys
        assert await again.stop(signal.SIGINT) == 0


async def test_the_keys_are_in_no_log(spawner: Any) -> None:
    async with ScriptedEngine() as engine:
        gateway = await spawner.start(config_for(engine))
        await gateway.until_ready()
        await gateway.http("GET", f"{gateway.run.base_url}/models", key=gateway.keys.default)
        keys = gateway.keys
        await gateway.stop()
        words = (await gateway.process.stderr.read()).decode()
        assert keys.default not in words
        assert keys.admin not in words
        events = [json.loads(line)["event"] for line in words.splitlines()]
        assert events[-1] == "stopped"


async def test_not_ready_until_each_engine_is_and_503_meanwhile(spawner: Any) -> None:
    """The engine is a process elsewhere that comes up later than the gateway."""
    engine = ScriptedEngine()
    with bind("127.0.0.1", 0, "x") as reserved:
        port = reserved.getsockname()[1]
    engine.url = f"http://127.0.0.1:{port}"
    gateway = await spawner.start(config_for(engine))
    ready = await gateway.http("GET", f"{gateway.run.health_url}/readyz")
    assert ready.status == 503
    (missing,) = ready.json["missing"]
    # Some 20 ms after the gateway listens the engine has been asked in vain for the first time.
    assert missing in ("engine engine-0 is starting", "engine engine-0 is failed")
    assert (await gateway.http("GET", f"{gateway.run.health_url}/healthz")).status == 200
    url = f"{gateway.run.base_url}/chat/completions"
    answer = await gateway.http("POST", url, key=gateway.keys.default, body=BODY)
    assert answer.status == 503
    assert int(answer.headers["retry-after"]) >= 1
    one = await gateway.http("GET", f"{gateway.run.base_url}/models/scripted", key=gateway.keys.default)
    assert (one.status, one.error["code"]) == (503, "engine_unavailable")
    assert int(one.headers["retry-after"]) >= 1
    await engine.start(port)
    await gateway.until_ready()
    assert (await gateway.http("POST", url, key=gateway.keys.default, body=BODY)).status == 200
    await engine.stop()


async def test_sigterm_finishes_streams_and_is_not_ready_at_once(spawner: Any) -> None:
    async with ScriptedEngine() as engine:
        gateway = await spawner.start(config_for(engine))
        await gateway.until_ready()
        gate = asyncio.Event()
        asking = await begin_stream(gateway, engine, gate)
        gateway.process.terminate()
        answer = await gateway.until_health(503)
        assert answer.json["missing"] == ["the gateway is shutting down"]
        await gateway.until_refused()
        gate.set()
        assert (await asking).body.endswith(b"data: [DONE]\n\n")
        assert await gateway.stop() == 0


async def test_a_stream_that_outlasts_the_drain_gets_an_error_event(spawner: Any) -> None:
    async with ScriptedEngine() as engine:
        gateway = await spawner.start(config_for(engine, gateway={"drain_s": 0.2}))
        await gateway.until_ready()
        asking = await begin_stream(gateway, engine, asyncio.Event())
        gateway.process.terminate()
        body = (await asking).body
        assert b'data: {"error":' in body
        assert b"[DONE]" not in body
        assert await gateway.process.wait() == 0
        await engine.until(lambda: engine.cancelled == 1)


async def test_the_second_signal_ends_it_now(spawner: Any) -> None:
    async with ScriptedEngine() as engine:
        gateway = await spawner.start(config_for(engine, gateway={"drain_s": 3600.0}))
        await gateway.until_ready()
        asking = await begin_stream(gateway, engine, asyncio.Event())
        gateway.process.terminate()
        await gateway.until_health(503)
        gateway.process.terminate()
        assert b'data: {"error":' in (await asking).body
        async with asyncio.timeout(60):
            assert await gateway.process.wait() in (0, 128 + signal.SIGTERM)
        assert not (gateway.state / "run.json").exists()


# ---- what it refuses ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["gateway", "admin", "health"])
async def test_a_port_in_use(spawner: Any, which: str) -> None:
    with bind("127.0.0.1", 0, "x") as taken:
        port = taken.getsockname()[1]
        flag = "--port" if which == "gateway" else f"--{which}-port"
        code, words = await spawner.refused({}, flag, str(port))
    assert code == 1
    assert f"error: Port {port} on 127.0.0.1 cannot be used" in words
    assert f"ports.{which}" in words
    assert len(words.strip().splitlines()) == 1
    assert not (spawner.state / "run.json").exists()


async def test_a_model_folder_that_is_not_there(spawner: Any) -> None:
    engine = {"name": "llm-0", "kind": "transformers", "model": "/no/such/folder"}
    code, words = await spawner.refused({"engines": [engine]})
    assert code == 5
    assert words.startswith("error: The model folder /no/such/folder of engine 'llm-0' does not exist.")
    assert not spawner.state.exists()


async def test_a_configuration_that_is_wrong(spawner: Any) -> None:
    code, words = await spawner.refused({"gatewai": {}})
    assert code == 2
    assert "gateway" in words
    code, words = await spawner.refused({"control_plane": {"policy": "astrology"}})
    assert code == 2
    assert "least_load" in words
    assert not (spawner.state / "run.json").exists()


async def test_a_second_owner_of_the_state_directory(spawner: Any) -> None:
    gateway = await spawner.start({})
    code, words = await spawner.refused({})
    assert code == 1
    assert str(gateway.process.pid) in words
    assert json.loads((gateway.state / "run.json").read_text())["pid"] == gateway.process.pid


# ---- what it leaves ----------------------------------------------------------------------------------------


async def test_memory_when_idle(spawner: Any) -> None:
    async with ScriptedEngine() as engine:
        gateway = await spawner.start(config_for(engine))
        await gateway.until_ready()
        await gateway.admin("GET", "/status")
        rss = psutil.Process(gateway.process.pid).memory_info().rss / 1e6
        assert rss <= 120, f"{rss:.0f} MB"


@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="counts descriptors in /proc")
async def test_disconnects_leave_no_descriptor(spawner: Any) -> None:
    async with ScriptedEngine(script=Script(gate=asyncio.Event())) as engine:
        gateway = await spawner.start(config_for(engine))
        await gateway.until_ready()
        process = psutil.Process(gateway.process.pid)
        before = process.num_fds()
        url = f"{gateway.run.base_url}/chat/completions"
        for _ in range(5):
            calls = [
                asyncio.create_task(gateway.http("POST", url, key=gateway.keys.default, body=BODY))
                for _ in range(20)
            ]
            await engine.until(lambda: engine.active == 20)
            for call in calls:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)
            await engine.until(lambda: engine.active == 0)
        assert engine.cancelled == 100
        statuses = (await gateway.admin("GET", "/engines")).json["engines"]
        assert [one["running"] for one in statuses] == [0]
        assert process.num_fds() <= before + 4
