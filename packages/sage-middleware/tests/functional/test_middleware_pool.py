"""The engine pool over real processes and sockets: start, die, come back, stop; starts that cannot be."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from sage.common.api import EngineStatus
from sage.common.clock import SystemClock
from sage.common.config import ControlPlaneConfig, EngineConfig, PortsConfig, SageConfig
from sage.common.errors import ConfigError, ConflictError, SageError, UnavailableError
from sage.common.ports import find_free
from sage.middleware.control_plane.driver import ControlPlane
from sage.middleware.control_plane.inprocess import InProcessClient
from sage.middleware.engines.openai import OpenAIKind
from sage.middleware.engines.port import Engine, EngineKind, EngineSpec
from sage.middleware.pool import EnginePool
from sage.middleware.testing.clients import HELLO
from sage.middleware.testing.engines import ScriptedEngine
from sage.platform.leases import lease_port
from sage.platform.service import RestartPolicy, ServiceSpec, ServiceStatus, Supervisor

SERVE = """
import asyncio, sys
from sage.middleware.testing.engines import ScriptedEngine

async def main():
    await ScriptedEngine().start(int(sys.argv[1]))
    await asyncio.Event().wait()

asyncio.run(main())
"""
SLOW = "import threading; threading.Event().wait()"
SHOWS = "import json, os; print(json.dumps(dict(os.environ))); exit(3)"
BROKEN = "import sys; sys.exit('no model at ' + sys.argv[1])"


class ProcessKind:
    """Runs the scripted engine, or a command that fails, as a process of its own. Fits `EngineKind`."""

    def spec(self, config: EngineConfig) -> EngineSpec:
        return OpenAIKind().spec(config.model_copy(update={"url": "http://unused"}))

    def service(self, config: EngineConfig, port: int, cores: tuple[int, ...]) -> ServiceSpec | None:
        if config.model == "missing":
            raise ConfigError(f"Engine {config.name}: there is no model folder 'missing'.")
        code = {"broken": BROKEN, "slow": SLOW, "shows": SHOWS}.get(config.model, SERVE)
        probe = f"http://127.0.0.1:{port}/health"
        return ServiceSpec(
            config.name, (sys.executable, "-c", code, str(port)), probe, Path("x.log"), cores=cores
        )

    def connect(self, config: EngineConfig, url: str) -> Engine:
        return OpenAIKind().connect(config.model_copy(update={"url": url}), url)


def kinds(name: str) -> EngineKind:
    if name not in ("process", "openai"):
        raise ConfigError(f"There is no engine kind {name!r}.")
    return ProcessKind() if name == "process" else OpenAIKind()


class WatchedPlane(ControlPlane):
    """Tells of engines that go down."""

    def __init__(self, changed: asyncio.Event) -> None:
        super().__init__(ControlPlaneConfig(), SystemClock())
        self._changed = changed

    def engine_down(self, name: str, reason: str, *, crashed: bool = False) -> None:
        super().engine_down(name, reason, crashed=crashed)
        self._changed.set()


class Site:
    """A control plane with a pool, and a wait for what changes."""

    def __init__(self, logs: Path, *engines: EngineConfig, llm: tuple[int, int] = (0, 0)) -> None:
        low = find_free((20000, 29000))
        ports = PortsConfig(llm=llm if llm[0] else (low, low + 900))
        self.changed = asyncio.Event()
        self.tell: Callable[[ServiceStatus], None] | None = None
        self.plane = WatchedPlane(self.changed)
        config = SageConfig(engines=engines, ports=ports)
        self.pool = EnginePool(config, logs, self.plane, supervisor=self._supervise, kinds=kinds, poll_s=0.01)

    def _supervise(self, on_change: Callable[[ServiceStatus], None]) -> Supervisor:
        def tell(status: ServiceStatus) -> None:
            on_change(status)
            self.changed.set()

        self.tell = tell
        return Supervisor(tell, restarts=RestartPolicy(first=0.05))

    def status(self, name: str) -> EngineStatus:
        return next(status for status in self.pool.statuses() if status.name == name)

    async def until(self, name: str, condition: Callable[[EngineStatus], bool]) -> EngineStatus:
        async with asyncio.timeout(60):
            while not condition(self.status(name)):
                self.changed.clear()
                await self.changed.wait()
        return self.status(name)

    async def chat(self, patience_s: float = 30.0) -> str:
        client = InProcessClient(self.plane, patience_s=patience_s)
        stream = client.chat(HELLO, model="scripted")
        return "".join([delta.text async for delta in stream])


def ours(name: str = "ours", **fields: Any) -> EngineConfig:
    return EngineConfig(**{"name": name, "kind": "process", "model": "scripted", **fields})


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    one = Site(tmp_path, ours())
    yield one
    await one.plane.close(1.0)
    await one.pool.close()


async def test_an_engine_lives_dies_and_comes_back(site: Site, tmp_path: Path) -> None:
    assert (site.status("ours").state, site.status("ours").url) == ("starting", "")
    await site.pool.start()
    before = site.status("ours")
    assert before.state == "ready"
    assert before.url.startswith("http://127.0.0.1:2")
    assert before.cores
    assert set(before.cores) <= os.sched_getaffinity(0)
    assert (tmp_path / "ours.log").exists()
    assert await site.chat() == "one two three"

    assert before.pid is not None
    os.kill(before.pid, signal.SIGKILL)
    await site.until("ours", lambda status: status.state != "ready")
    assert site.plane.models() == []
    after = await site.until("ours", lambda status: status.state == "ready")
    assert (after.restarts, after.served) == (1, 1)
    assert after.pid != before.pid
    assert await site.chat() == "one two three"

    await site.pool.close()
    assert after.pid is not None
    assert not psutil.pid_exists(after.pid)
    assert site.status("ours").state == "stopped"
    with pytest.raises(UnavailableError, match=r"are being stopped|is failed"):
        await site.chat(patience_s=0.0)


async def test_a_degraded_engine_is_sent_no_work_until_it_answers_again(site: Site) -> None:
    await site.pool.start()
    assert site.tell is not None
    degraded = ServiceStatus("ours", "degraded", detail="no answer to 3 probes")
    site.tell(degraded)
    assert site.plane.models() == []
    with pytest.raises(UnavailableError):
        await site.chat(patience_s=0.0)
    site.tell(replace(degraded, state="ready", detail=""))
    assert await site.chat() == "one two three"


async def test_starts_that_fail_are_told_together_and_leave_nothing(tmp_path: Path) -> None:
    site = Site(tmp_path, ours("good"), ours("bad", model="broken"), ours("worse", model="broken"))
    with pytest.raises(SageError, match="2 engines did not start") as caught:
        await site.pool.start()
    assert "bad" in caught.value.message
    assert "worse" in caught.value.message
    assert "no model at" in caught.value.message
    assert [status.pid for status in site.pool.statuses()] == [None] * 3
    assert site.plane.models() == []


async def test_a_failed_start_does_not_wait_for_a_slow_one(tmp_path: Path) -> None:
    site = Site(tmp_path, ours("slow", model="slow"), ours("bad", model="broken"))
    async with asyncio.timeout(60):
        with pytest.raises(UnavailableError, match="bad is failed"):
            await site.pool.start()
    assert [status.pid for status in site.pool.statuses()] == [None, None]


async def test_no_engines_are_started_at_once(tmp_path: Path) -> None:
    site = Site(tmp_path)
    await site.pool.start()
    assert site.pool.statuses() == []
    await site.pool.close()


async def test_one_failed_start_is_raised_as_it_is(tmp_path: Path) -> None:
    site = Site(tmp_path, ours("bad", model="broken"))
    with pytest.raises(UnavailableError, match=r"bad is failed.*no model at"):
        await site.pool.start()


async def test_what_is_wrong_with_the_files_is_told_before_any_process_starts(tmp_path: Path) -> None:
    site = Site(tmp_path, ours("good"), ours("a", model="missing"), ours("b", model="missing"))
    with pytest.raises(
        ConfigError, match=r"Engine a: there is no model folder.* Engine b: there is no model"
    ):
        await site.pool.start()
    assert [status.pid for status in site.pool.statuses()] == [None] * 3


def test_what_is_wrong_with_the_configuration_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        Site(tmp_path, ours("a", kind="magic"), ours("a"), EngineConfig(name="b", kind="openai", model="m"))
    for part in ("3 engines cannot be used", "kind 'magic'", "named 'a'", "needs `url`"):
        assert part in caught.value.message


async def test_a_range_without_a_free_port_is_a_conflict(tmp_path: Path) -> None:
    port = find_free((20000, 29999))
    site = Site(tmp_path, ours("a"), ours("b"), llm=(port, port))
    with pytest.raises(ConflictError, match=f"No free port between {port} and {port}"):
        await site.pool.start()


async def test_two_pools_at_once_take_different_ports_and_give_them_back(tmp_path: Path) -> None:
    low = find_free((20000, 29000))
    sites = [Site(tmp_path / name, ours(), llm=(low, low + 900)) for name in "ab"]
    await asyncio.gather(*(site.pool.start() for site in sites))
    urls = [site.status("ours").url for site in sites]
    assert len(set(urls)) == 2
    for url in urls:
        with pytest.raises(ConflictError, match=f"leased by process {os.getpid()}"):
            lease_port(int(url.rpartition(":")[2]))
    for site in sites:
        await site.plane.close(1.0)
        await site.pool.close()
    for url in urls:
        lease_port(int(url.rpartition(":")[2])).release()


async def test_an_engine_that_somebody_else_runs_is_watched(tmp_path: Path) -> None:
    port = find_free((20000, 29999))
    remote = EngineConfig(name="far", kind="openai", model="scripted", url=f"http://127.0.0.1:{port}")
    site = Site(tmp_path, remote)
    await site.pool.start()  # it may come later
    with pytest.raises(UnavailableError):
        await site.chat(patience_s=0.0)
    engine = ScriptedEngine()
    await engine.start(port)
    assert await site.chat() == "one two three"
    assert site.status("far").pid is None
    assert site.status("far").url == remote.url
    await engine.stop()
    down = await site.until("far", lambda status: status.state != "ready")
    assert "does not answer" in down.detail
    await site.plane.close(1.0)
    await site.pool.close()


async def test_no_key_of_ours_reaches_an_engine_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("KEY_OF_ANOTHER", "SAGE_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.setenv(name, f"not-for-engines {name}")
    remote = EngineConfig(
        name="remote", kind="openai", model="far", url="http://127.0.0.1:1", api_key_env="KEY_OF_ANOTHER"
    )
    one = Site(tmp_path, remote, ours(model="shows"))
    with pytest.raises(SageError, match="exited with code 3"):
        await one.pool.start()
    await one.plane.close(1.0)
    seen = json.loads((tmp_path / "ours.log").read_text().splitlines()[0])
    assert seen["PATH"] == os.environ["PATH"]
    assert [name for name, value in seen.items() if "not-for-engines" in value] == []
    assert os.environ["KEY_OF_ANOTHER"] == "not-for-engines KEY_OF_ANOTHER"
