"""What a job is, and the steps that it may take. Pure: the time is an argument.

queued → starting → running → finished or failed; a crash leads back to queued as long as the strategy allows.
running → pausing → paused → queued; running → draining → finished. Nearly everything can be cancelled, and
what failed or was cancelled can be resumed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Final

from sage.common.errors import ConflictError
from sage.common.jobs import ENDED, CheckpointInfo, JobResources, JobState, OperatorInfo
from sage.kernel.jobs.restart import REMEMBERED, Restart

__all__ = [
    "LIVES",
    "NEXT",
    "Edit",
    "Job",
    "ask_pause",
    "ask_resume",
    "ask_stop",
    "began",
    "crash",
    "fail",
    "finish",
    "paused",
    "place",
    "recover",
]

NEXT: Final[dict[JobState, frozenset[JobState]]] = {
    "queued": frozenset(("starting", "paused", "failed", "cancelled")),
    "starting": frozenset(("running", "queued", "paused", "finished", "failed", "cancelled")),
    "running": frozenset(("pausing", "draining", "queued", "finished", "failed", "cancelled")),
    "pausing": frozenset(("paused", "finished", "failed", "cancelled")),
    "paused": frozenset(("queued", "cancelled")),
    "draining": frozenset(("finished", "failed", "cancelled")),
    "finished": frozenset(),
    "failed": frozenset(("queued",)),
    "cancelled": frozenset(("queued",)),
}


LIVES: Final[frozenset[JobState]] = frozenset(("starting", "running", "pausing", "draining"))
"""The states in which it has a process."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One job as it is stored. Times in Unix seconds.

    `source`: the code that makes the flow, empty where it came as a plan. `crashes`: when its process was
    lost since it was submitted or resumed. `placement`: why it is on `node`.
    """

    id: str
    name: str
    flow: str
    created: float
    restart: Restart
    every: float
    source: str = ""
    services: dict[str, str] = field(default_factory=dict)
    resources: JobResources = field(default_factory=JobResources)
    state: JobState = "queued"
    detail: str = ""
    started: float | None = None
    ended: float | None = None
    restarts: int = 0
    crashes: tuple[float, ...] = ()
    node: str = ""
    placement: str = ""
    checkpoint: CheckpointInfo | None = None
    operators: tuple[OperatorInfo, ...] = ()

    @property
    def over(self) -> bool:
        """Whether it has ended."""
        return self.state in ENDED


Edit = Callable[[Job], Job]


def place(job: Job, node: str, why: str) -> Job:
    """It has room on `node`."""
    return _step(job, "starting", node=node, placement=why)


def began(job: Job, now: float, number: int | None = None) -> Job:
    """Its process reads its sources, from the checkpoint of that number; None = from their beginning."""
    detail, newest = "" if number is None else f"it went on from checkpoint {number}", job.checkpoint
    if number is not None and (newest is None or newest.number != number):
        newest = CheckpointInfo(number=number, at=now)  # its process died before it could tell of it
    return _step(job, "running", detail=detail, started=job.started or now, checkpoint=newest)


def paused(job: Job) -> Job:
    """Its checkpoint is taken, and its process has ended."""
    return _step(job, "paused", detail="")


def finish(job: Job, now: float) -> Job:
    """Its sources are at their ends, or were stopped, and all they gave is where it belongs."""
    drained = job.state == "draining"
    return _step(job, "finished", detail="stopped; what was read was finished" if drained else "", ended=now)


def fail(job: Job, now: float, why: str) -> Job:
    """It cannot go on."""
    return _step(job, "failed", detail=why, ended=now)


def crash(job: Job, now: float, why: str, *, told: bool = False) -> tuple[Job, float | None]:
    """Its process was lost, or an operator failed: what it is now, and after how many seconds it comes back.

    `told`: it said itself why it cannot go on; if it never ran it is wrong as it is, and fails at once. One
    that was to pause is paused: where it stands is its last checkpoint. One that was to drain fails, as
    nobody knows any more how far it had read.
    """
    if job.state not in LIVES:
        raise ConflictError(f"Job {job.name} is {job.state}; it has no process that could crash.")
    if job.state == "pausing":
        return _step(job, "paused", detail=f"it stands at its last checkpoint: {why}"), None
    if job.state == "draining" or (told and job.started is None):
        return fail(job, now, why), None
    crashes = (*job.crashes, now)[-REMEMBERED - 1 :]
    delay = job.restart.delay_after(crashes, now)
    if delay is None:
        tail = f"; gave up after {len(crashes) - 1} restarts" if job.restart.kind != "none" else ""
        return replace(fail(job, now, why + tail), crashes=crashes), None
    again = _step(
        job,
        "queued",
        detail=f"{why}; starts again in {delay:g} s",
        restarts=job.restarts + 1,
        crashes=crashes,
        placement="",
    )
    return again, delay


def ask_pause(job: Job) -> Job:
    """Somebody wants it to rest. One that does not run rests at once; asked twice, nothing changes.

    Raises ConflictError for one that ends or has ended.
    """
    if job.state in ("pausing", "paused"):
        return job
    if job.state in ("queued", "starting"):
        return _step(job, "paused", detail="", placement="")
    return _asked(
        job, "pausing", "paused", "It can be resumed." if job.state in ("failed", "cancelled") else ""
    )


def ask_resume(job: Job) -> Job:
    """Somebody wants it to go on from its last checkpoint; one that goes on already is left as it is.

    Raises ConflictError for one that has finished, or is about to pause or to end.
    """
    if job.state in ("queued", "starting", "running"):
        return job
    fresh = {"detail": "", "ended": None, "crashes": (), "placement": ""}
    hint = "Wait until it is paused." if job.state == "pausing" else ""
    return _asked(job, "queued", "resumed", hint, **fresh)


def ask_stop(job: Job, now: float, *, at_once: bool) -> Job:
    """Somebody wants it to end: what was read is finished first, or nothing more is done `at_once`.

    Raises ConflictError for one that has ended, and for one that pauses unless it is to end `at_once`.
    """
    if job.state in ("queued", "starting", "paused") or (at_once and not job.over):
        return _step(job, "cancelled", detail="stopped on request", ended=now, placement="")
    if job.state == "draining":
        return job
    hint = "Wait until it is paused, or stop it with --now." if job.state == "pausing" else ""
    return _asked(job, "draining", "stopped", hint)


def recover(job: Job, now: float) -> Job:
    """What a job is when the process that ran it is gone: it goes on, or rests where it was to rest."""
    if job.state in ("starting", "running"):
        return _step(job, "queued", detail="the serving process was started again", placement="")
    if job.state == "pausing":
        return paused(job)
    if job.state == "draining":
        why = "the serving process was stopped while it drained; it can be resumed from its last checkpoint"
        return _step(job, "cancelled", detail=why, ended=now)
    return job


def _asked(job: Job, state: JobState, what: str, hint: str = "", **changes: Any) -> Job:
    if state not in NEXT[job.state]:
        raise ConflictError(f"Job {job.name} is {job.state}; it cannot be {what} now.", hint=hint)
    return _step(job, state, **changes)


def _step(job: Job, state: JobState, **changes: Any) -> Job:
    if state not in NEXT[job.state]:
        raise ConflictError(f"Job {job.name} is {job.state}; it cannot become {state}.")
    return replace(job, state=state, **changes)
