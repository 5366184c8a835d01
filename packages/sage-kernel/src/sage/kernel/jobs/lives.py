"""The lives of jobs: from the placement of one to the end of its process, and who is lost meanwhile."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Iterable
from dataclasses import replace
from typing import Any, Final, Protocol

from sage.common.clock import Clock
from sage.common.errors import SageError
from sage.common.jobs import CheckpointInfo, OperatorInfo
from sage.kernel.jobs import states
from sage.kernel.jobs.beats import Beats, Patience
from sage.kernel.jobs.folders import Folders
from sage.kernel.jobs.held import Held
from sage.kernel.jobs.messages import (
    Answer,
    Beat,
    Begin,
    Failed,
    Finished,
    Pause,
    Paused,
    Running,
    Saved,
    Word,
)
from sage.kernel.jobs.options import JobOptions, source_of
from sage.kernel.jobs.placement import Placed
from sage.kernel.jobs.process import JobProcess
from sage.kernel.jobs.states import Edit

__all__ = ["Lives", "Owner"]

log = logging.getLogger("sage.jobs")

_TICK_S: Final = 0.5


class Owner(Protocol):
    """Who keeps the jobs."""

    async def change(self, held: Held, edit: Edit) -> None:
        """Another state of it, which is durable when this returns."""
        ...

    def over(self, held: Held, *, again: bool) -> None:
        """A life of it has ended and its room is free; `again`: it wants another one."""
        ...


class Lives:
    """Runs the processes of jobs that have room."""

    def __init__(self, folders: Folders, options: JobOptions, clock: Clock, owner: Owner) -> None:
        self._folders = folders
        self._options = options
        self._clock = clock
        self._owner = owner
        self._patience = Patience()
        self._beats = Beats(self._patience)
        self._living: dict[str, Held] = {}
        self._closing = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._watcher: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Look after those that run, from now on."""
        self._watcher = asyncio.create_task(self._watch(), name="watch jobs")

    def begin(self, held: Held, placed: Placed) -> None:
        """It has room: run it."""
        held.life = asyncio.create_task(self._live(held, placed), name=f"job {held.job.name}")

    def do(self, work: Coroutine[Any, Any, None]) -> None:
        """Something that nobody waits for."""
        task = asyncio.create_task(_told(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def halt(self, held: Held) -> None:
        """End its life now, and its process with it; its room is free then."""
        life, held.life = held.life, None
        if life is not None:
            life.cancel()
            await asyncio.wait({life})
        self._owner.over(held, again=False)

    async def close(self, all_held: Iterable[Held], seconds: float) -> None:
        """Those that run take a checkpoint, for so many seconds; their states stay as they are."""
        self._closing = True
        lives = []
        for held in all_held:
            if held.life is None:
                continue
            lives.append(held.life)
            if held.process is None or held.job.state == "starting":
                held.life.cancel()
            elif held.job.state == "running":
                held.process.say(Pause())
        if self._watcher is not None:
            lives.append(self._watcher)
            self._watcher.cancel()
        if lives:
            _, late = await asyncio.wait(lives, timeout=seconds)
            for life in late:
                life.cancel()
            await asyncio.gather(*lives, return_exceptions=True)
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # ---- one life ------------------------------------------------------------------------------------------

    async def _live(self, held: Held, placed: Placed) -> None:
        if "starting" not in states.NEXT[held.job.state]:
            return  # it was asked to rest, or to end, a moment ago
        held.since = self._clock.wall()
        await _told(self._owner.change(held, lambda job: states.place(job, placed.node, placed.why)))
        try:
            ending: Word | str = await self._run(held, placed)
        except SageError as error:
            ending = str(error)
        except Exception as error:  # a fault of ours must not leave a job that seems to run
            log.exception("job %s", held.job.id)
            ending = f"{type(error).__name__}: {error}"
        if self._closing and not isinstance(ending, Finished) and held.job.state != "pausing":
            return
        if held.job.state not in states.LIVES:
            return  # who ended it waits for this task
        # Its room is free before anybody can see that it rests, and want it to go on.
        self._owner.over(held, again=False)
        delay = await self._ended(held, ending)
        if delay is not None:
            await asyncio.sleep(delay)
            self._owner.over(held, again=True)

    async def _run(self, held: Held, placed: Placed) -> Word | str:
        """Its last word, or why it ended without one."""
        ident = held.job.id
        spec = await asyncio.to_thread(self._folders.spec, ident)
        env = {**self._options.environment(), "PYTHONUNBUFFERED": "1", **devices(placed)}
        process = await JobProcess.spawn(f"job-{held.job.name}", self._folders.log(ident), env)
        held.process = process
        self._living[ident] = held
        self._beats.expect(ident, self._clock.now())
        last: Word | None = None
        try:
            checkpoints = str(self._folders.checkpoints(ident))
            process.say(Begin(source_of(spec, self._options), checkpoints, held.job.every))
            async for word in process.words():
                self._beats.heard(ident, self._clock.now())
                await self._heard(held, word)
                last = word if isinstance(word, Finished | Failed | Paused) else last
            why = await process.ended()
            return why if last is None or process.lost else last
        finally:
            self._beats.forget(ident)
            self._living.pop(ident, None)
            await process.kill()
            held.process, held.stuck, held.gates = None, 0.0, {}
            held.hung_up()

    async def _heard(self, held: Held, word: Word) -> None:
        match word:
            case Answer():
                held.answered(word)
            case Beat():
                held.stuck, held.gates = word.stuck, word.gates
                held.operators = tuple(OperatorInfo(**one) for one in word.operators) or held.operators
                held.tell()
            case Finished():
                held.operators = tuple(OperatorInfo(**one) for one in word.operators)
            case Running() if held.job.state == "starting":
                now, number = self._clock.wall(), word.checkpoint
                await _told(self._owner.change(held, lambda job: states.began(job, now, number)))
            case Saved():
                newest = CheckpointInfo(number=word.checkpoint, at=word.at)
                await _told(self._owner.change(held, lambda job: replace(job, checkpoint=newest)))
            case _:
                pass

    async def _ended(self, held: Held, ending: Word | str) -> float | None:
        """What becomes of it; after how many seconds it comes back, None = not by itself."""
        now, delay = self._clock.wall(), None
        if isinstance(ending, Finished):
            job = states.finish(held.job, now)
        elif isinstance(ending, Paused) and held.job.state == "pausing":
            job = states.paused(held.job)
        else:
            told = isinstance(ending, Failed)
            why = f"{ending.message} {ending.hint}".strip() if isinstance(ending, Failed) else str(ending)
            job, delay = states.crash(held.job, now, why, told=told)
            log.warning("job %s (%s) is %s: %s", job.id, job.name, job.state, job.detail)
        job = replace(job, operators=held.operators)
        await _told(self._owner.change(held, lambda _: job))
        return delay

    # ---- who is lost ---------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(_TICK_S)
            now = self._clock.now()
            for ident in self._beats.quiet(now):
                if (held := self._living.get(ident)) and held.process:
                    self._beats.worked(ident, held.process.cpu(), now)
            for ident in self._beats.tick(now):
                self._beats.forget(ident)
                if (held := self._living.get(ident)) and held.process:
                    held.process.lost = f"its process gave no sign of life for {self._patience.idle:g} s"
                    self.do(held.process.kill())


def devices(placed: Placed) -> dict[str, str]:
    """What shows a process the devices that it was given, and no other."""
    return {
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "CUDA_VISIBLE_DEVICES": ",".join(map(str, placed.devices)),
    }


async def _told(work: Coroutine[Any, Any, None]) -> None:
    """Do it; what cannot be stored is in the log, and the job goes on."""
    try:
        await work
    except SageError as error:
        log.error("a job's state could not be kept: %s", error)
