"""`/admin/v1/jobs`: the jobs of this serving process, over HTTP; and what their processes are given."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Annotated, Final

from fastapi import Query
from fastapi.responses import StreamingResponse

from sage.common.config import SageConfig
from sage.common.jobs import JobDecided, JobDecision, JobDeleted, JobGates, JobInfo, JobList, JobSpec, JobStop
from sage.common.paths import SagePaths
from sage.gateway.app import Handlers
from sage.gateway.keyservice import KeyService
from sage.gateway.keystore import KeyRecord
from sage.kernel.jobs import JobManager, JobOptions
from sage.kernel.scheduler import node_of
from sage.middleware.members import no_keys
from sage.platform.nodes import inventory

__all__ = ["KEY_NAME", "job_handlers", "job_key", "open_jobs"]

KEY_NAME: Final = "sage-jobs"
MAX_LINES: Final = 10_000
QUIET_S: Final = 5.0  # a stream says so often that it is there
_SCOPES: Final = frozenset(("chat", "completions", "embeddings", "rerank", "tokens", "models"))


async def job_key(keys: KeyService) -> str:
    """The secret of the key that jobs call models with, new at each start; it opens the low classes only.

    What an admin made of its limits stays.
    """
    if not any(record.name == KEY_NAME and record.revoked is None for record in keys.all()):
        return (await keys.create(_record))[1]
    return (await keys.rotate(KEY_NAME, 0.0))[1]


def _record(ident: str, wall: float) -> KeyRecord:
    return KeyRecord(id=ident, name=KEY_NAME, digest=b"", scopes=_SCOPES, created=wall, lowered=True)


async def open_jobs(config: SageConfig, paths: SagePaths, base_url: str, key: str) -> JobManager:
    """The manager of the jobs of this state directory; this machine is their only node."""
    environment = {**no_keys(config), "SAGE_BASE_URL": base_url, "SAGE_API_KEY": key}
    own = config.jobs

    def given() -> Mapping[str, str]:
        return environment

    options = JobOptions(own.max_jobs, own.max_plan_bytes, own.code, _absolute(own.path), given)
    found = await asyncio.to_thread(inventory, paths.state)
    return await JobManager.open(paths, [node_of("local", found)], options)


def _absolute(folders: tuple[Path, ...]) -> tuple[Path, ...]:
    return tuple(folder.expanduser().absolute() for folder in folders)


def job_handlers(jobs: JobManager) -> Handlers:
    """Handlers by entry name."""

    async def list_jobs() -> JobList:
        return JobList(jobs=jobs.jobs())

    async def submit_job(spec: JobSpec) -> JobInfo:
        return await jobs.submit(spec)

    async def get_job(job_id: str) -> JobInfo:
        return jobs.get(job_id)

    async def pause_job(job_id: str) -> JobInfo:
        return await jobs.pause(job_id)

    async def resume_job(job_id: str) -> JobInfo:
        return await jobs.resume(job_id)

    async def stop_job(job_id: str, how: JobStop | None = None) -> JobInfo:
        return await jobs.stop(job_id, now=how is not None and how.now)

    async def delete_job(job_id: str) -> JobDeleted:
        return JobDeleted(id=await jobs.delete(job_id))

    async def job_gates(job_id: str) -> JobGates:
        return await jobs.gates(job_id)

    async def decide_job(job_id: str, item_id: str, decision: JobDecision) -> JobDecided:
        return await jobs.decide(job_id, item_id, decision)

    async def job_logs(
        job_id: str, lines: Annotated[int, Query(ge=0, le=MAX_LINES)] = 100, follow: bool = False
    ) -> StreamingResponse:
        pieces = jobs.log(jobs.get(job_id).id, lines=lines, follow=follow)
        return StreamingResponse(pieces, media_type="text/plain; charset=utf-8")

    async def job_events(job_id: str) -> StreamingResponse:
        told = events(jobs.watch(jobs.get(job_id).id))
        return StreamingResponse(told, media_type="text/event-stream", headers={"cache-control": "no-store"})

    return {
        "list_jobs": list_jobs,
        "submit_job": submit_job,
        "get_job": get_job,
        "pause_job": pause_job,
        "resume_job": resume_job,
        "stop_job": stop_job,
        "delete_job": delete_job,
        "job_gates": job_gates,
        "decide_job": decide_job,
        "job_logs": job_logs,
        "job_events": job_events,
    }


async def events(jobs: AsyncIterator[JobInfo], quiet: float = QUIET_S) -> AsyncIterator[bytes]:
    """Server-sent events: the job at each change, a comment while nothing changes, `[DONE]` at its end."""
    coming = asyncio.ensure_future(anext(jobs))
    try:
        while True:
            await asyncio.wait({coming}, timeout=quiet)
            if not coming.done():
                yield b": it is as it was\n\n"
                continue
            try:
                found = coming.result()
            except StopAsyncIteration:
                yield b"data: [DONE]\n\n"
                return
            yield b"data: %b\n\n" % found.model_dump_json().encode()
            coming = asyncio.ensure_future(anext(jobs))
    finally:
        coming.cancel()
