"""A service's log file: opened, and what was written to it since, as the reason of a failure."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

__all__ = ["LogMark", "Rotation", "open_log"]

_TAIL = 16 * 1024


@dataclass(frozen=True, slots=True)
class Rotation:
    """A log of about `max_bytes` at most, and `keep` older ones, the newest of them ending in `.1`."""

    max_bytes: int = 10 * 1024 * 1024
    keep: int = 3


def open_log(path: Path, rotation: Rotation | None = None) -> int:
    """Open for appending (0600), after moving a file that is full to `.1`, `.1` to `.2`, and so on."""
    rule = rotation or Rotation()
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if path.exists() and path.stat().st_size > rule.max_bytes:
        for number in range(rule.keep, 0, -1):
            newer = path if number == 1 else _numbered(path, number - 1)
            if newer.exists():
                newer.replace(_numbered(path, number))
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)


@dataclass(frozen=True, slots=True)
class LogMark:
    """A place in a log. What was written since is found, also when the file was changed for a new one."""

    path: Path
    inode: int
    offset: int

    @classmethod
    def now(cls, path: Path) -> LogMark:
        """The end of the log as it is; its beginning if there is none yet."""
        try:
            found = path.stat()
        except OSError:
            return cls(path, 0, 0)
        return cls(path, found.st_ino, found.st_size)

    def text(self) -> str:
        """What was written since to the file that is in place, at most its last 16 KiB."""
        try:
            with self.path.open("rb") as log:
                same = os.fstat(log.fileno()).st_ino == self.inode
                size = log.seek(0, os.SEEK_END)
                log.seek(max(self.offset if same and self.offset <= size else 0, size - _TAIL))
                return log.read().decode(errors="replace")
        except OSError:
            return ""

    def last_line(self) -> str:
        """The last line since that has something in it; empty if there is none."""
        lines = (line.strip() for line in reversed(self.text().splitlines()))
        return next(filter(None, lines), "")


def _numbered(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}.{number}")
