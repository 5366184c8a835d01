"""What keys and usage are after a restart, a kill, and changes of the files behind them."""

from __future__ import annotations

import asyncio
import signal
import stat
from typing import Any

import pytest

from sage.gateway.keys import new_key
from sage.middleware.testing.engines import ScriptedEngine

CHAT = {"model": "scripted", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5}


def config_for(engine: ScriptedEngine) -> dict[str, Any]:
    return {"engines": [engine.config("engine-0").model_dump(mode="json")]}


async def ask(gateway: Any, key: str) -> Any:
    await gateway.until_ready()
    return await gateway.http("POST", f"{gateway.run.base_url}/chat/completions", key=key, body=CHAT)


async def models(gateway: Any, key: str) -> int:
    return int((await gateway.http("GET", f"{gateway.run.base_url}/models", key=key)).status)


async def test_keys_usage_and_budgets_survive_a_restart(spawner: Any) -> None:
    async with ScriptedEngine() as engine:
        gateway = await spawner.start(config_for(engine))
        for name in ("keys.pepper", "gateway.db"):
            assert stat.S_IMODE((gateway.state / name).stat().st_mode) == 0o600
        made = (await gateway.admin("POST", "/keys", {"name": "team", "day_tokens": 20})).json
        ended = (await gateway.admin("POST", "/keys", {"name": "gone"})).json
        await gateway.admin("DELETE", "/keys/gone")
        while (answer := await ask(gateway, made["secret"])).status == 200:
            pass
        assert answer.error["code"] == "insufficient_quota"
        before = (await gateway.admin("GET", "/usage")).json
        listed = (await gateway.admin("GET", "/keys")).json
        assert await gateway.stop() == 0
        gateway = await spawner.start(config_for(engine))
        assert (await gateway.admin("GET", "/usage")).json == before
        assert (await gateway.admin("GET", "/keys")).json == listed
        assert (await ask(gateway, made["secret"])).status == 429
        assert await models(gateway, ended["secret"]) == 401
        assert made["secret"].encode() not in (gateway.state / "gateway.db").read_bytes()


async def test_usage_that_was_stored_survives_a_kill(spawner: Any) -> None:
    async with ScriptedEngine() as engine:
        gateway = await spawner.start(config_for(engine))
        assert (await ask(gateway, gateway.keys.default)).status == 200
        stored = (await gateway.admin("GET", "/usage")).json  # a report stores what it tells
        assert stored["rows"][0]["requests"] == 1
        assert await gateway.stop(signal.SIGKILL) == -signal.SIGKILL
        gateway = await spawner.start(config_for(engine))
        assert (await gateway.admin("GET", "/usage")).json == stored


async def test_usage_is_stored_without_being_asked_for(spawner: Any) -> None:
    async with ScriptedEngine() as engine:
        gateway = await spawner.start(config_for(engine))
        assert (await ask(gateway, gateway.keys.default)).status == 200
        wal = gateway.state / "gateway.db-wal"
        async with asyncio.timeout(60):
            while b"scripted" not in wal.read_bytes():  # noqa: ASYNC110 - another process, of which no event tells
                await asyncio.sleep(0.02)
        await gateway.stop(signal.SIGKILL)
        gateway = await spawner.start(config_for(engine))
        assert (await gateway.admin("GET", "/usage")).json["rows"][0]["requests"] == 1


async def test_a_default_key_that_was_revoked_stays_so_and_a_new_file_makes_a_new_one(spawner: Any) -> None:
    gateway = await spawner.start({})
    first = gateway.keys.default
    assert (await gateway.admin("DELETE", "/keys/default")).status == 200
    await gateway.stop()
    gateway = await spawner.start({})
    assert gateway.keys.default == first
    assert await models(gateway, first) == 401
    await gateway.stop()
    (gateway.state / "default.key").unlink()
    gateway = await spawner.start({})
    assert await models(gateway, gateway.keys.default) == 200
    assert await models(gateway, first) == 401


async def test_a_default_key_whose_file_was_removed_opens_nothing_any_more(spawner: Any) -> None:
    gateway = await spawner.start({})
    first = gateway.keys.default
    await gateway.stop()
    (gateway.state / "default.key").unlink()
    gateway = await spawner.start({})
    assert await models(gateway, first) == 401
    assert await models(gateway, gateway.keys.default) == 200
    keys = (await gateway.admin("GET", "/keys")).json["keys"]
    states = [(key["name"], key["state"]) for key in keys if key["name"] == "default"]
    assert states == [("default", "revoked"), ("default", "active")]


async def test_the_file_of_the_default_key_counts_if_a_rotation_was_cut_short(spawner: Any) -> None:
    gateway = await spawner.start({})
    first = gateway.keys.default
    await gateway.stop()
    renewed = new_key(first.removeprefix("sk-sage-").partition(".")[0])
    (gateway.state / "default.key").write_text(renewed + "\n")
    gateway = await spawner.start({})
    assert [await models(gateway, key) for key in (first, renewed)] == [401, 200]


@pytest.mark.parametrize("content", ["my-own-secret", "sk-sage-ab12.short", f"sk-sage-admin.{'x' * 43}"])
async def test_a_default_key_that_is_no_key_is_refused_and_not_quoted(spawner: Any, content: str) -> None:
    spawner.state.mkdir(mode=0o700)
    (spawner.state / "default.key").touch(0o600)
    (spawner.state / "default.key").write_text(content)
    code, words = await spawner.refused({})
    assert code == 1
    assert "not of the form sk-sage-<id>.<secret>" in words
    assert content not in words


async def test_another_pepper_is_noticed(spawner: Any) -> None:
    gateway = await spawner.start({})
    await gateway.admin("POST", "/keys", {"name": "team"})
    await gateway.stop()
    (gateway.state / "keys.pepper").unlink()
    code, words = await spawner.refused({})
    assert code == 1
    assert "pepper" in words
    assert "delete gateway.db" in words
    for name in ("gateway.db", "gateway.db-wal", "gateway.db-shm"):
        (gateway.state / name).unlink(missing_ok=True)
    gateway = await spawner.start({})
    assert await models(gateway, gateway.keys.default) == 200
