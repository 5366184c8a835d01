"""CPU time per item of SAGE and its peers, side by side in one run; peers that are missing are installed.

python benchmarks/dataflow/compare.py [--only TASK]… [--rounds N] [--out FILE]

Every measurement is a process of its own (`peers.py`). The engines take turns, round by round, so that all
meet the same machine; the least of the rounds counts.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import venv
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

HERE: Final = Path(__file__).parent
ENVIRONMENTS: Final = Path.home() / ".cache" / "sage-benchmarks"
QUIET: Final = {
    "HAMILTON_TELEMETRY_ENABLED": "false",
    "HAYSTACK_TELEMETRY_ENABLED": "False",
    "LANGSMITH_TRACING": "false",
}
PACKAGES: Final = {
    "bytewax": ("bytewax", "0.21.1"),
    "Quix Streams": ("quixstreams", "3.28.1"),
    "Hamilton": ("sf-hamilton", "1.90.0"),
    "Haystack": ("haystack-ai", "3.4.1"),
    "LangGraph": ("langgraph", "1.2.24"),
}


@dataclass(frozen=True, slots=True)
class Task:
    """What is measured, of whom, over how many items."""

    name: str
    what: str
    items: dict[str, int]


TASKS: Final = (
    Task(
        "maps-64",
        "three maps and a sink, batch 64",
        {"SAGE": 400_000, "bytewax": 200_000, "Quix Streams": 200_000},
    ),
    Task("maps-1", "the same, batch 1", {"SAGE": 50_000, "bytewax": 30_000}),
    Task("fold", "three maps, a keyed fold (100 keys) and a sink", {"SAGE": 200_000, "bytewax": 60_000}),
    Task(
        "request",
        "request and reply through five operators",
        {"SAGE": 20_000, "Hamilton": 4_000, "Haystack": 1_500, "LangGraph": 500},
    ),
    Task(
        "durable",
        "the same, 64 at once, each kept: SAGE's on the disk, LangGraph's in memory",
        {"SAGE": 20_000, "LangGraph": 640},
    ),
    Task(
        "thread",
        "10 µs of work on two threads",
        {"SAGE": 20_000, "bytewax": 20_000, "concurrent.futures": 10_000},
    ),
    Task("process", "10 µs of work on two processes", {"SAGE": 200_000, "concurrent.futures": 200_000}),
)


def install(engine: str) -> Path:
    """The interpreter of a peer's environment, made if it is not there. Raises CalledProcessError."""
    package, release = PACKAGES[engine]
    home = ENVIRONMENTS / package
    python, ready = home / "bin" / "python", home / f".ready-{release}"
    if not ready.exists():
        print(f"installing {package} {release} into {home} …", flush=True)
        venv.create(home, with_pip=True, symlinks=True, clear=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", f"{package}=={release}"], check=True)
        ready.touch()
    return python


def interpreters(tasks: Sequence[Task]) -> dict[str, Path]:
    """Of every engine of the tasks that can be measured; what cannot is told."""
    found = dict.fromkeys(("SAGE", "concurrent.futures"), Path(sys.executable))
    for engine in (name for name in PACKAGES if any(name in task.items for task in tasks)):
        try:
            found[engine] = install(engine)
        except (subprocess.CalledProcessError, OSError) as error:
            print(f"NOT RUN: {engine} does not install here: {error}", flush=True)
    return found


def measure(python: Path, engine: str, task: str, items: int) -> float:
    """Microseconds of CPU time per item, of its process and the children of that."""
    done = subprocess.run(
        [python, HERE / "peers.py", engine, task, str(items)],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
        env={**os.environ, **QUIET},
    )
    used: float = json.loads(done.stdout.splitlines()[-1])["cpu"]
    return used / items * 1e6


def compare(
    tasks: Sequence[Task], pythons: dict[str, Path], rounds: int
) -> dict[str, dict[str, list[float]]]:
    """Of each task and engine what each round took."""
    found: dict[str, dict[str, list[float]]] = {task.name: {} for task in tasks}
    for number in range(rounds):
        for task in tasks:
            for engine, items in task.items.items():
                if engine not in pythons:
                    continue
                try:
                    used = measure(pythons[engine], engine, task.name, items)
                except subprocess.SubprocessError as error:
                    said = str(getattr(error, "stderr", "") or error).strip().splitlines()[-1:]
                    print(f"NOT RUN: {task.name} on {engine}: {' '.join(said)}", flush=True)
                    del pythons[engine]
                    continue
                found[task.name].setdefault(engine, []).append(round(used, 3))
                print(f"round {number + 1}: {task.name:<8} {engine:<20} {used:10.3f} µs", flush=True)
    return found


def table(tasks: Sequence[Task], found: dict[str, dict[str, list[float]]]) -> str:
    """Markdown: the least of the rounds, and how many times as much as ours it is."""
    lines = ["| what | engine | µs of CPU per item | times SAGE |", "|---|---|---|---|"]
    for task in tasks:
        ours = min(found[task.name].get("SAGE", [float("nan")]))
        for engine, rounds in found[task.name].items():
            ratio = f"{min(rounds) / ours:.1f}" if engine != "SAGE" else ""
            lines.append(f"| {task.what} | {engine} | {min(rounds):.2f} | {ratio} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=HERE / "compare.json")
    parser.add_argument("--only", action="append", choices=[task.name for task in TASKS])
    options = parser.parse_args()
    tasks = [task for task in TASKS if not options.only or task.name in options.only]
    pythons = interpreters(tasks)
    found = compare(tasks, pythons, options.rounds)
    machine = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
    record: dict[str, Any] = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine,
        "load": [round(load, 1) for load in os.getloadavg()],
        "versions": {
            "SAGE": version("sage-kernel"),
            **{name: found for name, (_, found) in PACKAGES.items() if name in pythons},
        },
        "unit": "µs of CPU time (user and system, children too) per item, each round",
        "tasks": {task.name: {"what": task.what, "engines": found[task.name]} for task in tasks},
    }
    options.out.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    print(table(tasks, found))


if __name__ == "__main__":
    main()
