"""Files and batches on a real process: what a client sees from the upload to the last result."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
import pytest_asyncio

from sage.gateway.testing.batches import CHAT, BatchStack, jsonl, line
from sage.middleware.testing.engines import Script, ScriptedEngine

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack(module_spawner: Any) -> AsyncIterator[BatchStack]:
    async with ScriptedEngine(model="talker") as chat, ScriptedEngine(model="embedder") as embed:
        config = {
            "engines": [
                chat.config("chat-0").model_dump(mode="json"),
                embed.config("embed-0", task="embed").model_dump(mode="json"),
            ],
            "models": [{"name": "assistant", "to": [{"model": "talker"}]}],
            "batches": {
                "max_files": 40,
                "max_stored_bytes": 60_000,
                "max_lines": 30,
                "in_flight": 4,
                "max_open": 2,
            },
        }
        gateway = await module_spawner.start(config)
        await gateway.until_ready()
        stack = BatchStack(gateway, chat, embed)
        yield stack
        await stack.close()
        assert await gateway.stop() == 0


# ---- batches -----------------------------------------------------------------------------------------------


async def test_a_line_asks_by_a_name_and_its_key_is_charged_by_it(stack: BatchStack) -> None:
    client = await stack.key("by-name", models=["assistant"])
    ident = await client.batch(jsonl(line("a", model="assistant"), line("b")))
    done = await client.until(ident, "completed", "failed")
    assert (done.request_counts.completed, done.request_counts.failed) == (1, 1)
    (good,), (bad,) = await client.lines(done.output_file_id), await client.lines(done.error_file_id)
    assert (good["custom_id"], good["response"]["body"]["model"]) == ("a", "talker")
    assert (bad["custom_id"], bad["response"]["status_code"]) == (
        "b",
        403,
    )  # the model itself is not the key's
    keys = (await stack.gateway.admin("GET", "/keys")).json["keys"]
    key = next(one["id"] for one in keys if one["name"] == "by-name")
    rows = (await stack.gateway.admin("GET", f"/usage?key={key}")).json["rows"]
    assert {row["model"] for row in rows if row["prompt_tokens"]} == {"assistant"}


async def test_a_batch_of_chats_from_upload_to_results(stack: BatchStack) -> None:
    client = await stack.key("plain")
    ident = await client.batch(jsonl(*(line(f"id-{n}") for n in range(10))), metadata={"for": "test"})
    done = await client.until(ident, "completed", "failed")
    counts = done.request_counts
    assert (done.status, counts.total, counts.completed, counts.failed) == ("completed", 10, 10, 0)
    assert done.metadata == {"for": "test"}
    assert done.error_file_id is None
    assert done.created_at <= done.in_progress_at <= done.finalizing_at <= done.completed_at
    assert done.expires_at == done.created_at + 86_400
    lines = await client.lines(done.output_file_id)
    assert [one["custom_id"] for one in lines] == [f"id-{n}" for n in range(10)]
    assert {one["response"]["status_code"] for one in lines} == {200}
    assert lines[0]["response"]["body"]["choices"][0]["message"]["content"]
    assert len({one["id"] for one in lines}) == len({one["response"]["request_id"] for one in lines}) == 10
    output = await client.files.retrieve(done.output_file_id)
    assert (output.purpose, output.filename) == ("batch_output", f"{ident}_output.jsonl")
    rows = (await stack.gateway.admin("GET", "/usage?key=plain")).json["rows"]
    assert [(row["request_class"], row["requests"]) for row in rows] == [("batch", 10)]
    assert (await stack.metrics("sage_batches"))["completed"] >= 1
    assert (await stack.metrics("sage_batch_lines_total"))["completed"] >= 10


@pytest.mark.parametrize(
    ("url", "body", "kind"),
    [
        ("/v1/responses", {"input": "hi", "store": False}, "response"),
        ("/v1/messages", {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 5}, "message"),
    ],
)
async def test_lines_in_the_other_dialects(
    stack: BatchStack, url: str, body: dict[str, Any], kind: str
) -> None:
    """Errors too are those of the dialect."""
    client = stack.client()
    named = {"talker": "good", "nobody": "bad"}
    rows = [{**line(name), "url": url, "body": {**body, "model": model}} for model, name in named.items()]
    done = await client.until(await client.batch(jsonl(*rows), url), "completed")
    (good,), (bad,) = await client.lines(done.output_file_id), await client.lines(done.error_file_id)
    answer, refusal = good["response"]["body"], bad["response"]["body"]
    assert kind in (answer.get("object"), answer.get("type"))
    assert answer["usage"]["output_tokens"] > 0
    assert bad["response"]["status_code"] == 404
    assert "'nobody'" in refusal["error"]["message"]
    assert refusal.get("type") == ("error" if kind == "message" else None)


async def test_lines_of_embeddings_share_calls(stack: BatchStack) -> None:
    client = stack.client()
    gate = asyncio.Event()
    stack.embed.next_scripts.append(Script(gate=gate))
    route = "/v1/embeddings"
    texts = [{"model": "embedder", "input": f"text {n}"} for n in range(12)]
    rows = [{**line(f"e-{n}"), "url": route, "body": body} for n, body in enumerate(texts)]
    before = len(stack.embed.requests)
    ident = await client.batch(jsonl(*rows), route)
    await stack.embed.until(lambda: stack.embed.active == 1)
    await stack.until("sage_queue_waiting_requests", "embed_bulk", 2)
    gate.set()
    done = await client.until(ident, "completed")
    lines = await client.lines(done.output_file_id)
    assert [one["custom_id"] for one in lines] == [f"e-{n}" for n in range(12)]
    assert all(len(one["response"]["body"]["data"]) == 1 for one in lines)
    assert len(stack.embed.requests) - before < 12
    assert (await stack.metrics("sage_batch_lines_total"))["completed"] >= 12


async def test_a_line_that_fails_has_its_error_and_the_others_their_answers(stack: BatchStack) -> None:
    client = stack.client()
    content = jsonl(
        line("good"),
        line("stream", stream=True),
        line("unknown", model="nobody"),
        line("wrong", max_tokens=-1),
        line("last"),
    )
    done = await client.until(await client.batch(content), "completed")
    counts = done.request_counts
    assert (counts.total, counts.completed, counts.failed) == (5, 2, 3)
    assert [one["custom_id"] for one in await client.lines(done.output_file_id)] == ["good", "last"]
    errors = {one["custom_id"]: one["response"] for one in await client.lines(done.error_file_id)}
    assert {name: one["status_code"] for name, one in errors.items()} == {
        "stream": 400,
        "unknown": 404,
        "wrong": 400,
    }
    assert "cannot stream" in errors["stream"]["body"]["error"]["message"]
    assert errors["unknown"]["body"]["error"]["code"] == "model_not_found"


async def test_an_input_that_is_not_right_fails_before_anything_runs(stack: BatchStack) -> None:
    client = stack.client()
    before = len(stack.chat.requests)
    content = jsonl(line("a"), line("a"), {**line("b"), "url": "/v1/embeddings"}) + b"{nonsense\n\n"
    done = await client.until(await client.batch(content), "failed")
    assert [(one.code, one.line) for one in done.errors.data] == [
        ("duplicate_custom_id", 2),
        ("invalid_url", 3),
        ("invalid_json_line", 4),
    ]
    assert "that of line 1" in done.errors.data[0].message
    too_long = jsonl(*(line(str(n)) for n in range(31)))
    done = await client.until(await client.batch(too_long), "failed")
    assert [(one.code, one.line) for one in done.errors.data] == [("too_many_lines", 31)]
    assert len(stack.chat.requests) == before


async def test_a_cancelled_batch_keeps_what_is_done_and_tells_of_the_rest(stack: BatchStack) -> None:
    client = stack.client()
    gate = asyncio.Event()
    held = [Script(gate=gate)] * 4
    stack.chat.next_scripts.extend([Script(), Script(), *held])
    before = (await stack.metrics("sage_batch_lines_total"))["completed"]
    ident = await client.batch(jsonl(*(line(f"c-{n}") for n in range(8))))
    await stack.chat.until(lambda: stack.chat.active == 4)
    await stack.until("sage_batch_lines_total", "completed", before + 2)
    asked = await client.batches.cancel(ident)
    assert asked.status in ("cancelling", "cancelled")
    done = await client.until(ident, "cancelled")
    await stack.chat.until(lambda: stack.chat.active == 0)
    gate.set()
    good, bad = await client.lines(done.output_file_id), await client.lines(done.error_file_id)
    assert (len(good), len(bad)) == (2, 6)
    assert {one["custom_id"] for one in good + bad} == {f"c-{n}" for n in range(8)}
    assert {one["error"]["code"] for one in bad} == {"batch_cancelled"}
    assert done.cancelling_at <= done.cancelled_at
    with pytest.raises(openai.ConflictError, match="cannot be cancelled"):
        await client.batches.cancel(ident)


async def test_a_revoked_key_ends_its_batches_and_says_so(stack: BatchStack) -> None:
    client = await stack.key("leaver")
    gate = asyncio.Event()
    stack.chat.next_scripts.extend([Script(gate=gate)] * 4)
    before = (await stack.metrics("sage_batches"))["failed"]
    ident = await client.batch(jsonl(*(line(f"r-{n}") for n in range(6))))
    await stack.chat.until(lambda: stack.chat.active == 4)
    assert (await stack.gateway.admin("DELETE", "/keys/leaver")).status == 200
    await stack.chat.until(lambda: stack.chat.active == 0)
    gate.set()
    await stack.until("sage_batches", "failed", before + 1)
    with pytest.raises(openai.AuthenticationError):
        await client.batches.retrieve(ident)


async def test_batches_are_listed_newest_first_and_by_page(stack: BatchStack) -> None:
    client = await stack.key("lister")
    made = []
    for n in range(3):
        made.append(await client.batch(jsonl(line(str(n)))))
        await client.until(made[-1], "completed")
    first = await client.batches.list(limit=2)
    assert ([one.id for one in first.data], first.has_more) == ([made[2], made[1]], True)
    rest = await client.batches.list(limit=2, after=first.data[-1].id)
    assert ([one.id for one in rest.data], rest.has_more) == ([made[0]], False)
    with pytest.raises(openai.NotFoundError, match="after"):
        await client.batches.list(after="batch-0")


@pytest.mark.parametrize(
    ("change", "param", "words"),
    [
        ({"endpoint": "/v1/models"}, "endpoint", "/v1/embeddings"),
        ({"completion_window": "8d"}, "completion_window", "1m to 7d"),
        ({"completion_window": "soon"}, "completion_window", "24h"),
        ({"input_file_id": "file-0"}, None, "There is no file"),
        ({"metadata": {"k": "v" * 513}}, "metadata.k", "512"),
        ({"extra_body": {"priority": 1}}, "priority", "priority"),
    ],
)
async def test_a_batch_that_cannot_be_is_refused(
    stack: BatchStack, change: dict[str, Any], param: str | None, words: str
) -> None:
    client = stack.client()
    asked: dict[str, Any] = {
        "endpoint": CHAT,
        "completion_window": "24h",
        "input_file_id": "file-0",
        **change,
    }
    with pytest.raises(openai.APIStatusError) as refused:
        await client.batches.create(**asked)
    assert refused.value.status_code in (400, 404)
    assert refused.value.param == param
    assert words in str(refused.value)


async def test_open_batches_of_a_key_are_bounded(stack: BatchStack) -> None:
    client = await stack.key("eager")
    gate = asyncio.Event()
    stack.chat.next_scripts.extend([Script(gate=gate)] * 2)
    made = [await client.batch(jsonl(line("x"))) for _ in range(2)]
    with pytest.raises(openai.RateLimitError, match="2 batches of this key"):
        await client.batch(jsonl(line("x")))
    gate.set()
    for ident in made:
        await client.until(ident, "completed")
    await client.until(await client.batch(jsonl(line("x"))), "completed")


async def test_a_refusal_by_load_is_tried_again(stack: BatchStack) -> None:
    client = await stack.key("slow", rpm=3)
    other = await stack.key("quick")
    ident = await client.batch(jsonl(*(line(f"s-{n}") for n in range(3))))
    done = await client.until(ident, "completed")
    assert done.request_counts.completed == 3
    stack.chat.next_scripts.extend([Script(status=503, error=b"{}")] * 3)
    done = await other.until(await other.batch(jsonl(line("a"))), "completed")
    assert done.request_counts.completed == 1


# ---- whose they are ----------------------------------------------------------------------------------------


async def test_a_key_finds_its_own_only(stack: BatchStack) -> None:
    one, other = await stack.key("one"), await stack.key("two")
    ident = await one.batch(jsonl(line("mine")))
    done = await one.until(ident, "completed")
    for file in (done.input_file_id, done.output_file_id):
        for ask in (other.files.retrieve, other.files.content, other.files.delete):
            with pytest.raises(openai.NotFoundError, match="of this key"):
                await ask(file)
    for act in (other.batches.retrieve, other.batches.cancel):
        with pytest.raises(openai.NotFoundError, match="of this key"):
            await act(ident)
    with pytest.raises(openai.NotFoundError, match="of this key"):
        await other.batches.create(input_file_id=done.input_file_id, endpoint=CHAT, completion_window="24h")
    assert (await other.files.list()).data == []
    assert (await other.batches.list()).data == []
    with pytest.raises(openai.NotFoundError, match="after"):
        await other.files.list(after=done.input_file_id)


async def test_scopes_open_files_and_batches_apart(stack: BatchStack) -> None:
    files, batches = await stack.key("f", scopes=["files"]), await stack.key("b", scopes=["batches", "files"])
    await files.store(b"{}")
    with pytest.raises(openai.PermissionDeniedError, match="batches"):
        await files.batches.list()
    with pytest.raises(openai.PermissionDeniedError, match="chat"):
        await batches.batch(jsonl(line("a")))
