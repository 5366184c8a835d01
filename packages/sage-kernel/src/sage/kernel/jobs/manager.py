"""Jobs of one serving process: flows that run in the background, each in a process of its own."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from typing import Final, Self

from sage.common.clock import Clock, SystemClock
from sage.common.errors import NotFoundError, SageError
from sage.common.jobs import JobDecided, JobDecision, JobGates, JobInfo, JobSpec
from sage.common.paths import SagePaths
from sage.kernel.jobs import states
from sage.kernel.jobs.folders import Folders
from sage.kernel.jobs.held import Held, info
from sage.kernel.jobs.intake import Intake
from sage.kernel.jobs.lives import Lives
from sage.kernel.jobs.logs import read_log
from sage.kernel.jobs.messages import Decide, Drain, Gates, Pause
from sage.kernel.jobs.options import JobOptions
from sage.kernel.jobs.placement import Placed, Placer, unit_of
from sage.kernel.jobs.samples import Sample, samples
from sage.kernel.jobs.states import Edit
from sage.kernel.jobs.store import JobStore
from sage.kernel.scheduler import Node
from sage.platform.storage.sqlite import Database

__all__ = ["JobManager"]

log = logging.getLogger("sage.jobs")

_SHOWN: Final = 20


class JobManager:
    """Submits, runs, pauses, resumes, stops and deletes jobs. One event loop uses it; `close` it in the end.

    What a method has acknowledged is on the disk. If this process dies, even by SIGKILL, the processes of all
    jobs end with it; `open` finds the jobs as they were, and `start` goes on with those that ran. A job is
    named by its id or its name; every method that takes one raises NotFoundError with the names there are.
    """

    def __init__(
        self, store: JobStore, folders: Folders, placer: Placer, options: JobOptions, clock: Clock
    ) -> None:
        self._store = store
        self._folders = folders
        self._placer = placer
        self._clock = clock
        self._held: dict[str, Held] = {}
        self._intake = Intake(folders, placer, options, clock)
        self._lives = Lives(folders, options, clock, self)
        self._running = False
        self._closed = False
        self.restarts = 0

    @classmethod
    async def open(
        cls,
        paths: SagePaths,
        nodes: list[Node],
        options: JobOptions | None = None,
        clock: Clock | None = None,
    ) -> JobManager:
        """With the jobs of the state directory; none of them runs before `start`."""
        store = await JobStore.open(Database(paths.job_database))
        try:
            folders = Folders(paths.jobs)
            manager = cls(store, folders, Placer(nodes), options or JobOptions(), clock or SystemClock())
            await manager._load()
        except BaseException:
            await store.close()
            raise
        return manager

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close(0.0)

    async def _load(self) -> None:
        now = self._clock.wall()
        for found in await self._store.all():
            self._held[found.id] = Held(states.recover(found, now))
        await asyncio.to_thread(self._folders.sweep, self._held.keys())
        for held in self._held.values():
            await self._store.put(held.job)

    def start(self) -> None:
        """Run what is queued, and what is from now on."""
        self._running = True
        self._lives.start()
        for held in list(self._held.values()):
            if held.job.state == "queued":
                self._queue(held)

    async def close(self, seconds: float = 5.0) -> None:
        """Let each job that runs take a checkpoint, for so many seconds; then end them all.

        They are as they were when `open` finds them again.
        """
        self._running, self._closed = False, True
        for held in self._held.values():
            held.tell()
        await self._lives.close(list(self._held.values()), seconds)
        await self._store.close()

    # ---- what there is -------------------------------------------------------------------------------------

    def jobs(self) -> list[JobInfo]:
        """All jobs, oldest first, without their operators."""
        return [self._info(held, operators=False) for held in self._held.values()]

    def get(self, which: str) -> JobInfo:
        """One job."""
        return self._info(self._find(which))

    async def watch(self, which: str) -> AsyncIterator[JobInfo]:
        """The job as it is and at each change, until it has ended, or this manager is closed.

        A slow reader misses some between.
        """
        held = self._find(which)
        while True:
            changed = held.changed
            yield self._info(held)
            if held.over or self._closed:
                return
            await changed.wait()

    def log(self, which: str, *, lines: int = 100, follow: bool = False) -> AsyncIterator[bytes]:
        """The last lines of what its process printed; `follow`: and what comes, until it has ended."""
        held = self._find(which)
        more = (lambda: not held.over and not self._closed) if follow else None
        return read_log(self._folders.log(held.job.id), lines, more)

    def samples(self) -> Iterator[Sample]:
        """Its metrics."""
        return samples(self._held.values(), self.restarts, self._clock.wall())

    # ---- what is asked for ---------------------------------------------------------------------------------

    async def submit(self, spec: JobSpec) -> JobInfo:
        """A new job. Raises PlanError and BadRequestError for what is wrong with it, InfeasibleError for what
        no node has, ConflictError for a name in use, OverloadedError when there are too many jobs.
        """
        job = await self._intake.accept(spec, lambda: {held.job.name for held in self._held.values()})
        held = self._held[job.id] = Held(job)
        try:
            await self._store.add(job)
        except BaseException:
            del self._held[job.id]
            await asyncio.to_thread(self._folders.remove, job.id)
            raise
        log.info("job %s (%s) was submitted", job.id, job.name)
        self._queue(held)
        return self._info(held)

    async def pause(self, which: str) -> JobInfo:
        """Take a checkpoint and rest. Raises ConflictError for one that ends or has ended."""
        return await self._asked(which, states.ask_pause)

    async def resume(self, which: str) -> JobInfo:
        """Go on from the last checkpoint. Raises ConflictError for one that has finished or is on its way."""
        return await self._asked(which, states.ask_resume)

    async def stop(self, which: str, *, now: bool = False) -> JobInfo:
        """End it: what was read is finished first, unless it is to end `now`. Raises ConflictError."""
        wall = self._clock.wall()
        return await self._asked(which, lambda job: states.ask_stop(job, wall, at_once=now))

    async def gates(self, which: str) -> JobGates:
        """What waits for a decision at its gates. Raises ConflictError for one that does not run."""
        return JobGates.model_validate(await self._find(which).ask(Gates))

    async def decide(self, which: str, item: str, decision: JobDecision) -> JobDecided:
        """Let a record at a gate go on, or reject it; it is durable when this returns.

        Raises NotFoundError for a gate or record that is not there, ConflictError for one that does not run.
        """
        approve, value = decision.decision == "approve", {}
        if "value" in decision.model_fields_set:
            value = {"value": decision.value}

        def order(number: int) -> Decide:
            return Decide(number, decision.gate, item, approve, value, decision.reason)

        await self._find(which).ask(order)
        return JobDecided(id=item, gate=decision.gate, decision=decision.decision)

    async def delete(self, which: str) -> str:
        """End it, and forget it with its folder; its id."""
        held, wall = self._find(which), self._clock.wall()
        async with held.lock:
            if not held.job.over:
                await self._do(held, lambda job: states.ask_stop(job, wall, at_once=True))
            await self._store.remove(held.job.id)
            self._held.pop(held.job.id, None)
            held.deleted = True
            held.tell()
            await asyncio.to_thread(self._folders.remove, held.job.id)
        log.info("job %s (%s) was deleted", held.job.id, held.job.name)
        return held.job.id

    async def _asked(self, which: str, edit: Edit) -> JobInfo:
        """Change it as somebody wants, and do what follows from that."""
        held = self._find(which)
        async with held.lock:
            await self._do(self._find(held.job.id), edit)  # it may have been deleted meanwhile
        return self._info(held)

    async def _do(self, held: Held, edit: Edit) -> None:
        former, after = held.job, edit(held.job).state
        try:
            await self.change(held, edit)
        except SageError:  # it is not on the disk, so it was not done
            held.job = former if held.job.state == after else held.job
            raise
        if former.state == after:
            return
        if after in ("paused", "cancelled"):
            await self._lives.halt(held)
        elif after == "queued":
            self._queue(held)
        elif held.process is not None:
            held.process.say(Pause() if after == "pausing" else Drain())

    # ---- what follows --------------------------------------------------------------------------------------

    async def change(self, held: Held, edit: Edit) -> None:
        """See `Owner`. Nothing comes between the edit and its place among the writes."""
        held.job = edit(held.job)
        held.tell()
        await self._store.put(held.job)

    def _queue(self, held: Held) -> None:
        """It wants to run; it or others may start."""
        job = held.job
        if not self._running:
            return
        try:
            placed = self._placer.submit(unit_of(job.id, job.name, job.resources, job.created))
        except SageError as error:  # this machine is another one than when it was submitted
            why = str(error)
            self._lives.do(self.change(held, lambda now: states.fail(now, self._clock.wall(), why)))
            return
        self._launch(placed)

    def _launch(self, placed: list[Placed]) -> None:
        for one in placed:
            self._lives.begin(self._held[one.job], one)

    def over(self, held: Held, *, again: bool) -> None:
        """See `Owner`."""
        placed = self._placer.release(held.job.id)
        if self._running:
            self._launch(placed)
        if again:
            self.restarts += 1
            self._queue(held)

    def _find(self, which: str) -> Held:
        found = self._held.get(which)
        if found is None:
            found = next((held for held in self._held.values() if held.job.name == which), None)
        if found is None:
            names = [held.job.name for held in self._held.values()]
            more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
            raise NotFoundError(
                f"There is no job {which[:128]!r}; there are: {', '.join(names[:_SHOWN]) or 'none'}{more}."
            )
        return found

    def _info(self, held: Held, *, operators: bool = True) -> JobInfo:
        waits = ""
        if held.job.state == "queued":
            waits = self._placer.why(held.job.id) if self._running else "the stack is starting"
        return info(held, waits, operators=operators)
