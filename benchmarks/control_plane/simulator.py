"""CPU time per simulated request, and the core's part of it, on the four LLM engines of `four_llms`.

Run: python benchmarks/control_plane/simulator.py [requests] [--json FILE] — one line of JSON per policy. The
core's part is that of a core alone which is fed the events of the same run; the rest is the simulated world.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import time
from pathlib import Path
from random import Random
from typing import Any

from sage.common.telemetry import RequestClass
from sage.middleware.control_plane.core import Core
from sage.middleware.control_plane.options import CoreOptions
from sage.middleware.control_plane.policy import PolicyOptions, load_policy
from sage.middleware.control_plane.simulator.fleet import load_fleet
from sage.middleware.control_plane.simulator.types import SimRequest
from sage.middleware.control_plane.simulator.world import simulate
from sage.middleware.control_plane.types import Event, Job
from sage.middleware.engines.port import Capability

POLICIES = ("fifo", "least_load", "hybrid")
RATE = 60.0  # requests per second, about half of what the four engines can serve
REPEATS = 5
CHAT = frozenset((Capability.CHAT,))


def workload(count: int) -> list[SimRequest]:
    """Poisson arrivals of streamed chats, exponential lengths of mean 400 and 120 tokens."""
    random, at, requests = Random(0), 0.0, []
    for number in range(count):
        at += random.expovariate(RATE)
        prompt, output = 1 + int(random.expovariate(1 / 400)), 1 + int(random.expovariate(1 / 120))
        job = Job(
            f"r{number}", "chat-8b", RequestClass.CHAT, "t", CHAT, 4 * prompt, prompt, 1024, stream=True
        )
        requests.append(SimRequest(at, job, output, prompt))
    return requests


def core_alone(policy: str, events: list[Event]) -> float:
    """Seconds of CPU that a core takes for these events, asked for its next wake after each."""
    options = CoreOptions(details_per_s=0.0)
    core = Core(load_policy(policy, PolicyOptions(seed=0, slos=options.slos)), options)
    began = time.process_time()
    for event in events:
        core.handle(event)
        core.next_wake()
    return time.process_time() - began


def measure(policy: str, count: int) -> dict[str, Any]:
    requests, fleet = workload(count), load_fleet("four_llms")
    events: list[Event] = []
    result = simulate(policy, fleet, requests, seed=0, trace=lambda event, _: events.append(event))
    runs, cores = [], []
    for _ in range(REPEATS):
        began = time.process_time()
        simulate(policy, fleet, requests, seed=0)
        runs.append(time.process_time() - began)
        cores.append(core_alone(policy, events))
    whole, core = min(runs) / count * 1e6, min(cores) / count * 1e6
    return {
        "policy": policy,
        "label": "SIMULATED",
        "requests": count,
        "done": sum(one.outcome == "done" for one in result.requests),
        "events": result.events,
        "us_per_request": round(whole, 1),
        "of_it_core_us": round(core, 1),
        "of_it_world_us": round(whole - core, 1),
        "requests_per_minute_and_core": round(60e6 / whole),
        "virtual_seconds_per_second": round(result.end_s / min(runs)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("requests", type=int, nargs="?", default=20_000)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    found = []
    for policy in POLICIES:
        found.append(measure(policy, arguments.requests))
        print(json.dumps(found[-1]), flush=True)
    if arguments.json:
        commit = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True
        )
        head = {
            "date": time.strftime("%Y-%m-%d"),
            "commit": commit.stdout.strip(),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}",
            "python": platform.python_version(),
            "repeats": f"the quickest of {REPEATS}, CPU time",
        }
        arguments.json.write_text(json.dumps({**head, "results": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
