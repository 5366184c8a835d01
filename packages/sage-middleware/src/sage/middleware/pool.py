"""The engines of one configuration: started, watched, announced to the control plane, stopped."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol

from sage.common.api import EngineStatus
from sage.common.config import SageConfig
from sage.common.errors import ConfigError, NotFoundError, SageError, UnavailableError, UsageError
from sage.middleware.control_plane.driver import ControlPlane
from sage.middleware.control_plane.runner import EngineAction
from sage.middleware.control_plane.types import StartEngine, StopEngine
from sage.middleware.engines.port import EngineKind
from sage.middleware.engines.registry import engine_kind
from sage.middleware.members import ASLEEP, Equipment, Member, describe, merge, raise_together, template_of
from sage.platform.service import ServiceSpec, ServiceStatus, Supervisor

__all__ = ["EnginePool", "Processes"]

log: Final = logging.getLogger("sage.middleware.pool")

GRACE_S: Final = 3.0  # after the first failed start, for others that fail too
POLL_S: Final = 2.0  # between two looks at an engine that somebody else runs
DRAIN_POLL_S: Final = 0.05  # between two looks whether an engine that is to stop has work left


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

    async def stop(self, name: str) -> None:
        """Stop one for good."""
        ...

    async def restart(self, name: str) -> None:
        """Stop one and start it again."""
        ...

    async def close(self) -> None:
        """Stop all of them."""
        ...


class EnginePool:
    """Starts and stops the engines of `config` and keeps the control plane told of who can serve.

    `logs` is the folder for the engines' logs. `supervisor` makes what runs the processes, given whom to tell
    of changes; `kinds` finds a kind of engine by its name. Every engine is announced at once, so that its
    model exists and is answered with 503 until it is ready. A process that stops answering its probe
    (`degraded`) is sent no more work, though it is not killed and what runs there may end. Engines with
    `min_replicas` 0 sleep at first. What the control plane wants started, stopped or restarted is done
    in the background; a fault there is told to it as the engine's end. Raises one ConfigError with all that
    is wrong.
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
        self._equipment = Equipment(config, logs)
        self._control_plane = control_plane
        self._processes = supervisor(self._changed)
        self._poll_s = poll_s
        self._kinds = kinds
        self._members = {member.config.name: member for member in describe(config.engines, kinds)}
        self._pollers: list[asyncio.Task[None]] = []
        self._actions: set[asyncio.Task[None]] = set()
        self._locks: dict[str, asyncio.Lock] = {}  # by engine: starts and stops of one go one after the other
        self._planned = asyncio.Event()  # ports and cores are given out
        self._closing = False
        for member in self._members.values():
            control_plane.announce(member.spec)
            if member.asleep:
                control_plane.engine_down(member.spec.name, ASLEEP)
        control_plane.on_engine_action = self._act

    async def start(self) -> None:
        """Start every engine that does not sleep and return when all that are ours are ready.

        An engine that somebody else runs may come later. Raises one SageError with every reason when
        one of ours cannot be started; then all of them are stopped again.
        """
        try:
            await asyncio.to_thread(self._plan)
            self._planned.set()
            await self._start_all()
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Stop what was started and close all connections. What still runs at an engine breaks off."""
        self._closing = True
        for task in (*self._pollers, *self._actions):
            task.cancel()
        await asyncio.gather(*self._pollers, *self._actions, return_exceptions=True)
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
            merge(counted[name], member, processes.get(name) if member.service else None)
            for name, member in self._members.items()
            if name in counted
        ]

    # ---- start -------------------------------------------------------------------------------------------

    def _plan(self) -> None:
        """Ports, cores, processes and connections of all engines. Looks for model files: not for the loop.

        Raises one ConfigError with all problems.
        """
        members = list(self._members.values())
        self._equipment.plan_cores(members)
        problems: list[BaseException] = []
        for member in members:
            try:
                self._equipment.fit(member)
            except SageError as exc:
                problems.append(exc)
        raise_together(problems, ConfigError, "cannot be started")

    async def _start_all(self) -> None:
        """Raises as soon as one fails, with those that fail at about the same time."""
        awake = [member for member in self._members.values() if not member.asleep]
        starts = [asyncio.create_task(self._start(member)) for member in awake]
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
        raise_together(faults, SageError, "did not start")

    async def _start(self, member: Member) -> None:
        if member.service is None:
            self._pollers.append(asyncio.create_task(self._poll(member), name=f"poll {member.spec.name}"))
        else:
            await self._processes.start(member.service)
            await self._processes.wait_ready(member.service.name)

    # ---- coming and going --------------------------------------------------------------------------------

    async def start_engine(self, template: str, name: str) -> None:
        """Start the engine `name`: the configured one called `template`, or one more like it.

        Returns when its process runs; the control plane is told when it is ready, or why it never will be.
        Nothing happens if it runs already. Raises NotFoundError (template), UsageError (no such replica, or
        it runs elsewhere), UnavailableError (the pool is being closed), and what keeps it from being
        started; that is told to the control plane as well.
        """
        base = self._base(template, name)
        await self._planned.wait()
        async with self._lock(name):
            self._refuse_if_closing()
            member = self._members.get(name) or base.replica(name)
            if self._runs(name):
                return
            self._members[name] = member
            member.asleep = member.leaving = False
            self._control_plane.announce(member.spec)
            try:
                member.get_cores(self._equipment.cores_like(base, self._others(name)))
                await asyncio.to_thread(self._equipment.fit, member)
                if member.service is None:
                    raise UsageError(f"Engine {template} has no process that could be started from here.")
                await self._processes.start(member.service)
            except BaseException as exc:
                self._down(member, str(exc) or type(exc).__name__)
                raise
        log.info("engine %s is starting on cores %s", name, member.cores)

    async def stop_engine(self, name: str) -> None:
        """Drain an engine and stop it: no new work, time for what runs there, then its process ends.

        A configured one sleeps then; one more like it is forgotten. Nothing happens if it does not run.
        Raises NotFoundError, UsageError for one that runs elsewhere, UnavailableError like `start_engine`.
        """
        member = self._ours(name)
        async with self._lock(name):
            self._refuse_if_closing()
            if member.asleep or self._members.get(name) is not member:
                return
            member.leaving, member.up = True, False
            self._control_plane.engine_down(name, "it is being stopped")
            try:
                async with asyncio.timeout(self._config.gateway.drain_s):
                    await self._drained(name)
            except TimeoutError:
                log.warning("engine %s is stopped with work left after its time to drain", name)
            if self._runs(name):
                await self._processes.stop(name)
            member.leaving = member.lived = False
            await self._laid_down(member)
        log.info("engine %s is stopped", name)

    async def restart_engine(self, name: str) -> None:
        """End an engine's process at once, whatever runs there, and start it again.

        Nothing happens if it does not run, or is being started or stopped. Errors as of `stop_engine`.
        """
        member = self._ours(name)
        lock = self._lock(name)
        if lock.locked() or not self._runs(name):
            return
        async with lock:
            self._refuse_if_closing()
            self._down(member, "it is being restarted")
            try:
                await self._processes.restart(name)
            except SageError as exc:
                self._down(member, str(exc))
                raise

    def _act(self, action: EngineAction) -> None:
        """Carry out in the background what the control plane wants."""
        if self._closing:
            return
        task = asyncio.create_task(self._carry_out(action), name=f"{type(action).__name__} {action.name}")
        self._actions.add(task)
        task.add_done_callback(self._actions.discard)

    async def _carry_out(self, action: EngineAction) -> None:
        log.info("%s %s: %s", type(action).__name__, action.name, action.reason)
        try:
            if isinstance(action, StartEngine):
                await self.start_engine(action.template, action.name)
            elif isinstance(action, StopEngine):
                await self.stop_engine(action.name)
            else:
                await self.restart_engine(action.name)
        except Exception as exc:
            unforeseen = not isinstance(exc, SageError)
            log.error("%s %s failed: %s", type(action).__name__, action.name, exc, exc_info=unforeseen)
            self._control_plane.engine_down(action.name, str(exc) or type(exc).__name__)

    async def _drained(self, name: str) -> None:
        while any(one.name == name and one.running for one in self._control_plane.engines()):  # noqa: ASYNC110
            await asyncio.sleep(DRAIN_POLL_S)

    async def _laid_down(self, member: Member) -> None:
        """Its process has ended: what the control plane and we keep of it."""
        name = member.spec.name
        if member.base is None:
            member.asleep = True
            self._control_plane.announce(member.spec)  # what was drained stays `draining` until it is news
            self._control_plane.engine_down(name, ASLEEP)
            return
        del self._members[name]
        self._control_plane.remove_engine(name)
        if member.engine is not None:
            await member.engine.close()
        if member.lease is not None:
            member.lease.release()

    def _base(self, template: str, name: str) -> Member:
        base = self._members.get(template)
        if base is None or base.base is not None:
            known = ", ".join(one for one, member in self._members.items() if member.base is None) or "none"
            raise NotFoundError(f"There is no configured engine {template!r}; there are: {known}.")
        self._refuse_if_elsewhere(base)
        names = list(template_of(base.config, base.spec, 0).names())
        if name not in names:
            raise UsageError(f"{name!r} is no engine like {template}; valid are: {', '.join(names)}.")
        return base

    def _ours(self, name: str) -> Member:
        member = self._members.get(name)
        if member is None:
            known = ", ".join(self._members) or "none"
            raise NotFoundError(f"There is no engine {name!r}; there are: {known}.")
        self._refuse_if_elsewhere(member)
        return member

    def _refuse_if_elsewhere(self, member: Member) -> None:
        if member.config.url:
            name = member.spec.name
            raise UsageError(f"Engine {name} runs elsewhere and cannot be started or stopped from here.")

    def _lock(self, name: str) -> asyncio.Lock:
        return self._locks.setdefault(name, asyncio.Lock())

    def _refuse_if_closing(self) -> None:
        if self._closing:
            raise UnavailableError("The engines are being stopped.")

    def _running(self) -> set[str]:
        """Names of the engines that have a process, or will have after a pause."""
        return {one.name for one in self._processes.statuses() if one.state not in ("stopped", "failed")}

    def _runs(self, name: str) -> bool:
        return name in self._running()

    def _others(self, name: str) -> list[Member]:
        """Those that have cores, or are just being given some."""
        running = self._running()
        busy = {other for other, lock in self._locks.items() if lock.locked() and other != name}
        return [one for other, one in self._members.items() if other in running | busy]

    # ---- watching ----------------------------------------------------------------------------------------

    def _changed(self, status: ServiceStatus) -> None:
        member = self._members.get(status.name)
        if member is None or member.leaving:
            return
        if status.state == "ready":
            member.lived = True
            self._up(member)
            return
        if member.up or member.lived or status.state != "starting":
            crashed = member.lived and status.state in ("starting", "failed")
            if status.state != "degraded":
                member.lived = False
            self._down(member, status.detail or f"its process is {status.state}", crashed=crashed)
        if status.state == "starting":  # again: it is on its way, not gone
            self._control_plane.announce(member.spec)

    async def _poll(self, member: Member) -> None:
        if member.engine is None:
            raise RuntimeError(f"{member.spec.name} is polled before it was connected")
        while True:
            ready = await member.engine.ready()
            if self._members.get(member.spec.name) is not member:
                return  # its place was taken, or is gone
            if not ready:
                self._down(member, f"{member.url} does not answer")
            elif not member.up:
                self._up(member)
            await asyncio.sleep(self._poll_s)

    def _up(self, member: Member) -> None:
        if member.engine is not None:
            log.info("engine %s is ready at %s", member.spec.name, member.url)
            member.up = True
            self._control_plane.replace_engine(member.engine)

    def _down(self, member: Member, reason: str, *, crashed: bool = False) -> None:
        if member.up:
            log.warning("engine %s is down: %s", member.spec.name, reason)
        member.up = False
        self._control_plane.engine_down(member.spec.name, reason, crashed=crashed)
