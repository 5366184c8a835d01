"""A job of this process, what runs for it, and how it is told."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

from sage.common.jobs import JobInfo, OperatorInfo
from sage.kernel.jobs.process import JobProcess
from sage.kernel.jobs.restart import Restart
from sage.kernel.jobs.states import Job

__all__ = ["Held", "info"]


@dataclass(slots=True, eq=False)
class Held:
    """`life`: the task that runs it, from a placement to the end of its process, or to the next start.

    `since`: when it was placed, Unix seconds. `changed` is set once, at the next change, and then replaced.
    `lock`: what is asked of it is done one after the other.
    """

    job: Job
    process: JobProcess | None = None
    life: asyncio.Task[None] | None = None
    operators: tuple[OperatorInfo, ...] = ()
    stuck: float = 0.0
    since: float = 0.0
    deleted: bool = False
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    def tell(self) -> None:
        """Wake those who watch it."""
        self.changed.set()
        self.changed = asyncio.Event()

    @property
    def over(self) -> bool:
        """Whether nothing more is to be told of it."""
        return self.deleted or self.job.over


def info(held: Held, waits: str = "", *, operators: bool = True) -> JobInfo:
    """As it is told. `waits`: what it waits for, if it does."""
    job = held.job
    counts = held.operators or job.operators
    return JobInfo(
        id=job.id,
        name=job.name,
        flow=job.flow,
        source=job.source,
        state=job.state,
        detail=job.detail,
        created_at=job.created,
        started_at=job.started,
        ended_at=job.ended,
        restart=spelled(job.restart),
        restarts=job.restarts,
        every=job.every,
        resources=job.resources,
        node=job.node,
        placement=waits or job.placement,
        pid=None if held.process is None else held.process.pid,
        stuck_s=held.stuck,
        checkpoint=job.checkpoint,
        operators=list(counts) if operators else [],
    )


def spelled(restart: Restart) -> str:
    """As `Restart.parse` takes it."""
    numbers: dict[str, tuple[Any, ...]] = {
        "none": (),
        "fixed": (restart.times, restart.delay),
        "exponential": (restart.times, restart.delay, restart.longest),
        "rate": (restart.times, restart.window, restart.delay),
    }
    return ":".join([restart.kind, *(f"{number:g}" for number in numbers[restart.kind])])
