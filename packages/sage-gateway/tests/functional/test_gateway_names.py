"""Names that stand for models, through a real gateway: what clients, keys and admins see of them."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest

from sage.middleware.testing.engines import Script, ScriptedEngine


def chat(model: str, **fields: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": "hi"}], **fields}


def entry(engine: ScriptedEngine, name: str, **changes: Any) -> dict[str, Any]:
    found: dict[str, Any] = engine.config(name, **changes).model_dump(mode="json")
    return found


async def ask(gateway: Any, body: dict[str, Any], *, key: str = "", path: str = "chat/completions") -> Any:
    return await gateway.http(
        "POST", f"{gateway.run.base_url}/{path}", key=key or gateway.keys.default, body=body
    )


NAMES = [
    {"name": "gpt-4o-mini", "to": [{"model": "a"}], "fallbacks": ["b"]},
    {"name": "mixed", "to": [{"model": "a"}, {"model": "b"}]},
    {"name": "vectors", "to": [{"model": "e"}]},
]


@pytest.fixture
async def trio() -> Any:
    async with (
        ScriptedEngine(model="a") as a,
        ScriptedEngine(model="b") as b,
        ScriptedEngine(model="e") as e,
    ):
        yield a, b, e


async def start(spawner: Any, trio: Any) -> Any:
    a, b, e = trio
    engines = [entry(a, "one"), entry(b, "two"), entry(e, "three", task="embed")]
    gateway = await spawner.start({"engines": engines, "models": NAMES})
    await gateway.until_ready()
    return gateway


async def test_a_name_is_served_listed_and_told_to_admins(spawner: Any, trio: Any) -> None:
    a, _, _ = trio
    gateway = await start(spawner, trio)
    listed = await gateway.http("GET", f"{gateway.run.base_url}/models", key=gateway.keys.default)
    assert [one["id"] for one in listed.json["data"]] == ["a", "b", "e", "gpt-4o-mini", "mixed", "vectors"]
    answer = await ask(gateway, chat("gpt-4o-mini"), key=gateway.keys.admin)
    assert answer.json["model"] == "a"  # bytes pass through: the model that served it
    assert json.loads(a.requests[-1].body)["model"] == "a"
    assert answer.headers["x-sage-engine"] == "one"
    assert "x-sage-fallback" not in answer.headers
    vectors = await ask(gateway, {"model": "vectors", "input": ["x", "y"]}, path="embeddings")
    assert len(vectors.json["data"]) == 2

    a.script = Script(status=429)
    answer = await ask(gateway, chat("gpt-4o-mini", stream=True), key=gateway.keys.admin)
    assert answer.body.endswith(b"data: [DONE]\n\n")
    assert answer.headers["x-sage-engine"] == "two"
    assert answer.headers["x-sage-fallback"] == "a: The engine one answered 429: it is over its limit."
    decision = (await gateway.admin("GET", f"/decisions/{answer.headers['x-request-id']}")).json
    assert (decision["model"], decision["asked"], decision["engine"]) == ("b", "gpt-4o-mini", "two")
    assert decision["fallback"] == answer.headers["x-sage-fallback"]
    plain = await ask(gateway, chat("gpt-4o-mini"))
    assert plain.status == 200
    assert not [name for name in plain.headers if name.startswith("x-sage")]
    text = (
        await gateway.http("GET", f"{gateway.run.admin_url}/metrics", key=gateway.keys.admin)
    ).body.decode()
    assert 'sage_fallbacks_total{name="gpt-4o-mini",model="b",reason="overloaded"} 2' in text


async def test_where_nobody_can_serve_it_the_error_is_that_of_the_first(spawner: Any, trio: Any) -> None:
    a, b, _ = trio
    gateway = await start(spawner, trio)
    a.script, b.script = Script(status=429), Script(status=500)
    failed = await ask(gateway, chat("gpt-4o-mini"))
    assert (failed.status, failed.error["code"]) == (429, "overloaded")
    assert "retry-after" in failed.headers


async def test_a_split_is_stable_for_a_request(spawner: Any, trio: Any) -> None:
    gateway = await start(spawner, trio)
    seen: Counter[str] = Counter()
    url = f"{gateway.run.base_url}/chat/completions"
    for _ in range(24):
        answer = await gateway.http("POST", url, key=gateway.keys.default, body=chat("mixed"))
        seen[answer.json["model"]] += 1
    assert set(seen) == {"a", "b"}


async def test_keys_and_usage_go_by_the_name_that_was_asked_for(spawner: Any, trio: Any) -> None:
    gateway = await start(spawner, trio)
    made = await gateway.admin("POST", "/keys", {"name": "few", "models": ["gpt-4o-mini"]})
    key, ident = made.json["secret"], made.json["key"]["id"]
    assert (await ask(gateway, chat("gpt-4o-mini"), key=key)).status == 200
    refused = await ask(gateway, chat("a"), key=key)
    assert (refused.status, refused.error["param"]) == (403, "model")
    listed = await gateway.http("GET", f"{gateway.run.base_url}/models", key=key)
    assert [one["id"] for one in listed.json["data"]] == ["gpt-4o-mini"]
    rows = (await gateway.admin("GET", f"/usage?key={ident}")).json["rows"]
    assert [(row["model"], row["requests"]) for row in rows if row["prompt_tokens"]] == [("gpt-4o-mini", 1)]


async def test_a_name_that_there_is_not_is_told_with_those_that_there_are(spawner: Any, trio: Any) -> None:
    gateway = await start(spawner, trio)
    answer = await ask(gateway, chat("gpt-5"))
    assert (answer.status, answer.error["code"]) == (404, "model_not_found")
    assert "a, b, e, gpt-4o-mini, mixed, vectors" in answer.error["message"]


async def test_a_capability_that_a_remote_lacks_by_configuration(spawner: Any, trio: Any) -> None:
    a, _, _ = trio
    few = entry(a, "one", capabilities=["chat"])
    gateway = await spawner.start({"engines": [few]})
    await gateway.until_ready()
    assert (await ask(gateway, chat("a"))).status == 200
    answer = await ask(gateway, chat("a", n=2))
    assert (answer.status, answer.error["param"]) == (400, "n")
    assert (await ask(gateway, {"model": "a", "prompt": "x"}, path="completions")).status == 400
