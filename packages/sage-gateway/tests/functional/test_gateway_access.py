"""Keys, limits and usage of the real process: made, enforced, ended and counted."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import openai
import pytest
import pytest_asyncio

from sage.middleware.testing.engines import Script, ScriptedEngine

pytestmark = pytest.mark.asyncio(loop_scope="module")

MESSAGES: Any = [{"role": "user", "content": "Say something."}]
CHAT = {"model": "talker", "messages": MESSAGES, "max_tokens": 5}


def entry(engine: ScriptedEngine, name: str, task: str) -> dict[str, Any]:
    return engine.config(name, task=task).model_dump(mode="json")


class Stack:
    """One engine that chats and one that embeds, behind one gateway, and the admin's hands on it."""

    def __init__(self, gateway: Any, chat: ScriptedEngine) -> None:
        self.gateway = gateway
        self.chat = chat
        self._made = 0

    async def key(self, **settings: Any) -> tuple[str, str]:
        """A key with these settings: its id and secret."""
        self._made += 1
        answer = await self.gateway.admin("POST", "/keys", {"name": f"key-{self._made}", **settings})
        assert answer.status == 200, answer.body
        return answer.json["key"]["id"], answer.json["secret"]

    async def post(self, key: str, body: Any = CHAT, path: str = "chat/completions") -> Any:
        return await self.gateway.http("POST", f"{self.gateway.run.base_url}/{path}", key=key, body=body)

    async def get(self, key: str, path: str = "models") -> Any:
        return await self.gateway.http("GET", f"{self.gateway.run.base_url}/{path}", key=key)

    async def usage(self, ident: str) -> list[dict[str, Any]]:
        answer = await self.gateway.admin("GET", f"/usage?key={ident}")
        assert answer.status == 200, answer.body
        return list(answer.json["rows"])

    @contextlib.asynccontextmanager
    async def streaming(self, secret: str) -> AsyncIterator[asyncio.Task[Any]]:
        """A stream of this key whose first word is out and whose second never comes."""
        self.chat.next_scripts.append(Script(gate=asyncio.Event(), gate_after=1))
        asking = asyncio.create_task(self.post(secret, {**CHAT, "stream": True}))
        await self.chat.until(lambda: self.chat.active == 1)
        yield asking
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        await self.chat.until(lambda: self.chat.active == 0)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack(module_spawner: Any) -> AsyncIterator[Stack]:
    async with ScriptedEngine(model="talker") as chat, ScriptedEngine(model="embedder") as embed:
        config = {"engines": [entry(chat, "chat-0", "generate"), entry(embed, "embed-0", "embed")]}
        gateway = await module_spawner.start(config)
        await gateway.until_ready()
        yield Stack(gateway, chat)
        assert await gateway.stop() == 0


# ---- what a key may ----------------------------------------------------------------------------------------


async def test_a_new_key_works_and_its_secret_is_told_once(stack: Stack) -> None:
    ident, secret = await stack.key()
    assert secret.startswith(f"sk-sage-{ident}.")
    assert (await stack.post(secret)).status == 200
    for path in ("/keys", f"/keys/{ident}"):
        answer = await stack.gateway.admin("GET", path)
        assert answer.status == 200
        assert secret.partition(".")[2].encode() not in answer.body
    found = (await stack.gateway.admin("GET", f"/keys/{ident}")).json
    assert (found["state"], found["max_concurrent"], found["rpm"]) == ("active", 32, None)
    assert datetime.fromisoformat(found["last_used_at"]) >= datetime.fromisoformat(found["created_at"])
    assert found["created_at"].endswith("Z")


async def test_a_scope_opens_its_routes_and_no_others(stack: Stack) -> None:
    _, secret = await stack.key(scopes=["embeddings"])
    assert (await stack.post(secret, {"model": "embedder", "input": "a"}, "embeddings")).status == 200
    for answer in (
        await stack.post(secret),
        await stack.get(secret),
        await stack.get(secret, "models/talker"),
    ):
        assert (answer.status, answer.error["code"]) == (403, "forbidden")
        assert "it is for: embeddings" in answer.error["message"]
    assert (await stack.gateway.http("GET", stack.gateway.run.base_url[:-2], key=secret)).status == 200
    admin = f"{stack.gateway.run.admin_url}/admin/v1/keys"
    assert (await stack.gateway.http("GET", admin, key=secret)).status == 403
    _, manager = await stack.key(scopes=["admin"])
    assert (await stack.gateway.http("GET", admin, key=manager)).status == 200
    assert (await stack.post(manager)).status == 403


