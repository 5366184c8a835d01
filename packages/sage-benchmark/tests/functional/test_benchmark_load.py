"""The client over real sockets: what it sends, what it makes of each answer, and that its loop stays open."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from sage.benchmark.load import (
    Arrival,
    Plan,
    Request,
    Shot,
    Storm,
    Target,
    ask,
    chat_request,
    drive,
    embed_request,
    measure,
    models,
)
from sage.benchmark.metrics import Record, e2e, ttft
from sage.common.errors import EngineError, SageError, UnauthorizedError, UnreachableError

HELLO = chat_request("tiny", "Hello", 4)


def aim(server: Any, **changes: Any) -> Target:
    target: Target = server.target
    return msgspec.structs.replace(target, **changes)


async def chat(server: Any, mode: str = "ok", **target: Any) -> Record:
    server.chat = mode
    return await ask(aim(server, **target), "chat", HELLO)


def volley(request: Request, count: int, gap: float, kind: Any = "chat") -> tuple[Shot, ...]:
    return tuple(Shot(Arrival(i, gap * i, kind), "it", request) for i in range(count))


async def test_a_stream_is_timed_and_its_usage_read(server: Any) -> None:
    record = await chat(server)
    assert (record.outcome, record.status, record.request_id) == ("ok", 200, "req-1")
    assert len(record.pieces) == 3  # the empty role chunk is not a token
    assert (record.prompt_tokens, record.completion_tokens) == (5, 3)
    assert 0 <= record.sent <= ttft(record) <= e2e(record)


async def test_a_stream_asks_for_usage_where_the_engine_knows_that(server: Any) -> None:
    await chat(server)
    assert server.seen[-1]["stream_options"] == {"include_usage": True}
    await ask(server.target, "chat", chat_request("tiny", "Hello", 4, usage=False))
    assert "stream_options" not in server.seen[-1]


@pytest.mark.parametrize(
    ("mode", "outcome", "error"),
    [
        ("shed", "shed", "queue full"),
        ("error", "failed", "engine died"),
        ("broken", "failed", r"without \[DONE\]"),
        ("empty", "failed", "held no text"),
        ("cut", "failed", "connection was lost"),
        ("garbage", "failed", "cannot be read"),
    ],
)
async def test_faults_become_records(server: Any, mode: str, outcome: str, error: Any) -> None:
    record = await chat(server, mode)
    assert record.outcome == outcome
    assert re.search(error, record.error)
    assert record.pieces == ()


async def test_an_engine_without_done_ends_with_its_finish_reason(server: Any) -> None:
    assert (await chat(server, "finish", done=False)).outcome == "ok"
    assert "without [DONE]" in (await chat(server, "finish")).error
    assert "without a finish reason" in (await chat(server, "ok", done=False)).error


async def test_an_answer_that_never_ends_times_out(server: Any) -> None:
    record = await chat(server, "stall", timeout=0.2)
    assert record.outcome == "timeout"


async def test_a_server_that_is_gone_is_a_failed_record_and_an_unreachable_error(server: Any) -> None:
    target = aim(server, base_url="http://127.0.0.1:9/v1")
    assert (await ask(target, "chat", HELLO)).outcome == "failed"
    with pytest.raises(UnreachableError, match="sage up"):
        models(target)


async def test_models_are_listed_and_a_wrong_key_is_said_so(server: Any) -> None:
    assert await asyncio.to_thread(models, server.target) == ["mini", "tiny"]
    with pytest.raises(UnauthorizedError, match="--api-key"):
        await asyncio.to_thread(models, aim(server, api_key="sk-wrong"))
    with pytest.raises(EngineError, match="does not list"):
        await asyncio.to_thread(models, aim(server, base_url=f"{server.url}/nothing"))


def test_a_target_is_plain_http_and_hides_its_key() -> None:
    with pytest.raises(ValueError, match="http://"):
        _ = Target("https://example.com/v1", "k").address
    assert "secret" not in repr(Target("http://127.0.0.1/v1", "secret"))


async def test_vectors_are_counted(server: Any) -> None:
    record = await ask(server.target, "bulk", embed_request("mini", ["a", "b", "c"]))
    assert (record.outcome, record.texts, record.prompt_tokens) == ("ok", 3, 4)
    server.vectors = 2
    record = await ask(server.target, "bulk", embed_request("mini", ["a", "b", "c"]))
    assert (record.outcome, record.error) == ("failed", "2 vectors came for 3 texts")


async def test_load_is_open_a_stalled_server_delays_no_later_request(server: Any) -> None:
    """All requests leave although not one answer ever comes."""
    server.chat = "stall"
    records: list[Record] = []
    plan = Plan({"it": aim(server, timeout=1.0)}, 0.2, volley(HELLO, 20, 0.01))
    wall = await drive(plan, records.append)
    assert {record.outcome for record in records} == {"timeout"}
    assert len(server.seen) == 20
    assert wall >= 1.0


async def test_no_request_leaves_before_its_time_and_connections_are_used_again(server: Any) -> None:
    records: list[Record] = []
    plan = Plan({"it": server.target}, 0.6, volley(embed_request("mini", ["Hi"]), 30, 0.02, "embed"))
    assert await drive(plan, records.append) >= 0.6
    assert all(record.sent >= record.intended for record in records)
    assert {record.outcome for record in records} == {"ok"}
    assert server.connections < 30


async def test_a_storm_asks_again_when_it_was_answered_and_ends_after_the_shots(server: Any) -> None:
    records: list[Record] = []
    bulk = tuple(embed_request("mini", [f"{i}", "b"]) for i in range(3))
    plan = Plan(
        {"it": server.target}, 1.0, volley(HELLO, 2, 0.1), (Storm(workers=2, target="it", requests=bulk),)
    )
    await drive(plan, records.append)
    storm = [record for record in records if record.kind == "bulk"]
    assert len(storm) > 4
    assert all(record.closed and record.sent == record.intended and record.texts == 2 for record in storm)
    assert sorted(record.index for record in records) == list(range(len(records)))
    overlaps = [(record.sent, e2e(record) + record.intended) for record in storm]
    assert all(sum(s <= t < e for s, e in overlaps) <= 2 for t, _ in overlaps)  # never more than its clients
    assert {body["input"][0] for body in server.seen if "input" in body} == {"0", "1", "2"}


async def test_a_refused_storm_waits_as_it_is_told(server: Any) -> None:
    server.refuse_embeddings = "5"
    records: list[Record] = []
    plan = Plan({"it": server.target}, 0.2, storms=(Storm(1, "it", (embed_request("mini", ["a", "b"]),)),))
    run = asyncio.create_task(drive(plan, records.append))
    while not records:  # noqa: ASYNC110 - the condition is a callback of the code under test
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.3)  # three of the pauses that it makes unasked
    run.cancel()
    assert [record.outcome for record in records] == ["shed"]


@asynccontextmanager
async def raw(
    answer: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> AsyncIterator[Target]:
    """A server that is given each connection after its first request."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await answer(reader, writer)
        except asyncio.IncompleteReadError:
            pass  # the client went away
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        yield Target(f"http://127.0.0.1:{port}/v1", "k", timeout=5.0)


