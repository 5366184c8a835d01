"""Is this machine and this state directory fit for a stack; and the repair of what a dead one left."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from sage.common.errors import SageError
from sage.common.paths import SagePaths
from sage.platform.nodes import Node, Utilisation, inventory, utilisation
from sage.platform.orphans import end_orphans, find_orphans
from sage.platform.runs import forget_stale, recorded_run
from sage.platform.state import owner_of

__all__ = ["Finding", "examine", "repair", "sqlite_finding"]

_GIB = 2**30
_DISK_MIN = 2 * _GIB
_PRIVATE = 0o077
# The WAL-reset bug: two connections at a checkpoint can corrupt the database. Fixed in 3.51.3.
_UNSAFE_SQLITE = ((3, 7, 0), (3, 51, 2))


@dataclass(frozen=True, slots=True)
class Finding:
    """One result. `warn`: works, but not as well as it could."""

    name: str
    state: Literal["ok", "warn", "fail"]
    found: str
    hint: str = ""

    def to_dict(self) -> dict[str, str]:
        """For JSON."""
        return asdict(self)


def examine(paths: SagePaths) -> list[Finding]:
    """All of it, in the order in which it matters. Changes nothing."""
    return [
        *_node(paths.state),
        _sqlite(),
        *_private(paths),
        _owner(paths),
        _orphans(paths),
    ]


def repair(paths: SagePaths) -> list[str]:
    """End orphans, then remove the record of a stack that is gone; what was done, a line each."""
    done = list(end_orphans(find_orphans(paths.state, _known(paths))))
    try:
        if forget_stale(paths):
            done.append(f"removed {paths.run_file}, which spoke of a process that is gone")
    except SageError as error:
        done.append(f"left {paths.run_file} as it is: {error}")
    return done


def sqlite_finding(version: str) -> Finding:
    """Whether this version of SQLite keeps what it has acknowledged."""
    first, last = _UNSAFE_SQLITE
    if first <= tuple(map(int, version.split("."))) <= last:
        spoken = " to ".join(".".join(map(str, bound)) for bound in _UNSAFE_SQLITE)
        found = f"{version}, which can corrupt a database in WAL mode ({spoken})"
        return Finding("sqlite", "warn", found, "Run: pip install --upgrade apsw")
    return Finding("sqlite", "ok", f"{version} (in apsw)")


def _sqlite() -> Finding:
    try:
        import apsw
    except ImportError:
        return Finding("sqlite", "fail", "apsw is not installed", "Install sage-platform again.")
    return sqlite_finding(apsw.sqlite_lib_version())


def _node(state: Path) -> Iterator[Finding]:
    try:
        node = inventory(state)
    except SageError as error:  # labels of the environment that are none
        yield Finding("node", "fail", error.message, error.hint)
        return
    now = utilisation(node)
    free, total = node.memory_available / _GIB, node.memory_total / _GIB
    yield Finding("cpu", "ok", f"{len(node.cpus)} cores, {_cores(now)}")
    yield Finding("memory", "ok", f"{free:.1f} of {total:.1f} GiB free")
    yield Finding("gpu", "ok", ", ".join(gpu.name for gpu in node.gpus) or node.gpu_note)
    found = f"{node.disk_free / _GIB:.1f} GiB free for {state}"
    if node.disk_free < _DISK_MIN:
        yield Finding("disk", "warn", found, "Free at least 2 GiB: models and logs need room.")
    else:
        yield Finding("disk", "ok", found)
    yield Finding("node", "ok", _in_words(node, now))


def _cores(now: Utilisation) -> str:
    return "busy " + " ".join(f"{percent:.0f}%" for percent in now.cores.values())


def _in_words(node: Node, now: Utilisation) -> str:
    parts = [f"{key}={value}" for key, value in node.labels.items()]
    parts.append("load " + " ".join(f"{load:.2f}" for load in now.load))
    for use in now.gpus:
        percent = "?" if use.percent is None else f"{use.percent:.0f}"
        memory = f"{use.memory_used / _GIB:.1f} of {use.memory_total / _GIB:.1f} GiB"
        parts.append(f"gpu {use.index} {percent}% and {memory} used")
    return ", ".join(parts)


def _private(paths: SagePaths) -> Iterator[Finding]:
    if not paths.state.exists():
        yield Finding("state", "ok", f"{paths.state} will be made at first start")
        return
    secrets = (paths.default_key_file, paths.admin_token_file, paths.pepper_file, paths.gateway_database)
    for path in (paths.state, *secrets):
        if not path.exists():
            continue
        status = path.stat()
        mode = status.st_mode & 0o777
        if status.st_uid != os.geteuid():
            found = f"{path} belongs to user {status.st_uid}"
            yield Finding("state", "fail", found, "Set SAGE_HOME to your own.")
        elif mode & _PRIVATE:
            wanted = "700" if path.is_dir() else "600"
            yield Finding("state", "fail", f"{path} has mode {mode:o}", f"Run: chmod {wanted} {path}")
        else:
            yield Finding("state", "ok", f"{path} (mode {mode:o})")


def _owner(paths: SagePaths) -> Finding:
    owner = owner_of(paths.state)
    if owner is None:
        return Finding("owner", "ok", f"no process owns {paths.state}")
    if owner == _known(paths):
        return Finding("owner", "ok", f"process {owner}, the running stack")
    found = f"process {owner}, of which no run.json speaks"
    return Finding("owner", "warn", found, f"If it is not just starting or stopping, run: kill {owner}")


def _orphans(paths: SagePaths) -> Finding:
    orphans = find_orphans(paths.state, _known(paths))
    if not orphans:
        return Finding("orphans", "ok", "none")
    found = "; ".join(f"process {orphan.pid} {orphan.why}" for orphan in orphans)
    pids = " ".join(str(orphan.pid) for orphan in orphans)
    return Finding("orphans", "fail", found, f"Run: sage doctor --fix, or: kill {pids}")


def _known(paths: SagePaths) -> int | None:
    try:
        run = recorded_run(paths)
    except SageError:
        return None
    return run.pid if run else None
