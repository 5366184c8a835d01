"""Engines of a configuration that changes while they serve, in real processes."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from sage.common.api import EngineStatus
from sage.common.clock import SystemClock
from sage.common.config import EngineConfig, PortsConfig, SageConfig
from sage.common.errors import ConfigError, ConflictError, UnavailableError
from sage.common.ports import find_free
from sage.middleware.control_plane.driver import ControlPlane
from sage.middleware.control_plane.inprocess import InProcessClient
from sage.middleware.engines.port import EngineKind
from sage.middleware.engines.registry import engine_kind
from sage.middleware.live_pool import LivePool
from sage.middleware.members import make_core
from sage.middleware.testing.clients import HELLO
from sage.middleware.testing.engines import ScriptedEngine
from sage.middleware.testing.processes import ProcessKind
from sage.platform.service import RestartPolicy, ServiceStatus, Supervisor


def kinds(name: str) -> EngineKind:
    return ProcessKind() if name == "process" else engine_kind(name)


def engine(name: str, **fields: Any) -> EngineConfig:
    return EngineConfig(**{"name": name, "kind": "process", "model": "m", **fields})


class Site:
    """A control plane with a live pool, and a wait for what changes."""

    def __init__(self, folder: Path, *engines: EngineConfig) -> None:
        low = find_free((20000, 29000))
        self.ports = PortsConfig(llm=(low, low + 900))
        self.folder = folder
        self.changed = asyncio.Event()
        config = self.config(*engines)
        self.plane = ControlPlane(config.control_plane, SystemClock(), core=make_core(config, kinds))
        self.pool = LivePool(config, folder, self.plane, supervisor=self._supervise, kinds=kinds, poll_s=0.01)
        self.streams: list[asyncio.Task[str]] = []

    def _supervise(self, on_change: Callable[[ServiceStatus], None]) -> Supervisor:
        def tell(status: ServiceStatus) -> None:
            on_change(status)
            self.changed.set()

        return Supervisor(tell, restarts=RestartPolicy(first=0.05))

    def config(self, *engines: EngineConfig) -> SageConfig:
        return SageConfig(engines=engines, ports=self.ports)

    def apply(self, *engines: EngineConfig) -> None:
        config = self.config(*engines)
        self.pool.check(config)
        self.pool.apply(config)

    def states(self) -> dict[str, str]:
        return {status.name: status.state for status in self.pool.statuses()}

    def status(self, name: str) -> EngineStatus:
        return next(status for status in self.pool.statuses() if status.name == name)

    def pid(self, name: str) -> int:
        pid = self.status(name).pid
        assert pid is not None
        return pid

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(60):
            while not condition():
                self.changed.clear()
                # Some of what is waited for is a count, which nobody announces.
                waiting = asyncio.create_task(self.changed.wait())
                await asyncio.wait({waiting}, timeout=0.02)
                waiting.cancel()

    async def stream(self, name: str, model: str = "m") -> asyncio.Task[str]:
        """A stream whose first word is here, from the only engine that can serve it."""
        first = asyncio.Event()

        async def read() -> str:
            text = ""
            async for delta in InProcessClient(self.plane, patience_s=60.0).chat(HELLO, model=model):
                text += delta.text
                first.set()
            return text

        task = asyncio.create_task(read())
        self.streams.append(task)
        await first.wait()
        assert self.status(name).running >= 1
        return task

    def release(self, name: str) -> None:
        os.kill(self.pid(name), signal.SIGUSR1)

    async def ask(self) -> str:
        """One that is sent on its way at once, refused or not."""
        client = InProcessClient(self.plane, patience_s=0.0)
        return "".join([delta.text async for delta in client.chat(HELLO, model="m")])


@pytest.fixture
async def make(tmp_path: Path) -> AsyncIterator[Callable[..., Any]]:
    sites: list[Site] = []

    async def start(*engines: EngineConfig) -> Site:
        site = Site(tmp_path, *engines)
        sites.append(site)
        await site.pool.start()
        await site.until(lambda: set(site.states().values()) <= {"ready"})
        return site

    yield start
    for site in sites:
        for task in site.streams:
            task.cancel()
        await asyncio.gather(*site.streams, return_exceptions=True)
        await site.pool.close()
        await site.plane.close(0.0)


async def test_before_the_first_start_is_over_nothing_else_is_taken(tmp_path: Path) -> None:
    site = Site(tmp_path, engine("a"))
    with pytest.raises(ConflictError, match="still being started"):
        site.apply(engine("b"))
    await site.pool.close()
    await site.plane.close(0.0)


async def test_an_engine_that_cannot_be_is_told_of_before_anything_changes(make: Any) -> None:
    site = await make(engine("a"))
    with pytest.raises(ConfigError, match="needs `url`"):
        site.apply(engine("a"), engine("b", kind="openai"))
    assert site.states() == {"a": "ready"}


async def test_an_engine_comes_and_readiness_does_not_wait_for_it(make: Any) -> None:
    site = await make(engine("a"))
    pid = site.pid("a")
    site.apply(engine("a"), engine("b", model="n"))
    assert [status.name for status in site.pool.awaited()] == ["a"]
    await site.until(lambda: site.states() == {"a": "ready", "b": "ready"})
    assert [status.name for status in site.pool.awaited()] == ["a", "b"]
    assert site.pid("a") == pid
    assert site.plane.models() == ["m", "n"]


async def test_an_engine_goes_when_its_last_stream_has_ended(make: Any) -> None:
    site = await make(engine("a"), engine("b", model="n"))
    stream = await site.stream("a")
    site.apply(engine("b", model="n"))
    await site.until(lambda: site.states() == {"a": "draining", "b": "ready"})
    assert [status.name for status in site.pool.awaited()] == ["b"]
    with pytest.raises(UnavailableError):
        await site.ask()
    site.release("a")
    assert await stream == "one two three"
    await site.until(lambda: site.states() == {"b": "ready"})
    assert site.plane.models() == ["n"]


async def test_a_new_process_in_place_of_an_old_one_loses_neither_stream_nor_queue(make: Any) -> None:
    site = await make(engine("a"))
    pid, stream = site.pid("a"), await site.stream("a")
    site.apply(engine("a", args=("--other",)))
    await site.until(lambda: site.states() == {"a": "draining"})
    waiting = asyncio.create_task(site.ask())
    await site.until(lambda: site.plane.core.waiting == 1)
    site.release("a")
    assert await stream == "one two three"
    await site.until(lambda: site.states() == {"a": "ready"} and site.status("a").running == 1)
    assert site.pid("a") != pid
    site.release("a")
    assert await waiting == "one two three"


async def test_another_name_comes_up_before_the_old_one_goes(make: Callable[..., Any]) -> None:
    site: Site = await make(engine("a"))
    ready: list[bool] = []

    def passed() -> bool:
        states = site.states()
        ready.append("ready" in states.values())
        return states == {"b": "ready"}

    site.apply(engine("b"))
    await site.until(passed)
    assert all(ready)


async def test_an_engine_stays_while_its_successor_fails_and_goes_when_that_is_mended(
    make: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "new" / "broken").mkdir(parents=True)
    new = engine("b", model=str(tmp_path / "new"), served_as="m")
    site = await make(engine("a"))
    site.apply(new)
    await site.until(lambda: "It stays, as b, which serves its model too" in caplog.text)
    assert site.states() == {"a": "ready", "b": "failed"}
    stream = await site.stream("a")
    (tmp_path / "new" / "broken").rmdir()
    site.apply(new)  # the same again
    await site.until(lambda: site.states() == {"a": "draining", "b": "ready"})
    site.release("a")
    assert await stream == "one two three"
    await site.until(lambda: site.states() == {"b": "ready"})


async def test_slots_change_in_place(make: Any) -> None:
    site = await make(engine("a", kind="embedding", model="all-MiniLM-L6-v2", task="embed"))
    pid = site.pid("a")
    site.apply(engine("a", kind="embedding", model="all-MiniLM-L6-v2", task="embed", max_running=3))
    assert (site.states(), site.status("a").max_running, site.pid("a")) == ({"a": "ready"}, 3, pid)


async def test_the_newest_wish_counts(make: Any) -> None:
    """It is wanted otherwise, then gone, then as it was: while it drains all of that is only a wish."""
    site = await make(engine("a"))
    pid, stream = site.pid("a"), await site.stream("a")
    site.apply(engine("a", args=("--other",)))
    await site.until(lambda: site.states() == {"a": "draining"})
    site.apply()
    site.apply(engine("a"), engine("b", model="n"))
    site.apply(engine("a"))
    site.release("a")
    assert await stream == "one two three"
    await site.until(lambda: site.states() == {"a": "ready"})
    assert site.pid("a") != pid


async def test_a_server_elsewhere_is_replaced_once_the_new_one_answers(make: Any) -> None:
    async with ScriptedEngine() as old, ScriptedEngine() as new:
        new.url = old.url.rpartition(":")[0] + ":1"
        site = await make(old.config("e"))
        site.apply(new.config("e"))
        assert await site_chat(site) == "one two three"
        new.url = (await start_again(new)) or new.url
        site.apply(new.config("e"))
        await site.until(lambda: site.status("e").url == new.url)
        assert await site_chat(site) == "one two three"
        assert (old.served, new.served) == (1, 1)


async def start_again(engine: ScriptedEngine) -> str:
    await engine.stop()
    return await engine.start()


async def site_chat(site: Site) -> str:
    client = InProcessClient(site.plane, patience_s=30.0)
    return "".join([delta.text async for delta in client.chat(HELLO, model="scripted")])
