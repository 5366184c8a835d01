"""What `sage doctor` looks at. Each check reports what it found; one that fails also says what to do."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Literal

from sage.common.errors import SageError
from sage.common.paths import SagePaths
from sage.common.ports import SagePorts, is_free
from sage.platform.diagnosis import Finding, examine
from sage.platform.runs import read_run

__all__ = ["run_checks"]


def run_checks(paths: SagePaths) -> list[Finding]:
    """All of them: the installation, then the machine and the state directory, then what runs."""
    return [
        _python(),
        _native(),
        *_engines(),
        *examine(paths),
        _stack(paths),
        *_ports(paths),
    ]


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    return Finding("python", "ok", f"{version} ({sys.executable})")


def _native() -> Finding:
    if os.environ.get("SAGE_NATIVE") == "0":
        return Finding(
            "native", "warn", "Python and NumPy, as SAGE_NATIVE=0 asks", "Unset SAGE_NATIVE for the fast one."
        )
    if find_spec("sage.middleware._native") is None:
        return Finding("native", "fail", "not built", "Install sage-middleware again, with a C++20 compiler.")
    return Finding("native", "ok", "built")


def _engines() -> Iterator[Finding]:
    for kind, module, extra in (
        ("transformers", "transformers", "cpu"),
        ("embedding", "sentence_transformers", "cpu"),
        ("vllm", "vllm", "vllm"),
    ):
        if find_spec(module):
            yield Finding(f"engine {kind}", "ok", "installed")
        else:
            hint = f"To use it here: tools/setup {extra}, in the folder that SAGE was installed from."
            yield Finding(f"engine {kind}", "ok" if kind == "vllm" else "warn", "not installed", hint)


def _stack(paths: SagePaths) -> Finding:
    try:
        run = read_run(paths)
    except SageError as exc:
        state: Literal["ok", "warn"] = "warn" if paths.run_file.exists() else "ok"
        return Finding("stack", state, exc.message, exc.hint)
    return Finding("stack", "ok", f"running at {run.base_url} (pid {run.pid})")


def _ports(paths: SagePaths) -> Iterator[Finding]:
    try:
        run = read_run(paths)
    except SageError:
        ours = ""
    else:
        ours = f"{run.base_url} {run.admin_url} {run.health_url} "
    usual = SagePorts()
    for name, port in (("gateway", usual.gateway), ("health", usual.health), ("admin", usual.admin)):
        if f":{port}/" in ours or f":{port} " in ours:
            yield Finding(f"port {name}", "ok", f"{port}, used by this stack")
        elif is_free(port):
            yield Finding(f"port {name}", "ok", f"{port} is free")
        else:
            yield Finding(
                f"port {name}", "warn", f"{port} is in use", "`sage up` then takes another free one."
            )
