"""Reading the log of a job while it is written."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import BinaryIO, Final

__all__ = ["read_log"]

_PIECE: Final = 64 * 1024
_TAIL: Final = 1024 * 1024
_PAUSE_S: Final = 0.1  # no event tells that a file has grown


async def read_log(path: Path, lines: int, more: Callable[[], bool] | None = None) -> AsyncIterator[bytes]:
    """The last `lines` lines; with `more`, what comes then too, as long as that says that there may be more.

    A log that was changed for a new one is read to its end first.
    """
    log = await asyncio.to_thread(_open, path)
    try:
        if log is not None:
            yield await asyncio.to_thread(_tail, log, lines)
        while more is not None:
            last = not more()
            while log is not None and (piece := await asyncio.to_thread(log.read, _PIECE)):
                yield piece
            fresh = await asyncio.to_thread(_replacement, log, path)
            if fresh is not None:
                log, former = fresh, log
                if former is not None:
                    former.close()
            elif last:
                return
            else:
                await asyncio.sleep(_PAUSE_S)
    finally:
        if log is not None:
            log.close()


def _open(path: Path) -> BinaryIO | None:
    try:
        return path.open("rb")
    except FileNotFoundError:
        return None


def _replacement(log: BinaryIO | None, path: Path) -> BinaryIO | None:
    """The log that is there now, if it is another one."""
    fresh = _open(path)
    if fresh is not None and log is not None and os.path.sameopenfile(fresh.fileno(), log.fileno()):
        fresh.close()
        return None
    return fresh


def _tail(log: BinaryIO, lines: int) -> bytes:
    """The last lines, of the last mebibyte; the position is behind them."""
    size = log.seek(0, os.SEEK_END)
    log.seek(max(0, size - _TAIL))
    found = log.read().splitlines(keepends=True)
    return b"".join(found[-lines:]) if lines else b""
