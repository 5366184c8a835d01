"""Flows of requests with checkpoints, for tests: calls that are held back, and jobs that are cut off."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

from sage.common.errors import UnavailableError
from sage.kernel import Checkpoints, Flow, Job, LocalEnvironment


class Calls:
    """An async function that counts its calls; it holds those back whose input is in `stuck`."""

    def __init__(self, *stuck: Any) -> None:
        self.made: Counter[Any] = Counter()
        self.stuck = set(stuck)
        self.reached = asyncio.Event()

    async def __call__(self, item: Any) -> Any:
        self.made[item] += 1
        if item in self.stuck:
            self.reached.set()
            await asyncio.Event().wait()
        return item


def service(build: Any, name: str = "service") -> Flow:
    flow = Flow(name)
    flow.reply(build(flow.requests(object)))
    return flow


async def submit(folder: Path, flow: Flow, **options: Any) -> Job:
    checkpoints = options.pop("checkpoints", None) or Checkpoints(folder / "checkpoints", every=0)
    return await LocalEnvironment(checkpoints=checkpoints, **options).submit(flow)


async def cut(job: Job, *asking: asyncio.Task[Any]) -> None:
    """End it as a crash does; whoever asked is told so."""
    await job.stop(drain=False)
    for error in await asyncio.gather(*asking, return_exceptions=True):
        assert isinstance(error, UnavailableError)


async def unanswered(folder: Path, ident: str = "") -> Flow:
    """A flow that has a request for 1 in its folder which was cut off, and would hold it back again."""
    calls = Calls(1)
    flow = service(lambda s: s.map(calls))
    job = await submit(folder, flow)
    asking = asyncio.create_task(job.request(1, id=ident))
    await calls.reached.wait()
    await cut(job, asking)
    return flow


def numbered(count: int, item: Any) -> tuple[int, tuple[Any, int]]:
    return count + 1, (item, count)
