"""The pipelines of a configuration: set up, announced to the control plane, stopped."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Final

from sage.common.api import EngineStatus
from sage.common.config import PipelineConfig
from sage.common.errors import SageError
from sage.kernel.runtime.job import Job as FlowJob
from sage.kernel.runtime.local import LocalEnvironment
from sage.middleware.client import ModelClient
from sage.middleware.control_plane.driver import ControlPlane
from sage.middleware.control_plane.types import Job
from sage.middleware.engines.dialects.interpreter import Interpreter
from sage.middleware.operators.connect import serving
from sage.middleware.pipelines.engine import PipelineEngine, pipeline_spec
from sage.middleware.pipelines.flows import flow_of

__all__ = ["Pipelines"]

log: Final = logging.getLogger("sage.middleware.pipelines")

AGAIN_S: Final = 5.0  # between two tries to set up one that cannot be


class Pipelines:
    """Runs each pipeline of `configs` in this process, with `client` for its operators to call models.

    All are announced at once, and answered with 503 and the reason until they are set up: that is tried again
    every `again_s` seconds, as an index that is missing now may come.
    """

    def __init__(
        self,
        configs: Sequence[PipelineConfig],
        control_plane: ControlPlane,
        client: ModelClient,
        *,
        again_s: float = AGAIN_S,
    ) -> None:
        self._configs = configs
        self._control_plane = control_plane
        self._client = client
        self._again_s = again_s
        self._jobs: list[FlowJob] = []
        self._specs = {one.name: pipeline_spec(one.name, one.concurrency) for one in configs}
        for spec in self._specs.values():
            control_plane.announce(spec)

    async def run(self) -> None:
        """Set all of them up, until this is cancelled; they serve meanwhile. Then `close`."""
        async with asyncio.TaskGroup() as group:
            for config in self._configs:
                group.create_task(self._set_up(config), name=f"set up pipeline {config.name}")

    async def close(self) -> None:
        """Stop them; what is under way ends with an error. To be called when requests have been drained."""
        for spec in self._specs.values():
            self._control_plane.engine_down(spec.name, "the pipelines are being stopped")
        for job in self._jobs:
            await job.stop(drain=False)

    def statuses(self) -> list[EngineStatus]:
        """Each pipeline as an engine."""
        mine = {spec.name for spec in self._specs.values()}
        return [status for status in self._control_plane.engines() if status.name in mine]

    async def _set_up(self, config: PipelineConfig) -> None:
        spec, told = self._specs[config.name], ""
        while True:
            try:
                flow = await asyncio.to_thread(flow_of, config)
                with serving(self._client):
                    job = await LocalEnvironment().submit(flow, limit=config.concurrency)
                break
            except SageError as error:
                if str(error) != told:
                    log.error("pipeline %s cannot be set up: %s", config.name, error)
                told = str(error)
                self._control_plane.engine_down(spec.name, told)
            await asyncio.sleep(self._again_s)
        self._jobs.append(job)
        engine = PipelineEngine(spec, flow.plan.nodes[0].fn, job, self._job_of)
        self._control_plane.add_engine(Interpreter(engine))
        log.info("pipeline %s serves as %s", config.name, spec.model)

    def _job_of(self, ident: str) -> Job | None:
        record = self._control_plane.core.record(ident)
        return None if record is None else record.job
