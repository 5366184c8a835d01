"""What is killed with SIGKILL at random moments, and gone on with, comes to what it should.

python -m sage.kernel.testing.crash --seconds 600
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from random import Random
from typing import Any

from sage.kernel import Checkpoints, LocalEnvironment
from sage.kernel.testing.plans import STEPS, Recipe, build, collected, expected
from sage.kernel.testing.requests import random_service, survive_asked

__all__ = ["Crashes", "local", "random_recipe", "survive"]

_TIMES = ("window", "session", "join")
READY = "running"


@dataclass(frozen=True, slots=True)
class Crashes:
    """How often a run was killed, and the epochs that it went on from."""

    kills: int
    resumed: tuple[int, ...]


def local(folder: Path) -> LocalEnvironment:
    """The local engine, with a checkpoint every few milliseconds."""
    return LocalEnvironment(batch=8, capacity=32, checkpoints=Checkpoints(folder, every=0.005))


def random_recipe(random: Random, records: int = 100) -> Recipe:
    """A plan that no order of records changes: counts come before times, and a join comes once."""
    steps: list[str] = []
    for _ in range(random.randrange(1, 6)):
        step = random.choice(sorted(STEPS))
        times = any(one in _TIMES for one in steps)
        if not (step in ("count", "kept-count") and times) and not (step == "join" and "join" in steps):
            steps.append(step)
    return Recipe(tuple(steps), records, random.choice((1, 2)))


def survive(
    recipe: Recipe, folder: Path, *, seed: int, kills: int, backend: str = "sage.kernel.testing.crash:local"
) -> Crashes:
    """Run it in processes that are killed, `kills` times at most; raises AssertionError if it differs.

    `backend` names a function that gives an environment with checkpoints in a folder.
    """
    random = Random(seed)  # noqa: S311  (not a secret)
    resumed: list[int] = []
    killed = 0
    while True:
        with _child(recipe, folder, backend) as child:
            assert child.stdout is not None
            line = child.stdout.readline().decode()
            assert line.strip() == READY, line
            if killed < kills:
                try:
                    child.wait(random.choice((0.01, 0.05, 0.2)) * random.random())
                except subprocess.TimeoutExpired:
                    child.send_signal(signal.SIGKILL)
            rest = child.stdout.read().decode()
            code = child.wait()
        if code == -signal.SIGKILL:
            killed += 1
            continue
        assert code == 0, rest
        resumed.append(json.loads(rest)["resumed"])
        break
    found = collected(folder / "sinks")
    for name, wanted in expected(recipe).items():
        assert found.get(name) == wanted, _differs(name, found.get(name, {}), wanted)
    return Crashes(killed, tuple(resumed))


def _differs(name: str, found: Any, wanted: Any) -> str:
    numbers = sorted({*found, *wanted})
    wrong = {n: (found.get(n, 0), wanted.get(n, 0)) for n in numbers if found.get(n, 0) != wanted.get(n, 0)}
    return f"{name}: value: (times found, times expected) {wrong}"


def _child(recipe: Recipe, folder: Path, backend: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "sage.kernel.testing.crash", "--run", json.dumps(asdict(recipe))]
    return subprocess.Popen([*command, "--in", str(folder), "--on", backend], stdout=subprocess.PIPE)


def _run(recipe: Recipe, folder: Path, backend: str) -> None:
    module, _, name = backend.partition(":")
    environment = getattr(import_module(module), name)(folder / "checkpoints")
    print(READY, flush=True)
    report = environment.run_sync(build(recipe, folder / "sinks"))
    print(json.dumps({"resumed": report.resumed}), flush=True)


def _rounds(seconds: float, seed: int) -> Iterator[int]:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        yield seed
        seed += 1


def main() -> None:
    """Random plans and services in turn, until the time is over; the first that differs ends it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--run", help=argparse.SUPPRESS)
    parser.add_argument("--in", dest="folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--on", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        found = json.loads(options.run)
        _run(Recipe(**{**found, "steps": tuple(found["steps"])}), options.folder, options.on)
        return
    kills = plans = resumed = services = taken_up = 0
    for seed in _rounds(options.seconds, options.seed):
        if seed % 2:
            recipe = random_service(Random(seed), requests=1000)  # noqa: S311
            with tempfile.TemporaryDirectory(prefix="sage-crash-") as folder:
                print(f"seed {seed}: requests of {recipe}", flush=True)
                asked = survive_asked(recipe, Path(folder), seed=seed, kills=8)
            services, kills, taken_up = services + 1, kills + asked.kills, taken_up + asked.taken_up
            continue
        recipe = random_recipe(Random(seed), records=2000)  # noqa: S311
        with tempfile.TemporaryDirectory(prefix="sage-crash-") as folder:
            print(f"seed {seed}: {recipe}", flush=True)
            crashes = survive(recipe, Path(folder), seed=seed, kills=8)
        kills, plans = kills + crashes.kills, plans + 1
        resumed += sum(epoch > 0 for epoch in crashes.resumed)
    print(f"{plans} plans, {services} services, {kills} kills: as they should")
    print(
        f"{resumed} plans went on from a checkpoint to their end; {taken_up} requests were taken up at last"
    )


if __name__ == "__main__":
    main()
