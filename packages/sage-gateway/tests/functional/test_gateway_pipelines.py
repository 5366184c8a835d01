"""Pipelines as models of the real process: all that a client, a key and an admin see of one."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest_asyncio

from sage.middleware.testing.dialects import events_of
from sage.middleware.testing.engines import Script, ScriptedEngine

FLOW = """
from collections.abc import AsyncIterator

from sage.kernel import Flow, Part
from sage.middleware.operators.connect import Connected


class Say(Connected):
    async def __call__(self, words: str) -> AsyncIterator[object]:
        await self.client.embed(words.split(), model="vectors")
        texts = []
        async for delta in self.client.chat([{"role": "user", "content": words}], model="talker"):
            texts.append(delta.text)
            yield Part(delta)
        yield "".join(texts)


def flow(suffix: str = "") -> Flow:
    made = Flow("say")
    made.reply(made.requests(str).map(lambda words: words + suffix, name="suffix").map(Say(None)))
    return made
"""


class Stack:
    """A pipeline that embeds and chats, behind one gateway."""

    def __init__(self, gateway: Any, chat: ScriptedEngine, file: Path) -> None:
        self.gateway = gateway
        self.chat = chat
        self.file = file

    async def post(self, path: str, body: Any, *, key: str = "") -> Any:
        url = f"{self.gateway.run.base_url}/{path}"
        return await self.gateway.http("POST", url, key=key or self.gateway.keys.default, body=body)

    def ask(self, **fields: Any) -> dict[str, Any]:
        return {"model": "pipeline/say", "messages": [{"role": "user", "content": "hi"}], **fields}


@pytest_asyncio.fixture
async def stack(spawner: Any, tmp_path: Path) -> AsyncIterator[Stack]:
    (tmp_path / "say_flow.py").write_text(FLOW)
    spawner.environment["PYTHONPATH"] = str(tmp_path)
    async with ScriptedEngine(model="talker") as chat, ScriptedEngine(model="vectors") as vectors:
        engines = [chat.config("chat-0"), vectors.config("vectors-0", task="embed")]
        pipelines = [
            {"name": "say", "flow": "say_flow:flow", "params": {"suffix": "!"}},
            {"name": "broken", "flow": "missing.yaml"},
        ]
        names = [{"name": "assistant", "to": [{"model": "pipeline/say"}]}]
        gateway = await spawner.start(
            {
                "engines": [one.model_dump(mode="json") for one in engines],
                "pipelines": pipelines,
                "models": names,
            }
        )
        await gateway.until_ready()
        found = Stack(gateway, chat, spawner.folder / "sage-0.yaml")
        async with asyncio.timeout(30):
            while "pipeline/say" not in await models(found):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        yield found
        assert await gateway.stop() == 0


async def models(stack: Stack, key: str = "") -> list[str]:
    url = f"{stack.gateway.run.base_url}/models"
    listed = await stack.gateway.http("GET", url, key=key or stack.gateway.keys.default)
    return [one["id"] for one in listed.json["data"]]


async def test_unmodified_clients_ask_a_pipeline(stack: Stack) -> None:
    base = {"base_url": stack.gateway.run.base_url, "api_key": stack.gateway.keys.default}
    async with openai.AsyncOpenAI(**base, max_retries=0) as client:
        ask: Any = stack.ask()
        whole = await client.chat.completions.create(**ask)
        said = whole.choices[0].message.content
        assert said == "one two three"
        assert b"hi!" in stack.chat.requests[-1].body
        assert whole.usage is not None
        assert whole.usage.completion_tokens == 3
        stream = await client.chat.completions.create(**ask, stream=True)
        pieces = [chunk.choices[0].delta.content async for chunk in stream if chunk.choices]
        assert [one for one in pieces if one] == ["one ", "two ", "three"]
        named = await client.chat.completions.create(**{**ask, "model": "assistant"})
        assert named.choices[0].message.content == said


async def test_it_is_asked_in_the_other_dialects_too(stack: Stack) -> None:
    message = await stack.post("messages", stack.ask(max_tokens=64))
    assert message.json["content"] == [{"type": "text", "text": "one two three"}]
    response = await stack.post("responses", {"model": "pipeline/say", "input": "hi"})
    assert response.json["output"][0]["content"][0]["text"] == "one two three"
    stream = await stack.post("messages", stack.ask(max_tokens=64, stream=True))
    kinds = [event["type"] for event in events_of(stream.body)]
    assert kinds[0] == "message_start"
    assert kinds[-1] == "message_stop"


async def test_a_key_of_a_pipeline_needs_none_for_what_that_calls(stack: Stack) -> None:
    made = await stack.gateway.admin("POST", "/keys", {"name": "few", "models": ["pipeline/say"]})
    key, ident = made.json["secret"], made.json["key"]["id"]
    assert await models(stack, key) == ["pipeline/say"]
    assert (await stack.post("chat/completions", stack.ask(), key=key)).status == 200
    assert (await stack.post("chat/completions", stack.ask(model="talker"), key=key)).status == 403
    rows = (await stack.gateway.admin("GET", f"/usage?key={ident}")).json["rows"]
    used = [(row["model"], row["requests"], row["completion_tokens"]) for row in rows if row["model"]]
    assert ("pipeline/say", 1, 3) in used


async def test_admins_see_it_as_an_engine_and_its_calls_as_those_of_the_key(stack: Stack) -> None:
    engines = {one["name"]: one for one in (await stack.gateway.admin("GET", "/engines")).json["engines"]}
    assert engines["pipeline/say"]["state"] == "ready"
    assert "missing.yaml' does not exist" in engines["pipeline/broken"]["detail"]
    answer = await stack.post("chat/completions", stack.ask(), key=stack.gateway.keys.admin)
    assert answer.headers["x-sage-engine"] == "pipeline/say"
    decisions = (await stack.gateway.admin("GET", "/decisions?limit=3")).json["decisions"]
    assert {one["engine"] for one in decisions} == {"pipeline/say", "chat-0", "vectors-0"}
    assert len({one["tenant"] for one in decisions}) == 1
    refused = await stack.post("chat/completions", stack.ask(model="pipeline/broken"))
    assert refused.status == 503


async def test_overload_of_what_a_pipeline_calls_is_told_at_once(stack: Stack) -> None:
    stack.chat.script = Script(status=429)
    answer = await stack.post("chat/completions", stack.ask())
    assert (answer.status, answer.error["code"]) == (429, "overloaded")
    assert "retry-after" in answer.headers
    assert len(stack.chat.requests) <= 2  # what the control plane tries by itself


async def test_a_client_that_leaves_ends_the_calls_of_a_pipeline(stack: Stack) -> None:
    stack.chat.script = Script(gate=asyncio.Event(), gate_after=1)
    task = asyncio.create_task(stack.post("chat/completions", stack.ask(stream=True)))
    await stack.chat.until(lambda: stack.chat.active == 1)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await stack.chat.until(lambda: stack.chat.active == 0)


async def test_what_a_pipeline_asks_is_judged_by_the_configuration_in_force(stack: Stack) -> None:
    ask = stack.ask(messages=[{"role": "user", "content": "two texts"}])
    assert (await stack.post("chat/completions", ask)).status == 200
    file = stack.file
    file.write_text(json.dumps({**json.loads(file.read_text()), "gateway": {"max_inputs": 1}}))
    assert (await stack.gateway.admin("POST", "/config/reload")).status == 200
    refused = await stack.post("chat/completions", ask)
    assert (refused.status, "2 inputs" in refused.error["message"]) == (400, True), refused.body
