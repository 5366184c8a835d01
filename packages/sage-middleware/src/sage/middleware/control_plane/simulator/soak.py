"""Thousands of small random scenarios, every invariant after every step.

`python -m sage.middleware.control_plane.simulator.soak --seeds 0..9999 --policy hybrid`
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import traceback
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial

from sage.middleware.control_plane.policy import available_policies
from sage.middleware.control_plane.simulator.scenarios import random_scenario
from sage.middleware.control_plane.simulator.world import simulate

__all__ = ["SeedReport", "main", "replay_command", "run_seed"]

CHUNK = 50  # seeds that a process takes at a time


@dataclass(frozen=True, slots=True)
class SeedReport:
    """What became of one seed: how much was simulated, and what went wrong (empty = nothing)."""

    seed: int
    policy: str
    requests: int
    events: int
    problem: str


def run_seed(seed: int, policies: Sequence[str]) -> SeedReport:
    """Run the scenario of a seed under the policy whose turn it is. Whatever is raised is a problem."""
    policy = policies[seed % len(policies)]
    scenario = random_scenario(seed)
    try:
        result = simulate(
            policy,
            scenario.fleet,
            scenario.workload,
            seed=seed,
            faults=scenario.faults,
            options=scenario.options,
            check=True,
        )
    except Exception:
        return SeedReport(seed, policy, 0, 0, traceback.format_exc(limit=-6))
    return SeedReport(seed, policy, len(result.requests), result.events, "")


def replay_command(report: SeedReport) -> str:
    """The one command that runs a seed again."""
    return f"python -m {__spec__.name} --seeds {report.seed} --policy {report.policy}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the seeds; 0 when every invariant held in all of them."""
    parser = argparse.ArgumentParser(
        prog="soak", description="Random SIMULATED scenarios, all invariants checked."
    )
    parser.add_argument("--seeds", default="0..999", help="FIRST..LAST, both included, or one seed")
    parser.add_argument("--policy", default="all", help="a policy, or `all`: each seed takes the next one")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    options = parser.parse_args(arguments)
    first, _, last = options.seeds.partition("..")
    try:
        seeds = range(int(first), int(last or first) + 1)
    except ValueError:
        parser.error(f"--seeds: found {options.seeds!r}, valid is a seed or FIRST..LAST")
    known = available_policies()
    if options.policy not in ("all", *known):
        parser.error(f"--policy: found {options.policy!r}, valid are all, {', '.join(known)}")
    return _run(seeds, known if options.policy == "all" else [options.policy], max(1, options.jobs))


def _run(seeds: range, policies: list[str], jobs: int) -> int:
    started = time.perf_counter()
    run = partial(run_seed, policies=policies)
    if jobs == 1 or len(seeds) <= CHUNK:
        reports = [run(seed) for seed in seeds]
    else:
        with ProcessPoolExecutor(jobs) as pool:
            reports = list(pool.map(run, seeds, chunksize=CHUNK))
    failed = [report for report in reports if report.problem]
    for report in failed[:5]:
        print(f"{report.problem.rstrip()}\nreplay: {replay_command(report)}\n")
    seconds = time.perf_counter() - started
    print(
        f"SIMULATED {len(reports)} seeds, {sum(report.requests for report in reports)} requests, "
        f"{sum(report.events for report in reports)} events in {seconds:.1f} s over {jobs} processes: "
        f"{len(failed)} failed{' ' + str([report.seed for report in failed[:20]]) if failed else ''}"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
