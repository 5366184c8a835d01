"""Files and batches of one gateway, put together over their database."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Iterator, Mapping
from typing import Final, Self

from sage.common.batch import STATUSES, BatchSpec
from sage.common.clock import Clock
from sage.common.config import SageConfig
from sage.common.errors import BadRequestError, SageError
from sage.common.ids import new_id
from sage.common.paths import SagePaths
from sage.common.telemetry import BATCH_LINES, BATCHES
from sage.gateway.accounts import Accounts
from sage.gateway.batch import states
from sage.gateway.batch.batchstore import BatchStore, Held
from sage.gateway.batch.caller import ENDPOINTS, LineCaller
from sage.gateway.batch.files import Files
from sage.gateway.batch.filestore import FileStore, Quota
from sage.gateway.batch.folder import Folder
from sage.gateway.batch.lines import LineBounds
from sage.gateway.batch.runner import Runner
from sage.gateway.batch.share import Share
from sage.gateway.batch.states import Batch, Counts
from sage.gateway.batch.tables import SCHEMA, Page
from sage.gateway.keys import Principal
from sage.gateway.routes import SCOPES
from sage.middleware.control_plane.metrics import Sample
from sage.middleware.engines.port import Route
from sage.platform.storage.sqlite import Database

__all__ = ["Batches", "Stores"]

log = logging.getLogger("sage.gateway")

EXPIRE_EVERY_S: Final = 60.0
LINE_FRAME: Final = 64 * 1024  # of a line, around its body
SHORTEST_S, LONGEST_S = 60, 7 * 86_400
_UNITS: Final[Mapping[str, int]] = {"m": 60, "h": 3600, "d": 86_400}


class Stores:
    """What is kept. `async with await Stores.open(…)` closes it."""

    def __init__(self, database: Database, batches: BatchStore, files: Files) -> None:
        self._database = database
        self.batches = batches
        self.files = files

    @classmethod
    async def open(cls, paths: SagePaths, config: SageConfig, clock: Clock) -> Stores:
        """With what the state directory holds; what a crash left of files is deleted."""
        database = Database(paths.batch_database)
        try:
            await database.write(lambda db: db.execute(SCHEMA).fetchall())
            bounds = config.batches
            files = Files(
                FileStore(database, Quota(bounds.max_files, bounds.max_stored_bytes)),
                Folder(paths.files),
                clock,
                max_bytes=config.gateway.max_file_bytes,
                expire_s=bounds.files_expire_s,
            )
            await files.start()
        except BaseException:
            await database.close()
            raise
        return cls(database, BatchStore(database, bounds.max_open), files)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._database.close()


class Batches:
    """What the routes of batches do. `start` goes on with what was under way; `close` after `begin_drain`."""

    def __init__(
        self,
        stores: Stores,
        caller: LineCaller,
        accounts: Accounts,
        clock: Clock,
        config: SageConfig,
        bodies: Mapping[Route, int],
    ) -> None:
        self.files = stores.files
        self._store = stores.batches
        self._clock = clock
        own = config.batches

        def bounds() -> LineBounds:
            longest = max(bodies[route] for route in ENDPOINTS.values()) + LINE_FRAME
            return LineBounds(own.max_lines, longest)

        def most(key: str) -> int:
            bound = accounts.concurrent(key)  # half of it is left to what the key asks for by itself
            return own.in_flight * own.max_open if bound is None else bound // 2

        self._runner = Runner(
            stores.batches,
            stores.files,
            caller,
            Share(most),
            clock,
            bounds,
            own.in_flight,
        )
        self._sweeper: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Go on with what has not ended."""
        for ident in await self._store.load():
            self._runner.take(ident)
        self._sweeper = asyncio.create_task(self._sweep())

    def begin_drain(self, seconds: float) -> None:
        """Start no more lines; those that run have so long."""
        self._runner.begin_drain(seconds)

    async def close(self) -> None:
        """Stop what still runs; the next start goes on with it."""
        if self._sweeper is not None:
            self._sweeper.cancel()
            await asyncio.gather(self._sweeper, return_exceptions=True)
        await self._runner.close()

    async def _sweep(self) -> None:
        while True:
            try:
                await self.files.expire()
            except (SageError, OSError) as error:
                log.error("files over their time could not be deleted: %s", error)
            await asyncio.sleep(EXPIRE_EVERY_S)

    async def create(self, principal: Principal, spec: BatchSpec) -> Held:
        """A new one; when this returns it is durable. Raises BadRequestError, NotFoundError, RateError."""
        route = ENDPOINTS.get(spec.endpoint)
        if route is None:
            raise BadRequestError(
                f"endpoint is {spec.endpoint[:128]!r}; valid are: {', '.join(ENDPOINTS)}.", param="endpoint"
            )
        principal.check_scope(SCOPES[route])
        now = self._clock.wall()
        batch = Batch(
            id=new_id("batch"),
            owner=principal.id,
            endpoint=spec.endpoint,
            window=spec.completion_window,
            input=spec.input_file_id,
            created=int(now),
            expires=int(now) + _seconds(spec.completion_window),
            metadata=spec.metadata,
        )
        await self._store.add(batch)
        log.info("batch %s of key %s: %s for %s", batch.id, batch.owner, batch.input, batch.endpoint)
        self._runner.take(batch.id)
        return Held(batch, Counts())

    async def listed(self, owner: str, asked: Page) -> tuple[list[Held], bool]:
        """See `BatchStore.listed`."""
        return await self._store.listed(owner, asked)

    async def get(self, owner: str, ident: str) -> Held:
        """One of this key's. Raises NotFoundError."""
        return await self._store.get(ident, owner)

    async def cancel(self, owner: str, ident: str) -> Held:
        """End one early. Raises NotFoundError, and ConflictError if it has ended."""
        now = self._clock.wall()
        held = await self._store.change(ident, lambda one: states.cancel(one, now), owner=owner)
        self._runner.nudge(ident)
        return held

    def samples(self) -> Iterator[Sample]:
        """Its metrics."""
        for status in STATUSES:
            yield BATCHES, self._store.statuses[status], {"status": status}
        yield BATCH_LINES, self._store.lines.completed, {"outcome": "completed"}
        yield BATCH_LINES, self._store.lines.failed, {"outcome": "failed"}


def _seconds(window: str) -> int:
    found = re.fullmatch(r"([0-9]{1,6})([mhd])", window)
    seconds = int(found[1]) * _UNITS[found[2]] if found else 0
    if not SHORTEST_S <= seconds <= LONGEST_S:
        raise BadRequestError(
            f"completion_window is {window[:64]!r}; valid is 24h, or any other time from 1m to 7d.",
            param="completion_window",
        )
    return seconds
