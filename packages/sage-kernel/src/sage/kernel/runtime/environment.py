"""What runs flows: the port of backends, and the one that is still to come."""

from __future__ import annotations

import asyncio
from typing import NoReturn, Protocol

from sage.common.errors import UnavailableError
from sage.kernel.compile import compile_plan
from sage.kernel.flow import Flow
from sage.kernel.registry import Registry, default_registry
from sage.kernel.runtime.job import Job
from sage.kernel.runtime.report import RunReport
from sage.kernel.runtime.run import Run
from sage.kernel.runtime.shared import ServiceFactory

__all__ = ["Environment", "RemoteEnvironment"]


class Environment(Protocol):
    """A backend. `sage.kernel.testing.dataflow` holds what each of them must do."""

    def register_service(self, name: str, factory: ServiceFactory) -> None:
        """Let operators call `call_service(name)`."""
        ...

    def check(self, flow: Flow) -> None:
        """Raise `PlanError` for a flow that cannot run, with the services it calls."""
        ...

    async def start(self, flow: Flow) -> Run:
        """Start a finite flow. Raises `PlanError` for one that cannot run."""
        ...

    async def run(self, flow: Flow, *, stop: asyncio.Event | None = None) -> RunReport:
        """Run a finite flow to its end, or to its first error; once `stop` is set, what was read drains."""
        ...

    def run_sync(self, flow: Flow) -> RunReport:
        """`run` for code without an event loop; the first Ctrl-C drains."""
        ...

    async def submit(self, flow: Flow, *, limit: int = 1024) -> Job:
        """Start a flow of requests, at most `limit` of them in flight."""
        ...


class RemoteEnvironment:
    """Will run flows on the Ray cluster at `address`. This version has no such backend, and says so.

    A flow can be checked, and is before that is said, so that its own mistakes are told. What would run it
    raises `UnavailableError`.
    """

    def __init__(self, address: str = "auto", *, registry: Registry | None = None) -> None:
        self.address = address
        self._registry = registry or default_registry()
        self._services: dict[str, ServiceFactory] = {}

    def register_service(self, name: str, factory: ServiceFactory) -> None:
        """See `Environment`."""
        self._services[name] = factory

    def check(self, flow: Flow) -> None:
        """See `Environment`."""
        compile_plan(flow.plan, self._registry, self._services)

    async def start(self, flow: Flow) -> Run:
        """See `Environment`."""
        self._refuse(flow)

    async def run(self, flow: Flow, *, stop: asyncio.Event | None = None) -> RunReport:  # noqa: ARG002
        """See `Environment`."""
        self._refuse(flow)

    def run_sync(self, flow: Flow) -> RunReport:
        """See `Environment`."""
        self._refuse(flow)

    async def submit(self, flow: Flow, *, limit: int = 1024) -> Job:  # noqa: ARG002
        """See `Environment`."""
        self._refuse(flow)

    def _refuse(self, flow: Flow) -> NoReturn:
        self.check(flow)
        raise UnavailableError(
            f"flow {flow.name!r} cannot run on the cluster at {self.address!r}: this version has no backend "
            "for Ray.",
            hint="LocalEnvironment() runs the same plan on this machine.",
        )
