"""The admin API: what the stack is doing, and the few things that can be changed while it runs."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Iterable
from typing import Annotated, Any

from fastapi import FastAPI, Query, Response
from pydantic import BaseModel, ConfigDict

from sage.common.api import (
    Decision,
    DecisionList,
    EngineList,
    EngineStatus,
    MetricList,
    PolicyStatus,
    QueueStatus,
    ReloadReport,
    StackStatus,
)
from sage.common.errors import BadRequestError, NotFoundError
from sage.common.telemetry import TASKS
from sage.common.version import VERSION
from sage.gateway.app import Handlers, Met, make_app
from sage.gateway.prometheus import CONTENT_TYPE, exposition
from sage.gateway.reload import Reloader
from sage.middleware.control_plane.driver import ControlPlane
from sage.middleware.control_plane.metrics import Sample, collect
from sage.middleware.control_plane.policy import available_policies, policy_summaries
from sage.platform.nodes import inventory

__all__ = ["PolicyChange", "admin_app"]

MAX_DECISIONS = 4096


class PolicyChange(BaseModel):
    """The policy to put in force."""

    model_config = ConfigDict(extra="forbid")

    name: str


def admin_app(
    reloader: Reloader,
    control_plane: ControlPlane,
    engines_of: Callable[[], list[EngineStatus]],
    uptime: Callable[[], float],
    stored: Handlers,
    others: Callable[[], Iterable[Sample]],
    *,
    met: Met,
) -> FastAPI:
    """The application behind the admin listener; `stored` serve keys, usage and jobs.

    `others` are metrics that are counted elsewhere. `met`: see `make_app`.
    """
    handlers = {
        **_state(control_plane, engines_of, uptime),
        **_metrics(control_plane, engines_of, uptime, others),
        **_policy(control_plane),
        **_decisions(control_plane),
        **_machine(reloader),
        **stored,
    }
    return make_app("SAGE admin", "admin", handlers, met)


def _state(
    control_plane: ControlPlane, engines_of: Callable[[], list[EngineStatus]], uptime: Callable[[], float]
) -> Handlers:
    async def status() -> StackStatus:
        return StackStatus(
            version=VERSION,
            uptime_s=uptime(),
            policy=control_plane.policy,
            engines=engines_of(),
            queues=control_plane.queues(),
            classes=control_plane.core.books.classes(),
        )

    async def engines() -> EngineList:
        return EngineList(engines=engines_of())

    async def queues() -> list[QueueStatus]:
        return control_plane.queues()

    return {"status": status, "engines": engines, "queues": queues}


def _metrics(
    control_plane: ControlPlane,
    engines_of: Callable[[], list[EngineStatus]],
    uptime: Callable[[], float],
    others: Callable[[], Iterable[Sample]],
) -> Handlers:
    async def metrics() -> MetricList:
        return collect(
            control_plane.core.books,
            engines_of(),
            control_plane.queues(),
            policy=control_plane.policy,
            uptime=uptime(),
            others=(*others(), (TASKS, len(asyncio.all_tasks()), {})),
        )

    async def metrics_text() -> Response:
        return Response(exposition(await metrics()), media_type=CONTENT_TYPE)

    return {"metrics": metrics, "exposition": metrics_text}


def _policy(control_plane: ControlPlane) -> Handlers:
    async def policy() -> PolicyStatus:
        summaries = policy_summaries()
        return PolicyStatus(name=control_plane.policy, available=sorted(summaries), summaries=summaries)

    async def set_policy(change: PolicyChange) -> PolicyStatus:
        known = available_policies()
        if change.name not in known:
            raise BadRequestError(
                f"There is no policy named {change.name!r}; there are {', '.join(known)}.", param="name"
            )
        control_plane.set_policy(change.name)
        return await policy()

    return {"policy": policy, "set_policy": set_policy}


def _decisions(control_plane: ControlPlane) -> Handlers:
    async def decisions(limit: Annotated[int, Query(ge=1, le=MAX_DECISIONS)] = 100) -> DecisionList:
        return DecisionList(decisions=control_plane.decisions(limit))

    async def decision(request_id: str) -> Decision:
        found = control_plane.decision(request_id)
        if found is None:
            raise NotFoundError(f"No decision about {request_id!r} is remembered: never seen, or too old.")
        return found

    return {"decisions": decisions, "decision": decision}


def _machine(reloader: Reloader) -> Handlers:
    async def config_in_force() -> dict[str, Any]:
        loaded = reloader.loaded
        return {"config": loaded.config.model_dump(mode="json"), "origin": loaded.origin}

    async def reload_config() -> ReloadReport:
        return await reloader.reload()

    def nodes() -> dict[str, Any]:
        # A plain function: FastAPI runs it on a thread, because NVML may take its time.
        return {"nodes": [dataclasses.asdict(dataclasses.replace(inventory(), labels={}))]}

    return {"config": config_in_force, "reload_config": reload_config, "nodes": nodes}
