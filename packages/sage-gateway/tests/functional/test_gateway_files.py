"""Files on a real process: stored, listed, bounded, deleted."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
import pytest_asyncio

from sage.gateway.testing.batches import BatchStack, jsonl, line
from sage.middleware.testing.engines import Script, ScriptedEngine

pytestmark = pytest.mark.asyncio(loop_scope="module")

HEAD = b'--b\r\nContent-Disposition: form-data; name="x"\r\n\r\n'


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack(module_spawner: Any) -> AsyncIterator[BatchStack]:
    async with ScriptedEngine(model="talker") as chat:
        engines = [chat.config("chat-0").model_dump(mode="json")]
        bounds = {"max_files": 40, "max_stored_bytes": 60_000}
        gateway = await module_spawner.start({"engines": engines, "batches": bounds})
        await gateway.until_ready()
        stack = BatchStack(gateway, chat, chat)
        yield stack
        await stack.close()
        assert await gateway.stop() == 0


async def test_a_file_is_what_was_sent_until_it_is_deleted(stack: BatchStack) -> None:
    client = await stack.key("files")
    content = bytes(range(256)) * 40
    name = '../../etc/päss "wd".jsonl'
    made = await client.files.create(file=(name, content), purpose="batch")
    assert (made.bytes, made.purpose, made.object) == (len(content), "batch", "file")
    assert (await client.files.content(made.id)).content == content
    assert (await client.files.retrieve(made.id)).filename == made.filename
    folder = stack.gateway.state / "files"
    assert (folder / made.id).stat().st_mode & 0o777 == 0o600
    assert (await client.files.delete(made.id)).deleted
    assert not (folder / made.id).exists()
    with pytest.raises(openai.NotFoundError):
        await client.files.retrieve(made.id)


async def test_files_are_listed_by_purpose_order_and_page(stack: BatchStack) -> None:
    client = await stack.key("many")
    made = [await client.store(b"{}", f"{n}.jsonl") for n in range(3)]
    other = (await client.files.create(file=("e", b"{}"), purpose="evals")).id
    assert [one.id for one in (await client.files.list()).data] == [other, *reversed(made)]
    page = await client.files.list(purpose="batch", order="asc", limit=2)
    assert ([one.id for one in page.data], page.has_more) == (made[:2], True)
    assert [one.id for one in (await page.get_next_page()).data] == made[2:]


async def test_a_quota_is_told_and_a_file_in_use_stays(stack: BatchStack) -> None:
    client = await stack.key("full")
    first = await client.store(b"x" * 50_000)
    with pytest.raises(openai.APIStatusError, match="10000 bytes more") as refused:
        await client.store(b"x" * 10_001)
    assert refused.value.status_code == 413
    await client.store(b"x" * 10_000)
    with pytest.raises(openai.RateLimitError, match="60000 bytes") as spent:
        await client.store(b"x")
    assert spent.value.code == "insufficient_quota"
    await client.files.delete(first)
    gate = asyncio.Event()
    stack.chat.next_scripts.append(Script(gate=gate))
    used = await client.batch(jsonl(line("u")))
    input_file = (await client.batches.retrieve(used)).input_file_id
    with pytest.raises(openai.ConflictError, match=used):
        await client.files.delete(input_file)
    gate.set()
    await client.until(used, "completed")
    await client.files.delete(input_file)
    for _ in range(38):
        with contextlib.suppress(openai.RateLimitError):
            await client.store(b"x")
    with pytest.raises(openai.RateLimitError, match="40 files"):
        await client.store(b"x")


async def test_an_expiry_may_be_asked_for(stack: BatchStack) -> None:
    client = stack.client()
    after: Any = {"anchor": "created_at", "seconds": 3600}
    made = await client.files.create(file=("a", b"{}"), purpose="batch", expires_after=after)
    assert made.expires_at == made.created_at + 3600
    with pytest.raises(openai.BadRequestError, match="3600 to 2592000"):
        await client.files.create(
            file=("a", b"{}"), purpose="batch", expires_after={"anchor": "created_at", "seconds": 60}
        )


@pytest.mark.parametrize(
    ("media", "body", "status", "words"),
    [
        ("application/json", b"{}", 415, "multipart/form-data"),
        ("multipart/form-data", b"x", 415, "boundary"),
        ("multipart/form-data; boundary=b", b"nonsense", 400, "does not begin"),
        ("multipart/form-data; boundary=b", b"--b\r\n", 400, "breaks off"),
        ("multipart/form-data; boundary=b", b"--b--\r\n", 400, "'purpose' is missing"),
        (
            "multipart/form-data; boundary=b",
            HEAD,
            400,
            "'x'",
        ),
    ],
)
async def test_a_form_that_is_none(
    stack: BatchStack, media: str, body: bytes, status: int, words: str
) -> None:
    url = f"{stack.gateway.run.base_url}/files"
    answer = await stack.gateway.http("POST", url, key=stack.gateway.keys.default, body=body, media=media)
    assert (answer.status, words in answer.error["message"]) == (status, True), answer.body


async def test_a_purpose_that_is_none(stack: BatchStack) -> None:
    client = stack.client()
    for purpose in ("batch_output", "poetry"):
        wrong: Any = purpose
        with pytest.raises(openai.BadRequestError, match="fine-tune") as refused:
            await client.files.create(file=("a", b"{}"), purpose=wrong)
        assert refused.value.param == "purpose"
    with pytest.raises(openai.BadRequestError, match="empty"):
        await client.store(b"")
