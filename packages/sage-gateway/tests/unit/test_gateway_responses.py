"""Stored responses: whose they are, how many are kept, and what a conversation is made of."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from sage.common.errors import BadRequestError, EngineError, NotFoundError, RequestTooLargeError
from sage.common.testing import VirtualClock
from sage.gateway.conversations import Conversations
from sage.gateway.responsestore import ResponseLimits, ResponseStore, StoredResponse
from sage.middleware.testing.dialects import events_of
from sage.middleware.testing.engines import RecordingSink
from sage.platform.storage.sqlite import Database

Opened = tuple[ResponseStore, VirtualClock]


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    database = Database(tmp_path / "gateway.db")
    yield database
    await database.close()


async def opened(database: Database, count: int = 9, size: int = 9999, age: float = 60.0) -> Opened:
    clock = VirtualClock()
    return await ResponseStore.open(database, ResponseLimits(count, size, age), clock), clock


def stored(ident: str, size: int = 10) -> StoredResponse:
    return StoredResponse(ident, b"[]", b"x" * (size - 2))


async def kept(store: ResponseStore, owner: str, *idents: str) -> list[str]:
    return [ident for ident in idents if await store.get(owner, ident) is not None]


async def test_what_is_put_is_there_for_its_owner_alone(database: Database) -> None:
    store, clock = await opened(database)
    one = StoredResponse("resp_1", b'[{"a":1}]', b"{}")
    await store.put("ann", one)
    again = ResponseStore(database, ResponseLimits(9, 9999, 60.0), clock)
    assert await again.get("ann", "resp_1") == one
    assert await store.get("bob", "resp_1") is None
    assert not await store.delete("bob", "resp_1")
    assert await store.delete("ann", "resp_1")
    assert not await store.delete("ann", "resp_1")
    assert await store.get("ann", "resp_1") is None


async def test_the_newest_of_each_owner_are_kept(database: Database) -> None:
    store, _ = await opened(database, count=2)
    for owner in ("ann", "bob"):
        for ident in ("a", "b", "c"):
            await store.put(owner, stored(ident))
    assert await kept(store, "ann", "a", "b", "c") == ["b", "c"]
    assert await kept(store, "bob", "a", "b", "c") == ["b", "c"]


async def test_an_owner_has_so_many_bytes_and_always_the_newest(database: Database) -> None:
    store, _ = await opened(database, size=100)
    for ident, size in (("a", 40), ("b", 60), ("c", 30)):
        await store.put("ann", stored(ident, size))
    assert await kept(store, "ann", "a", "b", "c") == ["b", "c"]
    await store.put("ann", stored("d", 500))
    assert await kept(store, "ann", "b", "c", "d") == ["d"]


async def test_what_is_old_is_forgotten(database: Database) -> None:
    store, clock = await opened(database, age=60.0)
    await store.put("ann", stored("a"))
    clock.advance(59.0)
    await store.put("bob", stored("b"))
    assert await kept(store, "ann", "a") == ["a"]
    clock.advance(2.0)
    assert await kept(store, "ann", "a") == []
    assert not await store.delete("ann", "a")
    await store.put("bob", stored("c"))
    rows: list[Any] = await database.read(lambda db: db.execute("SELECT id FROM gateway_response").fetchall())
    assert sorted(row[0] for row in rows) == ["b", "c"]


# ---- conversations -----------------------------------------------------------------------------------------


def response(ident: str = "resp_1", **fields: Any) -> dict[str, Any]:
    part = {"type": "output_text", "text": "hi", "annotations": []}
    thought = {"type": "reasoning", "id": "rs_1", "summary": []}
    said = {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "content": [part]}
    return {"id": ident, "object": "response", "status": "completed", "output": [thought, said], **fields}


async def exchange(kept: ResponseStore, /, owner: str = "ann", most: int = 9999, **fields: Any) -> Any:
    """An exchange, what its engine is asked, and where its answer goes."""
    sink = RecordingSink()
    body = msgspec.json.encode({"model": "m", **fields})
    one = await Conversations(kept, most).open(owner, body, sink)
    return one, json.loads(one.body), sink


async def answered(one: Any, answer: dict[str, Any]) -> None:
    one.head(200, "application/json")
    raw = msgspec.json.encode(answer)
    one.data(raw[:9])
    one.data(raw[9:])
    one.end()
    await one.close("done")


async def test_an_answer_is_kept_with_what_was_said_and_is_part_of_the_next(database: Database) -> None:
    store, _ = await opened(database)
    one, asked, sink = await exchange(store, input="hello", instructions="Be brief.", store=True)
    hello = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hello"}]}
    assert asked == {"model": "m", "input": [hello], "instructions": "Be brief.", "store": False}
    await answered(one, response())
    assert sink.ended
    assert (sink.json()["store"], sink.json()["previous_response_id"]) == (True, None)
    found = await store.get("ann", "resp_1")
    assert found is not None
    assert json.loads(found.answer) == sink.json()
    more = {"role": "user", "content": "more"}
    two, asked, sink = await exchange(store, input=[more], previous_response_id="resp_1")
    assert asked == {"model": "m", "input": [hello, response()["output"][1], more], "store": False}
    await answered(two, response("resp_2"))
    assert sink.json()["previous_response_id"] == "resp_1"
    _, asked, _ = await exchange(store, input="last", previous_response_id="resp_2")
    assert [item["role"] for item in asked["input"]] == ["user", "assistant", "user", "assistant", "user"]


async def test_what_is_not_to_be_stored_is_not(database: Database) -> None:
    store, _ = await opened(database)
    one, asked, sink = await exchange(store, input="hello", store=False)
    await answered(one, response())
    assert (asked["store"], sink.json()["store"]) == (False, False)
    assert await store.get("ann", "resp_1") is None


@pytest.mark.parametrize("ident", ["resp_1", "resp_none"])
async def test_anothers_answer_is_not_there(database: Database, ident: str) -> None:
    store, _ = await opened(database)
    one, _, _ = await exchange(store, owner="bob", input="hello")
    await answered(one, response())
    with pytest.raises(NotFoundError, match=ident) as refused:
        await exchange(store, input="more", previous_response_id=ident)
    assert refused.value.param == "previous_response_id"


async def test_a_conversation_can_become_too_long(database: Database) -> None:
    store, _ = await opened(database)
    one, _, _ = await exchange(store, input="hello" * 20)
    await answered(one, response())
    with pytest.raises(RequestTooLargeError, match="the limit is 300"):
        await exchange(store, most=300, input="more", previous_response_id="resp_1")


@pytest.mark.parametrize(
    ("fields", "param"), [({"input": 3}, "input"), ({"previous_response_id": 7}, "previous_response_id")]
)
async def test_a_body_that_does_not_fit_is_refused(database: Database, fields: Any, param: str) -> None:
    store, _ = await opened(database)
    with pytest.raises(BadRequestError) as refused:
        await exchange(store, **fields)
    assert refused.value.param == param


def event(kind: str, number: int, **fields: Any) -> bytes:
    data = {"type": kind, "sequence_number": number, **fields}
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), msgspec.json.encode(data))


async def test_a_streams_end_waits_until_it_is_stored(database: Database) -> None:
    store, _ = await opened(database)
    delta = event("response.output_text.delta", 1, delta='"type":"response.completed"')
    begun = event("response.created", 0, response={**response(), "output": []})
    stream = begun + delta + event("response.completed", 2, response=response())
    for size in (len(stream), 1, 50):
        one, _, sink = await exchange(store, input="hello", stream=True)
        one.head(200, "text/event-stream")
        for at in range(0, len(stream), size):
            one.data(stream[at : at + size])
        one.end()
        assert delta in sink.body
        assert b"event: response.completed" not in sink.body
        assert not sink.ended
        await one.close("done")
        created, _, completed = events_of(sink.body)
        assert sink.ended
        assert created["response"]["store"] is completed["response"]["store"] is True
        found = await store.get("ann", "resp_1")
        assert found is not None
        assert json.loads(found.answer) == completed["response"]
        assert await store.delete("ann", "resp_1")


async def test_a_stream_that_failed_is_not_stored_and_ends_once(database: Database) -> None:
    store, _ = await opened(database)
    one, _, sink = await exchange(store, input="hello", stream=True)
    one.head(200, "text/event-stream")
    one.data(event("response.created", 0, response=response()))
    one.data(event("error", 1, message="it broke"))
    one.end()
    await one.close("failed")
    assert sink.ended
    assert [one["type"] for one in events_of(sink.body)] == ["response.created", "error"]
    assert await store.get("ann", "resp_1") is None


@pytest.mark.parametrize("raw", [b"[]", b"{", b'{"object":"response"}'])
async def test_an_answer_that_is_no_response_is_the_engines_fault(database: Database, raw: bytes) -> None:
    store, _ = await opened(database)
    one, _, sink = await exchange(store, input="hello")
    one.head(200, "application/json")
    one.data(raw)
    with pytest.raises(EngineError):
        one.end()
    assert not sink.chunks


async def test_the_next_engines_answer_is_read_alone(database: Database) -> None:
    """A model that answers nonsense is followed by its fallback, into the same exchange."""
    store, _ = await opened(database)
    one, _, sink = await exchange(store, input="hello")
    one.head(200, "application/json")
    one.data(b"nonsense")
    with pytest.raises(EngineError):
        one.end()
    await answered(one, response())
    assert sink.json()["id"] == "resp_1"
