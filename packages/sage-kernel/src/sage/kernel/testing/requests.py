"""Flows of requests whose process is killed at random moments: what they answer, keep and pay for.

A recipe of `plans` as a service: the requests are its records, what comes out is the replies and goes to a
sink as well.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from sage.kernel import Environment, Flow, ReplyError
from sage.kernel.testing.plans import STEPS, Recipe, collected, diverting, expected, odd
from sage.kernel.testing.sinks import EpochFiles

__all__ = ["SERVED", "AskedCrashes", "ask", "random_service", "service", "survive_asked"]

SERVED = (
    "map",
    "filter",
    "threads",
    "async",
    "skip",
    "divert",
    "batch",
    "async-batch",
    "count",
    "kept-count",
    "loop",
    "gate",
    "cached",
)
"""The steps that a request can go through: those that make at most one record of one."""
READY = "serving"
AT_ONCE = 16


class AskedCrashes(NamedTuple):
    """How often it was killed, what its last life took up, and how many calls were paid twice."""

    kills: int
    taken_up: int
    paid_twice: int


class _Paying:
    """A call that leaves a line in a file when it is made: the life it was made in, and its input."""

    def __init__(self, file: Path, life: int) -> None:
        self._file = file
        self._life = life

    async def __call__(self, x: int) -> int:
        with self._file.open("a") as file:
            file.write(f"{self._life} {x}\n")
        await asyncio.sleep(0)
        return x


def random_service(random: Random, requests: int) -> Recipe:
    """A recipe for requests."""
    return Recipe(tuple(random.choice(SERVED) for _ in range(random.randrange(1, 6))), requests)


def service(recipe: Recipe, folder: Path, life: int = 0) -> Flow:
    """The flow of a recipe, behind a call that is paid for; see `plans.build` for its sinks."""
    flow = Flow("service")
    stream = flow.requests(int).map(_Paying(folder / "calls", life), concurrency=8, name="pay")
    for number, step in enumerate(recipe.steps):
        if step == "gate":  # with room for all: a request that finds none is refused
            stream = stream.gate(f"inbox {number}", when=odd, timeout=0.001, on_timeout="approve")
        else:
            stream = STEPS[step][0](stream)
        if step == "divert":
            diverting(stream, folder / "sinks", number)
    stream.sink(EpochFiles(folder / "sinks" / "out"), name="out")
    flow.reply(stream)
    return flow


async def ask(environment: Environment, flow: Flow, numbers: Iterable[int], ready: str = "") -> int:
    """Ask for these, some at a time, and print each with its reply; gives how many others were taken up."""
    job = await environment.submit(flow)
    room = asyncio.Semaphore(AT_ONCE)
    if ready:
        print(ready, flush=True)

    async def one(number: int) -> None:
        async with room:
            try:
                reply = await job.request(number, id=str(number))
            except ReplyError:
                reply = None
            print(json.dumps([number, reply]), flush=True)

    async with job:
        await asyncio.gather(*map(one, numbers))
    return job.taken_up


class _Told:
    """What was seen of the lives of a service so far."""

    def __init__(self) -> None:
        self.replies: dict[int, Any] = {}
        self.answered: dict[int, int] = {}  # in which life
        self.taken_up = 0

    def hear(self, life: int, lines: Iterable[str]) -> None:
        """Note what a life has printed; raises AssertionError for another reply than before."""
        for line in lines:
            if line[0] not in "[{" or not line.endswith("\n"):
                continue  # a log, or what it was killed at
            found = json.loads(line)
            if isinstance(found, dict):
                self.taken_up = found["taken_up"]
                continue
            number, reply = found
            first = self.replies.setdefault(number, reply)
            assert first == reply, f"{number}: {first}, then {reply}"
            self.answered.setdefault(number, life)


def survive_asked(
    recipe: Recipe, folder: Path, *, seed: int, kills: int, backend: str = "sage.kernel.testing.crash:local"
) -> AskedCrashes:
    """Serve it in processes that are killed, `kills` times at most; raises AssertionError if it differs.

    `backend` names a function that gives an environment with checkpoints in a folder.
    """
    random, told = Random(seed), _Told()  # noqa: S311  (not a secret)
    killed = life = 0
    while True:
        last = killed == kills
        # Some of those that were taken and not answered are not asked for again, until the end.
        begun = {n for _, n in _calls(folder)}
        open_ = (n for n in range(recipe.records) if n not in told.replies)
        asked = [n for n in open_ if last or n not in begun or n % 2 == 0]
        with _child(recipe, folder, backend, life, [*asked, *(told.replies if last else ())]) as child:
            assert child.stdout is not None
            first = child.stdout.readline().decode().strip()
            assert first == READY, first
            if not last:
                try:
                    child.wait(random.choice((0.02, 0.1, 0.3)) * random.random())
                except subprocess.TimeoutExpired:
                    child.send_signal(signal.SIGKILL)
            lines = child.stdout.read().decode().splitlines(keepends=True)
            code = child.wait()
        told.hear(life, lines)
        life += 1
        if code == -signal.SIGKILL:
            killed += 1
            continue
        assert code == 0, lines[-3:]
        if last:
            return AskedCrashes(killed, told.taken_up, _judge(recipe, folder, told, killed))
        kills = killed  # it was done before it could be killed


def _judge(recipe: Recipe, folder: Path, told: _Told, killed: int) -> int:
    """How many calls were paid twice. Raises AssertionError where it is not what it should be."""
    wanted = expected(recipe)
    found = {"out": Counter[int](), **collected(folder / "sinks")}
    for name, counts in wanted.items():
        assert found.get(name, Counter()) == counts, f"sink {name}: {found.get(name)}, not {counts}"
    given = Counter(reply for reply in told.replies.values() if reply is not None)
    assert given == wanted["out"], f"replies: {given - wanted['out']}, not {wanted['out'] - given}"
    assert len(told.replies) == recipe.records
    calls = _calls(folder)
    again = [(life, n) for life, n in calls if life > told.answered[n]]
    assert not again, f"requests that had been answered were computed again: (life, request) {again}"
    twice = len(calls) - len({n for _, n in calls})
    assert twice <= killed * AT_ONCE * 2, f"{twice} calls were paid twice in {killed} kills"
    return twice


def _calls(folder: Path) -> list[tuple[int, int]]:
    """The calls that were paid: in which life, and for which request."""
    file = folder / "calls"
    lines = file.read_text().splitlines() if file.exists() else []
    return [(int(life), int(n)) for life, n in map(str.split, lines)]


def _child(recipe: Recipe, folder: Path, backend: str, life: int, ask: list[int]) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "sage.kernel.testing.requests", "--run", json.dumps(asdict(recipe))]
    (folder / f"ask-{life}").write_text(json.dumps(ask))
    options = ["--in", str(folder), "--on", backend, "--life", str(life)]
    return subprocess.Popen([*command, *options], stdout=subprocess.PIPE)


def main() -> None:
    """One life of a service."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", required=True)
    parser.add_argument("--in", dest="folder", type=Path, required=True)
    parser.add_argument("--on", required=True)
    parser.add_argument("--life", type=int, required=True)
    options = parser.parse_args()
    found = json.loads(options.run)
    recipe = Recipe(**{**found, "steps": tuple(found["steps"])})
    module, _, name = options.on.partition(":")
    environment = getattr(import_module(module), name)(options.folder / "checkpoints")
    numbers = json.loads((options.folder / f"ask-{options.life}").read_text())
    flow = service(recipe, options.folder, options.life)
    taken_up = asyncio.run(ask(environment, flow, numbers, READY))
    print(json.dumps({"taken_up": taken_up}), flush=True)


if __name__ == "__main__":
    main()
