"""What the operators of a job ask for with `resources=`, together: all of them run at once, on one node."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import ceil
from typing import Any

from sage.common.errors import BadRequestError
from sage.common.jobs import JobResources
from sage.kernel.compile import Compiled
from sage.kernel.plan import PlanError
from sage.kernel.scheduler.sizes import format_bytes, parse_bytes

__all__ = ["demand_of", "devices_for", "resources_for"]


def demand_of(plans: Sequence[Compiled]) -> dict[str, Any]:
    """The sum over the workers that a run begins with and the operators on its event loop; {} = nothing.

    `plans`: that of the run, then those behind its services. Raises PlanError where their labels fit no node.
    """
    if all(op.node.provision.resources is None for plan in plans for op in plan.all_ops):
        return {}
    from sage.kernel.runtime.room import units_of  # the scheduler is 40 ms of imports

    units = [unit for plan in plans for unit in units_of(plan)]
    labels: dict[str, str] = {}
    for name, value in (pair for unit in units for pair in unit.resources.labels):
        if labels.setdefault(name, value) != value:
            both = " and ".join(f"{name}={one}" for one in sorted({labels[name], value}))
            raise PlanError(plans[0].name, [f"its operators ask for {both}, and a job runs on one node"])
    return {
        "cpu": round(sum(unit.resources.cpu for unit in units), 3),
        "gpu": devices_for(unit.resources.gpu for unit in units),
        "memory": sum(unit.resources.memory for unit in units),
        "gpu_memory": max(unit.resources.gpu_memory for unit in units),
        "labels": labels,
    }


def devices_for(asked: Iterable[float]) -> float:
    """How many devices whole ones and shares need together, where a share is of one device."""
    amounts = list(asked)
    whole = sum(int(one) for one in amounts if one >= 1)
    used: list[float] = []  # of each device that is shared out; the large shares first
    for share in sorted((one for one in amounts if 0 < one < 1), reverse=True):
        at = next((i for i, one in enumerate(used) if one + share <= 1 + 1e-9), None)
        if at is None:
            used.append(share)
        else:
            used[at] += share
    if not whole and len(used) == 1:
        return round(used[0], 3)
    return float(whole + len(used))


def resources_for(given: JobResources, demand: dict[str, Any]) -> JobResources:
    """What a job takes of its node: what was said of it, and at least what its operators ask for.

    Raises BadRequestError where the labels of both fit no node.
    """
    if not demand:
        return given
    labels = {**demand["labels"], **given.labels}
    for name, value in demand["labels"].items():
        if labels[name] != value:
            raise BadRequestError(
                f"The job asks for a node with {name}={labels[name]}, and its operators for {name}={value}.",
                param="resources",
            )
    gpu = max(given.gpu, demand["gpu"])
    memory = max(parse_bytes(given.memory, "memory"), demand["memory"])
    per_device = max(parse_bytes(given.gpu_memory or 0, "gpu_memory"), demand["gpu_memory"])
    return JobResources.model_construct(
        cpu=max(given.cpu, demand["cpu"]),
        gpu=float(ceil(gpu)) if gpu > 1 else gpu,
        memory=_spelled(memory),
        gpu_memory=_spelled(per_device) if per_device else "",
        labels=labels,
    )


def _spelled(size: int) -> str:
    """As people write it, where that says all of it."""
    short = format_bytes(size)
    return short if parse_bytes(short) == size else str(size)
