"""What is looked at before a job is taken: its amounts, its name, and its flow, in a process of its own."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Collection, Mapping
from pathlib import PurePath
from typing import Any, Final

from sage.common.clock import Clock
from sage.common.errors import (
    BadRequestError,
    ConflictError,
    NotFoundError,
    OverloadedError,
    RequestTooLargeError,
    SageError,
)
from sage.common.ids import new_id
from sage.common.jobs import JobResources, JobSpec
from sage.kernel.jobs.demand import resources_for
from sage.kernel.jobs.folders import Folders
from sage.kernel.jobs.messages import Check, Checked, Failed
from sage.kernel.jobs.options import JobOptions, source_of
from sage.kernel.jobs.placement import Placer, unit_of
from sage.kernel.jobs.process import JobProcess, ask
from sage.kernel.jobs.restart import Restart
from sage.kernel.jobs.states import Job
from sage.kernel.scheduler import InfeasibleError

__all__ = ["Intake"]

_AT_ONCE: Final = 4  # flows looked at
_PATIENCE_S: Final = 60.0
_NAME: Final = 64  # characters


class Intake:
    """Makes jobs of what is submitted. Nothing of user code runs in this process."""

    def __init__(self, folders: Folders, placer: Placer, options: JobOptions, clock: Clock) -> None:
        self._folders = folders
        self._placer = placer
        self._options = options
        self._clock = clock
        self._looking = asyncio.Semaphore(_AT_ONCE)
        self._pending = 0

    async def accept(self, spec: JobSpec, names: Callable[[], Collection[str]]) -> Job:
        """The job, with its folder. `names` are those in use. Raises SageError for what it cannot be."""
        if len(names()) + self._pending >= self._options.max_jobs:
            raise OverloadedError(
                f"There are {len(names())} jobs, as many as may be.", hint="Delete those that have ended."
            )
        self._pending += 1
        try:
            return await self._accept(spec, names)
        finally:
            self._pending -= 1

    async def _accept(self, spec: JobSpec, names: Callable[[], Collection[str]]) -> Job:
        _check_words(spec, self._options.max_plan_bytes)
        restart = Restart.parse(spec.restart)
        if spec.name in names():
            raise ConflictError(
                f"There is a job named {spec.name!r} already.", hint="Give this one another name."
            )
        ident, now = new_id("job"), self._clock.wall()
        title = spec.name or spec.flow or str((spec.plan or {}).get("name"))
        self._placer.check(unit_of(title, title, spec.resources, now))
        await asyncio.to_thread(self._folders.make, ident, spec)
        try:
            found = await self._look(ident, spec)
            flow, resources = found.flow, resources_for(spec.resources, found.demand)
            self._check_room(title, resources, found.demand, now)
            taken = names()
            name = spec.name or _free(_usual(flow), taken)
            if name in taken:  # another one was faster
                raise ConflictError(
                    f"There is a job named {name!r} already.", hint="Give this one another name."
                )
        except BaseException:
            await asyncio.to_thread(self._folders.remove, ident)
            raise
        return Job(
            id=ident,
            name=name,
            flow=flow,
            source=spec.flow or "",
            services=dict(spec.services),
            created=now,
            restart=restart,
            every=spec.every,
            resources=resources,
        )

    def _check_room(self, title: str, resources: JobResources, demand: Mapping[str, Any], now: float) -> None:
        try:
            self._placer.check(unit_of(title, title, resources, now))
        except InfeasibleError as error:
            if demand:
                error.message += " That is what its operators ask for, which run all at once."
            raise

    async def _look(self, ident: str, spec: JobSpec) -> Checked:
        """What its process has found of its flow, once that is right."""
        async with self._looking:
            process = await JobProcess.spawn(ident, self._folders.log(ident), self._options.environment())
            word = await ask(process, Check(source_of(spec, self._options)), _PATIENCE_S)
        if isinstance(word, Failed):
            if word.code == NotFoundError.code:
                raise NotFoundError(word.message, hint=word.hint)
            raise _RefusedError(word.code or BadRequestError.code, word.message, hint=word.hint)
        if not isinstance(word, Checked):
            raise SageError(f"The flow could not be looked at: its process said {word}.")
        return word


class _RefusedError(BadRequestError):
    """What the process that looked at a flow found, by the code of its own error."""

    def __init__(self, code: str, message: str, *, hint: str) -> None:
        super().__init__(message, hint=hint)
        self.code = code  # type: ignore[misc] # of this one error, as it came from another process


def _check_words(spec: JobSpec, most: int) -> None:
    """Raises an error for a plan that is too large or is no JSON, and for a folder that is no place."""
    try:
        json.dumps([spec.plan, spec.settings], allow_nan=False)  # pydantic would write null
        size = len(spec.model_dump_json(include={"plan", "settings"}).encode())
    except (ValueError, RecursionError, TypeError) as error:
        raise BadRequestError(f"The plan and its settings are not JSON: {error}.", param="plan") from error
    if size > most:
        raise RequestTooLargeError(
            f"The plan and its settings have {size} bytes; {most} are allowed.",
            hint="Put the records into a file, and read that.",
        )
    if spec.folder and not PurePath(spec.folder).is_absolute():
        raise BadRequestError(f"folder is {spec.folder!r}; valid is an absolute path.", param="folder")


def _usual(flow: str) -> str:
    """The flow's name as that of a job."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", flow).strip("-._")[:_NAME] or "job"


def _free(base: str, taken: Collection[str]) -> str:
    name, number = base, 1
    while name in taken:
        number += 1
        tail = f"-{number}"
        name = base[: _NAME - len(tail)] + tail
    return name