VECTOR = b'{"data":[{"embedding":"AAAA"}],"usage":{"prompt_tokens":1}}'
HEAD = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(VECTOR)


async def read_request(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(re.findall(rb"content-length: (\d+)", head)[0])
    return head + await reader.readexactly(length)


async def test_the_bytes_on_the_wire_are_a_request() -> None:
    seen: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await read_request(reader))
        writer.write(HEAD + VECTOR)

    async with raw(answer) as target:
        record = await ask(target, "embed", embed_request("m", ["x"]))
    assert record.outcome == "ok"
    assert seen[0].startswith(b"POST /v1/embeddings HTTP/1.1\r\nhost: 127.0.0.1:")
    assert b"\r\nauthorization: Bearer k\r\n" in seen[0]
    assert seen[0].endswith(b'\r\n\r\n{"model":"m","input":"x","encoding_format":"base64"}')


async def test_an_answer_in_single_bytes_is_read_like_one_in_a_piece() -> None:
    events = (
        b'data: {"choices":[{"delta":{"content":"a"}}]}\r\n\r\n: note\n\ndata:{"choices":[{"text":"b"}]}\n\n'
    )
    body = events + b"data: [DONE]\n\n"

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        whole = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body) + body
        for index in range(len(whole)):
            writer.write(whole[index : index + 1])
            await writer.drain()
            await asyncio.sleep(0)

    async with raw(answer) as target:
        record = await ask(target, "chat", HELLO)
    assert (record.outcome, len(record.pieces)) == ("ok", 2), record.error
    assert record.pieces[0] < record.pieces[1]


async def test_a_kept_connection_that_the_server_closes_costs_no_request() -> None:
    """The server reads the second request of a connection and closes: it goes again, elsewhere."""
    connections = 0

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await read_request(reader)
        writer.write(HEAD + VECTOR)
        await writer.drain()
        await read_request(reader)

    records: list[Record] = []
    async with raw(answer) as target:
        shots = volley(embed_request("m", ["x"]), 2, 0.2, "embed")
        await drive(Plan({"it": target}, 0.3, shots), records.append)
    assert [record.outcome for record in records] == ["ok", "ok"]
    assert connections == 2


async def test_what_is_not_http_is_a_failed_record() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"SSH-2.0-OpenSSH\r\n")
        await writer.drain()

    async with raw(answer) as target:
        record = await ask(target, "embed", embed_request("m", ["x"]))
    assert record.outcome == "failed"
    assert "not HTTP" in record.error


async def test_a_process_of_its_own_measures_the_same(server: Any, tmp_path: Path) -> None:
    started: list[bool] = []
    plan = Plan({"it": server.target}, 0.3, volley(HELLO, 6, 0.05))
    file = tmp_path / "records"
    report, records = await measure(plan, file, on_start=lambda: started.append(True))
    assert [record.index for record in records] == list(range(6))
    assert {record.outcome for record in records} == {"ok"}
    assert started == [True]
    assert report.wall_s >= 0.3
    assert report.cpu_s > 0
    assert report.priority.startswith(("SCHED_RR", "nice"))
    assert len(file.read_bytes().splitlines()) == 6


async def test_a_client_that_breaks_says_why(server: Any, tmp_path: Path) -> None:
    plan = Plan({}, 0.1, volley(HELLO, 1, 0.0))
    with pytest.raises(SageError, match="KeyError: 'it'"):
        await measure(plan, tmp_path / "records")
