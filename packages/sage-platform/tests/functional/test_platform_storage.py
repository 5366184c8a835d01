from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sage.common.errors import ConflictError
from sage.common.testing import VirtualClock
from sage.platform.storage.keyvalue import MemoryKeyValue, SqliteKeyValue
from sage.platform.storage.port import KeyValue
from sage.platform.storage.sqlite import Database
from sage.platform.testing.storage import KeyValueConformance


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


class TestSqlite(KeyValueConformance):
    @pytest.fixture
    async def store(self, tmp_path: Path, clock: VirtualClock) -> AsyncIterator[KeyValue]:
        database = Database(tmp_path / "kv.db")
        yield await SqliteKeyValue.open(database, clock=clock)
        await database.close()

    async def test_it_is_there_after_opening_again(self, tmp_path: Path) -> None:
        database = Database(tmp_path / "kv.db")
        version = await (await SqliteKeyValue.open(database)).put("n", "k", b"v")
        await database.close()
        database = Database(tmp_path / "kv.db")
        store = await SqliteKeyValue.open(database)
        found = await store.get("n", "k")
        assert found is not None
        assert (found.value, found.version) == (b"v", version)
        assert await store.put("n", "k", b"w") > version
        await database.close()


class TestMemory(KeyValueConformance):
    @pytest.fixture
    def store(self, clock: VirtualClock) -> KeyValue:
        return MemoryKeyValue(clock=clock)


KEYS = st.sampled_from(["", "a", "ab", "b", "\U0010ffff"])
ACTIONS = st.one_of(
    st.tuples(st.just("put"), KEYS, st.binary(max_size=4), st.sampled_from([None, 1.0, 3.0])),
    st.tuples(st.just("cas"), KEYS, st.binary(max_size=4), st.booleans()),
    st.tuples(st.just("delete"), KEYS),
    st.tuples(st.just("advance"), st.sampled_from([0.5, 1.0, 2.0])),
    st.tuples(st.just("expire")),
)
Model = dict[str, tuple[bytes, float | None]]


async def _do(store: KeyValue, clock: VirtualClock, model: Model, action: tuple[object, ...]) -> None:
    """Do the action on the store and on the model."""
    now = clock.wall()
    match action:
        case ("put", str(key), bytes(value), (float() | None) as ttl):
            await store.put("n", key, value, ttl=ttl)
            model[key] = (value, None if ttl is None else now + ttl)
        case ("cas", str(key), bytes(value), bool(right)):
            found = await store.get("n", key)
            version = found.version if found else 0
            if right:
                await store.put("n", key, value, expect=version)
                model[key] = (value, None)
            else:
                with pytest.raises(ConflictError):
                    await store.put("n", key, value, expect=version + 1)
        case ("delete", str(key)):
            assert await store.delete("n", key) == (key in model)
            model.pop(key, None)
        case ("advance", float(seconds)):
            clock.advance(seconds)
        case _:
            await store.expire()
    for key in [key for key, (_, until) in model.items() if until is not None and until <= clock.wall()]:
        del model[key]


@pytest.mark.parametrize("kind", ["sqlite", "memory"])
@settings(max_examples=25, deadline=None)
@given(actions=st.lists(ACTIONS, max_size=20))
def test_it_behaves_as_a_dict_does(
    kind: str, tmp_path_factory: pytest.TempPathFactory, actions: list[tuple[object, ...]]
) -> None:
    async def run() -> None:
        clock, model = VirtualClock(), Model()
        database = Database(tmp_path_factory.mktemp("kv") / "kv.db") if kind == "sqlite" else None
        store: KeyValue = (
            await SqliteKeyValue.open(database, clock=clock) if database else MemoryKeyValue(clock=clock)
        )
        for action in actions:
            await _do(store, clock, model, action)
            entries = await store.scan("n")
            assert [(entry.key, entry.value) for entry in entries] == sorted(
                (key, value) for key, (value, _) in model.items()
            )
        if database:
            await database.close()

    asyncio.run(run())
