"""A service's log file: rotated at start, and its last line as the reason of a failure."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["last_line", "open_log"]

_MAX_BYTES = 10 * 1024 * 1024
_KEPT = 3
_TAIL = 16 * 1024


def open_log(path: Path, *, max_bytes: int = _MAX_BYTES) -> int:
    """Open for appending (0600), after moving a file over `max_bytes` to `.1`, `.1` to `.2`, and so on."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if path.exists() and path.stat().st_size > max_bytes:
        for number in range(_KEPT, 0, -1):
            older = _numbered(path, number)
            newer = path if number == 1 else _numbered(path, number - 1)
            if newer.exists():
                newer.replace(older)
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)


def last_line(path: Path, since: int = 0) -> str:
    """The last line with something in it that was written after offset `since`; empty if there is none."""
    try:
        with path.open("rb") as log:
            size = log.seek(0, os.SEEK_END)
            log.seek(max(since, size - _TAIL))
            lines = log.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def _numbered(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}.{number}")