async def test_a_key_sees_and_uses_its_models_only(stack: Stack) -> None:
    _, secret = await stack.key(models=["embedder", "none-yet"])
    assert [one["id"] for one in (await stack.get(secret)).json["data"]] == ["embedder"]
    for answer in (await stack.post(secret), await stack.get(secret, "models/talker")):
        assert (answer.status, answer.error["param"]) == (403, "model")
        assert "it may use: embedder, none-yet" in answer.error["message"]
    assert (await stack.post(secret, {"model": "embedder", "input": "a"}, "embeddings")).status == 200
    asked = await stack.post(secret, {**CHAT, "model": "none-yet"})
    for missing in (asked, await stack.get(secret, "models/none-yet")):
        assert (missing.status, missing.error["code"]) == (404, "model_not_found")
        assert "talker" not in missing.error["message"]


async def test_a_ceiling_runs_everything_low(stack: Stack) -> None:
    ident, secret = await stack.key(ceiling="batch")
    assert (await stack.post(secret)).status == 200
    assert (await stack.post(secret, {"model": "embedder", "input": "a"}, "embeddings")).status == 200
    assert {row["request_class"] for row in await stack.usage(ident)} == {"batch", "embed_bulk"}


async def test_a_key_expires(stack: Stack) -> None:
    soon = (datetime.now(UTC) + timedelta(seconds=0.4)).isoformat()
    ident, secret = await stack.key(expires_at=soon)
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", int(stack.gateway.run.base_url.split(":")[2][:-3])
    )
    head = f"host: localhost\r\nauthorization: Bearer {secret}\r\n\r\n"
    statuses = []
    async with asyncio.timeout(30):
        while 401 not in statuses:  # of one connection, whose head is verified once
            writer.write(f"GET /v1/models HTTP/1.1\r\n{head}".encode())
            line = await reader.readuntil(b"\r\n\r\n")
            statuses.append(int(line.split(b" ")[1]))
            length = int(line.lower().partition(b"content-length: ")[2].split(b"\r")[0])
            body = await reader.readexactly(length)
    writer.close()
    assert b"has expired at" in body
    assert (await stack.gateway.admin("GET", f"/keys/{ident}")).json["state"] == "expired"
    later = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    changed = await stack.gateway.admin("PATCH", f"/keys/{ident}", {"expires_at": later})
    assert changed.json["state"] == "active"
    assert (await stack.get(secret)).status == 200


# ---- how much ----------------------------------------------------------------------------------------------


async def test_requests_in_a_minute_by_openais_client(stack: Stack) -> None:
    _, secret = await stack.key(rpm=2, tpm=100_000)
    async with openai.AsyncOpenAI(
        base_url=stack.gateway.run.base_url, api_key=secret, max_retries=0
    ) as client:
        raw = client.chat.completions.with_raw_response
        first = await raw.create(model="talker", messages=MESSAGES, max_tokens=5)
        assert first.headers["x-ratelimit-limit-requests"] == "2"
        assert first.headers["x-ratelimit-remaining-requests"] == "1"
        assert first.headers["x-ratelimit-reset-requests"].endswith("s")
        assert int(first.headers["x-ratelimit-remaining-tokens"]) < 100_000
        stream = await client.chat.completions.create(model="talker", messages=MESSAGES, stream=True)
        assert [chunk async for chunk in stream]
        with pytest.raises(openai.RateLimitError, match="2 requests in a minute") as caught:
            await client.chat.completions.create(model="talker", messages=MESSAGES)
    headers = caught.value.response.headers
    assert 1 <= int(headers["retry-after"]) <= 30
    assert headers["x-ratelimit-remaining-requests"] == "0"
    assert caught.value.code == "rate_limit_exceeded"
    models = await stack.get(secret)
    assert (models.status, models.headers["x-ratelimit-limit-requests"]) == (200, "2")


async def test_tokens_are_corrected_by_what_the_engine_counted(stack: Stack) -> None:
    ident, secret = await stack.key(tpm=1000)
    assert (await stack.post(secret, {**CHAT, "max_tokens": 900})).status == 200
    row = (await stack.usage(ident))[0]
    spent = row["prompt_tokens"] + row["completion_tokens"]
    assert 0 < spent < 50
    left = int((await stack.get(secret)).headers["x-ratelimit-remaining-tokens"])
    assert left >= 1000 - spent - 1
    too_large = await stack.post(secret, {**CHAT, "max_tokens": 1001})
    assert (too_large.status, too_large.headers["x-should-retry"]) == (429, "false")
    assert "retry-after" not in too_large.headers


