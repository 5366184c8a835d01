"""What a control plane recorded, put together again: requests with their fate, calls with their times.

Reads the NDJSON trace of `sage.middleware.control_plane.trace`, of a live run or of a simulated one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from sage.common.errors import ConfigError
from sage.common.telemetry import RequestClass
from sage.middleware.control_plane.trace import Goals, PolicyChanged, read_trace
from sage.middleware.control_plane.types import (
    Action,
    Arrived,
    Cancel,
    Cancelled,
    Dispatch,
    EngineAdded,
    EngineUp,
    Event,
    Failed,
    Finished,
    FirstByte,
    GaveUp,
    Job,
    Reject,
    Slice,
    Slo,
)
from sage.middleware.engines.port import EngineSpec, Usage

__all__ = ["Recording", "SeenCall", "SeenRequest", "read_recording"]


@dataclass(slots=True)
class SeenCall:
    """One attempt. `ended` is None where the recording ends first; only a complete one has its `usage`."""

    number: int
    engine: str
    slices: tuple[Slice, ...]
    sent: float
    threads: int
    first: float | None = None
    ended: float | None = None
    usage: Usage | None = None


@dataclass(slots=True)
class SeenRequest:
    """One request. `deadline` is absolute; `cancelled` when its client went away.

    `ended`: when the last of its calls ended, or it was refused; None where the recording ends first.
    """

    job: Job
    arrived: float
    deadline: float | None
    cancelled: float | None = None
    ended: float | None = None
    calls: list[SeenCall] = field(default_factory=list)


@dataclass(slots=True)
class Recording:
    """A whole trace: requests by id and calls by number, both in order, and what the engines were.

    `policy` was in force when the first request came, `slos` are the goals; empty = the trace does not say.
    """

    requests: dict[str, SeenRequest] = field(default_factory=dict)
    calls: dict[int, SeenCall] = field(default_factory=dict)
    engines: dict[str, EngineSpec] = field(default_factory=dict)
    policy: str = ""
    slos: dict[RequestClass, Slo] = field(default_factory=dict)


def read_recording(path: Path) -> Recording:
    """Read a trace. Raises ConfigError when it holds no request, SageError with the line that is none."""
    try:
        recording = _collect(read_trace(path))
    except OSError as error:
        raise ConfigError(f"The recording {path} cannot be read: {error.strerror}.") from None
    if not recording.requests:
        raise ConfigError(
            f"The recording {path} holds no request.",
            hint="Set `control_plane.trace` to a file, restart the stack, send it requests and stop it.",
        )
    return recording


def _collect(lines: Iterable[Event | Action]) -> Recording:
    found = Recording()
    now = 0.0
    for line in lines:
        if isinstance(line, Event):
            now = line.at
        if isinstance(line, Arrived):
            found.requests[line.job.id] = SeenRequest(line.job, line.at, line.deadline)
        elif isinstance(line, Dispatch):
            call = SeenCall(line.attempt, line.engine, line.slices, now, line.threads)
            found.calls[line.attempt] = call
            for piece in line.slices:
                if piece.id in found.requests:
                    found.requests[piece.id].calls.append(call)
        elif isinstance(line, EngineUp | EngineAdded):
            found.engines[line.spec.name] = line.spec
        elif isinstance(line, PolicyChanged):
            found.policy = found.policy if found.requests else line.policy
        elif isinstance(line, Goals):
            found.slos = line.slos
        elif isinstance(line, Cancelled | GaveUp | Reject):
            if line.id in found.requests:
                _closed(found.requests[line.id], line, now)
        elif isinstance(line, FirstByte | Finished | Failed | Cancel) and line.attempt in found.calls:
            _progress(found, found.calls[line.attempt], line, now)
    return found


def _closed(seen: SeenRequest, line: Cancelled | GaveUp | Reject, now: float) -> None:
    seen.ended = now
    if isinstance(line, Cancelled):
        seen.cancelled = now


def _progress(
    found: Recording, call: SeenCall, line: FirstByte | Finished | Failed | Cancel, now: float
) -> None:
    if isinstance(line, FirstByte):
        call.first = now
        return
    call.ended = now
    if isinstance(line, Finished):
        call.usage = line.usage
    for piece in call.slices:
        if piece.id in found.requests:
            found.requests[piece.id].ended = now
