"""What a control plane recorded, put together again: requests with their fate, calls with their times.

Reads the NDJSON trace of `sage.middleware.control_plane.trace`, of a live run or of a simulated one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Final

from sage.common.errors import ConfigError
from sage.middleware.control_plane.simulator.types import SimRequest
from sage.middleware.control_plane.trace import PolicyChanged, read_trace
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
    Job,
    Slice,
)
from sage.middleware.engines.port import EngineSpec, Usage

__all__ = ["Recording", "SeenCall", "SeenRequest", "read_recording", "requests"]

_UNKNOWN_OUTPUT: Final = 128  # tokens of an answer, where no answer of the whole recording was complete


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
    """One request. `deadline` is absolute; `cancelled` when its client went away."""

    job: Job
    arrived: float
    deadline: float | None
    cancelled: float | None = None
    calls: list[SeenCall] = field(default_factory=list)


@dataclass(slots=True)
class Recording:
    """A whole trace: requests by id and calls by number, both in order, and what the engines were.

    `policy` is the first that was in force; empty = the trace does not say.
    """

    requests: dict[str, SeenRequest] = field(default_factory=dict)
    calls: dict[int, SeenCall] = field(default_factory=dict)
    engines: dict[str, EngineSpec] = field(default_factory=dict)
    policy: str = ""


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


def requests(recording: Recording) -> Iterator[SimRequest]:
    """The same arrivals for another run, counted from the first.

    What only the answer would have told, its tokens, is the median of the class where no answer was complete.
    """
    start = next(iter(recording.requests.values())).arrived
    typical = _typical(recording)
    for seen in recording.requests.values():
        prompt, output = _tokens(seen, recording)
        if output is None:
            output = min(typical.get(seen.job.request_class, _UNKNOWN_OUTPUT), seen.job.max_tokens or 1 << 30)
        yield SimRequest(
            seen.arrived - start,
            seen.job,
            0 if seen.job.texts else max(1, output),
            max(1, prompt),
            None if seen.deadline is None else max(0.0, seen.deadline - seen.arrived),
            (),
            None if seen.cancelled is None else max(0.0, seen.cancelled - seen.arrived),
        )


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
            found.policy = found.policy or line.policy
        elif isinstance(line, Cancelled):
            if line.id in found.requests:
                found.requests[line.id].cancelled = line.at
        elif isinstance(line, FirstByte | Finished | Failed | Cancel) and line.attempt in found.calls:
            _progress(found.calls[line.attempt], line, now)
    return found


def _progress(call: SeenCall, line: FirstByte | Finished | Failed | Cancel, now: float) -> None:
    if isinstance(line, FirstByte):
        call.first = now
        return
    call.ended = now
    if isinstance(line, Finished):
        call.usage = line.usage


def _tokens(seen: SeenRequest, recording: Recording) -> tuple[int, int | None]:
    """Prompt and output tokens as its engines counted them; the estimate, and None, where none did.

    A call that carried texts of several requests is shared out by their estimates.
    """
    prompt, covered = 0.0, 0
    for call in seen.calls:
        if call.usage is None:
            continue
        if not seen.job.texts:
            return call.usage.prompt_tokens or seen.job.prompt_tokens, call.usage.completion_tokens or None
        weights = {piece: _weight(piece, recording) for piece in call.slices}
        for piece, weight in weights.items():
            if piece.id == seen.job.id:
                prompt += call.usage.prompt_tokens * weight / (sum(weights.values()) or 1.0)
                covered += piece.stop - piece.start
    if not covered or not prompt:
        return seen.job.prompt_tokens, None
    return round(prompt * seen.job.texts / covered), None


def _weight(piece: Slice, recording: Recording) -> float:
    """The estimated tokens of a slice."""
    owner = recording.requests.get(piece.id)
    if owner is None:
        return 0.0
    return owner.job.prompt_tokens * (piece.stop - piece.start) / max(1, owner.job.texts)


def _typical(recording: Recording) -> dict[str, int]:
    by_class: dict[str, list[int]] = {}
    for seen in recording.requests.values():
        output = _tokens(seen, recording)[1]
        if output:
            by_class.setdefault(seen.job.request_class, []).append(output)
    return {name: round(median(lengths)) for name, lengths in by_class.items()}
