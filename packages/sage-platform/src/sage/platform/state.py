"""The state directory: one owner process, private files, writes that are whole or not there."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from sage.common.errors import ConflictError, ForbiddenError, NotFoundError, SageError, UsageError

__all__ = ["FileSystem", "StateDirectory", "explain", "owner_of", "read_secret", "write_atomic"]

_LOCK = "owner.lock"
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def explain(error: OSError, path: Path) -> SageError:
    """A failed write as one clear sentence."""
    if error.errno in _FULL:
        return SageError(
            f"No space left to write {path} ({error.strerror}).", hint="Make room and try again."
        )
    return SageError(f"Cannot write {path}: {error.strerror}.")


class FileSystem:
    """The calls by which a file is replaced. A test injects one that fails, or that forgets as disks do."""

    def create(self, target: Path) -> tuple[int, Path]:
        """A new private file in the folder of `target`: descriptor and path."""
        fd, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
        return fd, Path(name)

    def write(self, fd: int, data: bytes) -> None:
        """Write all of it."""
        left = memoryview(data)
        while left:
            left = left[os.write(fd, left) :]

    def sync(self, fd: int) -> None:
        """Return when what was written to the file is on the disk."""
        os.fsync(fd)

    def rename(self, source: Path, target: Path) -> None:
        """Give it the name of `target`, in one step."""
        source.replace(target)

    def sync_folder(self, path: Path) -> None:
        """Return when the names in this folder are on the disk."""
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


_SYSTEM = FileSystem()


def write_atomic(path: Path, data: bytes, mode: int = 0o600, *, fs: FileSystem = _SYSTEM) -> None:
    """Write all of `data` so that `path` holds the old bytes or the new ones, also after a power cut.

    Temporary file, fsync, rename, fsync of the directory. Raises SageError; then `path` holds the old bytes,
    except if the last of the four failed: then the new ones, which a power cut could take back.
    """
    try:
        temporary = _write_beside(path, data, mode, fs)
        try:
            fs.rename(temporary, path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        fs.sync_folder(path.parent)
    except OSError as error:
        raise explain(error, path) from error


def read_secret(path: Path) -> str:
    """What `path` holds, if it is a plain file that only its owner, this user, can read.

    Raises NotFoundError, or ForbiddenError with the command that repairs it.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError as error:
        raise NotFoundError(f"There is no secret at {path}.") from error
    except OSError as error:
        raise ForbiddenError(f"Cannot read the secret {path}: {error.strerror}.") from error
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode):
        os.close(fd)
        raise ForbiddenError(f"The secret {path} is not a plain file.")
    with os.fdopen(fd, encoding="utf-8") as file:
        if found.st_uid != os.geteuid():
            raise ForbiddenError(f"The secret {path} belongs to user {found.st_uid}, not to {os.geteuid()}.")
        if found.st_mode & 0o077:
            raise ForbiddenError(
                f"Others can read the secret {path} (mode {found.st_mode & 0o777:04o}; valid is 0600).",
                hint=f"Run `chmod 600 {path}`, or delete it to get a new one.",
            )
        return file.read().strip()


def owner_of(path: Path) -> int | None:
    """The process that owns this state directory at the moment. Only looks: nothing is made or locked."""
    try:
        with (path / _LOCK).open() as file:
            text, inode = file.read(32).strip(), os.fstat(file.fileno()).st_ino
        locks = Path("/proc/locks").read_text().splitlines()
    except OSError:
        return None
    # "1: FLOCK  ADVISORY  WRITE 7021 fe:00:131116 0 EOF". The pid in the file may be that of a dead one.
    fields = [line.split() for line in locks if " FLOCK " in line and "->" not in line]
    held = {(words[4], words[5].rpartition(":")[2]) for words in fields}
    return int(text) if (text, str(inode)) in held else None


class StateDirectory:
    """A directory (0700) that one process owns at a time.

    `with StateDirectory(path): …` acquires and releases. The lock goes with the process, however it ends.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: int | None = None

    def acquire(self) -> None:
        """Become the owner. Raises ConflictError that names the process which is."""
        if self._lock is not None:
            return
        lock_file = self.path / _LOCK
        try:
            _make_private(self.path)
            fd = os.open(lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise explain(error, lock_file) from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(fd, 32, 0).decode(errors="replace").strip() or "unknown"
            os.close(fd)
            raise ConflictError(
                f"The state directory {self.path} is in use by process {holder}.",
                hint="Stop it (`sage down`), or set SAGE_HOME to another folder.",
            ) from error
        try:
            os.ftruncate(fd, 0)
            os.pwrite(fd, str(os.getpid()).encode(), 0)
        except OSError as error:
            os.close(fd)
            raise explain(error, lock_file) from error
        self._lock = fd

    def release(self) -> None:
        """Give it up; nothing happens if it is not held."""
        if self._lock is not None:
            with contextlib.suppress(OSError):
                os.ftruncate(self._lock, 0)
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def secret(self, path: Path, make: Callable[[], str]) -> str:
        """The secret at `path` (below this directory), made at first use: 0600, never half written."""
        target = self._inside(path)
        try:
            return read_secret(target)
        except NotFoundError:
            pass
        try:
            _make_private(target.parent)
            temporary = _write_beside(target, make().encode() + b"\n", 0o600, _SYSTEM)
            # A link, not a rename: of two processes that come at once, the second must read the first's.
            try:
                with contextlib.suppress(FileExistsError):
                    os.link(temporary, target)
            finally:
                temporary.unlink()
            _SYSTEM.sync_folder(target.parent)
        except OSError as error:
            raise explain(error, target) from error
        return read_secret(target)

    def write_atomic(self, path: Path, data: bytes, mode: int = 0o600) -> None:
        """`write_atomic` below this directory; missing folders are made (0700)."""
        target = self._inside(path)
        try:
            _make_private(target.parent)
        except OSError as error:
            raise explain(error, target) from error
        write_atomic(target, data, mode)

    def _inside(self, path: Path) -> Path:
        root = self.path.resolve()
        target = root / path
        if not target.parent.resolve().is_relative_to(root):
            raise UsageError(f"{path} is not below the state directory {self.path}.")
        return target


def _make_private(path: Path) -> None:
    """Make the folder and what is missing above it, 0700; an existing folder keeps its mode."""
    if not path.is_dir():
        _make_private(path.parent)
        with contextlib.suppress(FileExistsError):
            path.mkdir(mode=0o700)


def _write_beside(path: Path, data: bytes, mode: int, fs: FileSystem) -> Path:
    """A synced temporary file in the folder of `path`; removed if the write fails."""
    fd, temporary = fs.create(path)
    try:
        fs.write(fd, data)
        os.fchmod(fd, mode)
        fs.sync(fd)
    except OSError:
        temporary.unlink()
        raise
    finally:
        os.close(fd)
    return temporary
