"""`FolderStore`: the files of checkpoints in a local folder."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from sage.common.errors import ConflictError, NotFoundError, UsageError
from sage.kernel.options import Checkpoints
from sage.kernel.ports import SnapshotStore
from sage.platform.state import FileSystem, StateDirectory, explain, owner_of

__all__ = ["FolderStore", "store_of"]

_BLOCK = 1 << 20
_LOCK = "owner.lock"
_HALF_WRITTEN = re.compile(r"\.[a-z]+-\d+m?\.")
"""What a temporary file begins with: a point, and the name of the file that it would have become."""


def store_of(options: Checkpoints) -> SnapshotStore:
    """Where the checkpoints are kept."""
    folder = options.folder
    return FolderStore(folder) if isinstance(folder, str | Path) else folder


class FolderStore:
    """`SnapshotStore` in a folder, made (0700) where it is missing; one process uses it at a time."""

    def __init__(self, folder: Path | str, *, fs: FileSystem | None = None) -> None:
        self.folder = Path(folder).absolute()
        self._state = StateDirectory(self.folder)
        self._fs = fs or FileSystem()
        self._appending: dict[str, int] = {}

    def open(self) -> None:
        """See `SnapshotStore.open`; what a killed process had half written is removed."""
        if owner_of(self.folder) == os.getpid():
            raise ConflictError(
                f"The folder of checkpoints {self.folder} is in use by a run of this process."
            )
        try:
            self._state.acquire()
        except ConflictError as error:
            owner = owner_of(self.folder) or "?"
            raise ConflictError(
                f"The folder of checkpoints {self.folder} is in use by process {owner}.",
                hint="Let that run end, or name another folder.",
            ) from error
        for path in self.folder.iterdir():
            if _HALF_WRITTEN.match(path.name):
                path.unlink(missing_ok=True)

    def write(self, name: str, parts: Iterable[bytes], /) -> None:
        """See `SnapshotStore.write`."""
        path = self._path(name)
        self._end_appending(name)
        try:
            fd, temporary = self._fs.create(path)
            try:
                for part in parts:
                    self._fs.write(fd, part)
                self._fs.sync(fd)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
            finally:
                os.close(fd)
            self._fs.rename(temporary, path)
            self._fs.sync_folder(self.folder)
        except OSError as error:
            raise explain(error, path) from error

    def append(self, name: str, data: bytes, /) -> None:
        """See `SnapshotStore.append`."""
        path = self._path(name)
        try:
            if name not in self._appending:
                if not path.exists():
                    self.write(name, ())
                self._appending[name] = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
            self._fs.write(self._appending[name], data)
            self._fs.sync(self._appending[name])
        except OSError as error:
            raise explain(error, path) from error

    def read(self, name: str, /) -> Iterator[bytes]:
        """See `SnapshotStore.read`."""
        try:
            with self._path(name).open("rb") as file:
                while block := file.read(_BLOCK):
                    yield block
        except FileNotFoundError as error:
            raise NotFoundError(f"There is no file {name!r} in {self.folder}.") from error

    def names(self) -> list[str]:
        """See `SnapshotStore.names`."""
        found = (path.name for path in self.folder.iterdir() if path.is_file())
        return sorted(name for name in found if name != _LOCK and not name.startswith("."))

    def remove(self, name: str, /) -> None:
        """See `SnapshotStore.remove`."""
        self._end_appending(name)
        self._path(name).unlink(missing_ok=True)

    def close(self) -> None:
        """See `SnapshotStore.close`."""
        for name in list(self._appending):
            self._end_appending(name)
        self._state.release()

    def _end_appending(self, name: str) -> None:
        fd = self._appending.pop(name, None)
        if fd is not None:
            os.close(fd)

    def _path(self, name: str) -> Path:
        if not name or "/" in name or name.startswith(".") or name == _LOCK:
            raise UsageError(f"{name!r} is no name of a file of checkpoints: no folders, no leading dot.")
        return self.folder / name
