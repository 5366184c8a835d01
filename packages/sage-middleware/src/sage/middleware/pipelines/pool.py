"""The pipelines of a configuration: set up, announced to the control plane, changed, stopped."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

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

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

__all__ = ["Pipelines"]

log: Final = logging.getLogger("sage.middleware.pipelines")

AGAIN_S: Final = 5.0  # between two tries to set up one that cannot be


@dataclass(slots=True, eq=False)
class _Live:
    """One pipeline. `task` sets it up; `job` serves, perhaps still as an earlier configuration said."""

    config: PipelineConfig
    task: asyncio.Task[None] | None = None
    job: FlowJob | None = None


class Pipelines:
    """Runs pipelines in this process, with `client` for their operators to call models.

    Each is announced at once, and answered with 503 and the reason until it is set up: that is tried again
    every `again_s` seconds, as an index that is missing now may come. `tracer`: see `LocalEnvironment`.
    """

    def __init__(
        self,
        control_plane: ControlPlane,
        client: ModelClient,
        *,
        again_s: float = AGAIN_S,
        tracer: Tracer | None = None,
    ) -> None:
        self._control_plane = control_plane
        self._client = client
        self._again_s = again_s
        self._environment = LocalEnvironment(tracer=tracer)
        self._live: dict[str, _Live] = {}
        self._ending: set[asyncio.Task[None]] = set()

    def apply(self, configs: Sequence[PipelineConfig]) -> None:
        """From now on these are served. One that has changed goes on as it was until it is set up anew."""
        wanted = {config.name: config for config in configs}
        for name in [name for name in self._live if name not in wanted]:
            live = self._live.pop(name)
            self._cancel(live)
            self._control_plane.remove_engine(pipeline_spec(live.config).name)
            self._end(live.job)
        for name, config in wanted.items():
            live = self._live.setdefault(name, _Live(config))
            if live.task is not None and live.config == config:
                continue
            self._cancel(live)
            live.config = config
            if live.job is None:
                self._control_plane.announce(pipeline_spec(config))
            live.task = asyncio.create_task(self._set_up(live), name=f"set up pipeline {name}")

    async def close(self) -> None:
        """Stop them; what is under way ends with an error. To be called when requests have been drained."""
        tasks = [live.task for live in self._live.values() if live.task is not None]
        for live in self._live.values():
            self._cancel(live)
            self._control_plane.engine_down(
                pipeline_spec(live.config).name, "the pipelines are being stopped"
            )
        await asyncio.gather(*tasks, return_exceptions=True)
        for task in self._ending:
            task.cancel()
        await asyncio.gather(*self._ending, return_exceptions=True)
        for live in self._live.values():
            if live.job is not None:
                await live.job.stop(drain=False)

    def statuses(self) -> list[EngineStatus]:
        """Each pipeline as an engine."""
        mine = {pipeline_spec(live.config).name for live in self._live.values()}
        return [status for status in self._control_plane.engines() if status.name in mine]

    async def _set_up(self, live: _Live) -> None:
        config, told = live.config, ""
        spec = pipeline_spec(config)
        while True:
            try:
                flow = await asyncio.to_thread(flow_of, config)
                with serving(self._client):
                    job = await self._environment.submit(flow, limit=config.concurrency)
                break
            except Exception as error:  # whatever a user's flow raises
                ours = isinstance(error, SageError)
                words = str(error) if ours else f"{type(error).__name__}: {error}"
                if words != told:
                    log.error("pipeline %s cannot be set up: %s", config.name, words, exc_info=not ours)
                told = words
                if live.job is None:
                    self._control_plane.engine_down(spec.name, words)
            await asyncio.sleep(self._again_s)
        before, live.job = live.job, job
        engine = PipelineEngine(spec, flow.plan.nodes[0].fn, job, self._job_of)
        self._control_plane.replace_engine(Interpreter(engine))
        log.info("pipeline %s serves as %s", config.name, spec.model)
        self._end(before)

    def _cancel(self, live: _Live) -> None:
        if live.task is not None:
            live.task.cancel()

    def _end(self, job: FlowJob | None) -> None:
        """Let what runs there end, then close it."""
        if job is not None:
            task = asyncio.create_task(job.stop())
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)

    def _job_of(self, ident: str) -> Job | None:
        record = self._control_plane.core.record(ident)
        return None if record is None else record.job
