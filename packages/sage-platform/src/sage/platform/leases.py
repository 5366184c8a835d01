"""Ports that SAGE's processes on one machine never give out twice.

A free port is free only until somebody binds it, and a service that restarts frees its own for a moment. A
lease closes both gaps between processes of one user: it is a lock of the kernel on a file for each port, so
it ends with the process that holds it, however that ends. Programs that know nothing of leases are seen by
trying to bind.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

from sage.common.errors import ConflictError, ForbiddenError, UsageError
from sage.common.ports import LOOPBACK, is_free
from sage.platform.state import explain

__all__ = ["PortLease", "lease_folder", "lease_port"]


class PortLease:
    """One port that is ours until `release`, the end of the `with` block or of this process."""

    def __init__(self, port: int, lock: int) -> None:
        self.port = port
        self._lock: int | None = lock

    def release(self) -> None:
        """Give it up; nothing happens if that was done."""
        if self._lock is not None:
            with contextlib.suppress(OSError):
                os.ftruncate(self._lock, 0)
            # Not only close: a child that was forked meanwhile holds the same lock.
            fcntl.flock(self._lock, fcntl.LOCK_UN)
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def lease_folder() -> Path:
    """Where this user's leases are: below `XDG_RUNTIME_DIR`, else below the folder for temporary files."""
    given = os.environ.get("XDG_RUNTIME_DIR")
    base = Path(given) / "sage" if given else Path(tempfile.gettempdir()) / f"sage-{os.geteuid()}"
    return base / "ports"


def lease_port(span: tuple[int, int] | int, *, host: str = LOOPBACK, folder: Path | None = None) -> PortLease:
    """Lease the lowest port of an inclusive range, or this very port, that nobody leases or listens on.

    Raises ConflictError that says who has it when there is none.
    """
    low, high = (span, span) if isinstance(span, int) else span
    if not 1 <= low <= high <= 65535:
        raise UsageError(f"The ports {low} to {high} are no range; valid are 1 to 65535, low to high.")
    where = folder or lease_folder()
    _make(where)
    holders: list[str] = []
    for port in range(low, high + 1):
        lease = _try(where / str(port), port, holders)
        if lease is None:
            continue
        if is_free(port, host):
            return lease
        lease.release()
    leased = f"; {len(holders)} leased by process {', '.join(dict.fromkeys(holders))}" if holders else ""
    what = f"Port {low} is in use" if isinstance(span, int) else f"No free port between {low} and {high}"
    raise ConflictError(
        f"{what} on {host}{leased}.",
        hint="Stop what listens there, or set another range under `ports:` in sage.yaml.",
    )


def _try(file: Path, port: int, holders: list[str]) -> PortLease | None:
    try:
        fd = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise explain(error, file) from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holders.append(os.pread(fd, 32, 0).decode(errors="replace").strip() or "unknown")
        os.close(fd)
        return None
    with contextlib.suppress(OSError):  # a full disk: then the holder is unknown, and holds it all the same
        os.ftruncate(fd, 0)
        os.pwrite(fd, str(os.getpid()).encode(), 0)
    return PortLease(port, fd)


def _make(folder: Path) -> None:
    """The folder, 0700 and ours: another user who could write there could take all ports."""
    for part in (folder.parent, folder):
        try:
            with contextlib.suppress(FileExistsError):
                part.mkdir(mode=0o700, parents=True)
            found = part.lstat()
        except OSError as error:
            raise explain(error, part) from error
        ours = stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()
        if not ours or found.st_mode & 0o022:
            raise ForbiddenError(
                f"{part} is not a folder of user {os.geteuid()} alone, so ports cannot be leased there.",
                hint="Remove it, or set XDG_RUNTIME_DIR to a folder of your own.",
            )
