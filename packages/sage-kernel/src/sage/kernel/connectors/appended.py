"""A file that grows by an epoch at a time, each as a whole."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sage.common.errors import BadRequestError, ConflictError, NotFoundError

__all__ = ["AppendedFile", "sync_folder", "write_all"]


class AppendedFile(ABC):
    """A `Transactional` sink; a reader of the file finds only what is committed.

    The first commit puts a new file in the place of an old one, whole; later ones append to it. A run
    without checkpoints commits once, when it has succeeded. An epoch is written beside the file, as
    `.NAME.EPOCH.part`. One run at a time writes a file.
    """

    def __init__(self, path: Path) -> None:
        self.kept: dict[str, Any] = {}  # what the encoding needs to go on: plain data
        self._path = path
        self._length = 0  # of what was prepared
        self._records = 0
        self._epoch = 0  # of the open part, 0 while there is none
        self._part = -1
        self._size = 0
        self._starts: dict[int, int] = {}  # of epochs that are prepared and not committed

    @abstractmethod
    def encode(self, items: Sequence[Any], *, first: int) -> bytes:
        """What these records are in the file; `first`: the number of the first of them, 0 in a new file."""
        ...

    def setup(self) -> None:
        """The folder must exist."""
        folder = self._path.parent
        if not folder.is_dir():
            raise NotFoundError(
                f"folder {str(folder)!r}, where {self._path.name!r} would go, does not exist."
            )

    async def write(self, epoch: int, items: Sequence[Any]) -> None:
        """Append a batch to the part of this epoch."""
        data = self.encode(items, first=self._records)
        self._open(epoch)
        write_all(self._part, data)
        self._size += len(data)
        self._records += len(items)

    async def prepare(self, epoch: int) -> dict[str, Any]:
        """The part is on disk: {"length": of the file once it is committed, "records": in it, "kept"}."""
        self._open(epoch)
        part, self._part, self._epoch = self._part, -1, 0
        self._starts[epoch] = self._length
        self._length += self._size
        self._size = 0
        await asyncio.to_thread(_finish, part, self._path.parent)
        return {"length": self._length, "records": self._records, "kept": self.kept}

    async def commit(self, epoch: int) -> None:
        """Put the part in its place."""
        if epoch not in self._starts:
            await self.prepare(epoch)
        await asyncio.to_thread(self._publish, self._hidden(epoch), self._starts.pop(epoch))

    async def recover(self, epoch: int, prepared: Any) -> None:
        """Remove the parts of later epochs, append that of this one, cut off what is behind it."""
        for number, part in self._parts().items():
            if number > epoch:
                part.unlink()
        if epoch:
            self._length, self._records = prepared["length"], prepared["records"]
            self.kept = prepared["kept"]
            part = self._hidden(epoch)
            if part.exists():
                self._publish(part, self._length - part.stat().st_size)
            self._cut(self._length)

    def close(self) -> None:
        """Remove what was written and not prepared."""
        if self._epoch:
            os.close(self._part)
            self._hidden(self._epoch).unlink(missing_ok=True)
            self._epoch = 0

    def _open(self, epoch: int) -> None:
        if self._epoch == epoch:
            return
        if self._epoch:
            raise BadRequestError(f"epoch {epoch} is written while epoch {self._epoch} is not prepared.")
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        self._part, self._epoch = os.open(self._hidden(epoch), flags, 0o666), epoch

    def _hidden(self, epoch: int) -> Path:
        return self._path.with_name(f".{self._path.name}.{epoch}.part")

    def _parts(self) -> dict[int, Path]:
        """The parts that are there, by their epochs."""
        pattern = re.compile(rf"\.{re.escape(self._path.name)}\.(\d+)\.part")
        found = ((pattern.fullmatch(path.name), path) for path in self._path.parent.iterdir())
        return {int(match[1]): path for match, path in found if match}

    def _publish(self, part: Path, start: int) -> None:
        """Make the part what follows the first `start` bytes; done again, it changes nothing."""
        if start == 0:
            os.replace(part, self._path)
        else:
            self._cut(start)
            with part.open("rb") as source, self._path.open("ab") as target:
                shutil.copyfileobj(source, target, 1 << 20)
                target.flush()
                os.fsync(target.fileno())
            part.unlink()
        sync_folder(self._path.parent)

    def _cut(self, length: int) -> None:
        size = self._path.stat().st_size if self._path.exists() else -1
        if size < length:
            found = f"has {size} bytes" if size >= 0 else "is gone"
            raise ConflictError(
                f"file {str(self._path)!r} {found}; the checkpoint was taken when it had {length}.",
                hint="Put it back as it was, or begin anew.",
            )
        if size > length:
            os.truncate(self._path, length)


def write_all(file: int, data: bytes) -> None:
    """Write all of `data`, in as many calls as that takes."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(file, rest) :]


def sync_folder(folder: Path) -> None:
    """The names in this folder are on disk."""
    file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def _finish(part: int, folder: Path) -> None:
    try:
        os.fsync(part)
    finally:
        os.close(part)
    sync_folder(folder)