async def test_requests_at_once_and_the_place_is_free_again(stack: Stack) -> None:
    ident, secret = await stack.key(max_concurrent=1)
    async with stack.streaming(secret):
        refused = await stack.post(secret)
        assert (refused.status, refused.headers["retry-after"]) == (429, "1")
        assert "1 requests under way; it may have 1" in refused.error["message"]
        found = (await stack.gateway.admin("GET", "/metrics")).json["metrics"]
        values = {m["name"]: {tuple(s["labels"].values()): s["value"] for s in m["samples"]} for m in found}
        assert values["sage_key_running_requests"][(ident,)] == 1
        assert values["sage_key_refusals_total"][ident, "max_concurrent"] == 1
    async with asyncio.timeout(30):
        while (await stack.post(secret)).status != 200:
            pass  # its client has gone; that is noticed in a moment
    rows = await stack.usage(ident)
    assert sum(row["refusals"] for row in rows) >= 1
    assert sum(row["errors"] for row in rows) == 0


async def test_a_budget_is_used_up(stack: Stack) -> None:
    ident, secret = await stack.key(day_tokens=40)
    statuses = [(await stack.post(secret)).status for _ in range(10)]
    assert statuses[0] == 200
    assert statuses[-1] == 429
    last = await stack.post(secret)
    assert last.error["code"] == "insufficient_quota"
    assert 1 <= int(last.headers["retry-after"]) <= 86_400
    await stack.gateway.admin("PATCH", f"/keys/{ident}", {"day_tokens": 4000})
    assert (await stack.post(secret)).status == 200


# ---- the end of a key --------------------------------------------------------------------------------------


async def test_a_revoked_key_ends_its_streams_and_frees_the_engine(stack: Stack) -> None:
    ident, secret = await stack.key()
    cancelled = stack.chat.cancelled
    async with stack.streaming(secret) as asking:
        answer = await stack.gateway.admin("DELETE", f"/keys/{ident}")
        assert (answer.status, answer.json["state"]) == (200, "revoked")
        async with asyncio.timeout(5):
            stream = await asking
        events = [line for line in stream.body.split(b"\n\n") if line]
        assert (
            json.loads(events[-1].removeprefix(b"data: "))["error"]["message"] == "This API key was revoked."
        )
        assert b"[DONE]" not in stream.body
        assert b'"content"' in events[0] or b'"role"' in events[0]
        await stack.chat.until(lambda: stack.chat.cancelled == cancelled + 1)
    engines = (await stack.gateway.admin("GET", "/engines")).json["engines"]
    assert [engine["running"] for engine in engines] == [0, 0]
    refused = await stack.post(secret)
    assert refused.status == 401
    assert "was revoked at 2" in refused.error["message"]
    row = (await stack.usage(ident))[0]
    assert (row["requests"], row["errors"]) == (1, 1)
    assert row["prompt_tokens"] > 0
    again = await stack.gateway.admin("DELETE", f"/keys/{ident}")
    assert again.json["revoked_at"] == answer.json["revoked_at"]


@pytest.mark.parametrize("stream", [True, False])
async def test_a_revoked_key_ends_what_has_not_begun_to_answer(stack: Stack, stream: bool) -> None:
    ident, secret = await stack.key()
    before = stack.chat.cancelled
    stack.chat.next_scripts.append(Script(gate=asyncio.Event(), gate_after=-1))
    asking = asyncio.create_task(stack.post(secret, {**CHAT, "stream": stream}))
    await stack.chat.until(lambda: stack.chat.active == 1)
    await stack.gateway.admin("DELETE", f"/keys/{ident}")
    answer = await asking
    assert (answer.status, answer.error["code"]) == (401, "invalid_api_key")
    await stack.chat.until(lambda: stack.chat.cancelled == before + 1)


async def test_a_stream_of_another_key_goes_on(stack: Stack) -> None:
    ident, _ = await stack.key()
    _, other = await stack.key()
    gate = asyncio.Event()
    stack.chat.next_scripts.append(Script(gate=gate, gate_after=1))
    asking = asyncio.create_task(stack.post(other, {**CHAT, "stream": True}))
    await stack.chat.until(lambda: stack.chat.active == 1)
    await stack.gateway.admin("DELETE", f"/keys/{ident}")
    gate.set()
    assert (await asking).body.endswith(b"data: [DONE]\n\n")


