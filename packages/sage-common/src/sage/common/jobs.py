"""Types of jobs, pipelines that run in the background: the serving process makes them, the command line reads
them. Times are Unix seconds.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, JsonValue, StringConstraints, model_validator

__all__ = [
    "ENDED",
    "STATES",
    "CheckpointInfo",
    "GateInfo",
    "JobDecided",
    "JobDecision",
    "JobDeleted",
    "JobGates",
    "JobInfo",
    "JobList",
    "JobResources",
    "JobSpec",
    "JobState",
    "JobStop",
    "OperatorInfo",
    "ParkedInfo",
]

JobState = Literal[
    "queued",
    "starting",
    "running",
    "pausing",
    "paused",
    "draining",
    "finished",
    "failed",
    "cancelled",
]
STATES: Final[tuple[JobState, ...]] = get_args(JobState)
ENDED: Final[frozenset[JobState]] = frozenset(("finished", "failed", "cancelled"))

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
Code = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_][\w.]*$", max_length=256)]
Seconds = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)]


class _Wire(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class JobResources(_Wire):
    """What a job takes of its node as long as it runs, as the scheduler counts it.

    It is at least what its operators ask for with their `resources`, all of them together.
    """

    cpu: float = Field(0.1, ge=0, le=4096, description="cores, in steps of 0.001")
    gpu: float = Field(0.0, ge=0, le=64, description="devices, or a share of one")
    memory: str = Field("128MiB", max_length=32, description="of the node: 2GiB, 500MB")
    gpu_memory: str = Field("", max_length=32, description="that each device must have")
    labels: dict[str, str] = Field(
        default_factory=dict, max_length=16, description="of the node, all of them"
    )


class JobSpec(_Wire):
    """The job to run: a plan, or the name of code that makes a flow."""

    plan: dict[str, Any] | None = Field(None, description="a pipeline, as in its YAML file")
    flow: Code | None = Field(None, description="module:name of a Flow, or of a function that returns one")
    name: Name | None = Field(None, description="one of its own; empty = that of the flow")
    settings: dict[str, JsonValue] = Field(
        default_factory=dict,
        max_length=64,
        description="of a plan: STEP.PARAMETER; of a function: its arguments",
    )
    services: dict[Name, Code] = Field(
        default_factory=dict,
        max_length=64,
        description="what its operators call by name: module:name of what makes each",
    )
    restart: str = Field("exponential:3", max_length=64, description="what follows a crash")
    every: Seconds = Field(10.0, description="seconds between two checkpoints")
    resources: JobResources = JobResources()
    folder: str = Field("", max_length=1024, description="absolute; where its relative paths begin")

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.plan is None) == (self.flow is None):
            raise ValueError("a job has either a plan or a flow, as module:name")
        return self


class JobStop(_Wire):
    """How to stop a job."""

    now: bool = Field(False, description="without waiting for what was read to reach its end")


class OperatorInfo(_Wire):
    """The counts of one operator; they go on from a checkpoint, but for `busy`, `wait` and `cpu`, in seconds.

    The same fields as `sage.kernel.OperatorReport`.
    """

    name: str
    verb: str
    items_in: int
    items_out: int
    diverted: int
    skipped: int
    retries: int
    in_flight: int
    busy: float
    wait: float
    hits: int = Field(0, description="of its cache")
    misses: int = 0
    cpu: float = Field(0.0, description="seconds of its workers")


class CheckpointInfo(_Wire):
    """The newest checkpoint of a job."""

    number: int
    at: float


class JobInfo(_Wire):
    """One job."""

    id: str
    name: str
    flow: str = Field(description="the flow's own name")
    source: str = Field("", description="the code that makes it; empty = it came as a plan")
    services: dict[str, str] = Field(default_factory=dict, description="the code behind each, by name")
    state: JobState
    detail: str = Field("", description="why it is in this state, in words")
    created_at: float
    started_at: float | None = Field(None, description="when it ran first")
    ended_at: float | None = None
    restart: str
    restarts: int = Field(0, description="times that it was started again after a crash")
    every: float
    resources: JobResources
    node: str = Field("", description="where it runs, or ran last")
    placement: str = Field("", description="why there, or what it waits for")
    pid: int | None = None
    stuck_s: float = Field(0.0, description="how long its event loop has not moved")
    checkpoint: CheckpointInfo | None = None
    operators: list[OperatorInfo] = Field(default_factory=list)
    gates: dict[str, int] = Field(
        default_factory=dict, description="how many records wait for a decision, by gate"
    )


class JobList(_Wire):
    """All jobs, oldest first, without their operators."""

    jobs: list[JobInfo]


class JobDeleted(_Wire):
    """A job that is no more."""

    id: str
    deleted: Literal[True] = True


class ParkedInfo(_Wire):
    """A record that waits for a decision."""

    id: str
    record: JsonValue = Field(description="as JSON; as text where it is none, or is large")
    since: float
    until: float = Field(description="when nobody is waited for any more")


class GateInfo(_Wire):
    """The records that wait at one gate; the longest first, and not all of them where they are many."""

    name: str
    waiting: int
    records: list[ParkedInfo]


class JobGates(_Wire):
    """The gates of a job."""

    gates: list[GateInfo]


class JobDecision(_Wire):
    """What is to become of a record at a gate."""

    gate: Annotated[str, Field(max_length=256)]
    decision: Literal["approve", "reject"]
    value: JsonValue = Field(None, description="goes on in its place, if it is given at all")
    reason: str = Field("", max_length=1024, description="why it is rejected")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.decision == "reject" and "value" in self.model_fields_set:
            raise ValueError("a record that is rejected has no value to go on with")
        if self.decision == "approve" and self.reason:
            raise ValueError("a reason is for a record that is rejected")
        return self


class JobDecided(_Wire):
    """A decision that is part of a checkpoint: the record does not come back."""

    id: str
    gate: str
    decision: Literal["approve", "reject"]
