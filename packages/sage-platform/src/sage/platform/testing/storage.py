"""What each `KeyValue` and each `Blobs` must do: subclass, and give the fixtures `store` and `clock`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from sage.common.errors import ConflictError, NotFoundError, UsageError
from sage.common.testing import VirtualClock
from sage.platform.storage.port import Blobs, Check, Delete, KeyValue, Put

__all__ = ["BlobsConformance", "KeyValueConformance"]


class KeyValueConformance:
    """For a `store` whose time is `clock`."""

    async def test_a_value_is_there_until_it_is_deleted(self, store: KeyValue) -> None:
        """Put, get, replace, delete."""
        assert await store.get("a", "k") is None
        first = await store.put("a", "k", b"\x00one")
        second = await store.put("a", "k", b"")
        found = await store.get("a", "k")
        assert found is not None
        assert (found.key, found.value, found.version) == ("k", b"", second)
        assert second != first
        assert await store.get("b", "k") is None
        assert await store.delete("a", "k")
        assert not await store.delete("a", "k")
        assert await store.get("a", "k") is None

    async def test_a_scan_is_ordered_paged_and_within_its_prefix(self, store: KeyValue) -> None:
        """Also for keys that look like patterns, and for the last of the code points."""
        keys = ["", "a", "a%", "a_", "aa", "ab", "b", "é", "\U0010ffff", "\U0010ffffz", "\x00"]
        for key in keys:
            await store.put("n", key, key.encode())
        await store.put("m", "a", b"other")
        assert [entry.key for entry in await store.scan("n")] == sorted(keys)
        assert [entry.key for entry in await store.scan("n", "a")] == ["a", "a%", "a_", "aa", "ab"]
        assert [entry.key for entry in await store.scan("n", "\U0010ffff")] == ["\U0010ffff", "\U0010ffffz"]
        pages: list[str] = []
        after: str | None = None
        while page := await store.scan("n", after=after, limit=3):
            pages += [entry.key for entry in page]
            after = page[-1].key
        assert pages == sorted(keys)
        assert await store.scan("n", limit=0) == []
        assert await store.namespaces() == ["m", "n"]

    async def test_an_entry_goes_with_its_ttl(self, store: KeyValue, clock: VirtualClock) -> None:
        """It is absent at once, also for checks, and removed by `expire`."""
        await store.put("n", "short", b"1", ttl=10)
        await store.put("n", "long", b"2", ttl=20)
        await store.put("n", "ever", b"3")
        clock.advance(9.5)
        assert await store.get("n", "short") is not None
        clock.advance(0.5)
        assert await store.get("n", "short") is None
        assert [entry.key for entry in await store.scan("n")] == ["ever", "long"]
        await store.put("n", "late", b"4", ttl=1)
        clock.advance(1)
        await store.put("n", "late", b"5", expect=0)
        assert await store.expire() == 1
        assert [entry.key for entry in await store.scan("n")] == ["ever", "late", "long"]
        assert await store.expire() == 0

    async def test_of_64_that_compare_and_set_at_once_one_wins(self, store: KeyValue) -> None:
        """And a counter that is raised so loses nothing."""
        version = await store.put("n", "k", b"0")
        tries = [store.put("n", "k", b"%d" % i, expect=version) for i in range(64)]
        results = await asyncio.gather(*tries, return_exceptions=True)
        assert sum(isinstance(result, int) for result in results) == 1
        assert sum(isinstance(result, ConflictError) for result in results) == 63
        await store.put("n", "count", b"0")

        async def add() -> None:
            while True:
                found = await store.get("n", "count")
                assert found is not None
                try:
                    await store.put("n", "count", b"%d" % (int(found.value) + 1), expect=found.version)
                except ConflictError:
                    continue
                return

        await asyncio.gather(*(add() for _ in range(16)))
        found = await store.get("n", "count")
        assert found is not None
        assert found.value == b"16"

    async def test_a_transaction_is_done_as_a_whole_or_not_at_all(self, store: KeyValue) -> None:
        """A check sees what the steps before it did."""
        version = await store.put("n", "a", b"1")
        with pytest.raises(ConflictError, match="n/b has version 0, not 7"):
            await store.transact(Put("n", "a", b"2"), Delete("n", "a"), Check("n", "b", 7))
        found = await store.get("n", "a")
        assert found is not None
        assert (found.value, found.version) == (b"1", version)
        done = await store.transact(
            Check("n", "a", version), Delete("n", "a"), Check("n", "a", 0), Put("m", "c", b"")
        )
        assert done[:3] == [version, 1, 0]
        assert await store.namespaces() == ["m"]
        with pytest.raises(ConflictError):
            await store.delete("m", "c", expect=done[3] + 1)
        assert await store.delete("m", "c", expect=done[3])
        assert await store.transact() == []

    async def test_a_version_does_not_come_again(self, store: KeyValue) -> None:
        """Not even after a deletion, so an old one cannot pass a check."""
        versions = []
        for _ in range(3):
            versions.append(await store.put("n", "k", b"same"))
            await store.delete("n", "k")
        assert len(set(versions)) == 3

    async def test_what_no_store_takes_is_refused(self, store: KeyValue) -> None:
        """With what would be valid."""
        with pytest.raises(UsageError, match="namespace is empty"):
            await store.put("", "k", b"")
        with pytest.raises(UsageError, match="above 0"):
            await store.put("n", "k", b"", ttl=0)
        with pytest.raises(UsageError, match="not valid Unicode"):
            await store.get("n", "\ud800")
        assert await store.namespaces() == []


class BlobsConformance:
    """For an empty `blobs`."""

    async def test_a_blob_is_what_was_put(self, blobs: Blobs) -> None:
        """Any bytes, any name; a second put replaces it."""
        for name in ("plain", "a/b/../c", ".", "%2F", "é ~*?", ".hidden.blob"):
            for data in (b"", b"\x00" * 100_000, name.encode()):
                stat = await blobs.put(name, data)
                assert stat.size == len(data)
                assert await blobs.stat(name) == stat
                assert await blobs.get(name) == data
        assert await blobs.list() == sorted(("plain", "a/b/../c", ".", "%2F", "é ~*?", ".hidden.blob"))
        assert await blobs.list("a/") == ["a/b/../c"]
        assert await blobs.delete("plain")
        assert not await blobs.delete("plain")

    async def test_a_stream_is_stored_whole_or_not_at_all(self, blobs: Blobs) -> None:
        """An error in the middle leaves the old bytes."""

        async def chunks(fail: bool) -> AsyncIterator[bytes]:
            for i in range(10):
                yield bytes([i]) * 1000
                if fail and i == 5:
                    raise RuntimeError("the source broke")

        await blobs.put("s", b"old")
        with pytest.raises(RuntimeError, match="source broke"):
            await blobs.put_stream("s", chunks(True))
        assert await blobs.get("s") == b"old"
        stat = await blobs.put_stream("s", chunks(False))
        parts = [part async for part in blobs.stream("s", 999)]
        assert stat.size == len(b"".join(parts)) == 10_000
        assert max(map(len, parts)) <= 999
        assert await blobs.list() == ["s"]

    async def test_64_puts_at_once_leave_one_of_them(self, blobs: Blobs) -> None:
        """Never a mixture."""
        values = [bytes([i]) * 5000 for i in range(64)]
        await asyncio.gather(*(blobs.put("k", value) for value in values))
        assert await blobs.get("k") in values

    async def test_a_name_that_is_not_there_or_cannot_be_is_said(self, blobs: Blobs) -> None:
        """With the name."""
        with pytest.raises(NotFoundError, match="'none'"):
            await blobs.get("none")
        with pytest.raises(NotFoundError, match="'none'"):
            await blobs.stat("none")
        with pytest.raises(UsageError, match="empty"):
            await blobs.put("", b"")
        with pytest.raises(UsageError, match="≤ 230"):
            await blobs.put("x" * 231, b"")
