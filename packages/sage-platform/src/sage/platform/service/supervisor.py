"""The supervisor: one task per service, which watches its lives one after another."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from sage.common.errors import ConflictError, NotFoundError, SageError, UnavailableError
from sage.common.ports import is_free
from sage.platform.service.probe import address, probe
from sage.platform.service.process import GuardedProcess
from sage.platform.service.restart import RestartPolicy
from sage.platform.service.spec import Drain, ServiceSpec, ServiceState, ServiceStatus

__all__ = ["Supervisor"]

_FIRST_PAUSE = 0.05  # between probes of a service that starts; grows to _PAUSE
_PAUSE = 0.5
_WATCH_EVERY = 5.0  # between probes of a service that is ready
_MISSES = 3  # failed probes in a row until it is degraded


@dataclass(slots=True)
class _Service:
    spec: ServiceSpec
    status: ServiceStatus
    process: GuardedProcess | None = None
    task: asyncio.Task[None] | None = None
    crashes: list[float] = field(default_factory=list)
    settled: asyncio.Event = field(default_factory=asyncio.Event)  # set in every state but `starting`
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)  # start, stop and restart one at a time


class Supervisor:
    """Keeps services running. Use it within one event loop and `close` it in the end.

    A service that never became ready is `failed` at its first exit or timeout: that is a wrong command, not
    a crash. One that was ready is restarted with backoff until it crashes in a loop. `on_change` is called in
    the loop with every new status and must not raise. If this process dies, even by SIGKILL, every service
    ends with it.
    """

    def __init__(
        self,
        on_change: Callable[[ServiceStatus], None] | None = None,
        *,
        restarts: RestartPolicy | None = None,
        watch_every: float = _WATCH_EVERY,
    ) -> None:
        self._on_change = on_change
        self._restarts = restarts or RestartPolicy()
        self._watch_every = watch_every
        self._services: dict[str, _Service] = {}

    def status(self, name: str) -> ServiceStatus:
        """The status of one service. Raises NotFoundError with the names there are."""
        return self._find(name).status

    def statuses(self) -> list[ServiceStatus]:
        """All services, in the order of their first start."""
        return [service.status for service in self._services.values()]

    async def start(self, spec: ServiceSpec) -> None:
        """Start the process and return; `wait_ready` waits for it.

        Raises ConflictError when a service of this name runs or its port is taken, SageError when log or
        process cannot be made.
        """
        new = _Service(spec, ServiceStatus(spec.name, "stopped"))
        service = self._services.setdefault(spec.name, new)
        async with service.lock:
            if service.status.state not in ("stopped", "failed"):
                raise ConflictError(f"Service {spec.name} is already {service.status.state}.")
            try:
                await self._launch(service, spec)
            except BaseException:
                if service is new:
                    del self._services[spec.name]
                raise

    async def wait_ready(self, name: str) -> ServiceStatus:
        """Wait while it starts. Raises UnavailableError with the reason if it failed or was stopped."""
        service = self._find(name)
        while service.status.state == "starting":
            await service.settled.wait()
        if service.status.state in ("failed", "draining", "stopped"):
            raise UnavailableError(
                f"Service {name} is {service.status.state}: {service.status.detail}",
                hint=f"Its log is {service.spec.log}.",
            )
        return service.status

    async def stop(self, name: str) -> None:
        """Stop it for good: drain, SIGTERM, then SIGKILL after `stop_timeout`. Twice does nothing more."""
        service = self._find(name)
        async with service.lock:
            await self._halt(service)

    async def restart(self, name: str) -> None:
        """Stop and start again; counts and crash history begin anew. Works on a failed service too."""
        service = self._find(name)
        async with service.lock:
            await self._halt(service)
            await self._launch(service, service.spec)

    async def close(self) -> None:
        """Stop all services at the same time; raises the first error after all were tried."""
        outcomes = await asyncio.gather(*(self.stop(name) for name in self._services), return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome

    def _find(self, name: str) -> _Service:
        if name not in self._services:
            known = ", ".join(self._services) or "none"
            raise NotFoundError(f"There is no service {name!r}; there are: {known}.")
        return self._services[name]

    async def _launch(self, service: _Service, spec: ServiceSpec) -> None:
        if spec.probe_url:
            host, port = address(spec.probe_url)
            if not is_free(port, host):  # else a stranger's answer would pass for this service's
                raise ConflictError(f"Port {port} on {host} is in use, and {spec.name} needs it.")
        service.process = await GuardedProcess.spawn(spec)
        service.spec = spec
        service.crashes.clear()
        service.status = ServiceStatus(spec.name, "stopped")  # forgets the counts of an earlier start
        self._set(service, "starting", pid=service.process.pid)
        service.task = asyncio.create_task(self._supervise(service), name=f"supervise {spec.name}")

    async def _halt(self, service: _Service) -> None:
        if service.task is not None:
            service.task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await service.task
            service.task = None
        left = ""
        if service.process is not None:
            if service.spec.drain is not None and service.status.state in ("ready", "degraded"):
                self._set(service, "draining", pid=service.process.pid)
                left = await _drained(service.spec.drain, service.process.exited)
            await service.process.stop(service.spec.stop_timeout)
            service.process = None
        if service.status.state != "stopped":
            self._set(service, "stopped", detail=f"stopped on request{left}")

    def _set(
        self,
        service: _Service,
        state: ServiceState,
        *,
        pid: int | None = None,
        detail: str = "",
        more: int = 0,
    ) -> None:
        restarts = service.status.restarts + more
        service.status = replace(service.status, state=state, pid=pid, detail=detail, restarts=restarts)
        if state == "starting":
            service.settled.clear()
        else:
            service.settled.set()
        if self._on_change is not None:
            self._on_change(service.status)

    async def _supervise(self, service: _Service) -> None:
        """Watch it until it fails for good. Cancelled by stop."""
        try:
            await self._lives(service)
        except SageError as error:
            self._set(service, "failed", detail=str(error))

    async def _lives(self, service: _Service) -> None:
        """One life after another; returns when the last is over."""
        loop = asyncio.get_running_loop()
        was_ready = False
        while service.process is not None:
            reason = await self._until_ready(service, service.process)
            if not reason:
                was_ready = True
                self._set(service, "ready", pid=service.process.pid)
                reason = await self._while_ready(service, service.process)
            service.process = None
            service.crashes.append(loop.time())
            delay = self._restarts.delay(service.crashes, loop.time(), service.spec.max_restarts)
            if not was_ready or delay is None:
                tail = f"; gave up after {service.status.restarts} restarts" if was_ready else ""
                self._set(service, "failed", detail=reason + tail)
                return
            self._set(service, "starting", detail=f"{reason}; starts again in {delay:g} s", more=1)
            await asyncio.sleep(delay)
            service.process = await GuardedProcess.spawn(service.spec)
            self._set(service, "starting", pid=service.process.pid, detail=service.status.detail)

    async def _until_ready(self, service: _Service, process: GuardedProcess) -> str:
        """Wait for the first good probe: empty, or why this life is over before it."""
        spec = service.spec
        if not spec.probe_url:
            return ""
        answers = _Answers(spec.probe_url)
        probing = asyncio.create_task(answers.until_good())
        try:
            waiting: set[asyncio.Task[int] | asyncio.Task[None]] = {process.exited, probing}
            await asyncio.wait(waiting, timeout=spec.start_timeout, return_when=asyncio.FIRST_COMPLETED)
        finally:
            probing.cancel()
        if process.exited.done():
            return _obituary(process, " before it was ready")
        if probing.done() and not probing.cancelled():
            return ""
        said = process.last_words()
        await process.stop(spec.stop_timeout)
        return f"not ready after {spec.start_timeout:g} s: {answers.reason}{said}"

    async def _while_ready(self, service: _Service, process: GuardedProcess) -> str:
        """Wait for its exit, and keep ready and degraded apart meanwhile; returns why it ended."""
        misses = 0
        while True:
            await asyncio.wait({process.exited}, timeout=self._watch_every)
            if process.exited.done():
                return _obituary(process)
            if not service.spec.probe_url:
                continue
            reason = await probe(service.spec.probe_url)
            misses = misses + 1 if reason else 0
            if misses == _MISSES and not process.exited.done():
                self._set(service, "degraded", pid=process.pid, detail=reason + process.last_words())
            elif not reason and service.status.state == "degraded":
                self._set(service, "ready", pid=process.pid)


class _Answers:
    """Probes of a starting service; `reason` says why the last one failed."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.reason = "never probed"

    async def until_good(self) -> None:
        """Probe, less and less often, until the answer is good."""
        pause = _FIRST_PAUSE
        while reason := await probe(self.url):
            self.reason = reason
            await asyncio.sleep(pause)
            pause = min(_PAUSE, pause * 1.2)


async def _drained(drain: Drain, exited: asyncio.Task[int]) -> str:
    """Wait until no work is left, it is gone or has had its time: empty, or why it stops all the same."""
    finish = asyncio.ensure_future(drain.finish())
    try:
        await asyncio.wait({finish, exited}, timeout=drain.timeout, return_when=asyncio.FIRST_COMPLETED)
        if exited.done():
            return ", and ended while it was drained"
        if not finish.done():
            return f", with work left after {drain.timeout:g} s"
        fault = "cancelled" if finish.cancelled() else finish.exception()
        return f", not drained: {fault}" if fault else ""
    finally:
        finish.cancel()
        await asyncio.wait({finish})


def _obituary(process: GuardedProcess, when: str = "") -> str:
    code = process.exited.result()
    how = f"was ended by signal {-code}" if code < 0 else f"exited with code {code}"
    return f"{how}{when}{process.last_words()}"
