"""Results are kept once, and their files are written whole or not at all; on a real database and disk."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from sage.common.clock import SystemClock
from sage.common.config import BatchesConfig, SageConfig
from sage.common.errors import ConflictError, NotFoundError, SageError
from sage.common.paths import SagePaths
from sage.gateway.batch import states
from sage.gateway.batch.batchstore import Held, Result
from sage.gateway.batch.outputs import Outputs
from sage.gateway.batch.service import Stores
from sage.gateway.batch.states import Batch, Counts, Ending
from sage.gateway.batch.tables import Page
from sage.gateway.limits import RateError
from sage.platform.testing.faults import Call, FaultFileSystem, Faults

URL = "/v1/embeddings"
LINES = 600  # more than are read in one go
FORM = (
    b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
    b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n%b\r\n--b--\r\n'
)


@pytest.fixture
async def stores(tmp_path: Path) -> AsyncIterator[Stores]:
    config = SageConfig(batches=BatchesConfig(max_open=2))
    async with await Stores.open(SagePaths(tmp_path, tmp_path, tmp_path), config, SystemClock()) as stores:
        yield stores


async def body(lines: int) -> AsyncIterator[bytes]:
    rows = [{"custom_id": f"n{n}", "method": "POST", "url": URL, "body": {}} for n in range(1, lines + 1)]
    yield FORM % b"\n".join(msgspec.json.encode(row) for row in rows)


async def new_batch(stores: Stores, ident: str = "batch-1", lines: int = LINES) -> Batch:
    file = await stores.files.upload("k", "multipart/form-data; boundary=b", body(lines))
    batch = Batch(id=ident, owner="k", endpoint=URL, window="24h", input=file.id, created=1, expires=2**40)
    await stores.batches.add(batch)
    return (await stores.batches.change(ident, lambda one: states.begin(one, lines, 2))).batch


def result(line: int, text: str = "first") -> Result:
    return Result(line, line % 3 != 0, b'{"n":%d,"t":"%b"}\n' % (line, text.encode()))


def outputs(stores: Stores) -> Outputs:
    return Outputs(stores.batches, stores.files, SystemClock())


async def rows(stores: Stores, ident: str | None) -> list[dict[str, object]]:
    if ident is None:
        return []
    file = await stores.files.get("k", ident)
    text = stores.files.path(file).read_bytes()
    assert len(text) == file.bytes
    return [msgspec.json.decode(line) for line in text.splitlines()]


async def test_the_first_result_of_a_line_stays(stores: Stores) -> None:
    await new_batch(stores)
    await stores.batches.put("batch-1", result(1))
    await stores.batches.put("batch-1", result(1, "second"))
    await stores.batches.put("batch-1", result(3))
    assert (await stores.batches.get("batch-1", "k")).counts == Counts(1, 1)
    assert stores.batches.lines == Counts(1, 1)
    assert await stores.batches.results("batch-1", 0) == [result(1), result(3)]
    assert await stores.batches.results("batch-1", 1) == [result(3)]
    assert await stores.batches.done("batch-1") == {1, 3}


@pytest.mark.parametrize("ending", ["completed", "expired", "failed", "cancelled"])
async def test_every_line_is_in_one_of_the_files(stores: Stores, ending: Ending) -> None:
    await new_batch(stores)
    done = range(1, LINES + 1) if ending == "completed" else range(1, LINES // 2)
    for line in reversed(done):
        await stores.batches.put("batch-1", result(line))

    def end(one: Batch) -> Batch:
        return states.cancel(one, 3) if ending == "cancelled" else states.wind_up(one, ending, 3)

    await outputs(stores).write((await stores.batches.change("batch-1", end)).batch)
    batch, counts = await stores.batches.get("batch-1", "k")
    assert (batch.status, counts.completed + counts.failed) == (ending, len(done))
    good, bad = await rows(stores, batch.output), await rows(stores, batch.errors)
    assert [row["n"] for row in good] == [line for line in done if line % 3]
    failed = [row["n"] for row in bad if "n" in row]
    assert failed == [line for line in done if not line % 3]
    rest = [row["custom_id"] for row in bad if "custom_id" in row]
    assert rest == [f"n{line}" for line in range(len(done) + 1, LINES + 1)]
    assert await stores.batches.results("batch-1", 0) == []
    assert await stores.batches.load() == []
    assert +stores.batches.statuses == {ending: 1}


@pytest.mark.parametrize("call", ["write", "sync", "rename", "sync_folder"])
@pytest.mark.parametrize("nth", [1, 2])
async def test_a_disk_that_fails_leaves_the_batch_as_it_was(stores: Stores, call: Call, nth: int) -> None:
    await new_batch(stores, lines=4)
    for line in range(1, 5):
        await stores.batches.put("batch-1", result(line))
    held: Held = await stores.batches.change("batch-1", lambda one: states.wind_up(one, "completed", 3))
    faults = Faults()
    stores.files.folder.fs = FaultFileSystem(faults)
    faults.arm(call, nth, "io")
    with pytest.raises(SageError, match="could not store"):
        await outputs(stores).write(held.batch)
    assert await stores.batches.get("batch-1", "k") == held
    assert [path.name for path in stores.files.folder.path.iterdir()] == [held.batch.input]
    assert faults.fired == 1
    await outputs(stores).write(held.batch)
    batch, _ = await stores.batches.get("batch-1", "k")
    assert (len(await rows(stores, batch.output)), len(await rows(stores, batch.errors))) == (3, 1)


async def test_files_without_lines_are_not_made(stores: Stores) -> None:
    await new_batch(stores, lines=1)
    await stores.batches.put("batch-1", result(1))
    held = await stores.batches.change("batch-1", lambda one: states.wind_up(one, "completed", 3))
    await outputs(stores).write(held.batch)
    batch, _ = await stores.batches.get("batch-1", "k")
    assert batch.output is not None
    assert batch.errors is None
    assert len(list(stores.files.folder.path.iterdir())) == 2


async def test_batches_are_their_owners_and_bounded(stores: Stores) -> None:
    first = await new_batch(stores, "batch-1", 1)
    await new_batch(stores, "batch-2", 1)
    with pytest.raises(RateError, match="2 batches"):
        await new_batch(stores, "batch-3", 1)
    with pytest.raises(NotFoundError):
        await stores.batches.get("batch-1", "other")
    with pytest.raises(NotFoundError):
        await stores.batches.change("batch-1", lambda one: states.cancel(one, 3), owner="other")
    assert (await stores.batches.listed("other", Page(10))) == ([], False)
    with pytest.raises(ConflictError, match="batch-1"):
        await stores.files.delete("k", first.input)
    assert await stores.batches.load() == ["batch-1", "batch-2"]


async def test_an_edit_that_is_refused_changes_nothing(stores: Stores) -> None:
    await new_batch(stores, lines=1)
    before = await stores.batches.get("batch-1")
    with pytest.raises(ConflictError):
        await stores.batches.change("batch-1", lambda one: states.begin(one, 1, 9))
    assert await stores.batches.get("batch-1") == before
    assert +stores.batches.statuses == {"in_progress": 1}
