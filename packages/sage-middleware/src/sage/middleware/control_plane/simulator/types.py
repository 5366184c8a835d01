"""What goes into a simulated run and what comes out of it. Times are virtual seconds from its start.

All output is of a model, not of a machine: it has `simulated` in Python and `"label": "SIMULATED"` in JSON.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Final, Literal

import msgspec

from sage.middleware.control_plane.records import Outcome
from sage.middleware.control_plane.types import Job, Slo

__all__ = ["Client", "EngineResult", "RequestResult", "Result", "SimRequest"]

LABEL: Final = "SIMULATED"


class SimRequest(msgspec.Struct, frozen=True, gc=False):
    """One request of a workload: what the scheduler is told in `job`, and what is true.

    `at`: arrival; of a `follow` the pause after its predecessor is done, which must have been served. It
    arrives with a `deadline` (hard) in seconds after its arrival, and its client goes away `cancel_after`
    seconds after it if it is not done by then. `output_tokens` is 0 for embeddings. Ids are unique in a run.
    A `client` goes on with a request of its own when this one ended.
    """

    at: float
    job: Job
    output_tokens: int
    prompt_tokens: int  # as the engine counts them; `job.prompt_tokens` is the estimate
    deadline: float | None = None
    follow: tuple[SimRequest, ...] = ()
    cancel_after: float | None = None
    client: Client | None = None


class Client(msgspec.Struct, frozen=True, gc=False, eq=False):
    """Whoever sends the next request when the last one ended, however it did: closed loop.

    It takes them from `turns`, where `at` is the pause before each, and sends none at or after `until`. When
    one was not served it waits for as long as it was told to, 0.1 s at least.
    """

    until: float
    turns: Iterator[SimRequest]


class RequestResult(msgspec.Struct, frozen=True, gc=False, tag_field="label", tag=LABEL):
    """How one request went. A time is None where it was never reached.

    `queue_s`: arrival to its (last) dispatch; `ttft_s`: arrival to the first byte; `tpot_s`: mean gap between
    tokens; `total_s`: arrival to its end, whatever the end. `engine`: where it ran last. `slo`: its goal.
    `unsent` is the outcome of a step that never came because an earlier one of its chain was not served.
    """

    simulated: ClassVar[Literal[True]] = True

    id: str
    request_class: str
    tenant: str
    arrived: float
    outcome: Outcome | Literal["unsent"]
    engine: str | None
    queue_s: float | None
    ttft_s: float | None
    tpot_s: float | None
    total_s: float
    output_tokens: int  # that reached the client
    attempts: int
    prompt_tokens: int
    slo: Slo
    reason: str = ""  # in the words of the core
    predicted_s: float = 0.0  # by the choice: seconds to the first token or answer; 0 = not predicted


class EngineResult(msgspec.Struct, frozen=True, tag_field="label", tag=LABEL):
    """What one engine did. `busy_s` over the run's `end_s` is its utilisation."""

    simulated: ClassVar[Literal[True]] = True

    name: str
    kind: str
    state: str  # at the end
    busy_s: float
    calls: int
    finished: int
    failed: int
    cancelled: int
    prompt_tokens: int  # computed
    cached_tokens: int  # found in the prefix cache instead
    output_tokens: int
    preemptions: int
    starts: int


class Result(msgspec.Struct, frozen=True, tag_field="label", tag=LABEL):
    """A whole run. Equal arguments of `simulate` give it again, `wall_s` aside."""

    simulated: ClassVar[Literal[True]] = True

    policy: str
    fleet: str
    seed: int
    requests: list[RequestResult]  # by arrival
    engines: list[EngineResult]
    events: int  # that the core was told
    end_s: float  # virtual time of the last event
    wall_s: float  # what the run took
