"""Types of the admin API: the gateway serves them, the command line and the studio read them."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = [
    "Decision",
    "DecisionList",
    "EngineList",
    "EngineState",
    "EngineStatus",
    "PolicyStatus",
    "QueueStatus",
    "RunInfo",
    "StackStatus",
]

EngineState = Literal["starting", "ready", "degraded", "draining", "stopped", "failed"]


class _Wire(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class RunInfo(_Wire):
    """What a client on this machine needs to find the running stack (`SagePaths.run_file`)."""

    pid: int
    version: str
    base_url: str = Field(description="OpenAI base URL, ends in /v1")
    admin_url: str
    health_url: str
    started_at: float = Field(description="Unix seconds")


class EngineStatus(_Wire):
    """One engine as the control plane sees it."""

    name: str
    kind: str
    model: str = Field(description="the id that clients ask for")
    task: Literal["generate", "embed"] = Field(description="what it is asked for: text, or vectors")
    state: EngineState
    url: str
    pid: int | None = None
    cores: list[int] = Field(default_factory=list, description="CPU cores it may use; empty = not pinned")
    running: int = Field(0, description="requests at the engine now")
    max_running: int
    served: int = 0
    failed: int = 0
    restarts: int = 0
    random_weights: bool = Field(False, description="its text means nothing: random weights")
    detail: str = Field("", description="why it is in this state, in words")


class EngineList(_Wire):
    """All engines."""

    engines: list[EngineStatus]


class QueueStatus(_Wire):
    """One class's queue."""

    request_class: str
    waiting: int
    waiting_bytes: int
    oldest_s: float
    shed: int
    completed: int
    failed: int


class PolicyStatus(_Wire):
    """The policy in force."""

    name: str
    available: list[str]


class StackStatus(_Wire):
    """Everything `sage status` prints."""

    version: str
    uptime_s: float
    policy: str
    engines: list[EngineStatus]
    queues: list[QueueStatus]


class Decision(_Wire):
    """What the control plane did with one request, and how it went. Times in seconds."""

    request_id: str
    at: float = Field(description="arrival, Unix seconds")
    request_class: str
    tenant: str
    model: str
    route: str
    policy: str
    engine: str | None = Field(description="None when it was never placed")
    reason: str = Field(description="why this engine, or why not served, in words")
    outcome: Literal["waiting", "running", "done", "failed", "rejected", "cancelled"]
    queue_s: float | None = None
    ttft_s: float | None = Field(None, description="arrival to first answer byte")
    latency_s: float | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    attempts: int = 0


class DecisionList(_Wire):
    """The newest decisions, newest first."""

    decisions: list[Decision]
