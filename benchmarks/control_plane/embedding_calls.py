"""What a text costs the embedding server, by how many texts a call has: alone, and behind the gateway.

    .venv/bin/python benchmarks/control_plane/embedding_calls.py [--seconds S] [--rounds R]

MiniLM on the last core, client and gateway on the first; nothing else should run. Texts as in `joint.py`, up
to 160 characters. `direct`: clients that send calls of one size, back to back. `gateway`: four clients of 64
texts under `hybrid`, by the goal of single embeddings, which its cut follows. `library`: the bare
sentence-transformers, by its batch. Milliseconds per text, of the engine's CPU time and of wall time, the
median of rounds in which the cases take turns, as JSON. CPU time knows nothing of what the host of a virtual
machine takes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import psutil
from joint_engines import engine_configs, say, slos

from sage.benchmark.datasets import open_dataset
from sage.benchmark.environment import describe
from sage.common.config import ControlPlaneConfig, EngineConfig, PortsConfig, SageConfig
from sage.common.paths import SagePaths
from sage.common.ports import find_free
from sage.common.telemetry import BATCH_TEXTS
from sage.middleware import stack
from sage.middleware.admin import AdminClient
from sage.middleware.engines.embedding import KIND
from sage.middleware.engines.http import HttpPool
from sage.middleware.models import MINILM
from sage.middleware.testing.engines import RecordingSink
from sage.platform.service import Supervisor

DIRECT = {"1 x 1": (1, 1), "1 x 3": (1, 3), "1 x 4": (1, 4), "1 x 8": (1, 8), "1 x 64": (1, 64),
          "32 x 1": (32, 1), "4 x 64": (4, 64)}  # fmt: skip
GOALS_S = (0.15, 10.0)
LIBRARY = (1, 4, 16, 64)

Sample = dict[str, float]
Case = Callable[[float], Coroutine[Any, Any, Sample]]


class Bench:
    """The texts, and the cores."""

    def __init__(self) -> None:
        self.texts = [text[:160] for text in islice(open_dataset("generated_texts", None).items(), 4000)]
        self.rng = random.Random(0)
        cpus = sorted(os.sched_getaffinity(0))
        self.mine, self.engines = cpus[0], cpus[-1]

    def body(self, size: int) -> bytes:
        """One call."""
        return json.dumps({"model": MINILM, "input": self.rng.sample(self.texts, size)}).encode()

    async def load(self, pool: HttpPool, clients: int, size: int, seconds: float, key: str = "") -> int:
        """Texts answered by so many clients in so long; each waits for its answer."""
        headers = {"authorization": f"Bearer {key}"}
        until = time.perf_counter() + seconds
        answered = 0

        async def client() -> None:
            nonlocal answered
            while time.perf_counter() < until:
                sink = RecordingSink()
                await pool.request("POST", "/v1/embeddings", sink, body=self.body(size), headers=headers)
                if sink.status != 200:
                    raise RuntimeError(f"The server answered {sink.status}: {sink.body.decode()[:200]}")
                answered += size

        await asyncio.gather(*(client() for _ in range(clients)))
        return answered


async def counted(pid: int, work: Coroutine[Any, Any, int]) -> Sample:
    """Milliseconds per text of that process's CPU time, and of wall time."""
    process = psutil.Process(pid)
    before, begun = process.cpu_times(), time.perf_counter()
    texts = await work
    wall, after = time.perf_counter() - begun, process.cpu_times()
    cpu = after.user + after.system - before.user - before.system
    return {"cpu_ms": cpu / texts * 1e3, "wall_ms": wall / texts * 1e3, "texts_per_s": texts / wall}


@asynccontextmanager
async def direct(bench: Bench, config: EngineConfig) -> AsyncIterator[dict[str, Case]]:
    """The server alone."""
    port = find_free((8500, 8800))
    service = KIND.service(config, port, (bench.engines,))
    supervisor = Supervisor()
    await supervisor.start(service)
    pid = (await supervisor.wait_ready(service.name)).pid or 0
    pool = HttpPool(f"http://127.0.0.1:{port}")

    def case(clients: int, size: int) -> Case:
        return lambda seconds: counted(pid, bench.load(pool, clients, size, seconds))

    try:
        yield {f"direct {name}": case(*load) for name, load in DIRECT.items()}
    finally:
        pool.close()
        await supervisor.close()


