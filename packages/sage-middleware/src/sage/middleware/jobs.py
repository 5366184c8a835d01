"""The jobs of a running stack, for commands: `/admin/v1/jobs` over `Rest`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeVar
from urllib.parse import quote

from pydantic import BaseModel

from sage.common.jobs import (
    JobDecided,
    JobDecision,
    JobDeleted,
    JobGates,
    JobInfo,
    JobList,
    JobSpec,
    JobStop,
)
from sage.middleware.rest import Rest, read_answer

__all__ = ["JobClient"]

_Answer = TypeVar("_Answer", bound=BaseModel)


class JobClient:
    """Submits jobs and looks after them. A job is named by its id or its name.

    Each method raises what `Rest` raises: NotFoundError for a job that is not there, ConflictError for one
    that is in another state than it would have to be.
    """

    def __init__(self, rest: Rest) -> None:
        self._rest = rest

    def submit(self, spec: JobSpec) -> JobInfo:
        """A new job. Raises BadRequestError with all that is wrong with it."""
        return self._call("POST", "", JobInfo, spec.model_dump(mode="json"))

    def jobs(self) -> list[JobInfo]:
        """All of them, oldest first, without their operators."""
        return self._call("GET", "", JobList).jobs

    def job(self, which: str) -> JobInfo:
        """One of them."""
        return self._call("GET", _one(which), JobInfo)

    def pause(self, which: str) -> JobInfo:
        """Take a checkpoint and rest."""
        return self._call("POST", _one(which, "/pause"), JobInfo)

    def resume(self, which: str) -> JobInfo:
        """Go on from the last checkpoint."""
        return self._call("POST", _one(which, "/resume"), JobInfo)

    def stop(self, which: str, *, now: bool = False) -> JobInfo:
        """End it: what was read is finished first, unless it is to end `now`."""
        return self._call("POST", _one(which, "/stop"), JobInfo, JobStop(now=now).model_dump())

    def delete(self, which: str) -> JobDeleted:
        """End it and forget all of it."""
        return self._call("DELETE", _one(which), JobDeleted)

    def gates(self, which: str) -> JobGates:
        """What waits for a decision at its gates."""
        return self._call("GET", _one(which, "/gates"), JobGates)

    def decide(self, which: str, item: str, decision: JobDecision) -> JobDecided:
        """Let a record at a gate go on, or reject it; it is durable when this returns."""
        body = decision.model_dump(mode="json", exclude_unset=True)
        return self._call("POST", _one(which, f"/gates/{quote(item, safe='')}"), JobDecided, body)

    def logs(self, which: str, *, lines: int = 100, follow: bool = False) -> Iterator[bytes]:
        """The last lines that its process printed; `follow`: and what comes, until it has ended."""
        asked = f"/logs?lines={lines}&follow={str(follow).lower()}"
        return self._rest.chunks(f"/admin/v1/jobs{_one(which, asked)}")

    def watch(self, which: str) -> Iterator[JobInfo]:
        """The job as it is and at each change, until it has ended."""
        for event in self._rest.events(f"/admin/v1/jobs{_one(which, '/events')}"):
            yield JobInfo.model_validate(event)

    def _call(
        self, method: str, path: str, answer: type[_Answer], body: dict[str, Any] | None = None
    ) -> _Answer:
        return read_answer(self._rest.call(method, f"/admin/v1/jobs{path}", body), answer)


def _one(which: str, more: str = "") -> str:
    return f"/{quote(which, safe='')}{more}"
