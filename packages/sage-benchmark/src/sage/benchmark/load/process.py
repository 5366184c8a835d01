"""Run a plan in a process of its own, so that nothing else of ours delays its clock."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from sage.benchmark.load.plan import Plan
from sage.benchmark.metrics import Record
from sage.common.errors import SageError

__all__ = ["STARTED", "Report", "measure"]

STARTED: Final = b"started\n"
_WORKER: Final = "sage.benchmark.load.worker"


class Report(msgspec.Struct, frozen=True):
    """How the client itself did. `priority` is what it ran at; `wall_s` and `cpu_s` are in seconds."""

    wall_s: float
    cpu_s: float
    priority: str


async def measure(
    plan: Plan, records_file: Path, *, on_start: Callable[[], None] = lambda: None
) -> tuple[Report, list[Record]]:
    """Carry out `plan` in a process of its own; how the client did, and the records by index.

    Each request is written to `records_file` as it ends. Raises SageError when the client itself breaks.
    Cancelling this ends it.
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", _WORKER, str(records_file),
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        report = await _talk(process, msgspec.msgpack.encode(plan), on_start)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return report, await asyncio.to_thread(_read, records_file)


def _read(file: Path) -> list[Record]:
    records = [msgspec.json.decode(line, type=Record) for line in file.read_bytes().splitlines()]
    return sorted(records, key=lambda record: record.index)


async def _talk(process: asyncio.subprocess.Process, plan: bytes, on_start: Callable[[], None]) -> Report:
    if process.stdin is None or process.stdout is None or process.stderr is None:
        raise RuntimeError("the client was started without pipes")
    words = asyncio.create_task(process.stderr.read())
    try:
        process.stdin.write(plan)
        process.stdin.close()
        if await process.stdout.readline() == STARTED:
            on_start()
        answer = await process.stdout.read()
        if await process.wait() or not answer:
            raise SageError(f"The load client broke: {(await words).decode(errors='replace').strip()}")
        return msgspec.json.decode(answer, type=Report)
    finally:
        words.cancel()
