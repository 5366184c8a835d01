"""The stores of keys and usage in a real database, and the meter before it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import cast

import pytest

from sage.common.errors import SageError
from sage.gateway.keystore import SqliteKeyStore
from sage.gateway.testing.stores import KeyStoreConformance, UsageStoreConformance, record_named
from sage.gateway.usage import Meter, SqliteUsageStore, Tally, UsageKey, UsageStore
from sage.middleware.engines.port import Usage
from sage.platform.storage.sqlite import Database

ROW = UsageKey("k", "m", "chat", 3)


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    database = Database(tmp_path / "gateway.db")
    yield database
    await database.close()


class TestSqliteKeyStore(KeyStoreConformance):
    @pytest.fixture
    async def store(self, database: Database) -> SqliteKeyStore:
        return await SqliteKeyStore.open(database)


class TestSqliteUsageStore(UsageStoreConformance):
    @pytest.fixture
    async def store(self, database: Database) -> SqliteUsageStore:
        return await SqliteUsageStore.open(database)


async def test_both_survive_the_process(tmp_path: Path) -> None:
    for turn in range(2):
        database = Database(tmp_path / "gateway.db")
        keys, usage = await SqliteKeyStore.open(database), await SqliteUsageStore.open(database)
        if turn == 0:
            await keys.add(record_named("a"))
            await usage.add({ROW: Tally(1, 2, 3, 0, 0, 4.0)})
        else:
            assert await keys.all() == [record_named("a")]
            assert await usage.rows(3, 3) == [(ROW, Tally(1, 2, 3, 0, 0, 4.0))]
        await database.close()


class Broken:
    """A usage store on a disk that is full as long as `full` says."""

    def __init__(self) -> None:
        self.full = True
        self.added: list[Mapping[UsageKey, Tally]] = []

    async def add(self, tallies: Mapping[UsageKey, Tally]) -> None:
        if self.full:
            raise SageError("No space left.")
        self.added.append(tallies)


async def test_the_meter_adds_once_what_it_counted() -> None:
    store = Broken()
    store.full = False
    meter = Meter(cast(UsageStore, store))
    meter.count(ROW, 10.0, Usage(5, 7))
    meter.count(ROW, 11.0, Usage(), refused=True)
    meter.count(ROW._replace(model=""), 9.0, Usage(), error=True)
    await meter.flush()
    await meter.flush()
    assert store.added == [
        {ROW: Tally(2, 5, 7, 0, 1, 11.0), ROW._replace(model=""): Tally(1, 0, 0, 1, 0, 9.0)}
    ]
    assert meter.last_used == {"k": 9.0}


async def test_what_could_not_be_stored_is_kept_with_what_comes_meanwhile() -> None:
    store = Broken()
    meter = Meter(cast(UsageStore, store))
    for turn in range(3):
        meter.count(ROW, float(turn), Usage(1, 1))
        with pytest.raises(SageError):
            await meter.flush()
    store.full = False
    await meter.flush()
    assert store.added == [{ROW: Tally(3, 3, 3, 0, 0, 2.0)}]
