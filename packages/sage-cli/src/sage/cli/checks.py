"""What `sage doctor` looks at. Each check reports what it found; one that fails also says what to do."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from sage.common.errors import SageError
from sage.common.paths import SagePaths
from sage.common.ports import SagePorts, is_free
from sage.middleware.stack import read_run
from sage.platform.nodes import inventory

__all__ = ["Check", "run_checks"]

_GIB = 2**30
_DISK_MIN = 2 * _GIB
_PRIVATE = 0o077


@dataclass(frozen=True, slots=True)
class Check:
    """One result. `warn`: works, but not as well as it could."""

    name: str
    state: Literal["ok", "warn", "fail"]
    found: str
    hint: str = ""

    def to_dict(self) -> dict[str, str]:
        """For JSON."""
        return asdict(self)


def run_checks(paths: SagePaths) -> list[Check]:
    """All of them, in the order in which they matter."""
    node = inventory(paths.state)
    return [
        _python(),
        _native(),
        Check("cpu", "ok", f"{len(node.cpus)} cores"),
        Check(
            "memory", "ok", f"{node.memory_available / _GIB:.1f} of {node.memory_total / _GIB:.1f} GiB free"
        ),
        Check("gpu", "ok", ", ".join(gpu.name for gpu in node.gpus) or node.gpu_note),
        _disk(node.disk_free, paths.state),
        *_engines(),
        *_state(paths),
        _stack(paths),
        *_ports(paths),
        _orphans(paths),
    ]


def _python() -> Check:
    version = ".".join(map(str, sys.version_info[:3]))
    return Check("python", "ok", f"{version} ({sys.executable})")


def _native() -> Check:
    if os.environ.get("SAGE_NATIVE") == "0":
        return Check("native", "warn", "NumPy, as SAGE_NATIVE=0 asks", "Unset SAGE_NATIVE for the fast one.")
    if find_spec("sage.middleware._native") is None:
        return Check("native", "fail", "not built", "Install sage-middleware again, with a C++20 compiler.")
    return Check("native", "ok", "built")


def _disk(free: int, where: Path) -> Check:
    found = f"{free / _GIB:.1f} GiB free for {where}"
    if free < _DISK_MIN:
        return Check("disk", "warn", found, "Free at least 2 GiB: models and logs need room.")
    return Check("disk", "ok", found)


def _engines() -> Iterator[Check]:
    for kind, module, extra in (
        ("transformers", "transformers", "cpu"),
        ("embedding", "sentence_transformers", "cpu"),
        ("vllm", "vllm", "vllm"),
    ):
        if find_spec(module):
            yield Check(f"engine {kind}", "ok", "installed")
        else:
            hint = f"To use it here: pip install 'sage-stack[{extra}]'."
            yield Check(f"engine {kind}", "ok" if kind == "vllm" else "warn", "not installed", hint)


def _state(paths: SagePaths) -> Iterator[Check]:
    if not paths.state.exists():
        yield Check("state", "ok", f"{paths.state} will be made at first start")
        return
    for path in (paths.state, paths.default_key_file, paths.admin_token_file):
        if not path.exists():
            continue
        status = path.stat()
        mode = status.st_mode & 0o777
        if status.st_uid != os.geteuid():
            yield Check(
                "state", "fail", f"{path} belongs to user {status.st_uid}", "Set SAGE_HOME to your own."
            )
        elif mode & _PRIVATE:
            wanted = "700" if path.is_dir() else "600"
            yield Check("state", "fail", f"{path} has mode {mode:o}", f"Run: chmod {wanted} {path}")
        else:
            yield Check("state", "ok", f"{path} (mode {mode:o})")


def _stack(paths: SagePaths) -> Check:
    try:
        run = read_run(paths)
    except SageError as exc:
        state: Literal["ok", "warn"] = "warn" if paths.run_file.exists() else "ok"
        return Check("stack", state, exc.message, exc.hint)
    return Check("stack", "ok", f"running at {run.base_url} (pid {run.pid})")


def _ports(paths: SagePaths) -> Iterator[Check]:
    try:
        run = read_run(paths)
    except SageError:
        ours = ""
    else:
        ours = f"{run.base_url} {run.admin_url} {run.health_url} "
    usual = SagePorts()
    for name, port in (("gateway", usual.gateway), ("health", usual.health), ("admin", usual.admin)):
        if f":{port}/" in ours or f":{port} " in ours:
            yield Check(f"port {name}", "ok", f"{port}, used by this stack")
        elif is_free(port):
            yield Check(f"port {name}", "ok", f"{port} is free")
        else:
            yield Check(f"port {name}", "warn", f"{port} is in use", "`sage up` then takes another free one.")


def _orphans(paths: SagePaths) -> Check:
    """Serving processes of this state directory that no run.json speaks of."""
    import psutil

    try:
        known = read_run(paths).pid
    except SageError:
        known = -1
    found = []
    for process in psutil.process_iter(["pid", "cmdline", "status"]):
        argv = process.info["cmdline"] or []
        serves = "sage.gateway" in argv and str(paths.state) in argv
        if serves and process.info["pid"] != known and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(str(process.info["pid"]))
    if found:
        pids = " ".join(found)
        return Check("orphans", "fail", f"serving processes without a run.json: {pids}", f"Run: kill {pids}")
    return Check("orphans", "ok", "none")
