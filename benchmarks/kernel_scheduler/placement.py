"""Node selection on a SIMULATED cluster, by policy: time per decision, what is used, what is in pieces.

Run: python benchmarks/kernel_scheduler/placement.py [--nodes N] [--units N] [--policies a,b] [--json FILE]
README.md beside it says what the figures mean. CPU time; the garbage collector is on.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from random import Random
from statistics import quantiles
from typing import Any

from sage.kernel.scheduler import (
    Placement,
    Policy,
    Queue,
    Snapshot,
    Unit,
    available_policies,
    load_policy,
    select,
)
from sage.kernel.testing.cluster import synthetic_nodes, synthetic_units


def decide(
    snapshot: Snapshot, unit: Unit, policy: Policy, times: list[float]
) -> tuple[Snapshot, Placement | None]:
    began = time.process_time_ns()
    decision = select(snapshot, unit, policy)
    placed = decision if isinstance(decision, Placement) else None
    if placed is not None:
        snapshot = snapshot.place(placed)
    times.append((time.process_time_ns() - began) / 1000)
    return snapshot, placed


def fill(
    snapshot: Snapshot, units: list[Unit], policy: Policy
) -> tuple[Snapshot, list[Placement], list[float]]:
    placed: list[Placement] = []
    times: list[float] = []
    for unit in units:
        snapshot, one = decide(snapshot, unit, policy, times)
        if one is not None:
            placed.append(one)
    return snapshot, placed, times


def churn(
    snapshot: Snapshot, placed: list[Placement], units: list[Unit], policy: Policy
) -> tuple[Snapshot, list[float], list[float]]:
    random, times, releases = Random(1), list[float](), list[float]()
    for unit in units:
        began = time.process_time_ns()
        at = random.randrange(len(placed))
        placed[at], placed[-1] = placed[-1], placed[at]
        snapshot = snapshot.release(placed.pop())
        releases.append((time.process_time_ns() - began) / 1000)
        snapshot, one = decide(snapshot, unit, policy, times)
        if one is not None:
            placed.append(one)
    return snapshot, times, releases


def spent(times: list[float]) -> dict[str, Any]:
    cuts = quantiles(times, n=100)
    mean = sum(times) / len(times)
    return {
        "decisions": len(times),
        "decisions_per_s": round(1e6 / mean),
        "mean_us": round(mean, 1),
        "p50_us": round(cuts[49], 1),
        "p99_us": round(cuts[98], 1),
    }


def used(snapshot: Snapshot) -> dict[str, Any]:
    """Shares of what there is. In pieces: of the free GPU capacity the part that is on devices in use."""
    states = list(snapshot)
    cores = sum(round(1000 * state.node.cpus) for state in states)
    memory = sum(state.node.memory for state in states)
    devices = [device for state in states for device in state.devices]
    free = sum(device.share for device in devices)
    pieces = sum(device.share for device in devices if device.share < 1000)
    return {
        "placed": sum(len(state.placed) for state in states),
        "nodes_empty": sum(not state.placed for state in states),
        "cpu_used": round(1 - sum(state.cpu for state in states) / cores, 4),
        "memory_used": round(1 - sum(state.memory for state in states) / memory, 4),
        "gpu_used": round(1 - free / (1000 * len(devices)), 4),
        "gpu_free_in_pieces": round(pieces / free, 4) if free else 0.0,
        "nodes_with_8_whole_free": sum(state.whole >= 8 for state in states),
        "devices_whole_free": sum(state.whole for state in states),
    }


def inflate(policy: Policy, nodes: int) -> dict[str, Any]:
    """Half of the units want GPUs; they come until they have asked for as much of them as there is."""
    snapshot = Snapshot(synthetic_nodes(nodes))
    capacity, asked, refused = sum(len(state.devices) for state in snapshot), 0.0, Counter[str]()
    for unit in synthetic_units(100 * nodes, seed=2, gpus=0.5, zoned=0.0):
        asked += unit.resources.gpu
        if asked > capacity:
            break
        decision = select(snapshot, unit, policy)
        if isinstance(decision, Placement):
            snapshot = snapshot.place(decision)
        else:
            refused[f"gpu {unit.resources.gpu:g}"] += 1
    return {"nodes": nodes, **used(snapshot), "refused": dict(sorted(refused.items()))}


def backlog(policy: Policy, nodes: int, events: int) -> dict[str, Any]:
    """A queue in which one job in ten is a group of eight and as many wait as there are nodes."""
    queue, random, times = Queue(policy, synthetic_nodes(nodes)), Random(3), list[float]()
    units = iter(synthetic_units(100 * nodes + 10 * events, seed=3, gpus=0.3))
    jobs = ([next(units)] if random.random() < 0.9 else _group(units) for _ in range(10**9))
    running: list[str] = []
    while len(queue.waiting) < nodes:
        running += [change.unit.id for change in queue.submit(*next(jobs))]
    for number in range(events):
        job, at = next(jobs), random.randrange(len(running))
        running[at], running[-1] = running[-1], running[at]
        began = time.process_time_ns()
        changes = queue.submit(*job) if number % 2 else queue.release(running.pop())
        times.append((time.process_time_ns() - began) / 1000)
        running += [change.unit.id for change in changes]
    return {"nodes": nodes, "waiting": len(queue.waiting), **spent(times)}


def _group(units: Iterator[Unit]) -> list[Unit]:
    first = next(units)
    return [replace(first, id=f"{first.id}.{member}", group=first.id) for member in range(8)]


def measure(name: str, nodes: int, count: int, churned: int) -> dict[str, Any]:
    policy, units = load_policy(name), synthetic_units(count + churned)
    snapshot, placed, times = fill(Snapshot(synthetic_nodes(nodes)), units[:count], policy)
    filled = spent(times) | used(snapshot)
    snapshot, times, releases = churn(snapshot, placed, units[count:], policy)
    return {
        "policy": name,
        "label": "SIMULATED",
        "nodes": nodes,
        "filled": filled,
        "churned": spent(times) | {"release_mean_us": round(sum(releases) / len(releases), 1)},
        "asked_for_all_gpus": inflate(policy, nodes // 5),
        "queue_events": backlog(policy, nodes // 5, churned // 5),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=5000)
    parser.add_argument("--units", type=int, default=100_000)
    parser.add_argument("--churn", type=int, default=10_000)
    parser.add_argument("--policies", default=",".join(available_policies()))
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    found = []
    for name in given.policies.split(","):
        found.append(measure(name, given.nodes, given.units, given.churn))
        print(json.dumps(found[-1]), flush=True)
    if given.json:
        commit = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True
        )
        head = {
            "date": time.strftime("%Y-%m-%d"),
            "commit": commit.stdout.strip(),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}",
            "python": platform.python_version(),
            "label": "SIMULATED cluster; CPU time of this process",
        }
        given.json.write_text(json.dumps({**head, "results": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
