"""The words of the control plane: requests, events that go in, actions that come out. No behaviour.

Times are seconds of one monotonic clock that the driver owns; the core never reads a clock. Events and
actions are tagged structs: a trace is their JSON, one per line, and a replay reads them back.
"""

from __future__ import annotations

import msgspec

from sage.common.telemetry import RequestClass
from sage.middleware.engines.port import Capability, EngineSpec, Usage

__all__ = [
    "Action",
    "Arrived",
    "Cancel",
    "Cancelled",
    "Dispatch",
    "EngineAdded",
    "EngineChanged",
    "EngineDown",
    "EngineRemoved",
    "EngineUp",
    "Event",
    "Failed",
    "Finished",
    "FirstByte",
    "GaveUp",
    "Job",
    "Progress",
    "Reject",
    "RestartEngine",
    "Slice",
    "Slo",
    "StartEngine",
    "StopEngine",
    "Tick",
]


class Slo(msgspec.Struct, frozen=True, gc=False):
    """What a request should meet, in seconds; None = not asked for.

    `ttft`: arrival to the first token. `tpot`: mean gap between tokens. `total`: arrival to the last byte.
    """

    ttft: float | None = None
    tpot: float | None = None
    total: float | None = None


class Job(msgspec.Struct, frozen=True, gc=False):
    """What the scheduler knows of a request; the bytes stay with the driver."""

    id: str
    model: str
    request_class: RequestClass
    tenant: str
    needs: frozenset[Capability]
    body_bytes: int
    prompt_tokens: int  # a rule of thumb where `prompt_bytes` is given; else exact
    max_tokens: int | None
    texts: int = 0  # embedding inputs, reranked documents
    prompt_bytes: int = 0  # of the text that the engine reads; 0 = `prompt_tokens` is exact
    slo: Slo | None = None  # asked for by the caller; None = that of the class
    priority: int = 0  # higher goes first among equals of a tenant
    blocks: tuple[int, ...] = ()  # chained hashes of the prompt's 256-byte blocks, for prefix affinity
    batch_key: str = ""  # embedding requests of one key may share a call; empty = goes alone
    stream: bool = False
    hedgeable: bool = False  # short and idempotent
    parent: str = ""  # the request whose deadline this one shares
    explain: bool = False  # the caller wants the whole list of candidates kept
    asked: str = ""  # the name that the caller used, where `model` was chosen for it
    fallback: str = ""  # why the models before this one could not serve it


# ---- events ------------------------------------------------------------------------------------------------


class Event(msgspec.Struct, frozen=True, gc=False, tag=True):
    """Something happened at time `at`."""

    at: float


class Arrived(Event, frozen=True, gc=False, tag=True):
    """A request came in; `deadline` is absolute and hard, None = it may take what it takes."""

    job: Job
    deadline: float | None = None


class FirstByte(Event, frozen=True, gc=False, tag=True):
    """An engine began to answer an attempt that streams: its first token is there."""

    attempt: int


class Progress(Event, frozen=True, gc=False, tag=True):
    """These attempts have had bytes from their engine since the last report."""

    attempts: tuple[int, ...]


class Finished(Event, frozen=True, gc=False, tag=True):
    """An attempt's answer is complete."""

    attempt: int
    usage: Usage


class Failed(Event, frozen=True, gc=False, tag=True):
    """An attempt failed.

    `retryable`: no byte reached the client. `fault`: the engine is to blame, not the request and not us.
    `refused`: nothing listened there.
    """

    attempt: int
    reason: str
    retryable: bool
    fault: bool
    refused: bool = False


class Cancelled(Event, frozen=True, gc=False, tag=True):
    """The client of a request went away."""

    id: str


class GaveUp(Event, frozen=True, gc=False, tag=True):
    """The driver ended a request on our side: a hard deadline, a shutdown."""

    id: str
    reason: str


class EngineAdded(Event, frozen=True, gc=False, tag=True):
    """An engine is known and still starting: its model exists, and cannot be served yet."""

    spec: EngineSpec


class EngineUp(Event, frozen=True, gc=False, tag=True):
    """An engine may be sent work; it need not have been added before."""

    spec: EngineSpec


class EngineChanged(Event, frozen=True, gc=False, tag=True):
    """A known engine is described anew, and otherwise as it was: up or down, with what runs there."""

    spec: EngineSpec


class EngineDown(Event, frozen=True, gc=False, tag=True):
    """An engine may not be sent work; what is in flight there is reported by `Failed`.

    `crashed`: its process ended by itself. `returning`: it is made anew, and what waits for it may wait on.
    """

    name: str
    reason: str
    crashed: bool = False
    returning: bool = False


class EngineRemoved(Event, frozen=True, gc=False, tag=True):
    """An engine gets no more work and is forgotten when its last request has ended."""

    name: str


class Tick(Event, frozen=True, gc=False, tag=True):
    """Time passed: whatever `Core.next_wake` was waiting for is looked at."""


# ---- actions -----------------------------------------------------------------------------------------------


class Slice(msgspec.Struct, frozen=True, gc=False):
    """Texts `start` to `stop` of a request's input; of a generation the whole, 0 to 1."""

    id: str
    start: int
    stop: int


class Action(msgspec.Struct, frozen=True, gc=False, tag=True):
    """Something that the driver must do."""


class Dispatch(Action, frozen=True, gc=False, tag=True):
    """Send these slices to this engine in one call now. `reason` says why in words.

    `threads`: how many threads an engine that can should use for it; 0 = its own. `hedge`: the same slices
    run as another attempt already; the first answer counts.
    """

    attempt: int
    engine: str
    slices: tuple[Slice, ...]
    reason: str
    threads: int = 0
    hedge: bool = False


class Reject(Action, frozen=True, gc=False, tag=True):
    """Refuse this request: `status` is 429 (overload), 503 (no engine) or 502 (attempts used up).

    A `retry_after` is in seconds.
    """

    id: str
    status: int
    reason: str
    retry_after: float | None


class Cancel(Action, frozen=True, gc=False, tag=True):
    """Break this attempt off: nobody wants its answer any more. No event follows about it."""

    attempt: int


class StartEngine(Action, frozen=True, gc=False, tag=True):
    """Start one more engine like the configured one called `template`, as `name`."""

    template: str
    name: str
    reason: str


class StopEngine(Action, frozen=True, gc=False, tag=True):
    """Stop an engine that was drained: nothing runs there any more."""

    name: str
    reason: str


class RestartEngine(Action, frozen=True, gc=False, tag=True):
    """End an engine's process, which hangs, and start it again."""

    name: str
    reason: str
