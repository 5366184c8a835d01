"""What each `KeyStore` and each `UsageStore` must do: subclass, and give the fixture `store`."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from sage.common.errors import ConflictError, NotFoundError
from sage.gateway.keystore import KeyRecord, KeyStore
from sage.gateway.limits import Limits, Spent
from sage.gateway.usage import Tally, UsageKey, UsageStore

__all__ = ["KeyStoreConformance", "UsageStoreConformance", "record_named"]


def record_named(name: str, *, created: float = 1.0) -> KeyRecord:
    """A record with every field set."""
    return KeyRecord(
        id=f"id-{name}",
        name=name,
        digest=b"\x00\xff" * 16,
        scopes=frozenset(("chat", "models")),
        created=created,
        tenant="search",
        models=frozenset(("org/a", "é")),
        limits=Limits(rpm=1, tpm=2, concurrent=3, day_tokens=4, total_tokens=5),
        lowered=True,
        expires=2.5,
        previous=b"old",
        previous_until=7.0,
    )


class KeyStoreConformance:
    """For an empty `store`."""

    async def test_a_record_is_what_was_put(self, store: KeyStore) -> None:
        """Every field, and the oldest first."""
        plain = KeyRecord(id="p", name="plain", digest=b"", scopes=frozenset(), created=0.5)
        await store.add(record_named("full"))
        await store.add(plain)
        assert await store.all() == [plain, record_named("full")]

    async def test_a_change_sees_the_newest_and_nothing_comes_between(self, store: KeyStore) -> None:
        """Of many at once none is lost."""
        await store.add(record_named("a"))

        def longer(old: KeyRecord) -> KeyRecord:
            return msgspec.structs.replace(old, previous_until=old.previous_until + 1)

        await asyncio.gather(*(store.change("id-a", longer) for _ in range(20)))
        assert (await store.all())[0].previous_until == 27.0

    async def test_what_an_edit_raises_undoes_it(self, store: KeyStore) -> None:
        """And reaches the caller."""
        await store.add(record_named("a"))

        def refuse(old: KeyRecord) -> KeyRecord:
            raise ConflictError(f"{old.name} stays")

        with pytest.raises(ConflictError, match="a stays"):
            await store.change("id-a", refuse)
        assert await store.all() == [record_named("a")]

    async def test_names_of_keys_that_are_not_revoked_differ(self, store: KeyStore) -> None:
        """A revoked one gives its name back; ids never come again."""
        await store.add(record_named("a"))
        twin = msgspec.structs.replace(record_named("a"), id="other")
        with pytest.raises(ConflictError, match="named 'a'"):
            await store.add(twin)
        await store.change("id-a", lambda old: msgspec.structs.replace(old, revoked=3.0))
        await store.add(twin)
        with pytest.raises(ConflictError):
            await store.change("id-a", lambda old: msgspec.structs.replace(old, revoked=None))
        with pytest.raises(ConflictError):
            await store.add(msgspec.structs.replace(twin, name="b"))
        assert [record.revoked for record in await store.all()] == [3.0, None]

    async def test_an_unknown_id(self, store: KeyStore) -> None:
        """Is named."""
        with pytest.raises(NotFoundError, match="'none'"):
            await store.change("none", lambda old: old)

    async def test_the_first_seal_stays(self, store: KeyStore) -> None:
        """Another one is told from it."""
        assert await store.seal(b"one")
        assert await store.seal(b"one")
        assert not await store.seal(b"two")
        assert await store.seal(b"one")


class UsageStoreConformance:
    """For an empty `store`."""

    async def test_sums_grow_by_what_is_added(self, store: UsageStore) -> None:
        """For each key, model, class and day apart."""
        one, other = UsageKey("k", "m", "chat", 3), UsageKey("k", "m", "batch", 3)
        await store.add({one: Tally(1, 10, 5, 0, 0, 7.5), other: Tally(1, 0, 0, 0, 1, 2.0)})
        await store.add({one: Tally(2, 1, 1, 1, 1, 6.0)})
        assert await store.rows(3, 3) == [
            (other, Tally(1, 0, 0, 0, 1, 2.0)),
            (one, Tally(3, 11, 6, 1, 1, 7.5)),
        ]

    async def test_many_at_once_lose_nothing(self, store: UsageStore) -> None:
        """However they are written."""
        row = UsageKey("k", "m", "chat", 3)
        await asyncio.gather(*(store.add({row: Tally(1, 2, 3, 0, 0, 1.0)}) for _ in range(50)))
        assert await store.rows(0, 9) == [(row, Tally(50, 100, 150, 0, 0, 1.0))]

    async def test_rows_are_chosen_by_day_key_and_model(self, store: UsageStore) -> None:
        """And come in order."""
        keys = [UsageKey(k, m, "chat", day) for day in (1, 2, 3) for k in "ab" for m in ("x", "y")]
        await store.add({key: Tally(1) for key in reversed(keys)})
        assert [key for key, _ in await store.rows(1, 3)] == keys
        assert [key for key, _ in await store.rows(2, 2, key="b")] == [
            k for k in keys if k[3] == 2 and k[0] == "b"
        ]
        assert [key for key, _ in await store.rows(2, 9, key="a", model="x")] == [
            key for key in keys if key.day > 1 and (key.key, key.model) == ("a", "x")
        ]
        assert await store.rows(4, 9) == []

    async def test_what_was_spent(self, store: UsageStore) -> None:
        """On one day and ever; a key that used nothing is not there."""
        await store.add(
            {
                UsageKey("a", "x", "chat", 1): Tally(1, 1, 2, 0, 0, 1.0),
                UsageKey("a", "y", "chat", 2): Tally(1, 10, 20, 0, 0, 9.0),
                UsageKey("a", "x", "batch", 2): Tally(1, 100, 200, 0, 0, 8.0),
                UsageKey("b", "x", "chat", 1): Tally(1, 5, 0, 0, 0, 3.0),
                UsageKey("c", "x", "chat", 2): Tally(1, 0, 0, 1, 0, 4.0),
            }
        )
        assert await store.spent(2) == {"a": Spent(2, 330, 333), "b": Spent(2, 0, 5)}
        assert await store.last_used() == {"a": 9.0, "b": 3.0, "c": 4.0}