async def test_a_rotated_key_has_two_secrets_for_the_grace_and_then_one(stack: Stack) -> None:
    ident, first = await stack.key()
    rotated = await stack.gateway.admin("POST", f"/keys/{ident}/rotate", {"grace_s": 3600})
    second = rotated.json["secret"]
    assert rotated.json["key"]["former_until"] > rotated.json["key"]["created_at"]
    assert [(await stack.get(key)).status for key in (first, second)] == [200, 200]
    third = (await stack.gateway.admin("POST", f"/keys/{ident}/rotate")).json["secret"]
    assert [(await stack.get(key)).status for key in (first, second, third)] == [401, 401, 200]


async def test_the_default_key_is_rotated_in_its_file_too(stack: Stack) -> None:
    before = stack.gateway.keys.default
    rotated = (await stack.gateway.admin("POST", "/keys/default/rotate")).json
    assert rotated["key"]["name"] == "default"
    assert stack.gateway.keys.default == rotated["secret"] != before
    assert [(await stack.get(key)).status for key in (before, rotated["secret"])] == [401, 200]
    assert (stack.gateway.state / "default.key").stat().st_mode & 0o777 == 0o600


async def test_a_change_is_what_was_given_and_nothing_else(stack: Stack) -> None:
    ident, secret = await stack.key(rpm=5, models=["talker"], tenant="team")
    changed = (await stack.gateway.admin("PATCH", f"/keys/{ident}", {"rpm": None, "tpm": 500})).json
    assert (changed["rpm"], changed["tpm"], changed["models"], changed["tenant"]) == (
        None,
        500,
        ["talker"],
        "team",
    )
    headers = (await stack.get(secret)).headers
    assert "x-ratelimit-limit-requests" not in headers
    assert headers["x-ratelimit-limit-tokens"] == "500"
    await stack.gateway.admin("PATCH", f"/keys/{ident}", {"scopes": ["embeddings"]})
    assert (await stack.get(secret)).status == 403


# ---- usage -------------------------------------------------------------------------------------------------


async def test_usage_by_key_model_class_and_day(stack: Stack) -> None:
    ident, secret = await stack.key()
    for _ in range(3):
        answer = await stack.post(secret)
    await stack.post(secret, {**CHAT, "stream": True})
    await stack.post(secret, {"model": "embedder", "input": ["a", "b"]}, "embeddings")
    await stack.post(secret, {"model": "no-such-model", "messages": MESSAGES})
    await stack.post(secret, {"model": "talker"})
    rows = {(row["model"], row["request_class"]): row for row in await stack.usage(ident)}
    assert set(rows) == {("talker", "chat"), ("embedder", "embed_interactive"), ("", "chat")}
    chat = rows["talker", "chat"]
    assert (chat["requests"], chat["errors"], chat["refusals"]) == (4, 0, 0)
    assert chat["completion_tokens"] == 4 * answer.json["usage"]["completion_tokens"]
    assert chat["prompt_tokens"] == 4 * answer.json["usage"]["prompt_tokens"]
    assert chat["day"] == datetime.now(UTC).date().isoformat()
    assert rows["embedder", "embed_interactive"]["prompt_tokens"] > 0
    assert (rows["", "chat"]["requests"], rows["", "chat"]["errors"]) == (2, 2)
    one = (await stack.gateway.admin("GET", f"/usage?key={ident}&model=embedder")).json["rows"]
    assert [row["model"] for row in one] == ["embedder"]
    past = (await stack.gateway.admin("GET", "/usage?from=2020-01-01&to=2020-01-31")).json
    assert (past["first"], past["last"], past["rows"]) == ("2020-01-01", "2020-01-31", [])


async def test_a_client_that_goes_away_has_used_what_it_was_sent(stack: Stack) -> None:
    ident, secret = await stack.key()
    async with stack.streaming(secret):
        pass
    async with asyncio.timeout(30):
        while not (rows := await stack.usage(ident)):
            pass
    assert (rows[0]["requests"], rows[0]["errors"], rows[0]["refusals"]) == (1, 0, 0)
    assert rows[0]["prompt_tokens"] > 0
