"""The bounds of a batch's lines are those in force; a line that was let in is not lost when they change."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from sage.common.batch import BatchSpec
from sage.common.clock import SystemClock
from sage.common.config import SageConfig
from sage.common.paths import SagePaths
from sage.gateway.accounts import Accounts
from sage.gateway.batch.batchstore import Held
from sage.gateway.batch.caller import LineCaller
from sage.gateway.batch.service import Batches, Stores
from sage.gateway.keys import KeyRing, ident_of, new_admin_token, new_default_key
from sage.gateway.reply import Answer
from sage.gateway.requests import HotRequest
from sage.gateway.testing import key_record
from sage.gateway.usage import Meter, UsageStore
from sage.middleware.engines.port import Route

KEY = new_default_key()
OWNER = ident_of(KEY)
URL = "/v1/chat/completions"
FORM = (
    b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
    b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n%b\r\n--b--\r\n'
)
LONG = 200_000  # over a bound of 1,000 and all that may be around a body


class Bounded:
    """Batches under bounds that a test changes, and a handler that answers when it may."""

    def __init__(self, stores: Stores) -> None:
        self.stores = stores
        self.bodies = dict.fromkeys(Route, 1000)
        self.asked = asyncio.Event()
        self.free = asyncio.Event()
        ring = KeyRing(pepper="p", admin_token=new_admin_token())
        ring.put(key_record(ring, KEY), 1.0)
        self.principal = ring.holder(OWNER)
        clock = SystemClock()
        accounts = Accounts(clock, Meter(cast(UsageStore, None)), lambda _: True)
        config = SageConfig.model_validate({"batches": {"in_flight": 1}})
        caller = LineCaller(self.serve, ring, self.bodies, lambda _: None)
        self.batches = Batches(stores, caller, accounts, clock, config, self.bodies)

    async def serve(self, request: HotRequest, answer: Answer) -> None:
        self.asked.set()
        await self.free.wait()
        answer.head(200, "application/json")
        answer.data(b"{}")
        answer.end()

    async def start(self, *sizes: int) -> str:
        rows = [
            {"custom_id": f"n{n}", "method": "POST", "url": URL, "body": {"x": "x" * size}}
            for n, size in enumerate(sizes)
        ]

        async def form() -> AsyncIterator[bytes]:
            yield FORM % b"\n".join(map(msgspec.json.encode, rows))

        file = await self.stores.files.upload(OWNER, "multipart/form-data; boundary=b", form())
        spec = BatchSpec(input_file_id=file.id, endpoint=URL, completion_window="24h")
        return (await self.batches.create(self.principal, spec)).batch.id

    async def end(self, ident: str) -> Held:
        """Poll: that a batch has ended has no event here."""
        async with asyncio.timeout(60):
            while True:
                held = await self.batches.get(OWNER, ident)
                if held.batch.ended:
                    return held
                await asyncio.sleep(0.01)

    async def statuses(self, ident: str | None) -> list[int]:
        assert ident is not None
        text = self.stores.files.path(await self.stores.files.get(OWNER, ident)).read_bytes()
        rows: list[Any] = [msgspec.json.decode(line) for line in text.splitlines()]
        return [row["response"]["status_code"] for row in rows]


@pytest.fixture
async def bounded(tmp_path: Path) -> AsyncIterator[Bounded]:
    paths = SagePaths(tmp_path, tmp_path, tmp_path)
    async with await Stores.open(paths, SageConfig(), SystemClock()) as stores:
        bounded = Bounded(stores)
        yield bounded
        bounded.batches.begin_drain(0.0)
        await bounded.batches.close()


async def test_a_bound_that_was_raised_holds_for_the_next_batch(bounded: Bounded) -> None:
    bounded.free.set()
    refused = (await bounded.end(await bounded.start(LONG))).batch
    assert (refused.status, refused.problems[0].code) == ("failed", "line_too_long")
    bounded.bodies.update(dict.fromkeys(Route, 2 * LONG))  # as a reload does
    held = await bounded.end(await bounded.start(LONG))
    assert (held.batch.status, held.counts.completed) == ("completed", 1)


async def test_a_line_that_is_too_long_by_now_has_its_error(bounded: Bounded) -> None:
    bounded.bodies.update(dict.fromkeys(Route, 2 * LONG))
    ident = await bounded.start(10, LONG)
    await bounded.asked.wait()
    bounded.batches.begin_drain(0.0)
    await bounded.batches.close()
    again = Bounded(bounded.stores)  # the next start, by another configuration
    again.free.set()
    await again.batches.start()
    held = await again.end(ident)
    assert (held.batch.total, held.counts.completed, held.counts.failed) == (2, 1, 1)
    assert await again.statuses(held.batch.output) == [200]
    assert await again.statuses(held.batch.errors) == [413]
    again.batches.begin_drain(0.0)
    await again.batches.close()
