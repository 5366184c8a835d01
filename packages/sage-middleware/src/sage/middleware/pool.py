"""The engines of one configuration: started, watched, announced to the control plane, stopped."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Protocol

from sage.common.api import EngineStatus
from sage.common.config import EngineConfig, SageConfig
from sage.common.errors import ConfigError, SageError
from sage.common.ports import LOOPBACK
from sage.middleware.control_plane.driver import ControlPlane
from sage.middleware.engines.port import Engine, EngineKind, EngineSpec
from sage.middleware.engines.registry import engine_kind
from sage.platform.leases import PortLease, lease_port
from sage.platform.nodes import inventory, share_cores
from sage.platform.service import ServiceSpec, ServiceStatus, Supervisor

__all__ = ["EnginePool", "Processes"]

log: Final = logging.getLogger("sage.middleware.pool")

GRACE_S: Final = 3.0  # after the first failed start, for others that fail too
KEYS: Final = ("SAGE_API_KEY", "OPENAI_API_KEY")  # of the clients that share our environment
POLL_S: Final = 2.0  # between two looks at an engine that somebody else runs


class Processes(Protocol):
    """What the pool asks of `sage.platform.service.Supervisor`."""

    async def start(self, spec: ServiceSpec) -> None:
        """Start a process."""
        ...

    async def wait_ready(self, name: str) -> ServiceStatus:
        """Wait until it is ready; raises SageError with the reason when it never will be."""
        ...

    def statuses(self) -> list[ServiceStatus]:
        """All processes."""
        ...

    async def close(self) -> None:
        """Stop all of them."""
        ...


@dataclass(slots=True, eq=False)
class _Member:
    """One engine of the pool. `engine` is made when its URL is known."""

    config: EngineConfig
    kind: EngineKind
    spec: EngineSpec
    url: str = ""
    cores: tuple[int, ...] = ()
    service: ServiceSpec | None = None
    lease: PortLease | None = None  # kept while the pool lives: a restart finds its port again
    engine: Engine | None = None
    up: bool = False


class EnginePool:
    """Starts the engines of `config` and keeps the control plane told of who can serve.

    `logs` is the folder for the engines' logs. `supervisor` makes what runs the processes, given whom to tell
    of changes; `kinds` finds a kind of engine by its name. Every engine is announced at once, so that its
    model exists and is answered with 503 until it is ready. A process that stops answering its probe
    (`degraded`) is sent no more work, though it is not killed and what runs there may end. Raises one
    ConfigError with all that is wrong.
    """

    def __init__(
        self,
        config: SageConfig,
        logs: Path,
        control_plane: ControlPlane,
        *,
        supervisor: Callable[[Callable[[ServiceStatus], None]], Processes] = Supervisor,
        kinds: Callable[[str], EngineKind] = engine_kind,
        poll_s: float = POLL_S,
    ) -> None:
        self._config = config
        self._logs = logs
        self._control_plane = control_plane
        self._processes = supervisor(self._changed)
        self._poll_s = poll_s
        self._members = {member.config.name: member for member in _describe(config.engines, kinds)}
        self._pollers: list[asyncio.Task[None]] = []
        for member in self._members.values():
            control_plane.announce(member.spec)

    async def start(self) -> None:
        """Start every engine and return when all that are ours are ready.

        An engine that somebody else runs may come later. Raises one SageError with every reason when
        one of ours cannot be started; then all of them are stopped again.
        """
        try:
            await asyncio.to_thread(self._plan)
            await self._start_all()
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Stop what was started and close all connections. What still runs at an engine breaks off."""
        for poller in self._pollers:
            poller.cancel()
        await asyncio.gather(*self._pollers, return_exceptions=True)
        for member in self._members.values():
            member.up = False
            self._control_plane.engine_down(member.spec.name, "the engines are being stopped")
        try:
            await self._processes.close()
        finally:
            for member in self._members.values():
                if member.lease is not None:
                    member.lease.release()
        for member in self._members.values():
            if member.engine is not None:
                await member.engine.close()

    def statuses(self) -> list[EngineStatus]:
        """Each engine: its process and what the control plane counts.

        Only `ready` is sent work. A degraded engine is not, and so does not count as ready: its process does
        not answer its probe, or the control plane ejected it for a time after faults in a row.
        """
        counted = {status.name: status for status in self._control_plane.engines()}
        processes = {status.name: status for status in self._processes.statuses()}
        return [
            _merge(counted[name], member, processes.get(name))
            for name, member in self._members.items()
            if name in counted
        ]

    # ---- start -------------------------------------------------------------------------------------------

    def _plan(self) -> None:
        """Ports, cores, processes and connections of all engines. Looks for model files: not for the loop.

        Raises one ConfigError with all problems.
        """
        members = list(self._members.values())
        local = [member for member in members if not member.config.url]
        cores = share_cores(inventory().cpus, [member.config.cores for member in local])
        for member, share in zip(local, cores, strict=True):
            member.cores = share
        problems: list[BaseException] = []
        for member in members:
            try:
                self._equip(member)
            except SageError as exc:
                problems.append(exc)
        _raise_together(problems, ConfigError, "cannot be started")

    def _equip(self, member: _Member) -> None:
        config = member.config
        port = 0
        if not config.url:
            ports = self._config.ports
            member.lease = lease_port(ports.llm if config.task == "generate" else ports.embedding)
            port = member.lease.port
        service = member.kind.service(config, port, member.cores)
        if service is not None:
            env = {**self._no_keys(), **service.env}
            member.service = replace(service, log=self._logs / f"{config.name}.log", env=env)
        member.url = config.url or f"http://{LOOPBACK}:{port}"
        member.engine = member.kind.connect(config, member.url)

    def _no_keys(self) -> dict[str, str]:
        """No engine's process needs the keys that this one has; an empty variable counts as none."""
        return dict.fromkeys(
            (*KEYS, *(one.api_key_env for one in self._config.engines if one.api_key_env)), ""
        )

    async def _start_all(self) -> None:
        """Raises as soon as one fails, with those that fail at about the same time."""
        starts = [asyncio.create_task(self._start(member)) for member in self._members.values()]
        if not starts:
            return
        try:
            done, _ = await asyncio.wait(starts, return_when=asyncio.FIRST_EXCEPTION)
            if any(start.exception() for start in done):
                await asyncio.wait(starts, timeout=GRACE_S)
        finally:
            for start in starts:
                start.cancel()
            outcomes = await asyncio.gather(*starts, return_exceptions=True)
        faults = [fault for fault in outcomes if isinstance(fault, Exception)]
        _raise_together(faults, SageError, "did not start")

    async def _start(self, member: _Member) -> None:
        if member.service is None:
            self._pollers.append(asyncio.create_task(self._poll(member), name=f"poll {member.spec.name}"))
        else:
            await self._processes.start(member.service)
            await self._processes.wait_ready(member.service.name)

    # ---- watching ----------------------------------------------------------------------------------------

    def _changed(self, status: ServiceStatus) -> None:
        member = self._members[status.name]
        if status.state == "ready":
            self._up(member)
        elif member.up or status.state != "starting":
            self._down(member, status.detail or f"its process is {status.state}")

    async def _poll(self, member: _Member) -> None:
        if member.engine is None:
            raise RuntimeError(f"{member.spec.name} is polled before it was connected")
        while True:
            if not await member.engine.ready():
                self._down(member, f"{member.url} does not answer")
            elif not member.up:
                self._up(member)
            await asyncio.sleep(self._poll_s)

    def _up(self, member: _Member) -> None:
        if member.engine is not None:
            log.info("engine %s is ready at %s", member.spec.name, member.url)
            member.up = True
            self._control_plane.add_engine(member.engine)

    def _down(self, member: _Member, reason: str) -> None:
        if member.up:
            log.warning("engine %s is down: %s", member.spec.name, reason)
        member.up = False
        self._control_plane.engine_down(member.spec.name, reason)


