"""A gateway process and the puppet engines behind it: started, looked into, ended with all that they left."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec
import psutil

from sage.benchmark.load.worker import lower_priority, raise_priority
from sage.benchmark.resilience import kind
from sage.benchmark.resilience.report import Check
from sage.benchmark.resilience.reports import Seen
from sage.benchmark.resilience.wire import Answer, ask
from sage.common.api import EngineList, EngineStatus, RunInfo

__all__ = ["Puppet", "Stage", "staged", "until"]

START_S: Final = 60.0
POLL_S: Final = 0.005
KEY: Final = {"name": "chaos", "rpm": 10_000_000, "tpm": 1_000_000_000}
NO_GOALS: Final = {
    "chat": {"ttft_s": None, "tpot_s": None},
    "completion": {"ttft_s": None, "tpot_s": None},
    "embed_interactive": {"total_s": None},
}


async def until(
    condition: Callable[[], Awaitable[object]], *, timeout: float = 30.0, every: float = POLL_S
) -> bool:
    """Whether an awaitable condition came true in time. Of another process no event tells: it is polled."""
    deadline = asyncio.get_running_loop().time() + timeout
    while not await condition():
        if asyncio.get_running_loop().time() > deadline:
            return False
        await asyncio.sleep(every)
    return True


@dataclass(slots=True)
class Puppet:
    """One engine in a process of its own, which may be killed and come back on the same port."""

    name: str
    port: int = 0
    task: str = "generate"
    model: str = "llm"
    max_running: int = 256
    process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Start it, or start it again."""
        argv = ("-m", "sage.benchmark.resilience.puppet", "--name", self.name, "--port", str(self.port))
        self.process = await asyncio.create_subprocess_exec(
            sys.executable, *argv, stdout=asyncio.subprocess.PIPE
        )
        assert self.process.stdout is not None
        self.port = int(await self.process.stdout.readline())

    async def stop(self) -> None:
        """End it, or what is left of it."""
        if self.process is not None:
            if self.process.returncode is None:
                self.process.kill()
            await self.process.communicate()

    async def look(self) -> Seen:
        """What it has seen; closes are told once."""
        return msgspec.json.decode((await ask(self.port, "", "/puppet")).body, type=Seen)

    async def tell(self, what: str) -> None:
        """Control it: release, drop, freeze, thaw."""
        await ask(self.port, "", f"/puppet/{what}", b"")

    def config(self) -> dict[str, Any]:
        """By which the gateway reaches it."""
        return {
            "name": self.name,
            "kind": "openai",
            "model": self.model,
            "url": f"http://127.0.0.1:{self.port}",
            "task": self.task,
            "max_running": self.max_running,
        }


@dataclass(slots=True)
class Stage:
    """A running gateway with a key that has limits, and its engines by name."""

    folder: Path
    process: asyncio.subprocess.Process
    run: RunInfo
    puppets: dict[str, Puppet]
    token: str
    key: str = ""
    base: dict[str, float] = field(default_factory=dict)

    @property
    def port(self) -> int:
        """Of the data plane."""
        return urlsplit(self.run.base_url).port or 0

    async def ask(self, path: str, body: bytes | None = None, **more: Any) -> Answer:
        """One request on the data plane."""
        return await ask(self.port, self.key, path, body, **more)

    async def admin(self, path: str, body: Any = None, method: str = "") -> Any:
        """One call of the admin API. Raises RuntimeError for an answer that is an error."""
        port = urlsplit(self.run.admin_url).port or 0
        raw = None if body is None else msgspec.json.encode(body)
        answer = await ask(port, self.token, f"/admin/v1{path}", raw, method=method)
        if answer.status != 200:
            raise RuntimeError(f"{path} was answered {answer.status}: {answer.body[:300]!r}")
        return answer.json

    async def engines(self) -> list[EngineStatus]:
        """As the gateway sees them."""
        return EngineList.model_validate(await self.admin("/engines")).engines

    async def waiting(self) -> int:
        """Requests in queues."""
        return sum(int(queue["waiting"]) for queue in await self.admin("/queues"))

    async def ready(self, count: int | None = None, timeout: float = START_S) -> None:
        """Wait until so many engines, or all, get work. Raises TimeoutError."""

        async def enough() -> bool:
            states = [engine.state for engine in await self.engines()]
            return states.count("ready") >= (len(states) if count is None else count)

        if not await until(enough, timeout=timeout, every=0.05):
            raise TimeoutError("the engines are not ready")

    async def left(self) -> dict[str, float]:
        """What requests hold now, in the gateway and at the engines: all zero when nothing is under way.

        `tasks` and `descriptors` are those beyond `base`, which `rest` takes.
        """
        total = await self.totals()
        seen = [await puppet.look() for puppet in self.puppets.values()]
        gateway = psutil.Process(self.process.pid)
        clients = [
            one
            for one in gateway.net_connections(kind="tcp")
            if one.laddr.port == self.port and one.status != psutil.CONN_LISTEN
        ]
        found = {
            "slots": total("sage_engine_running_requests"),
            "queue places": total("sage_queue_waiting_requests"),
            "holds": total("sage_key_running_requests"),
            "tasks": total("sage_tasks"),
            "client sockets": float(len(clients)),
            "descriptors": float(gateway.num_fds()),
            "calls at engines": float(sum(one.active for one in seen)),
        }
        return {name: value - self.base.get(name, 0.0) for name, value in found.items()}

    async def totals(self) -> Callable[[str], float]:
        """What gives the sum of a metric over its labels, as of now."""
        metrics = {one["name"]: one["samples"] for one in (await self.admin("/metrics"))["metrics"]}
        return lambda name: float(sum(sample["value"] for sample in metrics.get(name, ())))

    async def rest(self) -> None:
        """Take what an idle gateway has as the base of `left`."""
        self.base = {}
        await self._quiet()
        found = await self.left()
        self.base = {name: found[name] for name in ("tasks", "descriptors")}

    async def clean(self, timeout: float = 15.0) -> dict[str, float]:
        """What is left once everything that can end has ended."""
        found: dict[str, float] = {}

        async def nothing() -> bool:
            nonlocal found
            await self._quiet()  # again: engines are looked at every two seconds
            found = await self.left()
            return not any(value > 0 for value in found.values())

        await until(nothing, timeout=timeout, every=0.1)
        return found

    async def _quiet(self) -> None:
        """Close the connections that the gateway keeps to engines."""
        for engine in await self.engines():
            if engine.kind in ("openai", "puppet"):
                await ask(urlsplit(engine.url).port or 0, "", "/puppet/drop", b"")

    def faults(self) -> list[str]:
        """Lines of the gateway's log that tell of a fault of its own."""
        lines = (self.folder / "gateway.log").read_text(errors="replace").splitlines()
        return [line[:300] for line in lines if '"level": "error"' in line or line.startswith("Traceback")]

    @contextlib.contextmanager
    def preferred(self) -> Iterator[Check]:
        """What is timed goes before what else runs on this machine meanwhile, as far as that is allowed.

        So does this process, but not before that.
        """
        engines = [one.process.pid for one in self.puppets.values() if one.process is not None]
        allowed = [raise_priority(), *(raise_priority(pid, 2) for pid in (self.process.pid, *engines))]
        try:
            shown = ", ".join(sorted(set(allowed)))
            yield Check("priority of load, and of gateway and engines", shown, "", True)
        finally:
            lower_priority()

    def rss(self) -> int:
        """Resident bytes of the gateway."""
        return int(psutil.Process(self.process.pid).memory_info().rss)


