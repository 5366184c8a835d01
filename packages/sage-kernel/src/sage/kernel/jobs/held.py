"""A job of this process, what runs for it, and how it is told."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Final

from sage.common.errors import ConflictError, NotFoundError, TimedOutError
from sage.common.jobs import JobInfo, OperatorInfo
from sage.kernel.jobs.messages import Answer, Order
from sage.kernel.jobs.process import JobProcess
from sage.kernel.jobs.restart import Restart
from sage.kernel.jobs.states import Job

__all__ = ["Held", "info"]

_ANSWER_S: Final = 30.0
_NUMBERS: Final = count(1)


@dataclass(slots=True, eq=False)
class Held:
    """`life`: the task that runs it, from a placement to the end of its process, or to the next start.

    `since`: when it was placed, Unix seconds. `changed` is set once, at the next change, and then replaced.
    `lock`: what is asked of it is done one after the other. `asked`: what its process is to answer.
    """

    job: Job
    process: JobProcess | None = None
    life: asyncio.Task[None] | None = None
    operators: tuple[OperatorInfo, ...] = ()
    gates: dict[str, int] = field(default_factory=dict)
    asked: dict[int, asyncio.Future[Answer]] = field(default_factory=dict)
    stuck: float = 0.0
    since: float = 0.0
    deleted: bool = False
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    def tell(self) -> None:
        """Wake those who watch it."""
        self.changed.set()
        self.changed = asyncio.Event()

    async def ask(self, order: Callable[[int], Order]) -> dict[str, Any]:
        """What its process answers to an order that has this number.

        Raises what it says is wrong, ConflictError while there is no process that works, TimedOutError.
        """
        job = self.job
        if self.process is None or job.state not in ("running", "draining"):
            raise ConflictError(
                f"Job {job.name} is {job.state}: what waits at its gates is in its checkpoint.",
                hint="Records can be decided on while it runs: `sage job resume` lets it.",
            )
        number = next(_NUMBERS)
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self.asked[number] = answer
        try:
            self.process.say(order(number))
            async with asyncio.timeout(_ANSWER_S):
                found = await answer
        except TimeoutError:
            raise TimedOutError(
                f"The process of job {job.name} has not answered within {_ANSWER_S:g} s.",
                hint="Code that blocks its event loop may be why: `sage job show` says so.",
            ) from None
        finally:
            del self.asked[number]
        if found.message:
            error = NotFoundError if found.code == NotFoundError.code else ConflictError
            raise error(f"Job {job.name}: {found.message}", hint=found.hint)
        return found.found

    def answered(self, answer: Answer) -> None:
        """Its process says this."""
        waiter = self.asked.get(answer.number)
        if waiter is not None and not waiter.done():
            waiter.set_result(answer)

    def hung_up(self) -> None:
        """Its process says nothing more."""
        for number in self.asked:
            self.answered(
                Answer(number, message="its process has ended, and nobody knows of what was decided.")
            )

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
        services=job.services,
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
        gates={name: waiting for name, waiting in held.gates.items() if waiting},
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