def _describe(configs: Sequence[EngineConfig], kinds: Callable[[str], EngineKind]) -> list[_Member]:
    members: list[_Member] = []
    problems: list[BaseException] = []
    names: set[str] = set()
    for config in configs:
        try:
            kind = kinds(config.kind)
            members.append(_Member(config, kind, kind.spec(config)))
        except SageError as exc:
            problems.append(exc)
        if config.name in names:
            problems.append(
                ConfigError(f"Two engines are named {config.name!r}; each needs a name of its own.")
            )
        names.add(config.name)
    _raise_together(problems, ConfigError, "cannot be used")
    return members


def _raise_together(problems: Sequence[BaseException], kind: type[SageError], what: str) -> None:
    """Raise one of them as it is, and more of them as one error that names all."""
    for problem in problems:
        if not isinstance(problem, SageError):
            raise problem
    if len(problems) == 1:
        raise problems[0]
    if problems:
        raise kind(f"{len(problems)} engines {what}: " + " | ".join(map(str, problems)))


def _merge(counted: EngineStatus, member: _Member, process: ServiceStatus | None) -> EngineStatus:
    facts: dict[str, object] = {"url": member.url, "cores": list(member.cores)}
    if process is not None:
        facts |= {"pid": process.pid, "restarts": process.restarts}
        spawning = process.state == "stopped" and counted.state == "starting"
        if process.state != "ready" and not spawning:  # the process knows best why it does not serve
            facts |= {"state": process.state, "detail": process.detail}
    return counted.model_copy(update=facts)