@asynccontextmanager
async def staged(
    puppets: Sequence[Puppet],
    *,
    supervised: Sequence[Mapping[str, Any]] = (),
    goals: bool = False,
    concurrent: int = 8192,
    **config: Any,
) -> AsyncIterator[Stage]:
    """A gateway before these puppets, under `hybrid`, with one key that has limits, `concurrent` among them.

    `supervised`: configurations of engines whose processes the gateway starts. Without `goals` no request is
    refused by a forecast. Whatever was started is ended.
    """
    with tempfile.TemporaryDirectory(prefix="sage-chaos-") as name:
        folder = Path(name)
        process = None
        try:
            for puppet in puppets:
                await puppet.start()
            process = await _launch(folder, [*(one.config() for one in puppets), *supervised], goals, config)
            stage = await _announced(folder, process, {one.name: one for one in puppets})
            await stage.ready()
            stage.key = (await stage.admin("/keys", {**KEY, "max_concurrent": concurrent}))["secret"]
            yield stage
        finally:
            if process is not None:
                await _end(process)
            for puppet in puppets:
                await puppet.stop()


async def _launch(
    folder: Path, engines: list[Mapping[str, Any]], goals: bool, config: dict[str, Any]
) -> asyncio.subprocess.Process:
    kind.install(folder / "site")
    gateway = {"max_connections_per_address": 8192, **config.pop("gateway", {})}
    plane = {**({} if goals else {"slos": NO_GOALS}), **config.pop("control_plane", {})}
    ports = {"gateway": 0, "admin": 0, "health": 0, "llm": [21001, 21089], "embedding": [21090, 21199]}
    file = folder / "sage.json"
    file.write_bytes(
        msgspec.json.encode({"ports": ports, "engines": engines, "gateway": gateway, "control_plane": plane})
    )
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SAGE_")}
    encodings = find_spec("litellm")  # it carries the table of cl100k_base, where it is installed
    if encodings is not None and encodings.submodule_search_locations:
        folders = encodings.submodule_search_locations
        kept.setdefault("TIKTOKEN_CACHE_DIR", str(Path(folders[0], "litellm_core_utils", "tokenizers")))
    path = os.pathsep.join([str(folder / "site"), *filter(None, [os.environ.get("PYTHONPATH")])])
    with (folder / "gateway.log").open("wb") as log:
        return await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "sage.gateway", "--config", str(file), "--state-dir", str(folder / "state")),
            cwd=folder,
            env={**kept, "SAGE_HOME": str(folder / "home"), "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"},
            stdout=log,
            stderr=log,
        )


async def _announced(folder: Path, process: asyncio.subprocess.Process, puppets: dict[str, Puppet]) -> Stage:
    run = folder / "state" / "run.json"

    async def there() -> bool:
        return run.exists() or process.returncode is not None

    await until(there, timeout=START_S, every=0.02)
    if process.returncode is not None or not run.exists():
        raise RuntimeError(f"the gateway did not start: {(folder / 'gateway.log').read_text()[-2000:]}")
    token = (folder / "state" / "admin.token").read_text().strip()
    return Stage(folder, process, RunInfo.model_validate_json(run.read_bytes()), puppets, token)


async def _end(process: asyncio.subprocess.Process) -> None:
    """Ask it to stop, twice; then end it. What it started ends with it."""
    for _ in range(2):
        if process.returncode is None:
            process.terminate()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), 5.0)
    if process.returncode is None:
        process.kill()
    await process.wait()
