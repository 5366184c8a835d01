"""Making, changing and ending keys: the store, the ring and the accounts in step."""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
from collections.abc import Awaitable, Callable
from typing import Final

import msgspec

from sage.common.api import DATA_SCOPES
from sage.common.clock import Clock
from sage.common.errors import BadRequestError, ConflictError, NotFoundError
from sage.gateway.accounts import Accounts
from sage.gateway.keys import ADMIN_ID, KeyRing, ident_of, new_key
from sage.gateway.keystore import KeyRecord, KeyStore
from sage.gateway.usage import Meter, UsageStore, day_of

__all__ = ["DEFAULT", "DefaultKey", "KeyService"]

log = logging.getLogger("sage.gateway")

DEFAULT: Final = "default"  # name of the key of the first start
_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
_KEY: Final = re.compile(r"sk-sage-[A-Za-z0-9_-]{1,64}\.[A-Za-z0-9_-]{20,}")
_SHOWN: Final = 20
# All scopes but admin, as earlier versions had them.
FORMER_SCOPES: Final[tuple[frozenset[str], ...]] = (
    DATA_SCOPES - {"audio", "images"},
    DATA_SCOPES - {"audio", "images", "files", "batches"},
)


class DefaultKey(msgspec.Struct, frozen=True):
    """The key that the commands of this machine use: what it is, and how its file gets another one."""

    key: str
    write: Callable[[str], None]


