"""The configuration is loaded again while requests run: a real gateway, and no byte of a stream is lost."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import pty
import signal
import sys
import termios
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sage.middleware.testing.engines import Script, ScriptedEngine

WORDS = tuple(f"w{number} " for number in range(30))


def body(model: str, *, stream: bool = True) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": "hi"}], "stream": stream}


class Stack:
    """A gateway, and the file that it was started with."""

    def __init__(self, spawner: Any, *engines: dict[str, Any], **more: Any) -> None:
        self.spawner = spawner
        self.config: dict[str, Any] = {"engines": list(engines), **more}
        self.gateway: Any = None

    async def start(self) -> None:
        self.gateway = await self.spawner.start(self.config)
        await self.gateway.until_ready()

    @property
    def file(self) -> Path:
        found: Path = self.spawner.folder / "sage-0.yaml"
        return found

    def write(self, **changes: Any) -> None:
        self.config.update(changes)
        ports = {"gateway": 0, "admin": 0, "health": 0, **self.config.get("ports", {})}
        self.file.write_text(json.dumps({**self.config, "ports": ports}))

    async def reload(self, **changes: Any) -> Any:
        self.write(**changes)
        answer = await self.gateway.admin("POST", "/config/reload")
        assert answer.status == 200, answer.body
        return answer.json

    async def ask(self, model: str, *, stream: bool = True, key: str = "", **headers: str) -> Any:
        url = f"{self.gateway.run.base_url}/chat/completions"
        asked = body(model, stream=stream)
        return await self.gateway.http("POST", url, key=key or self.gateway.keys.default, body=asked)

    async def models(self) -> list[str]:
        url = f"{self.gateway.run.base_url}/models"
        answer = await self.gateway.http("GET", url, key=self.gateway.keys.default)
        return [entry["id"] for entry in answer.json["data"]]

    async def until(self, path: str, condition: Callable[[Any], bool]) -> None:
        """Poll another process: there is no event to wait on."""
        async with asyncio.timeout(60):
            while True:
                if condition((await self.gateway.admin("GET", path)).json):
                    return
                await asyncio.sleep(0.02)

    async def until_engines(self, expected: dict[str, str]) -> None:
        await self.until(
            "/engines", lambda found: {e["name"]: e["state"] for e in found["engines"]} == expected
        )


def entry(engine: ScriptedEngine, name: str, **changes: Any) -> dict[str, Any]:
    found: dict[str, Any] = engine.config(name, max_running=64, **changes).model_dump(mode="json")
    return found


def text_of(answer: Any) -> str:
    events = [line[6:] for line in answer.body.split(b"\n") if line.startswith(b"data: ")]
    assert events[-1] == b"[DONE]", answer.body[-300:]
    chunks = [json.loads(event) for event in events[:-1]]
    return "".join(choice["delta"].get("content", "") for chunk in chunks for choice in chunk["choices"])


async def test_twenty_streams_live_through_ten_reloads(spawner: Any) -> None:
    async with ScriptedEngine(model="a") as first, ScriptedEngine(model="b") as second:
        gate = asyncio.Event()
        first.script = Script(words=WORDS, gate=gate, gate_after=10)
        one, two = entry(first, "one"), entry(second, "two")
        stack = Stack(spawner, one, models=[{"name": "x", "to": [{"model": "a"}]}])
        await stack.start()
        names = ["a", "x"]
        streams = [asyncio.create_task(stack.ask(names[number % 2])) for number in range(20)]
        await first.until(lambda: first.active == 20)

        report = await stack.reload(engines=[one, two])
        assert report["engines"]["added"] == ["two"]
        await stack.until_engines({"one": "ready", "two": "ready"})
        assert text_of(await stack.ask("b")) == "one two three"
        report = await stack.reload(control_plane={"policy": "round_robin"})
        assert report["applied"] == [
            {"key": "control_plane.policy", "before": "hybrid", "after": "round_robin"}
        ]
        assert (await stack.gateway.admin("GET", "/policy")).json["name"] == "round_robin"
        await stack.reload(models=[{"name": "x", "to": [{"model": "b"}]}])
        assert text_of(await stack.ask("x")) == "one two three"
        report = await stack.reload(engines=[{**one, "max_running": 65}, two])
        assert report["engines"]["replaced"] == ["one"]
        await stack.reload(control_plane={"policy": "hybrid", "tenants": [{"name": "t", "weight": 2}]})
        await stack.reload(gateway={"max_inputs": 7, "allowed_hosts": ["127.0.0.1", "sage.example"]})
        await stack.reload(control_plane={"queue_max_requests": 3, "slos": {"chat": {"ttft_s": 9}}})
        report = await stack.reload(engines=[two], models=[])
        assert report["engines"]["removed"] == ["one"]
        await stack.until_engines({"two": "ready"})
        assert (await stack.ask("a")).status == 503  # its last requests still run
        assert await stack.models() == ["b"]
        report = await stack.reload(engines=[one, two])
        await stack.until_engines({"one": "ready", "two": "ready"})
        assert (await stack.reload())["applied"] == []

        assert first.active == 20
        assert not any(stream.done() for stream in streams)
        gate.set()
        assert [text_of(answer) for answer in await asyncio.gather(*streams)] == ["".join(WORDS)] * 20
        assert first.cancelled == 0
        assert (await stack.gateway.http("GET", f"{stack.gateway.run.health_url}/readyz")).status == 200


async def test_what_waits_in_a_queue_is_served_by_the_engine_in_place_of_the_old_one(spawner: Any) -> None:
    async with ScriptedEngine(model="m") as old, ScriptedEngine(model="m") as new:
        gate = asyncio.Event()
        old.script = Script(gate=gate)
        stack = Stack(spawner, {**entry(old, "e"), "max_running": 1})
        await stack.start()
        running = asyncio.create_task(stack.ask("m"))
        await old.until(lambda: old.active == 1)
        waiting = [asyncio.create_task(stack.ask("m")) for _ in range(3)]
        await stack.until("/queues", lambda queues: queues[0]["waiting"] == 3)
        await stack.reload(engines=[entry(new, "e")])
        assert {text_of(answer) for answer in await asyncio.gather(*waiting)} == {"one two three"}
        assert (old.served, new.served) == (0, 3)
        gate.set()
        assert text_of(await running) == "one two three"


async def test_a_configuration_that_is_wrong_is_refused_whole(spawner: Any) -> None:
    async with ScriptedEngine(model="m") as engine:
        stack = Stack(spawner, entry(engine, "e"))
        await stack.start()
        stack.write(gateway={"drain": 1}, control_plane={"policy": "fifo"}, models=[{"name": "x", "to": []}])
        answer = await stack.gateway.admin("POST", "/config/reload")
        assert answer.status == 400
        assert (
            "gateway.drain: unknown key; the nearest valid key is gateway.drain_s" in answer.error["message"]
        )
        assert str(stack.file) in answer.error["message"]
        for changes, words in (
            ({"gateway": {}, "models": [], "control_plane": {"policy": "astrology"}}, "least_load"),
            ({"control_plane": {}, "engines": [{"name": "e", "kind": "vlm", "model": "m"}]}, "vllm"),
            ({"engines": [{"name": "l", "kind": "transformers", "model": "/no/folder"}]}, "/no/folder"),
        ):
            stack.write(**changes)
            answer = await stack.gateway.admin("POST", "/config/reload")
            assert answer.status == 400, answer.body
            assert words in answer.error["message"]
        stack.file.write_text("engines: [")
        assert (await stack.gateway.admin("POST", "/config/reload")).status == 400
        assert (await stack.gateway.admin("GET", "/policy")).json["name"] == "hybrid"
        assert text_of(await stack.ask("m")) == "one two three"
        await stack.gateway.stop()
        words = (await stack.gateway.process.stderr.read()).decode()
        assert words.count("the configuration cannot be used, and the one in force stays") == 5


async def test_what_needs_a_restart_is_told_and_not_applied(spawner: Any) -> None:
    stack = Stack(spawner)
    await stack.start()
    report = await stack.reload(ports={"gateway": 1234, "ray": 7}, gateway={"drain_s": 3.0})
    assert {change["key"]: change["after"] for change in report["needs_restart"]} == {
        "ports.gateway": 1234,
        "ports.ray": 7,
    }
    assert [change["key"] for change in report["applied"]] == ["gateway.drain_s"]
    found = (await stack.gateway.admin("GET", "/config")).json
    assert (found["config"]["ports"]["ray"], found["config"]["gateway"]["drain_s"]) == (6380, 3.0)
    assert found["origin"]["ports.ray"] == "default"
    assert str(stack.file) in found["origin"]["gateway.drain_s"]


async def test_reloads_at_once_come_one_after_the_other(spawner: Any) -> None:
    async with ScriptedEngine(model="m") as engine:
        stack = Stack(spawner)
        await stack.start()
        stack.write(engines=[entry(engine, "e")])
        answers = await asyncio.gather(*(stack.gateway.admin("POST", "/config/reload") for _ in range(8)))
        added = [answer.json["engines"]["added"] for answer in answers]
        assert sorted(added) == [*([[]] * 7), ["e"]]


async def test_sighup_loads_it_and_sigterm_still_stops(spawner: Any) -> None:
    stack = Stack(spawner)
    await stack.start()
    stack.write(control_plane={"policy": "edf"})
    stack.gateway.process.send_signal(signal.SIGHUP)
    await stack.until("/policy", lambda policy: policy["name"] == "edf")
    assert await stack.gateway.stop() == 0


async def test_a_policy_that_was_put_in_force_by_hand_stays_unless_the_file_has_another(spawner: Any) -> None:
    stack = Stack(spawner)
    await stack.start()
    await stack.gateway.admin("PUT", "/policy", {"name": "sjf"})
    await stack.reload(gateway={"drain_s": 3.0})
    assert (await stack.gateway.admin("GET", "/policy")).json["name"] == "sjf"
    await stack.reload(control_plane={"policy": "edf"})
    assert (await stack.gateway.admin("GET", "/policy")).json["name"] == "edf"


async def test_other_hosts_and_sizes_hold_on_open_connections(spawner: Any) -> None:
    """Also for a head that was let in before: what is remembered of it is void."""
    async with ScriptedEngine(model="m") as engine:
        stack = Stack(spawner, entry(engine, "e"))
        await stack.start()
        port = int(stack.gateway.run.base_url.rpartition(":")[2].partition("/")[0])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        raw = json.dumps(body("m", stream=False)).encode()

        async def ask() -> int:
            head = (
                f"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\n"
                f"authorization: Bearer {stack.gateway.keys.default}\r\n"
                f"content-type: application/json\r\ncontent-length: {len(raw)}\r\n\r\n"
            )
            writer.write(head.encode() + raw)
            answer = await reader.readuntil(b"\r\n\r\n")
            length = int(answer.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
            await reader.readexactly(length)
            return int(answer.split(b" ")[1])

        assert [await ask(), await ask()] == [200, 200]
        await stack.reload(gateway={"allowed_hosts": ["127.0.0.1"]})
        assert await ask() == 403
        writer.close()
        await stack.reload(gateway={"allowed_hosts": ["127.0.0.1"], "max_body_bytes": 10})
        assert (await stack.ask("m")).status == 413


@pytest.mark.parametrize("ignored", [False, True])
async def test_a_closed_terminal_stops_what_runs_in_front_of_it_unless_it_was_told_to_stay(
    spawner: Any, ignored: bool
) -> None:
    leader, follower = pty.openpty()
    file = spawner.folder / "sage-tty.yaml"
    file.write_text(json.dumps({"ports": {"gateway": 0, "admin": 0, "health": 0}}))

    def take_terminal() -> None:
        os.setsid()
        fcntl.ioctl(follower, termios.TIOCSCTTY, 0)
        if ignored:
            signal.signal(signal.SIGHUP, signal.SIG_IGN)

    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "sage.gateway", "--config", str(file), "--state-dir", str(spawner.state)),
        cwd=spawner.folder,
        env=spawner.environment,
        stderr=asyncio.subprocess.PIPE,
        preexec_fn=take_terminal,
    )
    spawner.started.append(process)
    os.close(follower)
    assert process.stderr is not None
    said = b""
    async with asyncio.timeout(60):
        while b"serving" not in said:
            said += await process.stderr.readline()
        process.send_signal(signal.SIGHUP)  # the terminal is there: it is told to load
        while b"was loaded again" not in said:
            line = await process.stderr.readline()
            if b"was not loaded again" in line:  # it was still starting
                process.send_signal(signal.SIGHUP)
            said += line
        os.close(leader)
        if ignored:
            while said.count(b"was loaded again") < 2:
                said += await process.stderr.readline()
            process.terminate()
        assert await process.wait() == 0
    assert (b"SIGHUP: finishing" in said + await process.stderr.read()) is not ignored
    with contextlib.suppress(OSError):
        os.close(leader)
