"""Jobs as a person reads them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, TextIO

from sage.cli.output import columns

if TYPE_CHECKING:
    from sage.common.jobs import JobGates, JobInfo, JobResources

__all__ = ["Screen", "describe", "line", "parked", "table"]

_SHORT = 80  # characters of a record


class Screen:
    """A text on a terminal that takes the place of the one before."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._rows = 0

    def show(self, text: str) -> None:
        """Put it there."""
        up = f"\x1b[{self._rows}F\x1b[J" if self._rows else ""
        self._out.write(f"{up}{text}\n")
        self._out.flush()
        self._rows = text.count("\n") + 1


def table(jobs: Iterable[JobInfo]) -> str:
    """A row for each."""
    head = ("NAME", "STATE", "FLOW", "RESTARTS", "NODE", "CREATED", "ID")
    rows = [
        (one.name, one.state, one.flow, one.restarts, one.node or "-", _time(one.created_at), one.id)
        for one in jobs
    ]
    return columns(head, rows)


def line(job: JobInfo) -> str:
    """Its state and why."""
    why = job.detail or (job.placement if job.state == "queued" else "")
    return f"job {job.name} is {job.state}" + (f": {why}" if why else "")


def describe(job: JobInfo) -> str:
    """All that is known of it."""
    asked = job.resources
    newest = job.checkpoint
    facts = {
        "job": f"{job.name} ({job.id})",
        "flow": f"{job.flow} ({job.source})" if job.source else job.flow,
        "services": ", ".join(f"{name} ({code})" for name, code in job.services.items()),
        "state": f"{job.state}: {job.detail}" if job.detail else job.state,
        "node": job.node,
        "placement": job.placement,
        "asks for": _amounts(asked),
        "restarts": f"{job.restarts} ({job.restart})",
        "checkpoint": f"{newest.number} at {_time(newest.at)}"
        if newest
        else f"none yet, every {job.every:g} s",
        "created": _time(job.created_at),
        "started": _time(job.started_at),
        "ended": _time(job.ended_at),
        "process": str(job.pid or ""),
        "gates": ", ".join(f"{count} wait at {name}" for name, count in job.gates.items()),
        "stuck": f"its event loop has not moved for {job.stuck_s:.0f} s" if job.stuck_s else "",
    }
    known = columns(("WHAT", "VALUE"), [(what, value) for what, value in facts.items() if value])
    if not job.operators:
        return known
    counts = columns(
        ("OPERATOR", "IN", "OUT", "DIVERTED", "SKIPPED", "RETRIES", "IN FLIGHT", "BUSY S", "WAIT S"),
        [
            (
                one.name,
                one.items_in,
                one.items_out,
                one.diverted,
                one.skipped,
                one.retries,
                one.in_flight,
                f"{one.busy:.2f}",
                f"{one.wait:.2f}",
            )
            for one in job.operators
        ],
    )
    return f"{known}\n\n{counts}"


def parked(found: JobGates) -> str:
    """A row for each record that waits."""
    rows = [
        (gate.name, one.id, _time(one.since), _time(one.until), _short(one.record))
        for gate in found.gates
        for one in gate.records
    ]
    return columns(("GATE", "RECORD", "SINCE", "UNTIL", "WHAT"), rows)


def _short(record: object) -> str:
    text = json.dumps(record, ensure_ascii=False)  # with control characters escaped
    return text if len(text) <= _SHORT else f"{text[: _SHORT - 1]}…"


def _amounts(asked: JobResources) -> str:
    found = [f"cpu {asked.cpu:g}", *([f"gpu {asked.gpu:g}"] if asked.gpu else []), f"memory {asked.memory}"]
    found += [f"gpu memory {asked.gpu_memory}"] if asked.gpu_memory else []
    return ", ".join([*found, *(f"{name}={value}" for name, value in asked.labels.items())])


def _time(at: float | None) -> str:
    return "" if at is None else datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
