"""Which state directories this process owns, counted: several databases of one process may share a folder."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from sage.common.errors import ConflictError
from sage.platform.state import StateDirectory, owner_of

__all__ = ["own", "release"]

_lock = threading.Lock()
_held: dict[Path, tuple[StateDirectory, int]] = {}


def own(folder: Path) -> None:
    """Become the owner of the folder, once more. Raises ConflictError that names the process which is."""
    folder = folder.absolute()
    with _lock:
        state, count = _held.get(folder, (StateDirectory(folder), 0))
        if not count:
            # A StateDirectory that this process holds itself, say the gateway's, covers its databases too.
            try:
                state.acquire()
            except ConflictError:
                if owner_of(folder) != os.getpid():
                    raise
        _held[folder] = (state, count + 1)


def release(folder: Path) -> None:
    """Give it up once."""
    folder = folder.absolute()
    with _lock:
        state, count = _held.pop(folder)
        if count > 1:
            _held[folder] = (state, count - 1)
        else:
            state.release()
