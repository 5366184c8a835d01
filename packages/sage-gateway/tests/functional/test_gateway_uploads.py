"""Uploads on the wire: they go on as they come, within limits, and one that breaks off leaves nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec
import psutil
import pytest
from fastapi import Request, Response

from sage.common.clock import SystemClock
from sage.common.config import BatchesConfig, GatewayConfig, SageConfig
from sage.common.errors import SageError
from sage.common.paths import SagePaths
from sage.common.telemetry import Bound
from sage.gateway.batch.api import file_handlers
from sage.gateway.batch.service import Stores
from sage.gateway.edge import Deadlines
from sage.gateway.watch import Watch
from sage.platform.testing.faults import Call, FaultFileSystem, Faults, Kind

HEAD = (
    b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
    b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
)
TAIL = b"\r\n--b--\r\n"
MEDIA = {"content_type": "multipart/form-data; boundary=b"}
MIB = 1024 * 1024


@pytest.fixture
async def stores(tmp_path: Path) -> AsyncIterator[Stores]:
    paths = SagePaths(tmp_path, tmp_path, tmp_path)
    config = SageConfig(
        gateway=GatewayConfig(max_file_bytes=MIB), batches=BatchesConfig(max_stored_bytes=4 * MIB)
    )
    async with await Stores.open(paths, config, SystemClock()) as stores:
        yield stores


def names(stores: Stores) -> list[str]:
    return [path.name for path in stores.files.folder.path.iterdir()]


async def until(condition: Any) -> None:
    """Poll: what happens on the other side of a socket has no event here."""
    async with asyncio.timeout(60):
        while True:
            if condition():
                return
            await asyncio.sleep(0.01)


async def test_a_file_comes_in_any_pieces_and_the_connection_goes_on(make_front: Any, stores: Stores) -> None:
    front = await make_front(file_handlers(stores.files))
    body = HEAD + b"0123456789" * 1000 + TAIL
    wire = await front.connect()
    request = front.request("POST", "/v1/files", body, **MEDIA)
    for start in range(0, len(request), 997):
        await wire.send(request[start : start + 997])
    answer = await wire.answer()
    assert (answer.status, answer.json["bytes"]) == (200, 10_000)
    await wire.send(front.request("GET", f"/v1/files/{answer.json['id']}/content"))
    assert (await wire.answer()).body == b"0123456789" * 1000
    chunked = front.request("POST", "/v1/files", content_length=None, transfer_encoding="chunked", **MEDIA)
    await wire.send(chunked + b"%x\r\n" % len(body) + body + b"\r\n0\r\n\r\n")
    assert (await wire.answer()).json["bytes"] == 10_000
    await wire.send(front.post())
    assert (await wire.answer()).body == b"{}"


@pytest.mark.parametrize("sent", [10, len(HEAD), len(HEAD) + 500_000])
async def test_an_upload_that_breaks_off_leaves_nothing(make_front: Any, stores: Stores, sent: int) -> None:
    front = await make_front(file_handlers(stores.files))
    wire = await front.connect()
    whole = front.request("POST", "/v1/files", HEAD + b"x" * 900_000 + TAIL, **MEDIA)
    await wire.send(whole[: whole.index(b"--b\r\n") + sent])
    await until(lambda: names(stores))
    wire.abort()
    await until(lambda: not names(stores))
    assert (await front.ask(front.request("GET", "/v1/files"))).json["data"] == []


async def test_a_file_over_its_limit_is_refused_while_it_comes(make_front: Any, stores: Stores) -> None:
    front = await make_front(file_handlers(stores.files))
    chunked = front.request("POST", "/v1/files", content_length=None, transfer_encoding="chunked", **MEDIA)
    wire = await front.connect()
    await wire.send(chunked + b"%x\r\n" % (2 * MIB) + HEAD + b"x" * (MIB + 1000))
    answer = await wire.answer()
    assert (answer.status, answer.error["param"]) == (413, "file")
    assert answer.headers["connection"] == "close"
    assert await wire.closed()
    assert names(stores) == []
    declared = front.request("POST", "/v1/files", content_length=str(2 * MIB), **MEDIA)
    assert (await front.ask(declared)).status == 413


async def test_an_answer_before_the_end_of_the_body_reaches_the_client(
    make_front: Any, stores: Stores
) -> None:
    front = await make_front(file_handlers(stores.files))
    wire = await front.connect()
    whole = front.request("POST", "/v1/files", b"nonsense" + b"x" * 900_000, **MEDIA)
    await wire.send(whole)
    assert (await wire.answer()).status == 400
    assert await wire.closed()


async def test_a_slow_upload_ends_with_a_timeout(make_front: Any, stores: Stores) -> None:
    front = await make_front(file_handlers(stores.files), deadlines=Deadlines(body_idle=0.2))
    wire = await front.connect()
    whole = front.request("POST", "/v1/files", HEAD + b"x" * 900_000 + TAIL, **MEDIA)
    await wire.send(whole[:-1])
    answer = await wire.answer()
    assert (answer.status, answer.error["code"]) == (408, "request_timeout")
    assert await wire.closed()
    assert names(stores) == []


async def test_garbage_inside_a_chunked_upload_is_refused(make_front: Any, stores: Stores) -> None:
    front = await make_front(file_handlers(stores.files))
    chunked = front.request("POST", "/v1/files", content_length=None, transfer_encoding="chunked", **MEDIA)
    answer = await front.ask(chunked + b"10\r\n" + HEAD[:16] + b"\r\nno-number\r\n")
    assert answer.status == 400
    await until(lambda: not names(stores))


async def test_a_connection_goes_on_after_an_upload_that_nobody_read(make_front: Any, stores: Stores) -> None:
    """All of it has come before the answer, and it is more than is read ahead."""
    front = await make_front(file_handlers(stores.files))
    wire = await front.connect()
    await wire.send(front.post())
    assert (await wire.answer()).status == 200
    (gate,) = front.listener.gates
    gate.data_received(front.request("POST", "/v1/files", b"x" * 100_000, content_type="text/plain"))
    assert (await wire.answer()).status == 415
    await wire.send(front.post(b'{"a":1}'))
    assert (await wire.answer()).body == b'{"a":1}'


async def test_an_upload_that_a_drain_ends_is_answered(make_front: Any, stores: Stores) -> None:
    front = await make_front(file_handlers(stores.files))
    wire = await front.connect()
    whole = front.request("POST", "/v1/files", HEAD + b"x" * 900_000 + TAIL, **MEDIA)
    await wire.send(whole[:-1])
    await until(lambda: names(stores))
    front.listener.begin_drain(0.1)
    answer = await wire.answer()
    assert (answer.status, answer.error["code"]) == (503, "engine_unavailable")
    assert await wire.closed()
    await front.task
    assert names(stores) == []


async def test_the_bounds_of_files_are_counted(make_front: Any, stores: Stores) -> None:
    watch = Watch()
    front = await make_front(file_handlers(stores.files), watch=watch, deadlines=Deadlines(body_idle=0.2))
    whole = front.request("POST", "/v1/files", HEAD + b"x" * 900_000 + TAIL, **MEDIA)
    wire = await front.connect()
    await wire.send(whole[:-1])
    assert (await wire.answer()).status == 408
    assert watch.bounds == {Bound.BODY_TIME: 1}
    over = front.request("POST", "/v1/files", HEAD + b"x" * (MIB + 1000) + TAIL, **MEDIA)
    assert (await front.ask(over)).status == 413
    assert watch.bounds == {Bound.BODY_TIME: 1, Bound.BODY_BYTES: 1}
    for _ in range(4):
        assert (await front.ask(whole)).status == 200
    assert (await front.ask(whole)).status == 413
    assert watch.bounds == {Bound.BODY_TIME: 1, Bound.BODY_BYTES: 1, Bound.KEY_STORED_BYTES: 1}


async def test_an_upload_waits_for_its_turn_by_asking_for_it(make_front: Any, stores: Stores) -> None:
    front = await make_front(file_handlers(stores.files))
    wire = await front.connect()
    body = HEAD + b"x" + TAIL
    request = front.request("POST", "/v1/files", body, expect="100-continue", **MEDIA)
    await wire.send(request[: -len(body)])
    assert (await wire.head())[0] == 100
    await wire.send(body)
    assert (await wire.answer()).status == 200
    refused = front.request("POST", "/v1/files", body, expect="100-continue", content_type="text/plain")
    await wire.send(refused[: -len(body)])
    assert (await wire.answer()).status == 415  # without an invitation to send it


async def test_an_upload_behind_another_request_is_refused(make_front: Any, stores: Stores) -> None:
    front = await make_front(file_handlers(stores.files))
    wire = await front.connect()
    upload = front.request("POST", "/v1/files", HEAD + b"x" + TAIL, **MEDIA)
    await wire.send(front.post(b'{"do":"wait"}') + upload)
    await front.handler.until(lambda: len(front.handler.requests) == 1)
    front.handler.release.set()
    assert (await wire.answer()).status == 200
    answer = await wire.answer()
    assert (answer.status, "not pipelined" in answer.error["message"]) == (400, True)


async def test_a_request_behind_an_upload_is_served_after_it(make_front: Any, stores: Stores) -> None:
    front = await make_front(file_handlers(stores.files))
    wire = await front.connect()
    upload = front.request("POST", "/v1/files", HEAD + b"x" * 1000 + TAIL, **MEDIA)
    await wire.send(upload + front.post(b'{"a":1}'))
    assert (await wire.answer()).json["bytes"] == 1000
    assert (await wire.answer()).body == b'{"a":1}'


async def test_a_key_has_few_uploads_at_once(make_front: Any, stores: Stores) -> None:
    front = await make_front(file_handlers(stores.files))
    request = front.request("POST", "/v1/files", HEAD + b"x" + TAIL, **MEDIA)
    wires = [await front.connect() for _ in range(4)]
    for wire in wires:
        await wire.send(request[:-1])
    await until(lambda: len(names(stores)) == 4)
    refused = await front.ask(request)
    assert (refused.status, refused.headers["retry-after"]) == (429, "1")
    for wire in wires:
        await wire.send(request[-1:])
        assert (await wire.answer()).status == 200
    assert (await front.ask(request)).status == 200


@pytest.mark.parametrize("call", ["write", "sync", "rename", "sync_folder"])
@pytest.mark.parametrize("kind", ["full", "io"])
async def test_a_disk_that_fails_acknowledges_nothing(
    make_front: Any, stores: Stores, call: Call, kind: Kind
) -> None:
    faults = Faults()
    stores.files.folder.fs = FaultFileSystem(faults)
    faults.arm(call, 1, kind)
    front = await make_front(file_handlers(stores.files))
    request = front.request("POST", "/v1/files", HEAD + b"x" * 900_000 + TAIL, **MEDIA)
    answer = await front.ask(request)
    assert (answer.status, str(stores.files.folder.path) in answer.body.decode()) == (500, False)
    assert names(stores) == []
    assert faults.fired == 1
    assert (await front.ask(request)).status == 200


async def test_a_large_upload_takes_no_memory(spawner: Any) -> None:
    gateway = await spawner.start({})
    process = psutil.Process(gateway.process.pid)
    url, key = f"{gateway.run.base_url}/files", gateway.keys.default
    small = HEAD + b"x" * MIB + TAIL  # everything is imported after it
    assert (await gateway.http("POST", url, key=key, body=small, media=MEDIA["content_type"])).status == 200
    before, peak = process.memory_info().rss, 0
    where = urlsplit(url)
    reader, writer = await asyncio.open_connection(where.hostname, where.port)
    lines = [f"POST {where.path} HTTP/1.1", f"host: {where.netloc}", f"x-api-key: {key}", "connection: close"]
    lines += [f"content-type: {MEDIA['content_type']}", f"content-length: {len(HEAD) + 64 * MIB + len(TAIL)}"]
    writer.write("\r\n".join([*lines, "", ""]).encode() + HEAD)
    for n in range(64):
        writer.write(bytes([n]) * MIB)
        await writer.drain()
        peak = max(peak, process.memory_info().rss)
    writer.write(TAIL)
    answer = (await reader.read()).partition(b"\r\n\r\n")[2]
    writer.close()
    made = msgspec.json.decode(answer)
    assert made["bytes"] == 64 * MIB
    content = (await gateway.http("GET", f"{url}/{made['id']}/content", key=key)).body
    peak = max(peak, process.memory_info().rss)
    assert content[::MIB] == bytes(range(64))
    assert peak - before < 16 * MIB, f"{(peak - before) / MIB:.1f} MiB more"
    assert await gateway.stop() == 0


async def test_what_a_crash_left_is_swept_and_what_is_known_stays(tmp_path: Path) -> None:
    paths = SagePaths(tmp_path, tmp_path, tmp_path)

    async def body() -> AsyncIterator[bytes]:
        yield HEAD + b"kept" + TAIL

    async with await Stores.open(paths, SageConfig(), SystemClock()) as stores:
        kept = await stores.files.upload("k", MEDIA["content_type"], body())
    for name in (".file-0123456789abcdef.xyz", "file-0123456789abcdef"):
        (tmp_path / "files" / name).write_bytes(b"left")
    async with await Stores.open(paths, SageConfig(), SystemClock()) as stores:
        assert names(stores) == [kept.id]
        assert stores.files.path(kept).read_bytes() == b"kept"


async def test_what_others_put_beside_the_files_is_left_alone(tmp_path: Path) -> None:
    """A folder once stopped the start with a traceback."""
    paths = SagePaths(tmp_path, tmp_path, tmp_path)
    theirs = [tmp_path / "files" / name for name in ("lost+found", "file-00000000000000ff", "notes.txt")]
    for folder in theirs[:2]:
        folder.mkdir(parents=True)
    theirs[2].write_text("mine")
    async with await Stores.open(paths, SageConfig(), SystemClock()) as stores:
        assert sorted(names(stores)) == sorted(path.name for path in theirs)


async def test_a_file_that_is_deleted_in_the_moment_of_its_download_is_sent_or_not_there(
    make_front: Any, stores: Stores
) -> None:
    handlers = file_handlers(stores.files)

    async def delayed(file_id: str, request: Request) -> Response:
        answer: Response = await handlers["file_content"](file_id, request)
        await handlers["delete_file"](file_id, request)
        return answer

    front = await make_front({**handlers, "file_content": delayed})
    wire = await front.connect()
    for delete, status in ((False, 200), (True, 404)):
        await wire.send(front.request("POST", "/v1/files", HEAD + b"0123456789" + TAIL, **MEDIA))
        ident = (await wire.answer()).json["id"]
        if delete:  # its row is still there
            (stores.files.folder.path / ident).unlink()
        await wire.send(front.request("GET", f"/v1/files/{ident}/content"))
        answer = await wire.answer()
        assert (answer.status, b"0123456789" in answer.body) == (status, status == 200)
    assert names(stores) == []


async def test_files_over_their_time_are_deleted(tmp_path: Path) -> None:
    class Clock:
        at = 1000.0

        def now(self) -> float:
            return self.at

        def wall(self) -> float:
            return self.at

    clock = Clock()
    config = SageConfig(batches=BatchesConfig(files_expire_s=60))

    async def body() -> AsyncIterator[bytes]:
        yield HEAD + b"soon gone" + TAIL

    async with await Stores.open(SagePaths(tmp_path, tmp_path, tmp_path), config, clock) as stores:
        made = await stores.files.upload("k", MEDIA["content_type"], body())
        assert made.expires == 1060
        clock.at = 1059.0
        await stores.files.expire()
        assert (await stores.files.get("k", made.id)).id == made.id
        clock.at = 1060.0
        await stores.files.expire()
        assert names(stores) == []
        with pytest.raises(SageError, match="no file"):
            await stores.files.get("k", made.id)
