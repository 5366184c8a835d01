"""Files of keys: taken in as they come, listed, read and deleted."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import BinaryIO, Final

from sage.common.batch import PURPOSES
from sage.common.clock import Clock
from sage.common.errors import BadRequestError, NotFoundError, OverloadedError, RequestTooLargeError
from sage.common.telemetry import Bound
from sage.gateway.batch.filestore import FileRecord, FileStore
from sage.gateway.batch.folder import Draft, Folder, publish
from sage.gateway.batch.tables import Page
from sage.middleware.engines.multipart import Multipart, Part, boundary_of

__all__ = ["Files"]

log = logging.getLogger("sage.gateway")

MAX_UPLOADS: Final = 4  # of one key at once
MAX_FIELD: Final = 1024
MAX_NAME: Final = 255
SHORTEST_S, LONGEST_S = 3600, 30 * 86_400  # what OpenAI lets a client ask for
_FIELDS: Final = ("purpose", "expires_after[anchor]", "expires_after[seconds]")


class Files:
    """All files. `max_bytes` of one; `expire_s`: how long those live that say nothing, None = for ever."""

    def __init__(
        self, store: FileStore, folder: Folder, clock: Clock, *, max_bytes: int, expire_s: int | None
    ) -> None:
        self._store = store
        self.folder = folder
        self._clock = clock
        self._max_bytes = max_bytes
        self._expire_s = expire_s
        self._uploads: Counter[str] = Counter()

    async def start(self) -> None:
        """Delete what a crash left behind."""
        self.folder.sweep(await self._store.ids())

    async def upload(self, owner: str, content_type: str, body: AsyncIterator[bytes]) -> FileRecord:
        """Take in a form with `file` and `purpose`; when this returns it is on the disk.

        Raises MediaTypeError, BadRequestError, RequestTooLargeError, QuotaError, OverloadedError, and what
        `body` raises; then nothing of it stays.
        """
        boundary = boundary_of(content_type)
        if self._uploads[owner] >= MAX_UPLOADS:
            raise OverloadedError(
                f"{MAX_UPLOADS} uploads of this key are under way.",
                hint="Await the end of one.",
                retry_after=1.0,
            )
        self._uploads[owner] += 1
        try:
            room = await self._store.room(owner)
            async with self.folder.draft() as draft:
                form = _Form(draft, min(room, self._max_bytes), self._max_bytes)
                await form.read(Multipart(boundary), body)
                purpose, name = form.purpose(), form.filename()
                record = self._record(owner, draft, name, purpose, form.expires() or self._expire_s)
                await publish([draft], lambda: self._store.add(record))
        finally:
            self._uploads[owner] -= 1
            if not self._uploads[owner]:
                del self._uploads[owner]
        log.info("file %s of key %s: %d bytes for %s", record.id, owner, record.bytes, record.purpose)
        return record

    def output(self, owner: str, draft: Draft, filename: str) -> FileRecord:
        """What is to be known of a file that a batch wrote."""
        return self._record(owner, draft, filename, "batch_output", self._expire_s)

    def _record(self, owner: str, draft: Draft, filename: str, purpose: str, lives: int | None) -> FileRecord:
        created = int(self._clock.wall())
        return FileRecord(
            id=draft.id,
            owner=owner,
            filename=filename,
            purpose=purpose,
            bytes=draft.size,
            created=created,
            expires=None if lives is None else created + lives,
        )

    async def listed(self, owner: str, asked: Page, purpose: str | None) -> tuple[list[FileRecord], bool]:
        """See `FileStore.listed`."""
        return await self._store.listed(owner, asked, purpose)

    async def get(self, owner: str, ident: str) -> FileRecord:
        """See `FileStore.get`."""
        return await self._store.get(owner, ident)

    async def open(self, owner: str, ident: str) -> tuple[FileRecord, BinaryIO]:
        """A file and its bytes, which whoever deletes it now takes from nobody. Raises NotFoundError."""
        record = await self._store.get(owner, ident)
        try:
            return record, await asyncio.to_thread(self.path(record).open, "rb")
        except FileNotFoundError:
            raise NotFoundError(f"There is no file {ident!r} any more.") from None

    def path(self, record: FileRecord) -> Path:
        """Where its bytes are."""
        return self.folder.file(record.id)

    async def delete(self, owner: str, ident: str) -> None:
        """Delete a file. Raises as `FileStore.delete`."""
        await self._store.delete(owner, ident)
        self.folder.remove(ident)

    async def expire(self) -> None:
        """Delete what is over its time."""
        gone = await self._store.expire(self._clock.wall())
        self.folder.remove(*gone)
        if gone:
            log.info("%d files were over their time and are deleted", len(gone))


class _Form:
    """The fields of an upload. The bytes of its file go to `draft`, at most `most`."""

    def __init__(self, draft: Draft, most: int, limit: int) -> None:
        self.draft = draft
        self._most = most
        self._limit = limit
        self._fields: dict[str, bytes] = {}
        self._filename: str | None = None
        self._open = ""

    async def read(self, form: Multipart, body: AsyncIterator[bytes]) -> None:
        """Read all of it."""
        async for data in body:
            for found in form.feed(data):
                if isinstance(found, Part):
                    self._begin(found)
                elif self._open == "file":
                    await self._write(found)
                else:
                    self._add(found)
        form.close()

    def _begin(self, part: Part) -> None:
        self._open = part.name
        if part.name in self._fields or (part.name == "file" and self._filename is not None):
            raise BadRequestError(f"The form has the field {part.name[:64]!r} twice.", param=part.name[:64])
        if part.name == "file":
            self._filename = part.filename or "upload"
        elif part.name in _FIELDS:
            self._fields[part.name] = b""
        else:
            valid = ", ".join(("file", *_FIELDS))
            raise BadRequestError(
                f"The field {part.name[:64]!r} is not known here; valid are: {valid}.", param=part.name[:64]
            )

    async def _write(self, data: bytes) -> None:
        if self.draft.size + len(data) > self._most:
            if self._most == self._limit:
                raise RequestTooLargeError(
                    f"The file is larger than {self._limit} bytes.", param="file", bound=Bound.BODY_BYTES
                )
            raise RequestTooLargeError(
                f"This key may store {self._most} bytes more, and the file is larger.",
                hint="Delete files first.",
                param="file",
                bound=Bound.KEY_STORED_BYTES,
            )
        await self.draft.write(data)

    def _add(self, data: bytes) -> None:
        self._fields[self._open] += data
        if len(self._fields[self._open]) > MAX_FIELD:
            raise BadRequestError(f"{self._open} is over {MAX_FIELD} bytes.", param=self._open)

    def filename(self) -> str:
        """The client's name for it. Raises BadRequestError without a file, and for one that is empty."""
        if self._filename is None:
            raise BadRequestError("The field 'file' is missing.", param="file")
        if not self.draft.size:
            raise BadRequestError("The file is empty.", param="file")
        if len(self._filename) > MAX_NAME:
            raise BadRequestError(f"The name of the file is over {MAX_NAME} characters.", param="file")
        return self._filename

    def purpose(self) -> str:
        """Raises BadRequestError for one that OpenAI has not."""
        purpose = self._text("purpose")
        if purpose not in PURPOSES:
            found = f"purpose is {purpose[:64]!r}" if purpose else "The field 'purpose' is missing"
            raise BadRequestError(f"{found}; valid are: {', '.join(PURPOSES)}.", param="purpose")
        return purpose

    def expires(self) -> int | None:
        """Seconds from its creation, if the client names any. Raises BadRequestError for what is none."""
        anchor, seconds = (self._text(name) for name in _FIELDS[1:])
        if not anchor and not seconds:
            return None
        if anchor != "created_at":
            raise BadRequestError(f"expires_after[anchor] is {anchor[:64]!r}; valid is 'created_at'.")
        if not seconds.isdecimal() or not SHORTEST_S <= int(seconds) <= LONGEST_S:
            raise BadRequestError(
                f"expires_after[seconds] is {seconds[:64]!r}; valid is {SHORTEST_S} to {LONGEST_S}."
            )
        return int(seconds)

    def _text(self, name: str) -> str:
        return self._fields.get(name, b"").decode("utf-8", "replace")