class KeyService:
    """All keys of one gateway. A change is durable and in force when the method that makes it returns."""

    def __init__(
        self,
        store: KeyStore,
        usage: UsageStore,
        meter: Meter,
        ring: KeyRing,
        accounts: Accounts,
        clock: Clock,
        default: DefaultKey,
    ) -> None:
        self._store = store
        self._usage = usage
        self._meter = meter
        self._ring = ring
        self._accounts = accounts
        self._clock = clock
        self._default = default
        self._changing = asyncio.Lock()

    async def load(self) -> None:
        """Know what the stores hold, and the default key.

        Raises ConflictError for another pepper, and for a default key that is not of a key's form: what is
        before the point is its id, and no secret.
        """
        if not _KEY.fullmatch(self._default.key) or ident_of(self._default.key) == ADMIN_ID:
            raise ConflictError(
                "What default.key in the state directory holds is not of the form sk-sage-<id>.<secret>.",
                hint="Delete the file to get a new key.",
            )
        if not await self._store.seal(self._ring.digest("the pepper of these keys")):
            raise ConflictError(
                "The pepper in the state directory is not the one that its keys were stored with.",
                hint="Put the former keys.pepper back, or delete gateway.db: keys and usage begin anew then.",
            )
        wall = self._clock.wall()
        spent = await self._usage.spent(day_of(wall))
        self._meter.last_used = await self._usage.last_used()
        self._accounts.put(ADMIN_ID)
        for record in [await self._in_step(record) for record in await self._store.all()]:
            self._ring.put(record, wall)
            if record.revoked is None:
                self._accounts.put(record.id, record.limits, spent.get(record.id))
        if ident_of(self._default.key) not in self._ring.records:
            await self._adopt(wall)

    async def _in_step(self, record: KeyRecord) -> KeyRecord:
        """The default key is what its file says, whatever came between the file and the store."""
        if record.revoked is not None:
            return record
        if not self._is_default(record):
            if record.name != DEFAULT:
                return record
            now = self._clock.wall()  # its file was removed, and another one made
            return await self._store.change(record.id, lambda old: msgspec.structs.replace(old, revoked=now))
        digest = self._ring.digest(self._default.key)
        # What opened everything when it was made opens what came since; what an admin took away stays so.
        scopes = DATA_SCOPES if record.scopes in FORMER_SCOPES else record.scopes
        if record.digest == digest and record.scopes == scopes:
            return record
        return await self._store.change(
            record.id, lambda old: msgspec.structs.replace(old, digest=digest, scopes=scopes)
        )

    async def _adopt(self, wall: float) -> None:
        key = self._default.key
        record = KeyRecord(
            id=ident_of(key), name=DEFAULT, digest=self._ring.digest(key), scopes=DATA_SCOPES, created=wall
        )
        await self._store.add(record)
        self._ring.put(record, wall)
        self._accounts.put(record.id)

    def all(self) -> list[KeyRecord]:
        """Every key, oldest first, revoked ones too."""
        return list(self._ring.records.values())

    def last_used(self, ident: str) -> float | None:
        """When a request of this key ended last, Unix seconds."""
        return self._meter.last_used.get(ident)

    def find(self, ident: str) -> KeyRecord:
        """By its id, or by its name: the one that is not revoked, else the newest. Raises NotFoundError."""
        if not _NAME.fullmatch(ident) or ident.startswith("sk-"):
            raise BadRequestError(
                "That is neither the id nor the name of a key.", hint="`sage key list` shows both."
            )
        if ident in self._ring.records:
            return self._ring.records[ident]
        named = [record for record in self.all() if record.name == ident]
        if named:
            return max(named, key=lambda record: (record.revoked is None, record.created))
        active = {record.name: record for record in self.all() if record.revoked is None}
        there = ", ".join(f"{name} ({record.id})" for name, record in list(active.items())[:_SHOWN])
        raise NotFoundError(f"There is no key {ident!r}; there are: {there or 'none'}.")

    async def create(self, make: Callable[[str, float], KeyRecord]) -> tuple[KeyRecord, str]:
        """A new key, and its secret. `make` gets id and time. Raises ConflictError for a name in use."""
        async with self._changing:
            wall = self._clock.wall()
            ident = secrets.token_hex(4)
            while ident in self._ring.records:
                ident = secrets.token_hex(4)
            key = new_key(ident)
            record = msgspec.structs.replace(make(ident, wall), digest=self._ring.digest(key))
            await self._store.add(record)
            self._ring.put(record, wall)
            self._accounts.put(ident, record.limits)
            log.info("key %s (%s) was created", ident, record.name)
            return record, key

    async def rotate(self, ident: str, grace_s: float) -> tuple[KeyRecord, str]:
        """Another secret for a key; the former one stays good for `grace_s` seconds. What runs goes on."""
        found = self.find(ident)
        key = new_key(found.id)
        digest = self._ring.digest(key)
        until = self._clock.wall() + grace_s

        def edit(old: KeyRecord) -> KeyRecord:
            previous = old.digest if grace_s else b""
            return msgspec.structs.replace(
                old, digest=digest, previous=previous, previous_until=until if grace_s else 0.0
            )

        async def write_file() -> None:
            # Before the store: a crash between leaves a file that the next start puts in force.
            await asyncio.to_thread(self._default.write, key)

        record = await self._change(found.id, edit, write_file if self._is_default(found) else None)
        log.info("key %s (%s) has another secret", record.id, record.name)
        return record, key

    async def change(self, ident: str, edit: Callable[[KeyRecord], KeyRecord]) -> KeyRecord:
        """Other settings for a key; what runs goes on. Raises ConflictError for a name in use."""
        return await self._change(self.find(ident).id, edit)

    async def revoke(self, ident: str) -> KeyRecord:
        """End a key, and what runs for it. One that is revoked stays so."""
        found = self.find(ident)
        if found.revoked is not None:
            return found
        now = self._clock.wall()
        record = await self._change(found.id, lambda old: msgspec.structs.replace(old, revoked=now))
        self._accounts.drop(record.id)
        log.info("key %s (%s) was revoked", record.id, record.name)
        return record

    def _is_default(self, record: KeyRecord) -> bool:
        return record.id == ident_of(self._default.key)

    async def _change(
        self,
        ident: str,
        edit: Callable[[KeyRecord], KeyRecord],
        before: Callable[[], Awaitable[None]] | None = None,
    ) -> KeyRecord:
        async with self._changing:
            if self._ring.records[ident].revoked is not None:
                raise ConflictError(f"The key {ident} was revoked.", hint="Create another one.")
            await self._meter.flush()
            spent = (await self._usage.spent(day_of(self._clock.wall()))).get(ident)
            if before is not None:
                await before()
            record = await self._store.change(ident, edit)
            self._ring.put(record, self._clock.wall())
            self._accounts.put(ident, record.limits, spent)
            return record
