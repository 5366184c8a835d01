"""The words of the control plane: requests, events that go in, actions that come out. No behaviour.

Times are seconds of one monotonic clock that the driver owns; the core never reads a clock.
"""

from __future__ import annotations

from dataclasses import dataclass

from sage.common.telemetry import RequestClass
from sage.middleware.engines.port import Capability, EngineSpec, Usage

__all__ = [
    "Action",
    "Arrived",
    "Cancelled",
    "Dispatch",
    "EngineAdded",
    "EngineDown",
    "EngineRemoved",
    "EngineUp",
    "Event",
    "Failed",
    "Finished",
    "FirstByte",
    "Job",
    "Reject",
    "Tick",
]


@dataclass(frozen=True, slots=True)
class Job:
    """What the scheduler knows of a request; the bytes stay with the driver."""

    id: str
    model: str
    request_class: RequestClass
    tenant: str
    needs: frozenset[Capability]
    body_bytes: int
    prompt_tokens: int  # estimate, never from a tokenizer
    max_tokens: int | None
    texts: int = 0  # embedding inputs


# ---- events ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Arrived:
    """A request came in; `deadline` is absolute, None = the class's own bound."""

    at: float
    job: Job
    deadline: float | None = None


@dataclass(frozen=True, slots=True)
class FirstByte:
    """The engine began to answer."""

    at: float
    id: str


@dataclass(frozen=True, slots=True)
class Finished:
    """The answer is complete."""

    at: float
    id: str
    usage: Usage


@dataclass(frozen=True, slots=True)
class Failed:
    """An attempt failed, or the driver gave the request up.

    `retryable`: no byte reached the client. `fault`: the engine is to blame, not the request and not us.
    """

    at: float
    id: str
    reason: str
    retryable: bool
    fault: bool


@dataclass(frozen=True, slots=True)
class Cancelled:
    """The client went away."""

    at: float
    id: str


@dataclass(frozen=True, slots=True)
class EngineAdded:
    """An engine is known and still starting: its model exists, and cannot be served yet."""

    at: float
    spec: EngineSpec


@dataclass(frozen=True, slots=True)
class EngineUp:
    """An engine may be sent work; it need not have been added before."""

    at: float
    spec: EngineSpec


@dataclass(frozen=True, slots=True)
class EngineDown:
    """An engine may not be sent work; what is in flight there is reported by `Failed`."""

    at: float
    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class EngineRemoved:
    """An engine gets no more work and is forgotten when its last request has ended."""

    at: float
    name: str


@dataclass(frozen=True, slots=True)
class Tick:
    """Time passed; bounds on age are checked."""

    at: float


Event = (
    Arrived
    | FirstByte
    | Finished
    | Failed
    | Cancelled
    | EngineAdded
    | EngineUp
    | EngineDown
    | EngineRemoved
    | Tick
)

# ---- actions -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Dispatch:
    """Send this request to this engine now. `reason` says why in words."""

    id: str
    engine: str
    reason: str
    attempt: int


@dataclass(frozen=True, slots=True)
class Reject:
    """Refuse this request: `status` is 429 (overload), 503 (no engine) or 502 (attempts used up)."""

    id: str
    status: int
    reason: str
    retry_after: float | None


Action = Dispatch | Reject
