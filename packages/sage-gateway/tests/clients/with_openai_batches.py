"""OpenAI's own client, its files and its batches."""

from __future__ import annotations

import io
import json
import time
from typing import Any
from unittest import TestCase

import openai

raises = TestCase().assertRaises
CHAT: Any = "/v1/chat/completions"


def chat(ident: str, model: str = "talker") -> dict[str, Any]:
    return line(ident, CHAT, model=model, messages=[{"role": "user", "content": "Say something."}])


def line(ident: str, url: str, **body: Any) -> dict[str, Any]:
    return {"custom_id": ident, "method": "POST", "url": url, "body": body}


def run(client: openai.OpenAI, endpoint: Any, *lines: dict[str, Any]) -> Any:
    """A batch of these lines, at its end. Its state is another process's: there is nothing to wait on."""
    content = "".join(json.dumps(one) + "\n" for one in lines).encode()
    stored = client.files.create(file=("in.jsonl", content), purpose="batch")
    batch = client.batches.create(input_file_id=stored.id, endpoint=endpoint, completion_window="24h")
    until = time.monotonic() + 60
    while batch.status in ("validating", "in_progress", "finalizing") and time.monotonic() < until:
        time.sleep(0.05)
        batch = client.batches.retrieve(batch.id)
    return batch


def lines_of(client: openai.OpenAI, file: str | None) -> list[Any]:
    assert file is not None
    return [json.loads(one) for one in client.files.content(file).text.splitlines()]


def check_files(base_url: str, key: str) -> None:
    with openai.OpenAI(base_url=base_url, api_key=key) as client:
        stored = client.files.create(
            file=io.BytesIO(b"x" * 100_000),
            purpose="user_data",
            expires_after={"anchor": "created_at", "seconds": 3600},
        )
        try:
            assert (stored.bytes, stored.purpose) == (100_000, "user_data")
            assert client.files.wait_for_processing(stored.id) == client.files.retrieve(stored.id)
            assert stored.id in {file.id for file in client.files.list(limit=1)}
            with client.files.with_streaming_response.content(stored.id) as streamed:
                assert sum(map(len, streamed.iter_bytes())) == 100_000
        finally:
            assert client.files.delete(stored.id).deleted
        raises(openai.NotFoundError, client.files.retrieve, file_id=stored.id)


def check_batch_with_a_line_that_fails(base_url: str, key: str) -> None:
    with openai.OpenAI(base_url=base_url, api_key=key) as client:
        batch = run(client, CHAT, chat("good"), chat("bad", "gpt-9"), chat("last"))
        counts = batch.request_counts
        assert (batch.status, counts.total, counts.completed, counts.failed) == ("completed", 3, 2, 1)
        answers = lines_of(client, batch.output_file_id)
        assert [one["custom_id"] for one in answers] == ["good", "last"]
        assert answers[0]["response"]["body"]["choices"][0]["message"]["content"] == "one two three"
        (fault,) = lines_of(client, batch.error_file_id)
        assert (fault["custom_id"], fault["response"]["status_code"]) == ("bad", 404)
        assert batch.id in {one.id for one in client.batches.list(limit=1)}


def check_batch_of_embeddings(base_url: str, key: str) -> None:
    url: Any = "/v1/embeddings"
    with openai.OpenAI(base_url=base_url, api_key=key) as client:
        batch = run(
            client, url, *(line(f"text-{n}", url, model="minilm", input=f"text {n}") for n in range(4))
        )
        answers = lines_of(client, batch.output_file_id)
    assert [one["custom_id"] for one in answers] == [f"text-{n}" for n in range(4)]
    assert {len(one["response"]["body"]["data"][0]["embedding"]) for one in answers} == {384}


def check_batch_that_cannot_be_read(base_url: str, key: str) -> None:
    with openai.OpenAI(base_url=base_url, api_key=key) as client:
        batch = run(client, CHAT, chat("one"), {**chat("two"), "method": "GET"})
    assert batch.status == "failed"
    (fault,) = batch.errors.data
    assert (fault.code, fault.line) == ("invalid_method", 2)
