"""The load client's process, at a higher priority than what it measures where that is allowed.

`python -m sage.benchmark.load.worker RECORDS` reads a plan (MessagePack) from its standard input, writes each
record to RECORDS (NDJSON) as its request ends, and prints one line when it starts and a report at its end.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import sys
from pathlib import Path
from time import process_time
from typing import BinaryIO, Final

import msgspec

from sage.benchmark.load.drive import drive
from sage.benchmark.load.plan import Plan
from sage.benchmark.load.process import STARTED, Report
from sage.benchmark.metrics import Record

__all__ = ["lower_priority", "main", "raise_priority"]

_NICE: Final = -10


def raise_priority(pid: int = 0, level: int = 1) -> str:
    """Let a process (0 = this one) go before ordinary ones: a busy machine must not delay what is timed.

    A higher `level` goes before a lower one. Says what was allowed. What it starts is ordinary again.
    """
    try:
        os.sched_setscheduler(pid, os.SCHED_RR | os.SCHED_RESET_ON_FORK, os.sched_param(level))
    except (AttributeError, OSError):  # not Linux, or not allowed
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, pid, _NICE)
        return f"nice {os.getpriority(os.PRIO_PROCESS, pid)}"
    return f"SCHED_RR {level}"


def lower_priority() -> None:
    """This process is an ordinary one again."""
    with contextlib.suppress(AttributeError, OSError):
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
        os.setpriority(os.PRIO_PROCESS, 0, 0)


def main() -> None:
    """The process: plan in, records and report out."""
    plan = msgspec.msgpack.decode(sys.stdin.buffer.read(), type=Plan)
    priority = raise_priority()
    gc.collect()
    gc.freeze()
    gc.disable()  # a pause would be the client's, and a run is short
    with Path(sys.argv[1]).open("wb") as file:
        begun = process_time()
        wall = asyncio.run(_drive(plan, file))
        report = Report(wall, process_time() - begun, priority)
    sys.stdout.buffer.write(msgspec.json.encode(report))


async def _drive(plan: Plan, file: BinaryIO) -> float:
    def keep(record: Record) -> None:
        file.write(msgspec.json.encode(record) + b"\n")

    def started() -> None:
        sys.stdout.buffer.write(STARTED)
        sys.stdout.buffer.flush()

    return await drive(plan, keep, started)


if __name__ == "__main__":
    main()
