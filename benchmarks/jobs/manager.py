"""What a job costs beside its work, and how soon a lost process is noticed; real processes.

Run: python benchmarks/jobs/manager.py [--jobs N] [--rounds N] [--json FILE]
README.md beside it says what the figures mean.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import resource
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import psutil

from sage.common.jobs import JobInfo, JobSpec
from sage.common.paths import SagePaths
from sage.kernel import Flow
from sage.kernel.jobs import JobManager, JobOptions
from sage.kernel.scheduler import Node

HERE = Path(__file__).resolve()


def idle() -> Flow:
    """A source that gives a record a second."""

    async def seconds() -> AsyncIterator[float]:
        while True:
            yield time.time()
            await asyncio.sleep(1)

    flow = Flow("idle")
    flow.source(seconds, name="seconds").sink(bytes_of, name="out")
    return flow


def bytes_of(record: float) -> bytes:
    """A sink."""
    return str(record).encode()


async def until(jobs: JobManager, which: str, true: Callable[[JobInfo], bool]) -> JobInfo:
    """The job once that is true of it."""
    async for found in jobs.watch(which):
        if true(found):
            return found
    raise SystemExit(f"{jobs.get(which)}")


async def running(jobs: JobManager, which: str, restarts: int = 0) -> JobInfo:
    """The job once it runs, after so many restarts."""
    return await until(jobs, which, lambda job: job.state == "running" and job.restarts >= restarts)


def cpu(*, children: bool = False) -> float:
    """Seconds of CPU time of this process, or of its children that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN if children else resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


async def lives(jobs: JobManager, count: int) -> dict[str, Any]:
    """Submit, run and pause `count` jobs, one after the other."""
    submits, starts, pauses, sizes = [], [], [], []
    before, ours = cpu(children=True), cpu()
    for number in range(count):
        began = time.perf_counter()
        job = await jobs.submit(JobSpec(flow="manager:idle", name=f"idle-{number}", restart="fixed:9:0"))
        submits.append(time.perf_counter() - began)
        found = await running(jobs, job.id)
        starts.append(time.perf_counter() - began - submits[-1])
        sizes.append(psutil.Process(found.pid).memory_full_info().uss / 2**20)
        began = time.perf_counter()
        await jobs.pause(job.id)
        await until(jobs, job.id, lambda one: one.state == "paused")
        pauses.append(time.perf_counter() - began)
    spent = (cpu(children=True) - before, cpu() - ours)
    return {
        "submit_s": median(submits),
        "start_s": median(starts),
        "pause_s": median(pauses),
        "process_mib": median(sizes),
        "cpu_s_per_job": {"its two processes": spent[0] / count, "manager": spent[1] / count},
    }


async def losses(jobs: JobManager, which: str, rounds: int, number: int) -> dict[str, float]:
    """From the signal to the moment at which it is known, and at which the job runs again; the worst."""
    known, again = [], []
    await jobs.resume(which)
    for _ in range(rounds):
        found = await running(jobs, which, jobs.get(which).restarts)
        assert found.pid is not None
        began = time.perf_counter()
        os.kill(found.pid, number)
        await until(jobs, which, lambda one, seen=found.restarts: one.restarts > seen)  # type: ignore[misc]
        known.append(time.perf_counter() - began)
        await running(jobs, which, found.restarts + 1)
        again.append(time.perf_counter() - began)
    await jobs.stop(which, now=True)
    return {"known_s_max": max(known), "runs_again_s_max": max(again)}


async def quiet(jobs: JobManager, names: list[str], seconds: float) -> dict[str, float]:
    """CPU time of the manager and of each process while nothing but signs of life goes on."""
    for name in names:
        await jobs.resume(name)
    pids = [(await running(jobs, name)).pid for name in names]
    processes = [psutil.Process(pid) for pid in pids]
    before, ours = [sum(one.cpu_times()[:2]) for one in processes], cpu()
    await asyncio.sleep(seconds)
    after = [sum(one.cpu_times()[:2]) for one in processes]
    spent = sum(after) - sum(before)
    return {
        "jobs": len(names),
        "manager_cpu_ms_per_job_s": 1000 * (cpu() - ours) / seconds / len(names),
        "process_cpu_ms_per_s": 1000 * spent / seconds / len(names),
    }


async def measure(folder: Path, count: int, rounds: int) -> dict[str, Any]:
    """All of it."""
    options = JobOptions(code=("manager:idle",), path=(HERE.parent,))
    paths = SagePaths(folder, folder, folder)
    async with await JobManager.open(paths, [Node("here", cpus=64, memory=1 << 40)], options) as jobs:
        jobs.start()
        return {
            "lives": await lives(jobs, count),
            "SIGKILL": await losses(jobs, "idle-0", rounds, signal.SIGKILL),
            "SIGSTOP": await losses(jobs, "idle-1", rounds, signal.SIGSTOP),
            "at_rest": await quiet(jobs, [f"idle-{n}" for n in range(2, count)], 20.0),
        }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with TemporaryDirectory() as folder:
        found = asyncio.run(measure(Path(folder), options.jobs, options.rounds))
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    head = {
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}",
        "commit": commit.stdout.strip(),
        "load": os.getloadavg()[0],
    }
    text = json.dumps({**head, **found}, indent=1)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