@asynccontextmanager
async def gateway(
    bench: Bench, config: EngineConfig, folder: Path, goal_s: float
) -> AsyncIterator[dict[str, Case]]:
    """A stack of its own with that goal; everything of it but the engine on the first core."""
    paths = SagePaths(state=folder / "state", cache=SagePaths.default().cache, config=folder / "config")
    plane = ControlPlaneConfig(slos=slos({"chat_ttft_s": 0.5, "chat_tpot_s": 0.03, "embed_total_s": goal_s}))
    whole = SageConfig(
        ports=PortsConfig(gateway=0, health=0, admin=0),
        control_plane=plane,
        engines=(config.model_copy(update={"cores": 1}),),
    )
    run = await asyncio.to_thread(stack.start, whole, paths, on_progress=say)
    try:
        admin, key = stack.admin_client(paths), stack.client_key(paths)
        pid = admin.engines().engines[0].pid or 0
        confine(run.pid, bench.mine)
        confine(pid, bench.engines)
        pool = HttpPool(run.base_url.removesuffix("/v1"))

        async def case(seconds: float) -> Sample:
            before, plane_before = batches(admin), psutil.Process(run.pid).cpu_times()
            found = await counted(pid, bench.load(pool, 4, 64, seconds, key))
            after, plane_after = batches(admin), psutil.Process(run.pid).cpu_times()
            texts, calls = (b - a for a, b in zip(before, after, strict=True))
            spent = plane_after.user + plane_after.system - plane_before.user - plane_before.system
            return {**found, "texts_per_call": texts / calls, "gateway_cpu_ms": spent / texts * 1e3}

        yield {f"gateway, goal {goal_s} s": case}
        pool.close()
    finally:
        await asyncio.to_thread(stack.stop, paths, grace=10.0)


def confine(pid: int, core: int) -> None:
    """All threads of a process on one core."""
    for thread in psutil.Process(pid).threads():
        os.sched_setaffinity(thread.id, {core})


def batches(admin: AdminClient) -> tuple[float, float]:
    """Texts and calls that went to engines so far."""
    found = [metric for metric in admin.metrics().metrics if metric.name == BATCH_TEXTS.name]
    samples = [sample for metric in found for sample in metric.samples]
    return sum(one.sum or 0.0 for one in samples), float(sum(one.count or 0 for one in samples))


def library(bench: Bench, model: str) -> dict[str, Case]:
    """The bare library in a thread of this process, on the engines' core."""
    from sentence_transformers import SentenceTransformer

    loaded = SentenceTransformer(model, device="cpu")

    def encode(batch: int, seconds: float) -> Sample:
        os.sched_setaffinity(0, {bench.engines})
        import torch

        torch.set_num_threads(1)
        texts, begun, before = 0, time.perf_counter(), time.thread_time()
        while time.perf_counter() < begun + seconds:
            given = bench.rng.sample(bench.texts, max(batch, 64 // batch * batch))
            loaded.encode(given, batch_size=batch, show_progress_bar=False)
            texts += len(given)
        cpu, wall = time.thread_time() - before, time.perf_counter() - begun
        return {"cpu_ms": cpu / texts * 1e3, "wall_ms": wall / texts * 1e3, "texts_per_s": texts / wall}

    def case(batch: int) -> Case:
        return lambda seconds: asyncio.to_thread(encode, batch, seconds)

    return {f"library, batch {batch}": case(batch) for batch in LIBRARY}


async def run(seconds: float, rounds: int) -> dict[str, Any]:
    """All cases in turn, so many times."""
    bench = Bench()
    config = engine_configs(32)[1]
    samples: dict[str, list[Sample]] = {}
    async with AsyncExitStack() as held:
        folder = Path(held.enter_context(tempfile.TemporaryDirectory(prefix="sage-calls-")))
        cases = await held.enter_async_context(direct(bench, config))
        for goal in GOALS_S:
            cases |= await held.enter_async_context(gateway(bench, config, folder / str(goal), goal))
        cases |= library(bench, config.model)
        confine(os.getpid(), bench.mine)  # after what the others inherit from
        for case in cases.values():
            await case(0.5)
        for _ in range(rounds):
            for name, case in cases.items():
                samples.setdefault(name, []).append(await case(seconds))
                say(f"{name}: {samples[name][-1]}")
    return {name: median(found) for name, found in samples.items()}


def median(samples: list[Sample]) -> Sample:
    """Of each figure."""
    return {name: round(statistics.median(one[name] for one in samples), 2) for name in samples[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=2.0, help="of one case in one round")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    known = {**describe(), "seconds": options.seconds, "rounds": options.rounds}
    with stack.interruptible():
        found = asyncio.run(run(options.seconds, options.rounds))
    print(json.dumps({**known, "per_text": found}, indent=2))


if __name__ == "__main__":
    main()
