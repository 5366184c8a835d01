"""The engines of `joint.py`: the same two for every arm, started the way each arm needs them."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from sage.benchmark.load import Target
from sage.common.config import (
    ControlPlaneConfig,
    EngineConfig,
    PortsConfig,
    SageConfig,
    SlosConfig,
)
from sage.common.paths import SagePaths
from sage.middleware import stack
from sage.middleware.admin import AdminClient
from sage.middleware.engines.registry import engine_kind
from sage.middleware.models import MINILM, RANDOM, minilm_folder, resolve
from sage.platform.leases import lease_port
from sage.platform.nodes import inventory, share_cores
from sage.platform.service import Supervisor

GATEWAY, LLM, EMBED = "gateway", "llm", "embed"


def engine_configs(max_running: int) -> tuple[EngineConfig, EngineConfig]:
    """The LLM of random weights and MiniLM, each with an even share of the cores."""
    found = resolve(RANDOM, SagePaths.default().cache)
    llm = EngineConfig(
        name="llm-0", kind="transformers", model=found.path_or_id, served_as=found.served_as,
        random_weights=True, max_running=max_running,
    )  # fmt: skip
    embed = EngineConfig(
        name="embed-0", kind="embedding", model=str(minilm_folder()), served_as=MINILM, task="embed",
        max_running=max_running,
    )  # fmt: skip
    return llm, embed


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds that a client waits: one that a user sits before, and one that ingests."""

    interactive: float
    bulk: float


@dataclass(slots=True)
class Pair:
    """Both engines and, where there is one, the gateway before them. `pids`: their processes by role."""

    targets: dict[str, Target]
    models: dict[str, str]  # what an arm that goes straight to the engines calls them
    pids: dict[str, int]
    admin: AdminClient | None = None
    served: dict[str, str] | None = None  # what the gateway calls them

    def pause(self, paused: bool) -> None:
        """Halt the engines, so that they cost nothing while other arms are measured."""
        for pid in self.pids.values():
            for process in tree(pid):
                process.send_signal(signal.SIGSTOP if paused else signal.SIGCONT)


def tree(pid: int) -> list[psutil.Process]:
    """A process and all below it."""
    try:
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


class Meter:
    """CPU seconds by role, counted from `start` to `stop`."""

    def __init__(self, pids: dict[str, int]) -> None:
        self._pids = pids
        self._before: dict[str, float] = {}
        self.cores: dict[str, float] = {}

    def start(self) -> None:
        """Begin to count."""
        self._before = self._spent()

    def stop(self, seconds: float) -> None:
        """Cores that were kept busy since `start`, which was `seconds` ago."""
        self.cores = {role: (now - self._before[role]) / seconds for role, now in self._spent().items()}

    def _spent(self) -> dict[str, float]:
        spent = {}
        engines = {process.pid for role in (LLM, EMBED) for process in tree(self._pids[role])}
        for role, pid in self._pids.items():
            # The gateway's process is the parent of the engines that it started.
            own = [p for p in tree(pid) if role != GATEWAY or p.pid not in engines]
            spent[role] = sum(_cpu(process) for process in own)
        return spent


def _cpu(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return float(times.user + times.system)


def straight(urls: Sequence[str], timeouts: Timeouts) -> dict[str, Target]:
    """The engines themselves as targets."""
    llm, embed = (f"{url}/v1" for url in urls)
    return {
        LLM: Target(llm, "none", timeouts.interactive, done=False),
        **both(EMBED, embed, "none", timeouts),
    }


def both(name: str, url: str, key: str, timeouts: Timeouts) -> dict[str, Target]:
    """One server as two targets: clients that ingest are more patient."""
    return {name: Target(url, key, timeouts.interactive), f"{name}-bulk": Target(url, key, timeouts.bulk)}


@asynccontextmanager
async def bare_pair(
    configs: Sequence[EngineConfig], folder: Path, timeouts: Timeouts, *, tuned: bool
) -> AsyncIterator[Pair]:
    """Both engines alone. `tuned`: the cores are shared out; else each takes every core, as by default."""
    cpus = inventory().cpus
    shares = share_cores(cpus, [0, 0]) if tuned else [tuple(cpus), tuple(cpus)]
    supervisor = Supervisor()
    leases = [lease_port((8901, 8999)) for _ in configs]
    urls = [f"http://127.0.0.1:{lease.port}" for lease in leases]
    pair = Pair(straight(urls, timeouts), {LLM: configs[0].model, EMBED: configs[1].served_as}, {})
    try:
        for config, lease, cores in zip(configs, leases, shares, strict=True):
            service = engine_kind(config.kind).service(config, lease.port, cores)
            if service is None:
                raise RuntimeError(f"engine {config.name} of kind {config.kind} is not started here")
            await supervisor.start(replace(service, log=folder / f"{config.name}-{tuned}.log"))
        for role, config in zip((LLM, EMBED), configs, strict=True):
            status = await supervisor.wait_ready(config.name)
            pair.pids[role] = status.pid or 0
        yield pair
    finally:
        pair.pause(False)  # a halted process cannot end
        await supervisor.close()
        for lease in leases:
            lease.release()


@asynccontextmanager
async def stack_pair(
    configs: Sequence[EngineConfig], folder: Path, timeouts: Timeouts, slos: SlosConfig
) -> AsyncIterator[Pair]:
    """Gateway, control plane and both engines, the cores shared out, as `sage up` starts them."""
    default = SagePaths.default()
    paths = SagePaths(state=folder / "state", cache=default.cache, config=folder / "config")
    free = PortsConfig(gateway=0, health=0, admin=0)
    config = SageConfig(ports=free, control_plane=ControlPlaneConfig(slos=slos), engines=tuple(configs))
    run = await asyncio.to_thread(stack.start, config, paths, on_progress=say)
    try:
        admin = stack.admin_client(paths)
        known = {engine.task: engine for engine in admin.engines().engines}
        llm, embed = known["generate"], known["embed"]
        targets = straight((llm.url, embed.url), timeouts)
        targets |= both(GATEWAY, run.base_url, stack.client_key(paths), timeouts)
        yield Pair(
            targets,
            {LLM: configs[0].model, EMBED: embed.model},
            {GATEWAY: run.pid, LLM: llm.pid or 0, EMBED: embed.pid or 0},
            admin,
            {LLM: llm.model, EMBED: embed.model},
        )
    finally:
        await asyncio.to_thread(stack.stop, paths, grace=10.0)


def slos(goals: dict[str, float]) -> SlosConfig:
    """The goals, told to the control plane as well."""
    return SlosConfig.model_validate(
        {
            "chat": {"ttft_s": goals["chat_ttft_s"], "tpot_s": goals["chat_tpot_s"]},
            "embed_interactive": {"total_s": goals["embed_total_s"]},
        }
    )


def say(line: str) -> None:
    """Talk goes to stderr."""
    print(line, file=sys.stderr, flush=True)
