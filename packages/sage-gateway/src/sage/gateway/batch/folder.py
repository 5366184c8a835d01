"""The folder of the files' bytes: each has the name of its id, and is there whole or not at all."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
from collections.abc import Callable, Collection, Coroutine, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from sage.common.errors import SageError
from sage.common.ids import new_id
from sage.platform.state import FileSystem

__all__ = ["Draft", "Folder", "publish"]

log = logging.getLogger("sage.gateway")

WRITE_BYTES: Final = 256 * 1024
_ID: Final = re.compile(r"file-[0-9a-f]{16}")
_OURS: Final = re.compile(rf"{_ID.pattern}|\.{_ID.pattern}\..+")  # a file, or a draft of one


class Folder:
    """Files of this process, mode 0600. `fs` makes them; a test gives one that fails."""

    def __init__(self, path: Path, fs: FileSystem | None = None) -> None:
        self.path = path
        self.fs = fs or FileSystem()
        path.mkdir(mode=0o700, exist_ok=True)

    def file(self, ident: str) -> Path:
        """Where the bytes of a file are. `ident` was made here, never by a client."""
        assert _ID.fullmatch(ident), ident
        return self.path / ident

    def draft(self) -> Draft:
        """A file that is being written; `async with` it."""
        return Draft(self)

    def remove(self, *idents: str) -> None:
        """Delete bytes that nothing knows any more."""
        for ident in idents:
            self.file(ident).unlink(missing_ok=True)

    def sweep(self, known: Collection[str]) -> None:
        """Delete what a crash left: drafts, and files of which nothing is known. What is not ours stays."""
        for path in self.path.iterdir():
            if path.name in known:
                continue
            if _OURS.fullmatch(path.name) and not path.is_dir():
                path.unlink()
            else:
                log.warning("%s is none of the gateway's files, and is left alone", path)


class Draft:
    """Bytes on their way into a file. Unless `publish` has come to its end, nothing of it stays."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._fs = folder.fs
        self.id = new_id("file")
        self.size = 0
        self.kept = False
        self._fd = -1
        self._temporary: Path | None = None
        self._waiting: list[bytes] = []
        self._held = 0

    async def __aenter__(self) -> Self:
        with _stored():
            self._fd, self._temporary = self._fs.create(self._folder.file(self.id))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._fd)
        if self._temporary is not None:
            self._temporary.unlink(missing_ok=True)
        if not self.kept:
            self._folder.remove(self.id)

    async def write(self, data: bytes) -> None:
        """Append. Raises SageError if the disk does not take it."""
        self._waiting.append(data)
        self._held += len(data)
        self.size += len(data)
        if self._held >= WRITE_BYTES:
            await self._flush()

    async def seal(self) -> None:
        """Return once the bytes are on the disk under the file's name."""
        await self._flush()
        await _ended(asyncio.ensure_future(asyncio.to_thread(self._seal)))

    async def _flush(self) -> None:
        data, self._waiting, self._held = b"".join(self._waiting), [], 0
        await _ended(asyncio.ensure_future(asyncio.to_thread(self._write, data)))

    def _write(self, data: bytes) -> None:
        with _stored():
            self._fs.write(self._fd, data)

    def _seal(self) -> None:
        assert self._temporary is not None
        with _stored():
            self._fs.sync(self._fd)
            self._fs.rename(self._temporary, self._folder.file(self.id))
            self._temporary = None
            self._fs.sync_folder(self._folder.path)


async def publish(drafts: Sequence[Draft], commit: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Seal the drafts, then make them known by `commit`: they stay if that succeeds.

    Whoever is cancelled meanwhile waits for its end, as that decides about the files.
    """
    for draft in drafts:
        await draft.seal()
    task = asyncio.ensure_future(commit())
    try:
        await _ended(task)
    finally:
        kept = not task.cancelled() and task.exception() is None
        for draft in drafts:
            draft.kept = kept


async def _ended(task: asyncio.Future[None]) -> None:
    """Await it. If that is cancelled, the task still runs to its end first."""
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise


@contextlib.contextmanager
def _stored() -> Iterator[None]:
    """Say what a disk that fails means for the client; what it is goes to the log."""
    try:
        yield
    except OSError as error:
        log.error("a file could not be stored: %s", error)
        raise SageError("The gateway could not store the file.", hint="Its log says why.") from error
