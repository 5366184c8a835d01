"""Processes of a stack that is no more: found by what they carry, and ended."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sage.common.errors import SageError
from sage.platform.daemon import alive, terminate
from sage.platform.service.mark import MARK, Mark

if TYPE_CHECKING:
    import psutil

__all__ = ["Orphan", "end_orphans", "find_orphans"]

SERVING = "sage.gateway"  # the module that serves, as it stands in its command line
_SETTLED_S = 30.0  # a serving process younger than this may not have written its run.json yet
_GRACE_S = 10.0


@dataclass(frozen=True, slots=True)
class Orphan:
    """A process that nobody looks after. `why` says how that is known; `age` in seconds at time `seen`.

    `may_start` is true of a serving process so young that it may only be starting.
    """

    pid: int
    why: str
    seen: float
    age: float
    may_start: bool = False


def find_orphans(state: Path, known: int | None = None) -> list[Orphan]:
    """Those of this state directory. `known` is the serving process that its `run.json` speaks of.

    A service is one when the supervisor in its mark is gone; a serving process, when it is not `known`.
    Processes of other users, and of containers that can be seen from here, are left out.
    """
    import psutil  # imported here: the command line reads this module for its types

    found = []
    for process in psutil.process_iter(["cmdline", "status", "create_time"]):
        if process.info["status"] == psutil.STATUS_ZOMBIE or process.pid in (os.getpid(), known):
            continue
        orphan = _service(process, state) or _serving(process, state)
        if orphan is not None:
            found.append(orphan)
    return found


def end_orphans(orphans: Sequence[Orphan]) -> Iterator[str]:
    """SIGTERM, then SIGKILL; one line for each of what was done. One that may be starting is left."""
    for orphan in orphans:
        if orphan.may_start:
            yield f"left process {orphan.pid} alone: it is {orphan.age:.0f} s old and may be starting"
            continue
        try:
            how = "ended" if terminate(orphan.pid, _GRACE_S, orphan.seen) else "killed"
        except SageError as error:
            yield f"could not end process {orphan.pid}: {error}"
        else:
            yield f"{how} process {orphan.pid} ({orphan.why})"


def _service(process: psutil.Process, state: Path) -> Orphan | None:
    mark = _mark(process)
    if mark is None or not Path(mark.log).is_relative_to(state.absolute()) or alive(mark.supervisor, mark.at):
        return None
    why = f"of service {mark.name}, whose supervisor {mark.supervisor} is gone"
    return _orphan(process, why)


def _serving(process: psutil.Process, state: Path) -> Orphan | None:
    argv = process.info["cmdline"] or []
    if SERVING not in argv or str(state) not in argv:
        return None
    return _orphan(process, f"serves {state}, and no run.json speaks of it", settled=_SETTLED_S)


def _orphan(process: psutil.Process, why: str, settled: float = 0.0) -> Orphan:
    now = time.time()
    age = max(0.0, now - (process.info["create_time"] or now))
    return Orphan(process.pid, why, now, age, may_start=age < settled)


def _mark(process: psutil.Process) -> Mark | None:
    """What it carries, if it is ours and its numbers of processes are those that we see."""
    import psutil

    try:
        text = process.environ().get(MARK, "")
        same = not os.path.exists("/proc/self/ns/pid") or _space(process.pid) == _space(os.getpid())
    except (psutil.Error, OSError):
        return None
    return Mark.of(text) if text and same else None


def _space(pid: int) -> str:
    return os.readlink(f"/proc/{pid}/ns/pid")
