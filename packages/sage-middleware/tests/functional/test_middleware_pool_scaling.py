"""Engines that come and go while the pool serves, in real processes: scripted ones, and MiniLM's server."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from sage.common.api import EngineStatus
from sage.common.clock import SystemClock
from sage.common.config import EngineConfig, PortsConfig, SageConfig
from sage.common.errors import (
    EngineError,
    NotFoundError,
    SageError,
    UnavailableError,
    UnreachableError,
    UsageError,
)
from sage.common.ports import find_free
from sage.middleware.control_plane.driver import ControlPlane
from sage.middleware.control_plane.fleet import AutoscaleOptions
from sage.middleware.control_plane.inprocess import InProcessClient
from sage.middleware.control_plane.types import RestartEngine, StartEngine, StopEngine
from sage.middleware.engines.port import EngineKind
from sage.middleware.engines.registry import engine_kind
from sage.middleware.members import make_core
from sage.middleware.models import MINILM, minilm_folder
from sage.middleware.pool import EnginePool
from sage.middleware.testing.clients import HELLO
from sage.middleware.testing.processes import ProcessKind
from sage.platform.leases import lease_port
from sage.platform.service import RestartPolicy, ServiceSpec, ServiceStatus, Supervisor


def kinds(name: str) -> EngineKind:
    return ProcessKind() if name == "process" else engine_kind(name)


class Site:
    """A control plane that scales, with a pool. `downs`: who went down, and whether by a crash."""

    def __init__(self, folder: Path, *engines: EngineConfig, **waits: float) -> None:
        low = find_free((20000, 29000))
        self.config = SageConfig(
            engines=engines, ports=PortsConfig(llm=(low, low + 900), embedding=(low, low + 900))
        )
        site = self

        class Plane(ControlPlane):
            def engine_down(self, name: str, reason: str, *, crashed: bool = False) -> None:
                site.downs.append((name, crashed))
                super().engine_down(name, reason, crashed=crashed)
                site.changed.set()

        self.changed = asyncio.Event()
        self.downs: list[tuple[str, bool]] = []
        options = AutoscaleOptions(
            **{"start_after_s": 1e9, "cool_down_s": 1e9, "sleep_after_s": 1e9, **waits}
        )
        core = make_core(self.config, kinds, options)
        self.plane = Plane(self.config.control_plane, SystemClock(), core=core)
        self.processes: Supervisor | None = None
        self.pool = EnginePool(self.config, folder, self.plane, supervisor=self._supervise, kinds=kinds)
        self.client = InProcessClient(self.plane, patience_s=60.0)

    def _supervise(self, on_change: Callable[[ServiceStatus], None]) -> Supervisor:
        def tell(status: ServiceStatus) -> None:
            on_change(status)
            self.changed.set()

        self.processes = Supervisor(tell, restarts=RestartPolicy(first=0.05))
        return self.processes

    def names(self) -> list[str]:
        return [status.name for status in self.pool.statuses()]

    def status(self, name: str) -> EngineStatus:
        return next(status for status in self.pool.statuses() if status.name == name)

    def process(self, name: str) -> ServiceStatus:
        assert self.processes is not None
        return self.processes.status(name)

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(90):
            while not condition():
                self.changed.clear()
                # Some of what is waited for is a count, which nobody announces.
                waiting = asyncio.create_task(self.changed.wait())
                await asyncio.wait({waiting}, timeout=0.05)
                waiting.cancel()

    async def ready(self, name: str) -> EngineStatus:
        await self.until(lambda: name in self.names() and self.status(name).state in ("ready", "failed"))
        assert self.status(name).state == "ready", self.status(name).detail
        return self.status(name)

    async def chat(self, model: str) -> str:
        return "".join([delta.text async for delta in self.client.chat(HELLO, model=model)])


@asynccontextmanager
async def at(folder: Path, *engines: EngineConfig, **waits: float) -> AsyncIterator[Site]:
    site = Site(folder, *engines, **waits)
    try:
        await site.pool.start()
        yield site
    finally:
        await site.plane.close(1.0)
        await site.pool.close()


def scripted(folder: Path, name: str = "llm", **fields: Any) -> EngineConfig:
    model = folder / "scripted"
    model.mkdir(exist_ok=True)
    return EngineConfig(**{"name": name, "kind": "process", "model": str(model), "cores": 1, **fields})


def pid_of(status: EngineStatus) -> int:
    assert status.pid is not None
    return status.pid


async def test_a_replica_comes_serves_drains_and_goes(tmp_path: Path) -> None:
    async with at(tmp_path, scripted(tmp_path, max_replicas=2)) as site:
        first = site.status("llm")
        await asyncio.gather(*(site.pool.start_engine("llm", "llm.2") for _ in range(3)))
        await site.pool.start_engine("llm", "llm.2")
        second = await site.ready("llm.2")
        assert site.names() == ["llm", "llm.2"]
        assert pid_of(second) != first.pid
        assert second.url != first.url
        assert len(second.cores) == 1
        usable = os.sched_getaffinity(0)
        assert set(second.cores) <= usable
        assert second.cores != first.cores or len(usable) == 1
        assert (tmp_path / "llm.2.log").exists()

        chats = [asyncio.create_task(site.chat("scripted")) for _ in range(4)]
        await site.until(lambda: all(site.status(name).running == 2 for name in site.names()))
        stopping = asyncio.create_task(site.pool.stop_engine("llm.2"))
        await site.until(lambda: site.status("llm.2").state == "draining")
        assert psutil.pid_exists(pid_of(second))
        for status in (first, second):
            os.kill(pid_of(status), signal.SIGUSR1)
        assert await asyncio.gather(*chats) == ["one two three"] * 4
        await stopping
        assert not psutil.pid_exists(pid_of(second))
        assert site.names() == ["llm"]
        assert site.process("llm.2").state == "stopped"
        assert ("llm.2", True) not in site.downs
        lease_port(int(second.url.rpartition(":")[2])).release()
        with pytest.raises(NotFoundError, match=r"no engine 'llm\.2'"):
            await site.pool.stop_engine("llm.2")


async def test_a_configured_engine_that_is_stopped_sleeps_and_comes_back_where_it_was(tmp_path: Path) -> None:
    async with at(tmp_path, scripted(tmp_path)) as site:
        before = site.status("llm")
        await site.pool.stop_engine("llm")
        await site.pool.stop_engine("llm")
        asleep = site.status("llm")
        assert (asleep.state, asleep.pid) == ("stopped", None)
        assert "sleeps" in asleep.detail
        assert not psutil.pid_exists(pid_of(before))
        await site.pool.start_engine("llm", "llm")
        after = await site.ready("llm")
        assert (after.url, after.cores) == (before.url, before.cores)
        os.kill(pid_of(after), signal.SIGUSR1)
        assert await site.chat("scripted") == "one two three"


async def test_a_drain_that_takes_too_long_is_cut_off(tmp_path: Path) -> None:
    engine = scripted(tmp_path)
    site = Site(tmp_path, engine)
    gateway = site.config.gateway.model_copy(update={"drain_s": 0.05})
    site.pool._config = site.config.model_copy(update={"gateway": gateway})
    await site.pool.start()
    chat = asyncio.create_task(site.chat("scripted"))
    await site.until(lambda: site.status("llm").running == 1)
    await site.pool.stop_engine("llm")
    with pytest.raises((EngineError, UnreachableError)):
        await chat
    assert site.status("llm").state == "stopped"
    await site.plane.close(1.0)
    await site.pool.close()


async def test_a_restart_ends_the_process_at_once(tmp_path: Path) -> None:
    async with at(tmp_path, scripted(tmp_path)) as site:
        before = site.status("llm")
        chat = asyncio.create_task(site.chat("scripted"))
        await site.until(lambda: site.status("llm").running == 1)
        assert site.plane.on_engine_action is not None
        site.plane.on_engine_action(RestartEngine("llm", "nothing has moved"))
        with pytest.raises((EngineError, UnreachableError)):
            await chat
        await site.until(lambda: site.status("llm").pid not in (None, before.pid))
        after = await site.ready("llm")
        assert not psutil.pid_exists(pid_of(before))
        assert after.url == before.url
        assert ("llm", True) not in site.downs


async def test_a_crash_is_told_from_a_stop(tmp_path: Path) -> None:
    async with at(tmp_path, scripted(tmp_path, max_replicas=2)) as site:
        await site.pool.start_engine("llm", "llm.2")
        second = await site.ready("llm.2")
        os.kill(pid_of(second), signal.SIGKILL)
        await site.until(lambda: ("llm.2", True) in site.downs)
        await site.until(lambda: site.status("llm.2").state == "ready")
        await site.pool.stop_engine("llm")
        assert [crashed for name, crashed in site.downs if name == "llm"] == [False] * len(
            [name for name, _ in site.downs if name == "llm"]
        )
        assert [crashed for name, crashed in site.downs if name == "llm.2"].count(True) == 1


async def test_a_start_that_fails_is_told_with_its_reason(tmp_path: Path) -> None:
    async with at(tmp_path, scripted(tmp_path, max_replicas=2)) as site:
        broken = tmp_path / "scripted" / "broken"
        broken.touch()
        assert site.plane.on_engine_action is not None
        site.plane.on_engine_action(StartEngine("llm", "llm.2", "a backlog of 9.0 s"))
        await site.until(lambda: "llm.2" in site.names() and site.status("llm.2").state == "failed")
        assert "no model at" in site.status("llm.2").detail
        assert site.status("llm").state == "ready"
        broken.unlink()
        await site.pool.start_engine("llm", "llm.2")  # another try has the same name
        await site.ready("llm.2")


async def test_a_start_that_cannot_be_prepared_is_told_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with at(tmp_path, scripted(tmp_path, max_replicas=2)) as site:

        def fails(*_: object) -> ServiceSpec:
            raise NotFoundError("There is no model in the folder.")

        monkeypatch.setattr(ProcessKind, "service", fails)
        with pytest.raises(NotFoundError, match="no model in the folder"):
            await site.pool.start_engine("llm", "llm.2")
        counted = {one.name: one for one in site.plane.engines()}
        assert (counted["llm.2"].state, counted["llm.2"].detail) == (
            "failed",
            "There is no model in the folder.",
        )


async def test_what_cannot_be_started_or_stopped(tmp_path: Path) -> None:
    far = EngineConfig(name="far", kind="openai", model="m", url="http://127.0.0.1:1")
    site = Site(tmp_path, scripted(tmp_path, max_replicas=2, min_replicas=0), far)
    await site.pool.start()
    with pytest.raises(NotFoundError, match=r"no configured engine 'x'; there are: llm, far"):
        await site.pool.start_engine("x", "x")
    with pytest.raises(UsageError, match=r"valid are: llm, llm\.2"):
        await site.pool.start_engine("llm", "llm.3")
    for attempt in (site.pool.start_engine("far", "far"), site.pool.stop_engine("far")):
        with pytest.raises(UsageError, match="runs elsewhere"):
            await attempt
    await site.pool.restart_engine("llm")  # it does not run: nothing to do
    await site.plane.close(1.0)
    await site.pool.close()
    with pytest.raises(UnavailableError, match="are being stopped"):
        await site.pool.start_engine("llm", "llm")
    assert site.plane.on_engine_action is not None
    site.plane.on_engine_action(StopEngine("llm", "too late"))
    assert [one.get_name() for one in asyncio.all_tasks() if "StopEngine" in one.get_name()] == []


async def test_as_many_as_the_minimum_run_from_the_beginning(tmp_path: Path) -> None:
    async with at(tmp_path, scripted(tmp_path, min_replicas=2, max_replicas=2)) as site:
        assert [(one.name, one.state) for one in site.pool.statuses()] == [
            ("llm", "ready"),
            ("llm.2", "ready"),
        ]


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"min_replicas": 3, "max_replicas": 2}, "valid is 0 <= min_replicas"),
        ({"kind": "openai", "url": "http://127.0.0.1:1", "max_replicas": 2}, "runs elsewhere"),
    ],
)
def test_bounds_that_cannot_be(tmp_path: Path, fields: dict[str, Any], says: str) -> None:
    with pytest.raises(SageError, match=says):
        Site(tmp_path, scripted(tmp_path, **fields))


def test_a_name_that_a_replica_would_have_is_taken(tmp_path: Path) -> None:
    with pytest.raises(SageError, match=r"Two engines are named 'llm\.2'"):
        Site(tmp_path, scripted(tmp_path, max_replicas=2), scripted(tmp_path, name="llm.2"))


async def test_the_real_embedding_server_appears_under_load_serves_drains_and_exits(tmp_path: Path) -> None:
    embed = EngineConfig(
        name="embed",
        kind="embedding",
        model=str(minilm_folder()),
        served_as=MINILM,
        task="embed",
        cores=1,
        min_replicas=0,
    )
    async with at(tmp_path, embed, cool_down_s=2.0, sleep_after_s=2.0) as site:
        assert (site.status("embed").state, site.status("embed").pid) == ("stopped", None)
        vectors = await site.client.embed(["a text", "another text"], model=MINILM)
        assert vectors.shape == (2, 384)
        served = site.status("embed")
        assert served.served >= 1
        assert psutil.Process(pid_of(served)).is_running()
        await site.until(lambda: site.status("embed").state == "stopped")
        assert site.process("embed").state == "stopped"
        assert not psutil.pid_exists(pid_of(served))
        again = await site.client.embed(["a text", "another text"], model=MINILM)
        assert again == pytest.approx(vectors, abs=1e-5)
        assert site.status("embed").pid != served.pid
        assert ("embed", True) not in site.downs
