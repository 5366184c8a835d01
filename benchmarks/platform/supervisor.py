"""How long a service is gone after `kill -9`, and how fast it can print through the guard into its log.

    .venv/bin/python benchmarks/platform/supervisor.py [--rounds N]

Restarts are measured from the signal to the state `ready`, with no backoff; the bare start of a Python stands
beside them. Writes `supervisor.json` beside itself.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from sage.common.ports import find_free
from sage.platform.service import RestartPolicy, ServiceSpec, ServiceStatus, Supervisor
from sage.platform.testing import scripted_service

HERE = Path(__file__).resolve().parent
AT_ONCE = RestartPolicy(first=0.0, factor=1.0, cap=0.0, window=1.0)
NAP = (sys.executable, "-I", "-S", "-c", "import signal; signal.pause()")
PRINT = """
import os, sys, time
block = (b"x" * (int(sys.argv[1]) - 1) + b"\\n") * int(sys.argv[2])
end = time.perf_counter() + 2
count, begin = 0, time.perf_counter()
while time.perf_counter() < end:
    count += os.write(1, block)
os.write(1, b"%.1f\\n" % (count / (time.perf_counter() - begin) / 1e6))
"""


class Watched:
    """A supervisor, and a wait for a state."""

    def __init__(self) -> None:
        self._changed = asyncio.Event()
        self.last: ServiceStatus | None = None
        self.supervisor = Supervisor(self._record, restarts=AT_ONCE)

    def _record(self, status: ServiceStatus) -> None:
        self.last = status
        self._changed.set()

    async def until(self, state: str, restarts: int) -> ServiceStatus:
        while self.last is None or (self.last.state, self.last.restarts) != (state, restarts):
            self._changed.clear()
            await self._changed.wait()
        return self.last


async def restarts(spec: ServiceSpec, rounds: int) -> dict[str, float]:
    """Milliseconds from `kill -9` to ready."""
    watched = Watched()
    await watched.supervisor.start(spec)
    took = []
    for number in range(rounds + 1):
        begin = time.perf_counter()
        status = await watched.until("ready", number)
        took.append((time.perf_counter() - begin) * 1000)
        os.kill(status.pid or 0, signal.SIGKILL)
    await watched.supervisor.close()
    return _spread(took[1:])


async def printing(folder: Path, line: int, lines: int) -> dict[str, float]:
    """Megabytes a second that the service gets rid of, by its own clock."""
    rates = []
    for _ in range(3):
        watched = Watched()
        argv = (sys.executable, "-c", PRINT, str(line), str(lines))
        await watched.supervisor.start(ServiceSpec("p", argv, "", folder / "p.log", max_restarts=0))
        await watched.until("failed", 0)
        rates.append(float((folder / "p.log").read_text().splitlines()[-1]))
        await watched.supervisor.close()
    return _spread(rates)


def bare_start(rounds: int) -> dict[str, float]:
    """Milliseconds to start and end a Python that does nothing."""
    took = []
    for _ in range(rounds):
        begin = time.perf_counter()
        subprocess.run([*NAP[:3], "-c", "pass"], check=True)
        took.append((time.perf_counter() - begin) * 1000)
    return _spread(took)


def _spread(values: list[float]) -> dict[str, float]:
    rounded = {"median": statistics.median(values), "min": min(values), "max": max(values)}
    return {name: round(value, 1) for name, value in rounded.items()}


async def measure(rounds: int) -> dict[str, object]:
    with tempfile.TemporaryDirectory(dir=HERE) as name:
        folder = Path(name)
        port = find_free((20000, 29999))
        url = f"http://127.0.0.1:{port}/health"
        bare = ServiceSpec("a", NAP, "", folder / "a.log", max_restarts=100_000)
        probed = replace(bare, argv=scripted_service(port), probe_url=url)
        return {
            "machine": {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count()},
            "python": platform.python_version(),
            "rounds": rounds,
            "bare_start_ms": bare_start(rounds),
            "restart_ms": {
                "without_probe": await restarts(bare, rounds),
                "with_probe": await restarts(probed, rounds),
            },
            "log_mb_per_s": {
                "lines_of_100_bytes_by_64_kib": await printing(folder, 100, 655),
                "lines_of_100_bytes_one_by_one": await printing(folder, 100, 1),
            },
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    result = asyncio.run(measure(parser.parse_args().rounds))
    text = json.dumps(result, indent=2)
    (HERE / "supervisor.json").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
