"""What a serving process is made of, beside its sockets and engines: opened together, closed together."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from sage.common.clock import SystemClock
from sage.common.config import SageConfig
from sage.common.paths import SagePaths
from sage.gateway.access import Access
from sage.gateway.batch.service import Stores
from sage.gateway.jobs import job_key, open_jobs
from sage.gateway.responsestore import ResponseLimits, ResponseStore
from sage.gateway.telemetry import Telemetry
from sage.kernel.jobs import JobManager
from sage.middleware.control_plane.driver import ControlPlane
from sage.middleware.control_plane.router import ModelRouter
from sage.middleware.members import make_core
from sage.platform.state import StateDirectory
from sage.platform.storage.sqlite import Database

__all__ = ["Services"]


@dataclass(frozen=True, slots=True)
class Services:
    """The control plane, the names before it, and what is stored."""

    control_plane: ControlPlane
    router: ModelRouter
    access: Access
    telemetry: Telemetry
    responses: ResponseStore
    stores: Stores
    jobs: JobManager

    @classmethod
    @asynccontextmanager
    async def open(
        cls, config: SageConfig, paths: SagePaths, state: StateDirectory, base_url: str
    ) -> AsyncIterator[Services]:
        """All of them. `base_url`: where jobs find the models.

        Raises SageError for what cannot be opened, and leaves nothing open then.
        """
        clock = SystemClock()
        control_plane = ControlPlane(config.control_plane, clock, core=make_core(config))
        router = ModelRouter(control_plane, clock)
        router.configure(config.models, config.control_plane)
        telemetry = Telemetry(config.telemetry, os.environ)
        database = Database(paths.gateway_database)
        try:
            access = await Access.open(database, state, paths, clock, known=router.is_known)
            responses = await ResponseStore.open(database, ResponseLimits.of(config.gateway), clock)
            key = await job_key(access.keys)
            async with (
                await Stores.open(paths, config, clock) as stores,
                await open_jobs(config, paths, base_url, key) as jobs,
            ):
                yield cls(control_plane, router, access, telemetry, responses, stores, jobs)
        finally:
            await telemetry.close()
            await database.close()
