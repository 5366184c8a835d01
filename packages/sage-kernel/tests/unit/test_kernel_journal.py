"""The journal: order, shared writes, ends that are torn, disks that fail, power cuts."""

from __future__ import annotations

import asyncio
from pathlib import Path
from random import Random

import pytest

from sage.kernel.runtime.journal import Journal
from sage.kernel.runtime.store import FolderStore
from sage.platform.testing.power import Disk, PowerCutFileSystem


class Counting(FolderStore):
    """Counts what is appended, and fails once `full` is set."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.appends = 0
        self.full = False

    def append(self, name: str, data: bytes, /) -> None:
        if self.full:
            raise OSError("the disk is full")
        self.appends += 1
        super().append(name, data)


@pytest.fixture
def store(tmp_path: Path) -> Counting:
    store = Counting(tmp_path / "store")
    store.open()
    return store


def read(store: FolderStore, first: int = 1) -> tuple[list[object], list[str]]:
    damage: list[str] = []
    return Journal(store).read(first, damage.append), damage


async def test_what_was_added_is_read_again_in_its_order(store: Counting) -> None:
    journal = Journal(store)
    for number in range(5):
        journal.add(("one", number))
        await journal.durable()
    second = journal.turn()
    for number in range(5):
        journal.add(("two", number))
    await journal.close()
    ones, twos = [("one", n) for n in range(5)], [("two", n) for n in range(5)]
    assert read(store) == ([*ones, *twos], [])
    assert read(store, second) == (twos, [])


async def test_those_who_come_together_share_a_write(store: Counting) -> None:
    journal = Journal(store)

    async def one(number: int) -> None:
        journal.add(number)
        await journal.durable()

    await asyncio.gather(*map(one, range(64)))
    assert store.appends == 1
    await asyncio.gather(*map(one, range(64)))
    assert store.appends == 2
    await journal.durable()
    assert store.appends == 2  # there was nothing more


async def test_what_comes_while_a_write_is_under_way_is_in_the_next_one(store: Counting) -> None:
    journal = Journal(store)
    journal.add("first")
    first = asyncio.ensure_future(journal.durable())
    while store.appends == 0 and not first.done():  # noqa: ASYNC110 - turns of the loop, no time
        await asyncio.sleep(0)
    journal.add("second")
    journal.add("third")
    second = asyncio.ensure_future(journal.durable())
    await asyncio.gather(first, second)
    assert store.appends == 2
    assert read(store) == (["first", "second", "third"], [])


async def test_who_waits_may_be_cancelled(store: Counting) -> None:
    journal = Journal(store)
    journal.add("kept")
    waiting = [asyncio.ensure_future(journal.durable()) for _ in range(3)]
    await asyncio.sleep(0)
    waiting[1].cancel()
    await asyncio.gather(waiting[0], waiting[2])
    assert waiting[1].cancelled()
    assert read(store) == (["kept"], [])


async def test_the_end_that_was_being_written_is_lost_and_nothing_else(store: Counting) -> None:
    journal = Journal(store)
    for number in range(3):
        journal.add(number)
    await journal.close()
    whole = b"".join(store.read("requests-00000001"))
    for size in range(len(whole)):
        store.write("requests-00000001", [whole[:size]])
        records, damage = read(store)
        assert records == list(range(len(records)))
        assert len(records) < 3
        assert [text.split(":")[0] for text in damage] in ([], ["requests-00000001"])
    # What is added comes into another segment, as that one could not be read past its end.
    again = Journal(store)
    assert again.read(1, damage.append) == [0, 1]
    again.add("more")
    await again.close()
    assert read(store)[0] == [0, 1, "more"]


async def test_after_a_write_that_failed_nobody_is_told_that_anything_is_durable(store: Counting) -> None:
    journal = Journal(store)
    journal.add("good")
    await journal.durable()
    store.full = True
    journal.add("bad")
    with pytest.raises(OSError, match="the disk is full"):
        await journal.durable()
    store.full = False
    journal.add("worse")  # behind a hole
    with pytest.raises(OSError, match="the disk is full"):
        await journal.durable()
    with pytest.raises(OSError, match="the disk is full"):
        await journal.close()
    assert read(store) == (["good"], [])


async def test_segments_are_cut_and_large_ones_are_told(store: Counting) -> None:
    journal = Journal(store)
    telling = asyncio.create_task(journal.grown(100))
    journal.add(bytes(60))
    await journal.durable()
    assert not telling.done()
    journal.add(bytes(60))
    await telling
    await journal.durable()
    second = journal.turn()
    telling = asyncio.create_task(journal.grown(100))
    await asyncio.sleep(0)
    assert not telling.done()
    telling.cancel()
    journal.add("new")
    await journal.durable()
    await journal.cut(second)
    assert store.names() == ["requests-00000002"]
    assert read(store) == (["new"], [])


async def test_a_record_that_was_durable_outlives_a_power_cut(tmp_path: Path) -> None:
    disk, random = Disk(), Random(3)  # noqa: S311
    store = FolderStore(tmp_path / "live", fs=PowerCutFileSystem(disk))
    store.open()
    journal = Journal(store)
    for number in range(12):
        for part in range(random.randrange(1, 4)):
            journal.add((number, part))
        if number % 5 == 4:
            journal.turn()
        await journal.durable()
        disk.acknowledge(number)
    await journal.close()
    cuts = 0
    for at in range(len(disk) + 1):
        crash = disk.crash(seed=at, at=at)
        folder = tmp_path / f"after-{at}"
        folder.mkdir()
        crash.write_to(folder)
        after = FolderStore(folder)
        after.open()
        records, _ = read(after)
        after.close()
        numbers = [record[0] for record in records if isinstance(record, tuple)]
        assert numbers == sorted(numbers)
        assert set(crash.acknowledged) <= set(numbers)
        cuts += bool(crash.acknowledged)
    assert cuts > 12
