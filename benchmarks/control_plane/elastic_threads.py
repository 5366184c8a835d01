"""What lending an idle core to the embedding server gives, and what it costs the LLM that owns the core.

Run: python benchmarks/control_plane/elastic_threads.py — prints JSON. Takes two minutes and two cores with
nothing else on them: a third process on either makes two threads wait for each other and the figures mean
nothing. `transformers serve` with a small random model has the first core, the embedding server with MiniLM
the second. The time between two tokens of one stream is the LLM's; a batch is 16 texts of about 80 tokens
in one request. "cpu_on_llm_core" is CPU time of the embedding server's threads that may run there, as a
share of the core.
"""

from __future__ import annotations

import asyncio
import json
import os
import platform
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from sage.common.config import EngineConfig
from sage.common.ports import find_free
from sage.middleware.engines.embedding import KIND as EMBEDDING
from sage.middleware.engines.port import Call, Engine, EngineKind, Route
from sage.middleware.engines.transformers import KIND as TRANSFORMERS
from sage.middleware.models import RANDOM, minilm_folder
from sage.platform.nodes import inventory
from sage.platform.service import Supervisor

SECONDS = 3.0
ROUNDS = 4
TOKENS = 3000
TEXT = "the engines of one device share a budget and lend each other what they do not need now " * 4


class Stamps:
    """A sink that notes when bytes came. Fits `Sink`."""

    full = False

    def __init__(self) -> None:
        self.times: list[float] = []

    def head(self, status: int, content_type: str) -> None:
        pass

    def data(self, _chunk: bytes) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        pass

    async def drain(self) -> None:
        pass


@asynccontextmanager
async def running(
    supervisor: Supervisor, kind: EngineKind, config: EngineConfig, core: int
) -> AsyncIterator[tuple[Engine, int]]:
    """One engine that owns one core: its connection and its process."""
    port = find_free((8500, 8800))
    service = kind.service(config, port, (core,))
    assert service is not None
    await supervisor.start(service)
    status = await supervisor.wait_ready(service.name)
    engine = kind.connect(config, f"http://127.0.0.1:{port}")
    assert status.pid is not None
    try:
        yield engine, status.pid
    finally:
        await engine.close()


async def generate(engine: Engine, seconds: float) -> list[float]:
    """Milliseconds between the tokens of one stream, for so long."""
    body = {"model": "llm", "max_tokens": TOKENS, "messages": [{"role": "user", "content": "go on"}]}
    gaps: list[float] = []
    until = time.perf_counter() + seconds
    while (left := until - time.perf_counter()) > 0:
        stamps = Stamps()
        call = Call("g", Route.CHAT, json.dumps({**body, "stream": True}).encode(), True, False)
        try:
            async with asyncio.timeout(left):
                await engine.send(call, stamps)
        except TimeoutError:
            pass
        gaps += [(b - a) * 1e3 for a, b in zip(stamps.times[1:], stamps.times[2:], strict=False)]
    return gaps


async def embed(engine: Engine, seconds: float, threads: int) -> list[float]:
    """Milliseconds of each batch, one after the other, for so long."""
    body = json.dumps({"model": "embed", "input": [f"{n} {TEXT}" for n in range(16)]}).encode()
    times: list[float] = []
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        began = time.perf_counter()
        await engine.send(Call("e", Route.EMBEDDINGS, body, False, False, threads), Stamps())
        times.append((time.perf_counter() - began) * 1e3)
    return times


def cpu_s_on(pid: int, core: int) -> float:
    """CPU seconds so far of the threads of a process that may run on this core."""
    total = 0
    for thread in Path(f"/proc/{pid}/task").iterdir():
        if core in os.sched_getaffinity(int(thread.name)):
            fields = (thread / "stat").read_text().rpartition(")")[2].split()
            total += int(fields[11]) + int(fields[12])
    return total / os.sysconf("SC_CLK_TCK")


def summary(values: list[float]) -> dict[str, float]:
    ordered = sorted(values)
    at99 = ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]
    found = {"best_ms": ordered[0], "p50_ms": statistics.median(values), "p99_ms": at99}
    return {"n": len(values), **{name: round(value, 2) for name, value in found.items()}}


async def measure(llm: Engine, server: Engine, pid: int, core: int) -> dict[str, Any]:
    """All arms in turn, again and again, so that what else the machine does meets each of them alike."""
    gaps: dict[str, list[float]] = defaultdict(list)
    batches: dict[str, list[float]] = defaultdict(list)
    lent: dict[str, float] = defaultdict(float)
    for turn in range(ROUNDS + 1):
        if turn == 1:  # each engine is warm now
            for figures in (gaps, batches):
                figures.clear()
            lent.clear()
        gaps["llm alone"] += await generate(llm, SECONDS)
        for threads in (1, 2):
            batches[f"{threads} thread(s), llm idle"] += await embed(server, SECONDS, threads)
        for threads in (1, 2):
            name = f"{threads} thread(s), llm busy"
            await embed(server, 0.1, threads)
            before = cpu_s_on(pid, core)
            both = await asyncio.gather(generate(llm, SECONDS), embed(server, SECONDS, threads))
            lent[name] += (cpu_s_on(pid, core) - before) / SECONDS / ROUNDS
            gaps[name] += both[0]
            batches[name] += both[1]
    arms: dict[str, Any] = defaultdict(dict)
    for what, found in (("token_gap", gaps), ("batch", batches)):
        for name, values in found.items():
            arms[name][what] = summary(values)
    for name, seconds in lent.items():
        arms[name]["cpu_on_llm_core"] = round(seconds, 3)
    return arms


async def main() -> None:
    """Measure and print."""
    first, second, *_ = inventory().cpus
    supervisor = Supervisor()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SAGE_HOME"] = folder
        llm = EngineConfig(name="llm", kind="transformers", model=RANDOM, served_as="llm")
        minilm = str(minilm_folder())
        texts = EngineConfig(name="embed", kind="embedding", model=minilm, served_as="embed", task="embed")
        try:
            async with (
                running(supervisor, TRANSFORMERS, llm, first) as (chat, _),
                running(supervisor, EMBEDDING, texts, second) as (server, pid),
            ):
                arms = await measure(chat, server, pid, first)
        finally:
            await supervisor.close()
    idle = [arms[f"{n} thread(s), llm idle"]["batch"] for n in (1, 2)]
    gain = {name: round(idle[0][name] / idle[1][name], 2) for name in ("best_ms", "p50_ms")}
    machine = {"cpu": platform.processor() or platform.machine(), "cores": len(inventory().cpus)}
    print(json.dumps({"machine": machine, "speed_up_idle": gain, "arms": arms}, indent=1))


if __name__ == "__main__":
    asyncio.run(main())
