"""Keys, limits and usage of one gateway, put together over its database."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Final

from sage.common.clock import Clock
from sage.common.errors import SageError
from sage.common.paths import SagePaths
from sage.gateway.accounts import Accounts
from sage.gateway.adminkeys import key_handlers, usage_handlers
from sage.gateway.app import Handlers
from sage.gateway.keys import KeyRing, new_admin_token, new_default_key, new_pepper
from sage.gateway.keyservice import DefaultKey, KeyService
from sage.gateway.keystore import SqliteKeyStore
from sage.gateway.usage import Meter, SqliteUsageStore
from sage.platform.state import StateDirectory
from sage.platform.storage.sqlite import Database

__all__ = ["Access"]

log = logging.getLogger("sage.gateway")

FLUSH_S: Final = 1.0


class Access:
    """Who may call, how much, and what it came to. `keep` runs beside the listeners, `close` after them."""

    def __init__(
        self, keys: KeyService, ring: KeyRing, accounts: Accounts, meter: Meter, admin: Handlers, clock: Clock
    ) -> None:
        self.keys = keys
        self.ring = ring
        self.accounts = accounts
        self.admin = admin
        self._meter = meter
        self._clock = clock
        self._closing = asyncio.Event()
        self._failing = False

    @classmethod
    async def open(
        cls,
        database: Database,
        state: StateDirectory,
        paths: SagePaths,
        clock: Clock,
        *,
        known: Callable[[str], bool],
    ) -> Access:
        """With what the database holds; pepper, default key and admin token are made at first start.

        `known`: whether there is a model of that name.
        """
        ring = KeyRing(
            pepper=state.secret(paths.pepper_file, new_pepper),
            admin_token=state.secret(paths.admin_token_file, new_admin_token),
        )
        default = DefaultKey(
            state.secret(paths.default_key_file, new_default_key),
            lambda key: state.write_atomic(paths.default_key_file, key.encode() + b"\n"),
        )
        store, usage = await SqliteKeyStore.open(database), await SqliteUsageStore.open(database)
        meter = Meter(usage)
        accounts = Accounts(clock, meter, known)
        keys = KeyService(store, usage, meter, ring, accounts, clock, default)
        await keys.load()
        admin = {**key_handlers(keys, clock), **usage_handlers(keys, meter, usage, clock)}
        return cls(keys, ring, accounts, meter, admin, clock)

    def standing(self, key: str) -> list[tuple[bytes, bytes]]:
        """What is left of the rates of a key, as headers."""
        return [(name.encode(), value.encode()) for name, value in self.accounts.headers(key)]

    def beat(self) -> None:
        """Let keys expire; called many times a second."""
        self.ring.tick(self._clock.wall())

    async def keep(self) -> None:
        """Add what was counted to the store about once a second, until `close`. A full disk is told once."""
        while not self._closing.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._closing.wait(), FLUSH_S)
            await self._flush()

    async def close(self) -> None:
        """Add the rest, after the last request has ended."""
        self._closing.set()
        await self._flush()

    async def _flush(self) -> None:
        try:
            await self._meter.flush()
            self._failing = False
        except SageError as error:
            if not self._failing:
                log.error("usage could not be stored, and is kept in memory: %s", error)
            self._failing = True
